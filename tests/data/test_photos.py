"""Photos as somebody hands them over: which files, in which order, and their pixels in batches."""

import os
import shutil
from concurrent.futures import Future

import numpy as np
import pytest
from PIL import Image
from small_copies import picture

from cpsd_lib.data import BadImage, decode, decode_batches, find_photos
from cpsd_lib.data.images import pixels
from cpsd_lib.data.images.pixels import AHEAD, CHUNK, POOL_SECONDS, OnTheFly


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, with a folder of photos and other files."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.JPG", "photos/a.png", "photos/.hidden.png", "photos/deep/er/c.webp", "photos/.thumbs/d.png"):
        picture(tmp_path / name)
    (tmp_path / "photos" / "notes.txt").write_text("a.png\n")
    (tmp_path / "photos" / "movie.mp4").write_bytes(b"")
    return tmp_path


def test_a_folder_stands_for_the_images_below_it_in_order_and_counts_what_it_leaves_out(here):
    expected = ["photos/a.png", "photos/b.JPG", "photos/deep/er/c.webp"]
    assert find_photos(["photos"]) == (expected, 2)
    assert find_photos([here / "photos"])[0] == [str(here / name) for name in expected]
    assert find_photos(["photos/b.JPG", "photos", "photos/movie.mp4"]) == (
        ["photos/b.JPG", "photos/a.png", "photos/deep/er/c.webp", "photos/movie.mp4"],
        2,
    )


def test_linked_folders_are_followed_and_a_circle_ends(here):
    shutil.move(here / "photos" / "deep", here / "elsewhere")
    os.symlink(here / "elsewhere", here / "photos" / "link")
    os.symlink(here / "photos", here / "photos" / "link" / "back")
    assert find_photos(["photos"])[0] == ["photos/a.png", "photos/b.JPG", "photos/link/er/c.webp"]


def test_a_list_names_paths_from_the_working_folder_or_else_from_its_own(here):
    (here / "photos" / "list.txt").write_bytes("\ufeffphotos/a.png\r\n  b.JPG \n\nmissing.jpg\n".encode())
    assert find_photos(["photos/list.txt"])[0] == ["photos/a.png", "photos/b.JPG", "missing.jpg"]


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("nowhere", FileNotFoundError, "there is no file or folder nowhere"),
        ("void", ValueError, r"no image is in the folder void or below it \(1 other file\); looked for .*\.jpg"),
        ("void/empty.txt", ValueError, "is empty, expected the path of a photo in each line"),
        ("void/bytes.txt", ValueError, "is not UTF-8 text .*, expected the path of a photo"),
    ],
)
def test_what_stands_for_no_photo_is_refused(here, name, error, words):
    (here / "void").mkdir()
    (here / "void" / "empty.txt").write_text("\n")
    if "bytes" in name:
        (here / "void" / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(error, match=words):
        find_photos([name])


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_hold_the_pixels_of_decode_in_order_and_what_cannot_be_read_beside_them(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(pixels, "POOL_SECONDS", 0.0)  # processes at once
    paths = [str(tmp_path / f"{number}.png") for number in range(21)]
    for path in paths:
        picture(tmp_path / path)
    os.truncate(paths[4], 0)
    os.remove(paths[20])
    batches = list(decode_batches(paths, 16, 8, workers))
    assert [len(indices) for indices, _, _ in batches] == [7, 8, 4]
    places = [index for indices, _, _ in batches for index in indices]
    assert places == [number for number in range(21) if number not in (4, 20)]
    expected = np.stack([decode(paths[place], 16) for place in places])
    assert np.array_equal(np.concatenate([of_batch for _, of_batch, _ in batches]), expected)
    bad = {index: reason for _, _, of_batch in batches for index, reason in of_batch.items()}
    assert bad == {4: "the file is empty (0 bytes)", 20: "the file does not exist"}


def test_a_batch_may_have_reasons_alone(tmp_path):
    ((indices, of_batch, bad),) = decode_batches([str(tmp_path / "none.png")], 16, 8)
    assert indices == [] and of_batch.shape == (0, 3, 16, 16) and list(bad) == [0]


def test_pictures_and_arrays_are_decoded_as_their_file(tmp_path):
    picture(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    expected = decode(tmp_path / "a.png", 16)
    for one in (tmp_path / "a.png", str(tmp_path / "a.png"), image, np.asarray(image)):
        assert np.array_equal(decode(one, 16), expected)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(decode(grey, 8), np.stack([grey] * 3))
    for one, words in (
        (np.zeros((3, 8, 8)), "Cannot handle this data type"),
        (3, "expected str, bytes or os.PathLike"),
    ):
        with pytest.raises(BadImage, match=words):
            decode(one, 8)


def test_worker_processes_stay_a_bounded_number_of_images_ahead_of_who_reads_them():
    class Pool:
        """Does a task when it is handed over, as processes faster than the reader would."""

        submitted = 0

        def submit(self, work, task):
            self.submitted += 1
            done = Future()
            done.set_result(task[1])
            return done

    images = OnTheFly(None, 10_000, 8, workers=2)
    images._pool, images._seconds = pool, _ = Pool(), POOL_SECONDS + 1
    chunks = images.in_chunks(None, range(10_000))
    for read in range(1, 100):
        assert next(chunks)[0] == (read - 1) * CHUNK
        assert pool.submitted <= read + AHEAD
    assert sum(len(chunk) for chunk in chunks) == 10_000 - 99 * CHUNK


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read any folder")
def test_a_folder_that_cannot_be_read_is_an_error_and_not_left_out(tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    try:
        with pytest.raises(PermissionError, match="closed"):
            find_photos([str(tmp_path)])
    finally:
        (tmp_path / "closed").chmod(0o700)
