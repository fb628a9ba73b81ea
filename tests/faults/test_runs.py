"""Runs that are killed, find their files damaged or the disk full, or meet each other: the same bytes, or a sentence."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from functools import partial

import numpy as np
import pytest

from cpsd_lib.data.images import cache
from cpsd_lib.data.scenes.scenes import Scenes
from faults import count, tries
from faults.work import finish, fork, result, start

# The parent has threads (pytest-xdist's); the child goes on with the library alone. Python warns of it from 3.12 on.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
STAGES = {"01_data": "data", "02_partition": "partition", "03_teachers": "teachers", "04_student": "students"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run unbroken, and how long it takes."""
    outputs, began = tmp_path_factory.mktemp("whole"), time.monotonic()
    status, said = finish(outputs)
    assert status == 0, said[-3000:]
    return outputs, result(outputs), time.monotonic() - began


@pytest.fixture(scope="module")
def halves(whole, tmp_path_factory):
    """What stands in outputs/ after 01_data, in the middle of the teachers, and in the middle of the student."""
    made = {}
    for stage, enough in (("02_partition", 0), ("03_teachers", 3), ("04_student", 3)):
        outputs = tmp_path_factory.mktemp("half") / "outputs"
        process = start(outputs)
        while process.is_alive():
            written = [path for path in outputs.glob(".store/.work/*/previous.ckpt")]
            there = outputs / "tiny" / "stage"
            if there.exists() and there.read_text() == stage and (not enough or written):
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        made[stage] = outputs
    return made


def copied(outputs, to):
    shutil.copytree(outputs, to, symlinks=True)
    return to


# ---- kills -----------------------------------------------------------------------------------------------------------


def killed_in(stage, outputs, pause):
    """Start the run and kill its group some seconds after it has come to a stage; return where it was, None: done before."""
    process, there = start(outputs), outputs / "tiny" / "stage"
    while process.is_alive() and (not there.exists() or there.read_text() < stage):
        time.sleep(0.005)
    process.join(pause)
    where = there.read_text()
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), (outputs / "said").read_text()[-3000:]
    return STAGES.get(where, "evaluation and after") if process.exitcode else None


@pytest.mark.parametrize("number", range(tries(12)))
def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(whole, tmp_path, number):
    rng, stages, seconds = random.Random(number), [*STAGES, "05_evaluation"], whole[2]
    # Most kills fall where most of the time goes.
    moments = [(stage, share) for stage, share in zip(stages, (1, 1, 4, 3, 1), strict=True) for _ in range(share)]
    killed = [killed_in(stage, tmp_path, rng.uniform(0, seconds / 5)) for stage, _ in moments]
    status, said = finish(tmp_path)
    assert status == 0 and result(tmp_path) == whole[1], said[-3000:]
    leftovers = [path for path in tmp_path.rglob("*.tmp") if "locks" not in path.parts]
    assert not leftovers, leftovers
    for stage in filter(None, killed):
        count(f"kill -9 of the whole group, during {stage}", "ended with the same bytes, nothing half-written left")


# ---- damaged files ---------------------------------------------------------------------------------------------------


def flipped(content, rng):
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def zeroed(content, rng):
    place = rng.randrange(len(content))
    return content[:place] + bytes(min(512, len(content) - place)) + content[place + 512 :]


DAMAGE = {
    "a bit": flipped,
    "512 zeros": zeroed,
    "cut off": lambda content, rng: content[: rng.randrange(len(content))],
    "empty": lambda content, rng: b"",
    "other bytes": lambda content, rng: rng.randbytes(len(content)),
    "another shape": lambda content, rng: rng.choice(
        [b"[]", b"{}", b"null", b"[1]", b'{"stages": [1]}', b'{"files": 1}']
    ),
}


def files_of(outputs):
    """Return {kind: files} of what a run or the store reads back."""
    patterns = {
        "decoded cache": [".cache/*/images.u8", ".cache/*/images.json"],
        "checkpoints": [".store/.work/*/*.ckpt", ".store/.work/*/checksums.json"],
        "models and soft targets": [".store/model/*/*", ".store/soft_targets/*/*"],
        "the run's own files": ["tiny/*.json", "tiny/params.yaml", "tiny/partition/*", "tiny/evaluation/**/*.*"],
    }
    return {kind: [p for one in some for p in sorted(outputs.glob(one))] for kind, some in patterns.items()}


WHERE = [("decoded cache", "02_partition"), ("checkpoints", "03_teachers"), ("checkpoints", "04_student")]
WHERE += [("models and soft targets", "04_student"), ("models and soft targets", None), ("the run's own files", None)]


