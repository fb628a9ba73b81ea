"""Where a training goes on: one process a folder, and the last checkpoint when it was made of the same."""

import contextlib
import pickle
import zipfile

import torch
from filelock import FileLock, Timeout

from cpsd_lib.files import atomic

LOCK_SECONDS = 30  # a killed runner's kernel may live a second longer: wait for it rather than write beside it


@contextlib.contextmanager
def one_trainer(folder):
    """Hold the lock of a folder of weights; RuntimeError when another process trains there."""
    lock = FileLock(folder / ".lock", timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"another process trains in {folder}; wait for it, or stop it, and start again") from None
    with lock:
        lock.release()  # `with` counted a second acquisition
        yield


def resume(path, tracks, device):
    """Return the loop's state, from the checkpoint when it was made of the same; unreadable, it is as good as none."""
    fresh = {"epoch": 0, "step": 0, "seconds": 0.0, "history": []}
    if not path.exists():
        return fresh
    try:
        # torch.save writes a zip; anything else is not handed to torch's old unpickler.
        saved = torch.load(path, map_location=device, weights_only=True) if zipfile.is_zipfile(path) else None
    except (RuntimeError, pickle.UnpicklingError):
        saved = None
    if saved is None:
        print(f"{path} cannot be read; this training starts anew")
        return fresh
    made_of = _made_of(tracks)
    # Killed while the finished weights were being written, some learners of the checkpoint need no training any more.
    if {name: saved["made_of"].get(name) for name in made_of} != made_of:
        return fresh
    for track in tracks:
        track.load(saved["tracks"][track.learner.name])
    state = {name: saved[name] for name in fresh}
    state["seconds"] *= len(tracks) / len(saved["tracks"])
    state["history"] = [row for row in saved["history"] if row["learner"] in made_of]
    return state


def _made_of(tracks):
    return {track.learner.name: track.learner.made_of for track in tracks}


def write_checkpoint(path, tracks, state):
    """Write the loop's state and all its Tracks, atomically."""
    with atomic(path) as temporary:
        torch.save(
            state | {"made_of": _made_of(tracks), "tracks": {t.learner.name: t.state() for t in tracks}}, temporary
        )
