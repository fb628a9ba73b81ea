"""A cache larger than memory is streamed; without a cache the same pixels are decoded when they are read."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from small_copies import picture

from cpsd_lib.data.dataset import open_dataset
from cpsd_lib.data.images import pixels
from cpsd_lib.data.images.cache import build
from cpsd_lib.data.images.pixels import OnTheFly
from cpsd_lib.data.scenes.scenes import Scenes
from cpsd_lib.training.batches import Batches, predict_logits
from cpsd_lib.workbench.params import DataParams

SETTINGS = {"batch_size": 12, "view": "default", "seed": 0, "device": "cpu"}


@pytest.fixture
def photos(tmp_path):
    lines = ["file_name,split,labels"]
    for number in range(24):
        picture(tmp_path / "photos" / "images" / f"{number}.png")
        lines.append(f"{number}.png,{'test' if number % 3 == 0 else 'train'},{'cat' if number % 2 else 'dog'}")
    (tmp_path / "photos" / "annotations.csv").write_text("\n".join(lines))
    return DataParams(kind="csv", root=str(tmp_path / "photos"), size=16)


def without_cache(data):
    return data.model_copy(update={"cache": "none"})


def test_images_come_in_the_order_of_their_indices_and_a_file_cut_off_later_is_mended(tmp_path):
    scenes, indices = Scenes(images=100, size=16), np.array([7, 0, 29, 7, 12])
    images, _ = build(scenes.load, 100, 16, "key", tmp_path)
    drawn = np.stack([scenes.load(index) for index in indices])
    for key in (indices, indices.tolist()):
        assert type(images[key]) is np.ndarray and np.array_equal(images[key], drawn)
    assert images[[]].shape == images[5:5].shape == (0, 3, 16, 16)
    assert np.array_equal(images[-71], scenes.load(29)) and np.array_equal(images[28:31][1], scenes.load(29))
    os.truncate(images.path, 29 * (3 * 16**2 + 4) + 5)
    assert np.array_equal(images[indices], drawn)


@pytest.mark.parametrize("kind", ["csv", "scenes"])
def test_without_a_cache_key_views_and_logits_are_the_same_bit_for_bit(tmp_path, photos, kind):
    data = photos if kind == "csv" else DataParams(kind="scenes", size=16, images=100)
    cached, fly = open_dataset(data, tmp_path / "cache"), open_dataset(without_cache(data), tmp_path / "none")
    assert cached.key == fly.key and isinstance(fly.images, OnTheFly) and not list(tmp_path.glob("none/**/images.u8"))
    indices = cached.table.indices("train")
    one, other = (Batches(d.images, d.table.targets, indices, **SETTINGS) for d in (cached, fly))
    for batch, same in zip(one.epoch(1), other.epoch(1), strict=True):
        assert np.array_equal(batch.indices, same.indices) and np.array_equal(batch.images, same.images)
    looks = [
        predict_logits([lambda x: x.flatten(1)], d.images, indices, "cpu", batch_size=20)[0] for d in (cached, fly)
    ]
    assert np.array_equal(*looks)


def test_its_first_axis_is_indexed_like_that_of_an_array(monkeypatch):
    monkeypatch.setattr(pixels, "POOL_SECONDS", 0)
    scenes = Scenes(images=100, size=16)
    expected = np.stack([scenes.load(index) for index in range(100)])
    images = OnTheFly(scenes.load, 100, 16, workers=2)
    assert images.shape == expected.shape and len(images) == 100 and np.array_equal(images[:], expected)
    for key in (5, -1, slice(3, 90, 7), [4, 4, 0], np.array([9]), np.arange(100) % 9 == 0):
        assert np.array_equal(images[key], expected[key]) and images[key].dtype == np.uint8
    assert images[[]].shape == (0, 3, 16, 16)
    with pytest.raises(IndexError):
        images[100]
    images.close()


def test_a_broken_photo_is_found_before_a_training_with_or_without_a_cache(tmp_path, photos):
    (tmp_path / "photos" / "images" / "5.png").write_bytes(b"no photo")
    for data in (photos, without_cache(photos)):
        with pytest.raises(ValueError, match=r"1 of 24 image files cannot be used:\n  5\.png"):
            open_dataset(data, tmp_path / "cache")
    skipping = [d.model_copy(update={"bad_files": "skip"}) for d in (photos, without_cache(photos))]
    cached, fly = (open_dataset(data, tmp_path / "cache") for data in skipping)
    assert cached.skipped == fly.skipped and cached.skipped[0][0] == "5.png" and cached.key == fly.key


@pytest.mark.skipif(sys.platform != "linux", reason="the peak memory is read from /proc")
def test_a_cache_of_49_gb_does_not_need_its_size_in_memory(tmp_path):
    """82,081 images of 448 pixels, in a sparse file: 600 batches of 32 read 12 GB of it."""
    program = """
        import sys
        import numpy as np
        from cpsd_lib.data.images.cache import CHECKSUM, Cached
        from cpsd_lib.training.batches import Batches, predict_logits
        shape = (82_081, 3, 448, 448)
        path = sys.argv[1]
        with open(path, "wb") as file:
            file.truncate(int(np.prod(shape)) + CHECKSUM * shape[0])
        images = Cached(path, None, shape[0], 448, bad=range(shape[0]))  # not compared: it is all black
        batches = Batches(images, np.zeros((shape[0], 1), np.int8), np.arange(shape[0]), batch_size=32, view="plain",
                          seed=0, device="cpu")
        def peak():  # of this program alone; getrusage tells that of the process it was started from as well
            return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
        before = peak()
        for indices in batches.order(0)[:600]:
            batches._gather(indices)
        for batch, _ in zip(batches.epoch(1), range(3)):
            assert batch.images.shape == (32, 3, 448, 448)
        print(before, peak())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "images.u8")]
    before, after = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())  # KiB
    assert after < 2 * 2**20 and after - before < 2**19
    assert (tmp_path / "images.u8").stat().st_size == 49_421_955_072 + 4 * 82_081
