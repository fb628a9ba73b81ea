import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cpsd_lib.data.images import cache
from cpsd_lib.data.images.cache import BadFiles, CsvImages, build, check_bad
from cpsd_lib.data.images.decode import BadImage

SIZE = 4


def pixels(row):
    return np.random.default_rng(row).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)


@dataclass
class Logged:
    """A loader that writes down every row it is asked for, in a file that several processes may share."""

    log: Path
    stop_after: int = 10**9
    pause: float = 0.0
    bad: tuple = ()

    def __call__(self, row):
        if len(asked(self.log)) >= self.stop_after:
            raise KeyboardInterrupt
        with open(self.log, "a") as file:
            file.write(f"{row}\n")
        time.sleep(self.pause)
        if row in self.bad:
            raise BadImage(f"reason {row}")
        return pixels(row)


def asked(log):
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def same(built, count, bad=()):
    expected = np.stack([pixels(row) * (row not in bad) for row in range(count)])
    return built.images.shape == expected.shape and (built.images == expected).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_cache_holds_every_image_and_the_reason_of_every_bad_one(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(cache, "POOL_SECONDS", 0)
    load = Logged(tmp_path / "log", bad=(3, 90))
    built = build(load, 100, SIZE, "key", tmp_path / "root", workers)
    assert same(built, 100, bad=(3, 90)) and built.images.dtype == np.uint8 and not built.images.flags.writeable
    assert built.bad == {3: "reason 3", 90: "reason 90"}
    assert sorted(asked(load.log)) == list(range(100))
    again = build(load, 100, SIZE, "key", tmp_path / "root", workers)
    assert same(again, 100, bad=(3, 90)) and again.bad == built.bad
    assert len(asked(load.log)) == 100


def test_a_complete_cache_is_opened_without_a_lock(tmp_path):
    load = Logged(tmp_path / "log")
    folder = build(load, 5, SIZE, "key", tmp_path).folder
    with cache._lock(folder):
        assert same(build(load, 5, SIZE, "key", tmp_path), 5)


def test_an_interrupted_build_goes_on_with_the_pending_rows_only(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        build(Logged(log, stop_after=40, bad=(7,)), 100, SIZE, "key", tmp_path)
    assert not (tmp_path / "key" / "index.json").exists()
    built = build(Logged(log, bad=(7,)), 100, SIZE, "key", tmp_path)
    assert asked(log) == list(range(100))
    assert same(built, 100, bad=(7,)) and built.bad == {7: "reason 7"}


def test_an_error_of_the_loader_stops_the_build_and_keeps_what_is_done(tmp_path):
    def load(row):
        if row == 5:
            raise OSError("the disk is gone")
        return pixels(row)

    with pytest.raises(OSError, match="the disk is gone"):
        build(load, 10, SIZE, "key", tmp_path)
    log = tmp_path / "log"
    assert same(build(Logged(log), 10, SIZE, "key", tmp_path), 10) and asked(log) == [5, 6, 7, 8, 9]


def test_a_loader_of_the_wrong_shape_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"image 0 is float64 \(4, 4\), expected uint8 \(3, 4, 4\)"):
        build(lambda row: np.zeros((4, 4)), 2, SIZE, "key", tmp_path)


class Deadly(Logged):
    def __call__(self, row):
        if multiprocessing.parent_process() and row == 50:
            os._exit(9)
        return super().__call__(row)


def test_a_worker_that_dies_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "POOL_SECONDS", 0)
    with pytest.raises(RuntimeError, match=r"a decoding process died.*What was decoded is kept"):
        build(Deadly(tmp_path / "log"), 200, SIZE, "key", tmp_path, workers=2)
    kept = done_rows(tmp_path)
    load = Logged(tmp_path / "second")
    assert same(build(load, 200, SIZE, "key", tmp_path), 200)
    assert len(kept) >= cache.CHUNK and sorted(asked(load.log)) == sorted(set(range(200)) - set(kept.tolist()))


def start(folder, log, workers, count=200, pause=0.015):
    """Build in a process of its own, which syncs at once and starts its workers at once."""
    code = (
        "import sys; from pathlib import Path; from cpsd_lib.data.images import cache; from test_data_cache import Logged, SIZE\n"
        "if __name__ == '__main__':\n"
        "    cache.SYNC_SECONDS = cache.POOL_SECONDS = 0\n"
        f"    load = Logged(Path({str(log)!r}), pause={pause})\n"
        f"    cache.build(load, {count}, SIZE, 'key', {str(folder)!r}, {workers})\n"
    )
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process):
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    return out


def wait_until(true):
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("waited 30 s in vain")


