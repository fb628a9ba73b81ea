"""Every image decoded once: uint8 pixels and a checksum each, in a file that every run reads, resumed when killed."""

import contextlib
import multiprocessing
import os
import socket
import time
import zlib
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from cpsd_lib import support
from cpsd_lib.data.images.pixels import OnTheFly, readable
from cpsd_lib.support import bar

CHECKSUM = 4  # bytes behind the pixels of each image: CRC-32, 20 us for 128 x 128 pixels, where sha256 takes 100
SYNC_SECONDS = 5.0  # at most this much decoding is lost when the machine goes down


def build(load, count, size, key, root, workers=None, desc="decoding", keep=True):
    """Return (Cached images [count, 3, size, size], {index: reason} of the unusable ones, which are black) from root/key.

    Image i is load(i): uint8 [3, size, size], or it raises BadImage; `load` must be picklable from a module. What the cache does
    not hold yet is decoded; a killed build goes on where it was. `key` must change when any image does, their count or size.
    keep=False stores no pixels and returns OnTheFly: each image is tried once, so that a bad one is found before a training
    does. When two processes want one cache, one builds it and the other waits. Raises OSError when the disk is too small,
    RuntimeError when a worker process dies, and what `load` raises but BadImage.
    """
    folder, images = Path(root) / key, OnTheFly(load, count, size, workers)
    pixels, state_file = (folder / "images.u8", folder / "images.json") if keep else (None, folder / "readable.json")
    length = count * (3 * size**2 + CHECKSUM)
    state = _read_state(state_file, pixels, length)
    if state["done"] < count:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(state_file):
            state = _read_state(state_file, pixels, length)
            if state["done"] < count:
                _decode_all(images, state_file, pixels, length, state, desc)
    bad = {int(index): reason for index, reason in state["bad"].items()}
    return Cached(pixels, load, count, size, bad) if keep else images, bad


class Cached(OnTheFly):
    """The images of a cache, read from its file; one that does not match its checksum when first read is decoded again."""

    def __init__(self, path, load, count, size, bad=()):
        super().__init__(load, count, size)
        self.path, self._checked = path, np.isin(np.arange(count), list(bad))  # of bad ones nothing is stored

    def _read(self, indices):
        pixels, checksum = np.empty((len(indices), *self.shape[1:]), self.dtype), bytearray(CHECKSUM)
        length = pixels[:1].nbytes + CHECKSUM
        with open(self.path, "rb", buffering=0) as file:  # mapped pages would count as this process's memory
            for place in np.argsort(indices):  # in the order of the file: the disk likes it
                index = int(indices[place])
                whole = os.preadv(file.fileno(), [pixels[place], checksum], index * length) == length
                if not whole or not (self._checked[index] or zlib.crc32(pixels[place]) == int.from_bytes(checksum)):
                    pixels[place] = self._again(index)
                self._checked[index] = True
        return pixels

    def _again(self, index):
        reasons, _ = _write(self._load, [index], self.path)
        if reasons:
            raise ValueError(f"{self.path} is damaged, and its image {index} cannot be decoded again: {reasons[index]}")
        print(f"{self.path} was damaged: its image {index} is decoded again", flush=True)
        return self._load(index)


def _read_state(path, pixels, length):
    """Return the state of a cache: how many images are done, and which of them are bad; none, where nothing is usable."""
    if path.exists() and (not pixels or (pixels.exists() and pixels.stat().st_size == length)):
        with contextlib.suppress(ValueError):
            state = support.read_json(path)
            if isinstance(state, dict) and state.pop("checksum", None) == support.digest(state):
                return state
    return {"done": 0, "bad": {}}


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


def _decode_all(images, state_file, pixels, length, state, desc):
    """Decode in order what `state` says is not done."""
    if state["done"] == 0:
        if state_file.exists():
            print(f"{state_file.parent} is damaged, or of another version: its images are decoded again", flush=True)
        state_file.unlink(missing_ok=True)  # first: it must not vouch for the empty pixels that come next
        if pixels:
            support.need_space(pixels.parent, length, "the decoded images")
            with open(pixels, "wb") as file:
                file.truncate(length)
    state["holder"] = f"process {os.getpid()} on {socket.gethostname()}"

    def commit():
        if pixels:  # they reach the disk before the number that vouches for them
            with open(pixels, "r+b") as file:
                os.fsync(file.fileno())
        support.write_json(state_file, state | {"checksum": support.digest(state)})

    commit()
    committed = time.monotonic()
    try:
        with bar(len(images), desc, "img", initial=state["done"]) as shown, contextlib.closing(images):
            for bad, done in images.in_chunks(_write, range(state["done"], len(images)), pixels):
                state["bad"] |= {str(index): reason for index, reason in bad.items()}
                state["done"] += done
                shown.update(done)
                if time.monotonic() - committed >= SYNC_SECONDS:
                    commit()
                    committed = time.monotonic()
    finally:
        commit()


def _write(load, indices, path):
    """Decode `indices` into the file `path`, or None; return ({index: reason} of the bad ones, number of images)."""
    bad = {}
    # Plain writes, not a memmap: on a full or failing disk they raise, where a memmap kills the process (SIGBUS).
    with open(path, "r+b") if path else contextlib.nullcontext() as file:
        for index, pixels, reason in readable(load, indices):
            if reason is not None:
                bad[index] = reason
            elif file:
                file.seek(index * (pixels.nbytes + CHECKSUM))
                file.write(pixels.tobytes() + zlib.crc32(pixels.tobytes()).to_bytes(CHECKSUM))
    return bad, len(indices)
