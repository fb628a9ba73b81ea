"""Where a training goes on, and its finished weights: safetensors with a JSON beside them that makes them valid."""

import contextlib
import pickle
import zipfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file

from cpsd_lib.support import atomic, read_json, sha256, write_json

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


def resume(path, states, device):
    """Return the loop's progress, from the checkpoint of the same fingerprints; unreadable, it is as good as none."""
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
    fingerprints = _fingerprints(states)
    # Killed while the finished weights were being written, some learners of the checkpoint need no training any more.
    if {name: saved.get("fingerprints", {}).get(name) for name in fingerprints} != fingerprints:
        return fresh
    for state in states:
        state.load(saved["states"][state.learner.name])
    progress = {name: saved[name] for name in fresh}
    progress["seconds"] *= len(states) / len(saved["states"])
    progress["history"] = [line for line in saved["history"] if line["learner"] in fingerprints]
    return progress


def _fingerprints(states):
    return {state.learner.name: state.learner.fingerprint for state in states}


def write_checkpoint(path, states, progress):
    """Write the loop's progress and all its TrainStates, atomically."""
    content = progress | {"fingerprints": _fingerprints(states), "states": {s.learner.name: s.state() for s in states}}
    with atomic(path) as temporary:
        torch.save(content, temporary)


def save_learner(learner, folder, about):
    """Write a learner's weights as safetensors, then `about` and their hash as the JSON that makes them valid; return that."""
    path = folder / f"{learner.name}.safetensors"
    with atomic(path) as temporary:
        save_file({key: tensor.contiguous() for key, tensor in learner.model.state_dict().items()}, temporary)
    classes = learner.class_indices
    entry = about | {
        "file": path.name,
        "sha256": sha256(path),
        "class_indices": None if classes is None else [int(c) for c in classes],
        "fingerprint": learner.fingerprint,
    }
    write_json(path.with_suffix(".json"), entry)
    return entry


def load_learner(learner, folder):
    """Load finished weights into the learner and return their record; None when absent, changed, or of another fingerprint."""
    record = Path(folder) / f"{learner.name}.json"
    if not record.exists() or read_json(record).get("fingerprint") != learner.fingerprint:
        return None
    return load_weights(learner.model, record)


def load_weights(model, record):
    """Load the weights that the JSON at `record` describes and return it; None when the file is gone or was changed."""
    entry = read_json(record)
    path = Path(record).with_name(entry["file"])
    if not path.exists() or sha256(path) != entry["sha256"]:
        return None
    model.load_state_dict(load_file(path))
    model.eval()
    return entry