@pytest.mark.parametrize("number", range(tries(120)))
def test_a_damaged_file_is_made_again_or_named_and_never_believed(whole, halves, tmp_path, number):
    rng, (kind, stage) = random.Random(number), WHERE[number % len(WHERE)]
    outputs = copied(halves[stage] if stage else whole[0], tmp_path / "outputs")
    path, how = rng.choice(files_of(outputs)[kind]), list(DAMAGE)[number // len(WHERE) % len(DAMAGE)]
    content = path.read_bytes()
    path.write_bytes(DAMAGE[how](content, rng) if content else b"x")
    status, said = finish(outputs)
    about = f"{kind}: {path.relative_to(outputs)}, {how}\n{said[-3000:]}"
    if status == 0:
        outcome = "the same bytes" if result(outputs) == whole[1] else "SILENTLY WRONG"
    else:
        outcome = "refused in a sentence" if status in (1, 2) and "Traceback" not in said else "TRACEBACK"
    count(f"damaged file: {kind}", outcome)
    assert outcome.islower(), about
    if outcome == "refused in a sentence":
        assert path.name in said, about


# ---- a full disk -----------------------------------------------------------------------------------------------------


def _mounted(folder, size):
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def _limited(size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("number", range(tries(20)))
def test_a_full_disk_stops_with_a_sentence_and_with_more_room_ends_with_the_same_bytes(whole, tmp_path, number):
    """A file system of its own size where this process may mount one, else a limit on the size of a file."""
    outputs, expected, _ = whole
    most = sum(path.stat().st_size for path in outputs.rglob("*") if path.is_file())
    folder, size = tmp_path / "disk", int(most * (number + 0.5) / 20)
    mounted = _mounted(folder, size)
    try:
        before = None if mounted else partial(_limited, size // 4)
        status, said = finish(folder, before)
        full = status != 0
        if full:
            assert status == 1 and "Traceback" not in said, said[-3000:]
            named = (
                "free some space" if "free some space" in said else "No space left" if mounted else "cannot be written"
            )
            assert named in said or "File too large" in said, said[-3000:]
            if mounted:
                subprocess.run(["mount", "-o", f"remount,size={20 * most}", str(folder)], check=True)
            status, said = finish(folder)
        assert status == 0 and result(folder) == expected, said[-3000:]
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    outcome = "stopped with a sentence; with more room the same bytes" if full else "had room"
    count(f"{'disk' if mounted else 'file size'} limit", outcome)


# ---- two at once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(tries(10)))
def test_two_runs_at_once_share_what_they_train_or_are_told_of_each_other(whole, tmp_path, number):
    names = ["tiny", "tiny" if number % 2 else "other"]
    first = start(tmp_path)
    time.sleep(random.Random(number).uniform(0, 2))
    (tmp_path / "second").mkdir()
    second = start(tmp_path, words=[f"name={names[1]}"])
    first.join()
    second.join()
    said = (tmp_path / "said").read_text()
    if names[0] == names[1]:
        assert sorted([first.exitcode, second.exitcode]) in ([0, 0], [0, 1]), said
        outcome = "one was told who holds the folder, the other ended with the same bytes"
    else:
        assert (first.exitcode, second.exitcode) == (0, 0), said
        assert result(tmp_path, "other") == whole[1]
        outcome = "both ended with the same bytes, each model trained once"
    assert result(tmp_path) == whole[1]
    count(f"two runs at once, {'one name' if names[0] == names[1] else 'two names'}", outcome)


def _build(root, index):
    images, _ = cache.build(Scenes(images=100, size=16).load, 100, 16, "key", root)
    np.save(root / f"{index}.npy", images[:])


@pytest.mark.parametrize("number", range(tries(20)))
def test_caches_built_at_once_hold_the_same_bytes(tmp_path, number):
    rng, builders = random.Random(number), [fork.Process(target=_build, args=(tmp_path, n)) for n in range(3)]
    for process in builders:
        process.start()
        time.sleep(rng.uniform(0, 0.2))
    if number % 2:
        builders[0].kill()
    for process in builders:
        process.join()
    assert [process.exitcode for process in builders[1:]] == [0, 0]
    scenes = Scenes(images=100, size=16)
    drawn = np.stack([scenes.load(index) for index in range(100)])
    assert all(np.array_equal(np.load(tmp_path / f"{n}.npy"), drawn) for n in (1, 2))
    count("one cache built by three processes, every other time one of them killed", "the same pixels")
