"""Where a training goes on: its last checkpoint, which after the last step is the finished training."""

import contextlib
import signal
import threading
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from cpsd_lib.support import atomic, read_json, sha256, write_json

CHECKPOINT = "last.ckpt"
BEFORE = "previous.ckpt"  # the one before it, should a disk spoil the last
SUMS = "checksums.json"  # of the last three: written before a checkpoint is put into place
LOCK_SECONDS = 30  # a killed runner's kernel may live a second longer: wait for it rather than write beside it


@contextlib.contextmanager
def one_trainer(folder):
    """Make a folder and hold its lock; RuntimeError when another process trains there."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"another process trains in {folder}; wait for it, or stop it, and start again") from None
    with lock:
        lock.release()  # `with` counted a second acquisition
        for leftover in folder.glob(".*.tmp"):  # half-written by a killed process; ours alone under the lock
            leftover.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def interrupt_waits():
    """Yield a list that is no longer empty after a Ctrl-C, which waits for the end of the block; a second one does not wait.

    In the middle of a step some models are a step ahead of the others, and no checkpoint could be written.
    """
    pressed = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield pressed
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def resume(folder, states, training, device):
    """Return the loop's progress, from the last sound checkpoint of the same training in `folder`; broken ones are left."""
    fresh = {"epoch": 0, "step": 0, "seconds": 0.0, "history": []}
    there = [path for path in (Path(folder) / CHECKPOINT, Path(folder) / BEFORE) if path.exists()] if folder else []
    saved = None
    while there and saved is None:
        saved = _read(there[0], device)
        if saved is None:
            go_on = f"goes on from {there[1].name}" if len(there) > 1 else "starts anew"
            print(f"{there[0]} cannot be read; this training {go_on}")
        del there[0]
    if saved is None:
        return fresh
    there, wanted = dict(saved.get("training", {})), dict(training)
    if not wanted.pop("learners").items() <= there.pop("learners", {}).items() or there != wanted:
        return fresh
    for state in states:
        state.load(saved["states"][state.learner.name])
    progress = {name: saved[name] for name in (*fresh, *(["pseudo"] if "pseudo" in saved else []))}
    # Killed while finished models were put into place, some of the checkpoint's need no training any more.
    progress["seconds"] *= len(states) / len(saved["states"])
    progress["history"] = [line for line in saved["history"] if line["learner"] in training["learners"]]
    return progress


def _read(path, device):
    """Return what a checkpoint holds, None where a byte of it has changed: torch.load compares no checksum."""
    if sha256(path) not in _sums(path):
        return None
    return torch.load(path, map_location=device, weights_only=True)


def _sums(path):
    with contextlib.suppress(FileNotFoundError, ValueError):
        return read_json(path.with_name(SUMS))
    return []


def write_checkpoint(path, states, progress, training):
    """Write the loop's progress and all its TrainStates, atomically; training: JSON-able, what determines its result."""
    content = progress | {"training": training, "states": {s.learner.name: s.state() for s in states}}
    with atomic(path) as temporary:
        torch.save(content, temporary)
        write_json(path.with_name(SUMS), [sha256(temporary), *_sums(path)][:3])
        if path.exists():
            path.replace(path.with_name(BEFORE))
