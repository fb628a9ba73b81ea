"""Where a training goes on: its last checkpoint, which after the last step is the finished training."""

import contextlib
import signal
import threading
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch.utils._pytree import tree_leaves, tree_map_only

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
    try:
        with FileLock(folder / ".lock", timeout=LOCK_SECONDS):
            for leftover in folder.glob(".*.tmp"):  # half-written by a killed process; ours alone under the lock
                leftover.unlink(missing_ok=True)
            yield
    except Timeout:
        raise RuntimeError(f"another process trains in {folder}; wait for it, or stop it, and start again") from None


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
    # torch.load compares no checksum.
    sound = next((path for path in there if sha256(path) in _sums(path)), None)
    for path in there[: there.index(sound)] if sound else there:
        print(f"{path} cannot be read; this training {f'goes on from {sound.name}' if sound else 'starts anew'}")
    if sound is None:
        return fresh
    saved = torch.load(sound, map_location=device, weights_only=True)
    alike = saved["training"] | {"learners": training["learners"]} == training
    if not alike or not set(training["learners"]) <= set(saved["training"]["learners"]):
        return fresh
    for state in states:
        state.load(saved["states"][state.learner.name])
    progress = {name: value for name, value in saved.items() if name not in ("training", "states")}
    # Killed while finished models were put into place, some of the checkpoint's need no training any more.
    progress["seconds"] *= len(states) / len(saved["states"])
    progress["history"] = [line for line in saved["history"] if line["learner"] in training["learners"]]
    return progress


def _sums(path):
    with contextlib.suppress(FileNotFoundError, ValueError):
        return read_json(path.with_name(SUMS))
    return []


def copy_of(states, progress, training):
    """Return what a checkpoint holds, on the host: the loop's progress, its TrainStates and what determines its result."""
    content = progress | {"training": training, "states": {s.learner.name: s.state() for s in states}}
    content["history"] = list(progress["history"])
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), content)


def write_checkpoint(path, content):
    """Write what `copy_of` returned, atomically."""
    with atomic(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's writer does not say that the disk is full
            size = sum(x.nbytes for x in tree_leaves(content) if torch.is_tensor(x))
            raise OSError(f"{path} needs {size:,} bytes, and was not written ({error}): free some space") from error
        write_json(path.with_name(SUMS), [sha256(temporary), *_sums(path)][:3])
        if path.exists():
            path.replace(path.with_name(BEFORE))
