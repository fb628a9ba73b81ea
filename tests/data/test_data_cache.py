import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cpsd_lib
from cpsd_lib.data.images import cache, pixels
from cpsd_lib.data.images.cache import build
from cpsd_lib.data.images.decode import MAX_PIXELS, BadImage, decode_from

SIZE = 4


def picture(index):
    return np.random.default_rng(index).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)


@dataclass
class Logged:
    """A loader that logs the index of each image it loads, in a file that several processes may share."""

    log: Path
    stop_after: int = 10**9
    pause: float = 0.0
    bad: tuple = ()
    gate: Path | None = None  # until there is this file image 100 is not ready

    def __call__(self, index):
        if len(loaded(self.log)) >= self.stop_after:
            raise KeyboardInterrupt
        with open(self.log, "a") as file:
            file.write(f"{index}\n")
        time.sleep(self.pause)
        if self.gate and index == 100:
            wait_until(self.gate.exists)
        if index in self.bad:
            raise BadImage(f"reason {index}")
        return picture(index)


def loaded(log):
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def same(built, count, bad=()):
    images, reasons = built
    assert reasons == {index: f"reason {index}" for index in bad}
    expected = np.stack([picture(index) * (index not in bad) for index in range(count)])
    return images.shape == expected.shape and (images[:] == expected).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cache_holds_every_image_and_the_reason_of_every_bad_one(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(pixels, "POOL_SECONDS", 0)
    load = Logged(tmp_path / "log", bad=(3, 90))
    built = build(load, 100, SIZE, "key", tmp_path / "root", workers)
    assert same(built, 100, bad=(3, 90)) and built[0].dtype == np.uint8 and len(built[0]) == 100
    assert sorted(loaded(load.log)) == list(range(100))
    again = build(load, 100, SIZE, "key", tmp_path / "root", workers)
    assert same(again, 100, bad=(3, 90))
    assert len(loaded(load.log)) == 100


def test_a_complete_cache_is_opened_without_a_lock(tmp_path):
    load = Logged(tmp_path / "log")
    build(load, 5, SIZE, "key", tmp_path)
    with cache._lock(tmp_path / "key" / "images.json"):
        assert same(build(load, 5, SIZE, "key", tmp_path), 5)


def test_an_interrupted_build_goes_on_with_the_pending_images_only(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        build(Logged(log, stop_after=40, bad=(7,)), 100, SIZE, "key", tmp_path)
    assert done_images(tmp_path) == 40
    assert same(build(Logged(log, bad=(7,)), 100, SIZE, "key", tmp_path), 100, bad=(7,))
    assert loaded(log) == list(range(100))


def test_an_error_of_the_loader_stops_the_build_and_keeps_what_is_done(tmp_path):
    def load(index):
        if index == 21:
            raise OSError("the disk is gone")
        return picture(index)

    with pytest.raises(OSError, match="the disk is gone"):
        build(load, 30, SIZE, "key", tmp_path)
    log, whole_chunks = tmp_path / "log", 21 // pixels.CHUNK * pixels.CHUNK
    assert same(build(Logged(log), 30, SIZE, "key", tmp_path), 30) and loaded(log) == list(range(whole_chunks, 30))


class Deadly(Logged):
    def __call__(self, index):
        if multiprocessing.parent_process() and index == 50:
            os._exit(9)
        return super().__call__(index)


def test_a_worker_that_dies_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "POOL_SECONDS", 0)
    with pytest.raises(RuntimeError, match=r"a decoding process died.*What a cache holds already is kept"):
        build(Deadly(tmp_path / "log"), 200, SIZE, "key", tmp_path, workers=2)
    kept, load = done_images(tmp_path), Logged(tmp_path / "second")
    assert same(build(load, 200, SIZE, "key", tmp_path), 200)
    assert kept >= pixels.CHUNK and sorted(loaded(load.log)) == list(range(kept, 200))


def start(folder, log, workers, gate=None):
    """Build in a process of its own, which syncs at once and starts its workers at once."""
    opens = f"Path({str(gate)!r})" if gate else None
    code = (
        "from pathlib import Path; from cpsd_lib.data.images import cache, pixels\n"
        "from test_data_cache import Logged, SIZE\n"
        "if __name__ == '__main__':\n"
        "    cache.SYNC_SECONDS = pixels.POOL_SECONDS = 0\n"
        f"    load = Logged(Path({str(log)!r}), pause=0.015, gate={opens})\n"
        f"    cache.build(load, 200, SIZE, 'key', {str(folder)!r}, {workers})\n"
    )
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def wait_until(true):
    for _ in range(30_000):  # far more than it takes: a busy machine is no fault
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("waited 300 s in vain")


def done_images(folder):
    state = folder / "key" / "images.json"
    return json.loads(state.read_text())["done"] if state.exists() else 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_goes_on_with_the_pending_images_only(tmp_path, workers):
    process = start(tmp_path / "root", tmp_path / "log", workers)
    wait_until(lambda: done_images(tmp_path / "root") >= 40)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Workers hold the error pipe open: its end says that the orphans have gone too.
    process.communicate(timeout=300)
    kept, load = done_images(tmp_path / "root"), Logged(tmp_path / "second")
    assert 40 <= kept < 200
    assert same(build(load, 200, SIZE, "key", tmp_path / "root"), 200)
    assert sorted(loaded(load.log)) == list(range(kept, 200))


def test_two_processes_that_want_one_cache_decode_each_image_once(tmp_path):
    first = start(tmp_path / "root", tmp_path / "log", workers=1, gate=tmp_path / "gate")
    wait_until(lambda: loaded(tmp_path / "log"))
    second = start(tmp_path / "root", tmp_path / "log", workers=1)
    output = second.stdout.readline()
    assert f"process {first.pid} on " in output and "waiting for it" in output
    (tmp_path / "gate").touch()
    finish(second), finish(first)
    assert sorted(loaded(tmp_path / "log")) == list(range(200))
    assert same(build(Logged(tmp_path / "log"), 200, SIZE, "key", tmp_path / "root"), 200)
    assert len(loaded(tmp_path / "log")) == 200


@pytest.mark.parametrize("state", [True, False])
def test_a_cache_whose_pixels_were_cut_off_is_built_again(tmp_path, state):
    log = tmp_path / "log"
    build(Logged(log), 5, SIZE, "key", tmp_path)
    os.truncate(tmp_path / "key" / "images.u8", 10)
    if not state:
        (tmp_path / "key" / "images.json").unlink()
    assert same(build(Logged(log), 5, SIZE, "key", tmp_path), 5)
    assert len(loaded(log)) == 10


def flip(path, place):
    """Change one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("place", [0, 3 * SIZE**2 - 1, 3 * SIZE**2, 3 * SIZE**2 + 3])  # of its pixels, of its checksum
def test_an_image_whose_bytes_changed_is_decoded_again_when_it_is_first_read_and_a_line_says_so(
    tmp_path, capsys, place
):
    log, length = tmp_path / "log", 3 * SIZE**2 + cache.CHECKSUM
    build(Logged(log), 9, SIZE, "key", tmp_path)
    flip(tmp_path / "key" / "images.u8", 4 * length + place)
    images, _ = build(Logged(log), 9, SIZE, "key", tmp_path)
    assert len(loaded(log)) == 9
    assert (images[[5, 4, 0, 4]] == np.stack([picture(index) for index in (5, 4, 0, 4)])).all()
    assert loaded(log)[9:] == [4, 4]  # once for the file, once for the reader
    assert capsys.readouterr().out == f"{tmp_path / 'key' / 'images.u8'} was damaged: its image 4 is decoded again\n"
    assert same(build(Logged(log), 9, SIZE, "key", tmp_path), 9) and len(loaded(log)) == 11  # the file is mended


def test_a_damaged_image_that_cannot_be_decoded_any_more_is_an_error(tmp_path):
    build(Logged(tmp_path / "log"), 9, SIZE, "key", tmp_path)
    flip(tmp_path / "key" / "images.u8", 0)
    images, _ = build(Logged(tmp_path / "log", bad=(0,)), 9, SIZE, "key", tmp_path)
    with pytest.raises(ValueError, match=r"images\.u8 is damaged, and its image 0 cannot be decoded again: reason 0"):
        images[[0]]


@pytest.mark.parametrize(
    "change", [{"done": 80}, {"bad": {}}, {"bad": {"3": "x", "5": "y"}}, {"done": None}, [1], "garbage", None]
)
def test_a_record_of_what_is_done_that_was_changed_is_not_believed(tmp_path, capsys, change):
    log, path = tmp_path / "log", tmp_path / "key" / "images.json"
    with pytest.raises(KeyboardInterrupt):
        build(Logged(log, stop_after=40, bad=(3,)), 80, SIZE, "key", tmp_path)
    state = json.loads(path.read_text())
    path.write_text(
        change if isinstance(change, str) else json.dumps(state | change if isinstance(change, dict) else change)
    )
    assert same(build(Logged(log, bad=(3,)), 80, SIZE, "key", tmp_path), 80, bad=(3,))
    assert "is damaged, or of another version: its images are decoded again" in capsys.readouterr().out


def test_a_build_killed_after_its_new_pixels_were_laid_out_starts_anew_and_leaves_none_black(tmp_path, monkeypatch):
    log = tmp_path / "log"
    build(Logged(log), 20, SIZE, "key", tmp_path)
    os.truncate(tmp_path / "key" / "images.u8", 10)
    monkeypatch.setattr(cache.support, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(Logged(log), 20, SIZE, "key", tmp_path)
    monkeypatch.undo()
    assert same(build(Logged(log), 20, SIZE, "key", tmp_path), 20)


def test_a_killed_look_goes_on_where_it_was_and_stores_no_pixels(tmp_path):
    log, images = tmp_path / "log", None
    with pytest.raises(KeyboardInterrupt):
        build(Logged(log, stop_after=40, bad=(2,)), 60, SIZE, "key", tmp_path, keep=False)
    for _ in range(2):
        images, bad = build(Logged(log, bad=(2, 53)), 60, SIZE, "key", tmp_path, keep=False)
        assert bad == {2: "reason 2", 53: "reason 53"}
    assert loaded(log) == list(range(60)) and not (tmp_path / "key" / "images.u8").exists()
    assert (images[7] == picture(7)).all()
    assert same(build(Logged(log, bad=(2, 53)), 60, SIZE, "key", tmp_path), 60, bad=(2, 53))  # a cache after all


def test_a_disk_that_is_too_small_says_how_many_bytes_are_needed(tmp_path):
    with pytest.raises(OSError, match=r"need 3,000,004,000,000,000 bytes .*free some space") as caught:
        build(Logged(tmp_path / "log"), 10**9, 1000, "key", tmp_path)
    assert caught.value.errno is not None
    assert not (tmp_path / "key" / "images.u8").exists()


def test_image_files_of_all_kinds_go_through_the_cache(tmp_path):
    Image.new("RGB", (9, 7), (10, 20, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").touch()
    load = partial(decode_from, [tmp_path / name for name in ("a.png", "b.jpg", "none.jpg")], SIZE, MAX_PIXELS)
    images, bad = build(pickle.loads(pickle.dumps(load)), 3, SIZE, "key", tmp_path)
    assert images[0, :, 1, 1].tolist() == [10, 20, 30]
    assert bad == {1: "the file is empty (0 bytes)", 2: "the file does not exist"}


def test_a_script_without_a_main_guard_is_told_so_instead_of_waiting_for_itself(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from functools import partial\nfrom cpsd_lib.data.images import cache, pixels\n"
        "from cpsd_lib.data.images.decode import decode_from\npixels.POOL_SECONDS = 0\n"
        "load = partial(decode_from, [f'{n:099}' for n in range(2000)], 16, 10**9)\n"  # 200 KB for each worker
        f"cache.build(load, 2000, 16, 'key', {str(tmp_path)!r}, workers=2)\n"
    )
    path = os.pathsep.join([str(Path(cpsd_lib.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 1 and "put what it does under `if __name__ == '__main__':`" in done.stderr
    assert "a decoding process died" in done.stderr