def done_rows(folder):
    flags = folder / "key" / "done.u8"
    return np.flatnonzero(np.fromfile(flags, np.uint8)) if flags.exists() else np.zeros(0, int)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_goes_on_with_the_pending_rows_only(tmp_path, workers):
    process = start(tmp_path / "root", tmp_path / "log", workers)
    wait_until(lambda: len(done_rows(tmp_path / "root")) >= 40)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # Workers hold the error pipe open: its end says that the orphans have gone too.
    process.communicate(timeout=30)
    kept = done_rows(tmp_path / "root")
    assert 40 <= len(kept) < 200 and not (tmp_path / "root" / "key" / "index.json").exists()
    load = Logged(tmp_path / "second")
    assert same(build(load, 200, SIZE, "key", tmp_path / "root"), 200)
    assert sorted(asked(load.log)) == sorted(set(range(200)) - set(kept.tolist()))


def test_two_processes_that_want_one_cache_decode_each_image_once(tmp_path):
    first = start(tmp_path / "root", tmp_path / "log", workers=1)
    wait_until(lambda: asked(tmp_path / "log"))
    second = start(tmp_path / "root", tmp_path / "log", workers=1)
    said = finish(second)
    finish(first)
    assert f"process {first.pid} on " in said and "waiting for it" in said
    assert sorted(asked(tmp_path / "log")) == list(range(200))
    assert same(build(Logged(tmp_path / "log"), 200, SIZE, "key", tmp_path / "root"), 200)
    assert len(asked(tmp_path / "log")) == 200


def test_a_cache_of_another_size_under_the_same_key_is_refused(tmp_path):
    build(Logged(tmp_path / "log"), 5, SIZE, "key", tmp_path)
    with pytest.raises(ValueError, match="holds another cache"):
        build(Logged(tmp_path / "log"), 6, SIZE, "key", tmp_path)
    with pytest.raises(ValueError, match="expected at least 1"):
        build(Logged(tmp_path / "log"), 0, SIZE, "other", tmp_path)


@pytest.mark.parametrize("index", [True, False])
def test_a_cache_whose_pixels_were_cut_off_is_built_again(tmp_path, index):
    log = tmp_path / "log"
    folder = build(Logged(log), 5, SIZE, "key", tmp_path).folder
    os.truncate(folder / "images.u8", 10)
    if not index:
        (folder / "index.json").unlink()
    assert same(build(Logged(log), 5, SIZE, "key", tmp_path), 5)
    assert len(asked(log)) == 10


def test_bad_rows_whose_reasons_were_lost_are_tried_again(tmp_path):
    log = tmp_path / "log"
    folder = build(Logged(log, bad=(2,)), 5, SIZE, "key", tmp_path).folder
    (folder / "index.json").unlink()
    (folder / "bad.json").unlink()
    assert build(Logged(log), 5, SIZE, "key", tmp_path).bad == {}
    assert asked(log) == [0, 1, 2, 3, 4, 2]


def test_a_disk_that_is_too_small_says_how_many_bytes_are_needed(tmp_path):
    with pytest.raises(OSError, match=r"need 3,000,000,000,000,000 bytes .*free some space") as caught:
        build(Logged(tmp_path / "log"), 10**9, 1000, "key", tmp_path)
    assert caught.value.errno is not None
    assert not (tmp_path / "key" / "images.u8").exists()


def test_image_files_of_all_kinds_go_through_the_cache(tmp_path):
    Image.new("RGB", (9, 7), (10, 20, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").touch()
    load = CsvImages([tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "none.jpg"], SIZE)
    built = build(pickle.loads(pickle.dumps(load)), 3, SIZE, "key", tmp_path)
    assert built.images[0, :, 1, 1].tolist() == [10, 20, 30]
    assert built.bad == {1: "the file is empty (0 bytes)", 2: "the file does not exist"}


def test_bad_files_are_an_error_that_lists_twenty_or_a_sorted_list():
    names = [f"{row:02}.jpg" for row in range(30)]
    bad = {row: f"reason {row}" for row in range(24, -1, -1)}
    with pytest.raises(BadFiles) as caught:
        check_bad(bad, names, "error")
    message = str(caught.value)
    assert message.startswith("25 of 30 image files cannot be used:\n  00.jpg: reason 0\n")
    assert "19.jpg" in message and "20.jpg" not in message and "... and 5 more" in message
    assert message.endswith("data.bad_files=skip")
    assert check_bad(bad, names, "skip") == [(f"{row:02}.jpg", f"reason {row}") for row in range(25)]
    assert check_bad({}, names, "error") == []
    with pytest.raises(ValueError, match="expected 'error' or 'skip'"):
        check_bad({}, names, "ignore")
