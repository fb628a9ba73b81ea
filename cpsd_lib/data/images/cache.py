"""Every image decoded once: uint8 pixels in a file that every run maps into memory, resumed when killed."""

import contextlib
import multiprocessing
import os
import socket
import time
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from cpsd_lib import support
from cpsd_lib.data.images.decode import BadImage
from cpsd_lib.data.images.pixels import OnTheFly
from cpsd_lib.data.table import listed
from cpsd_lib.support import bar

SYNC_SECONDS = 5.0  # at most this much decoding is lost when the machine goes down


class BadFiles(ValueError):
    """Image files that cannot be used, under the policy `error`."""


def build(load, count, size, key, root, workers=None, desc="decoding", keep=True):
    """Return (images uint8 [count, 3, size, size], {index: reason} of the unusable ones, which are black) from root/key.

    Image i is load(i): uint8 [3, size, size], or it raises BadImage; `load` must be picklable from a module. What the
    cache does not hold yet is decoded; a killed build goes on where it was. `key` must change when any image does.
    keep=False stores no pixels: each image is tried once, so that a bad one is found before a training does, and decoded
    anew whenever it is read. When two processes want one cache, one builds it and the other waits. Raises ValueError for
    a key that names another cache, OSError when the disk is too small, RuntimeError when a worker process dies, and
    whatever `load` raises but BadImage.
    """
    if count < 1:
        raise ValueError(f"{desc}: there are {count} images, expected at least 1")
    folder, images = Path(root) / key, OnTheFly(load, count, size, workers)
    pixels, state_file = (folder / "images.u8", folder / "images.json") if keep else (None, folder / "readable.json")
    identity = {"count": count, "size": size, "key": key}
    state = _read_state(state_file, pixels, identity)
    if state["done"] < count:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(state_file):
            state = _read_state(state_file, pixels, identity)
            if state["done"] < count:
                _decode_all(images, state_file, pixels, state, desc)
    bad = {int(index): reason for index, reason in state["bad"].items()}
    return np.memmap(pixels, np.uint8, "r", shape=images.shape) if keep else images, bad


def _read_state(path, pixels, identity):
    """Return the state of a cache: how many images are done, and which of them are bad; none, where nothing is usable."""
    state = identity | {"done": 0, "bad": {}}
    if not path.exists():
        return state
    saved = support.read_json(path)  # one file, replaced as a whole, so no lock is needed to read it
    if {name: saved.get(name) for name in identity} != identity:
        text = f"{path} holds another cache than {identity}"
        raise ValueError(f"{text}: the key must depend on count and size; delete it")
    if pixels and not (pixels.exists() and pixels.stat().st_size == _length(state)):
        return state  # damaged from outside: built again
    return saved


def _length(state):
    return state["count"] * 3 * state["size"] ** 2


def _lock(state_file):
    # The operating system drops the lock with its process, so a killed build leaves nothing to clean up.
    lock = FileLock(state_file.with_name("build.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        if getattr(multiprocessing.current_process(), "_inheriting", False):  # the script, imported by its own worker
            raise RuntimeError(
                "this script opens a data set when it is imported, and the processes that decode its photos import it: put "
                "what it does under `if __name__ == '__main__':`"
            ) from None
        holder = "another process"
        with contextlib.suppress(OSError):
            holder = support.read_json(state_file).get("holder", holder)
        print(f"{holder} is decoding these images: waiting for it", flush=True)
        return lock.acquire(poll_interval=0.2)


def _decode_all(images, state_file, pixels, state, desc):
    """Decode in order what `state` says is not done."""
    if state["done"] == 0:
        state_file.unlink(missing_ok=True)  # first: it must not vouch for the empty pixels that come next
        if pixels:
            support.need_space(pixels.parent, _length(state), "the decoded images")
            with open(pixels, "wb") as file:
                file.truncate(_length(state))
    state["holder"] = f"process {os.getpid()} on {socket.gethostname()}"

    def commit():
        if pixels:  # they reach the disk before the number that vouches for them
            with open(pixels, "r+b") as file:
                os.fsync(file.fileno())
        support.write_json(state_file, state)

    commit()
    committed = time.monotonic()
    chunks = images.in_chunks(_write, range(state["done"], len(images)), images.shape[1:], pixels)
    try:
        with bar(len(images), desc, "img", initial=state["done"]) as shown, contextlib.closing(chunks):
            for bad, done in chunks:
                state["bad"] |= bad
                state["done"] += done
                shown.update(done)
                if time.monotonic() - committed >= SYNC_SECONDS:
                    commit()
                    committed = time.monotonic()
    finally:
        images.close()
        commit()


def _write(load, indices, shape, path):
    """Decode `indices` into the file `path`, or None; return ({index as text: reason} of the bad ones, number of images)."""
    bad = {}
    # Plain writes, not a memmap: on a full or failing disk they raise, where a memmap kills the process (SIGBUS).
    with open(path, "r+b") if path else contextlib.nullcontext() as file:
        for index in indices:
            try:
                pixels = load(index)
            except BadImage as error:
                bad[str(index)] = str(error) or "unusable"
                continue
            if pixels.shape != shape or pixels.dtype != np.uint8:
                raise TypeError(f"image {index} is {pixels.dtype} {pixels.shape}, expected uint8 {shape}")
            if file:
                file.seek(index * pixels.nbytes)
                file.write(np.ascontiguousarray(pixels))
    return bad, len(indices)


def check_bad(bad, names, policy):
    """Return the bad files as a sorted list of (file, reason); with policy "error" raise BadFiles if there are any.

    `bad` maps image index to reason, `names` [N] are the files of all images, `policy` is "error" or "skip" (else
    ValueError).
    """
    if policy not in ("error", "skip"):
        raise ValueError(f"unknown policy {policy!r} for bad files, expected 'error' or 'skip'")
    files = sorted((names[index], reason) for index, reason in bad.items())
    if files and policy == "error":
        lines = listed((f"{file}: {reason}" for file, reason in files), join="\n  ")
        raise BadFiles(
            f"{len(files):,} of {len(names):,} image files cannot be used:\n  {lines}\n"
            "Repair them or remove their rows, or go on without them: data.bad_files=skip"
        )
    return files
