"""Every image decoded once: uint8 pixels in a file that every run maps into memory, resumed when killed."""

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from cpsd_lib import support
from cpsd_lib.data.images.decode import MAX_PIXELS, BadImage, decode
from cpsd_lib.data.table import listed
from cpsd_lib.support import bar

PENDING, OK, BAD = 0, 1, 2
CHUNK = 32  # images a task: handing one over costs about a millisecond, decoding one 0.3 (170 px) to 30 ms (12 Mpx)
POOL_SECONDS = 4.0  # less work than this is done before worker processes have started
SYNC_SECONDS = 5.0  # at most this much decoding is lost when the machine goes down


class BadFiles(ValueError):
    """Image files that cannot be used, under the policy `error`."""


@dataclass(frozen=True)
class CsvImages:
    """What `build` needs to decode a list of image files: call it with a row number, get uint8 [3, size, size]."""

    paths: list[Path]
    size: int
    max_pixels: int = MAX_PIXELS

    def __call__(self, row):
        return decode(self.paths[row], self.size, self.max_pixels)


@dataclass(frozen=True, eq=False)
class Cache:
    """Decoded images, uint8 [N, 3, S, S], read-only; `bad` maps rows without a usable image (black) to the reason."""

    folder: Path
    images: np.memmap
    bad: dict[int, str]


def build(load, count, size, key, root, workers=None, desc="decoding"):
    """Return the Cache in root/key of the `count` images load(0), load(1), ...; decode what it does not hold yet.

    `load(row)` returns uint8 [3, size, size] or raises BadImage; it must be picklable from a module. `key` must change
    when any image does. A killed build goes on where it was; when two processes want one cache, one builds it and the
    other waits. Raises ValueError for a key that names another cache, OSError when the disk is too small, and whatever
    `load` raises but BadImage.
    """
    if count < 1:
        raise ValueError(f"{desc}: there are {count} images, expected at least 1")
    folder = Path(root) / key
    cache = _open(folder, count, size, key)
    if cache is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            cache = _open(folder, count, size, key)
            if cache is None:
                _decode_all(folder, load, count, size, key, workers or os.cpu_count() or 1, desc)
                cache = _open(folder, count, size, key)
    return cache


def _open(folder, count, size, key):
    # index.json is written last, so where it is, everything is: no lock needed.
    index = folder / "index.json"
    if not index.exists():
        return None
    found = support.read_json(index)
    expected = {"count": count, "size": size, "key": key}
    if {name: found.get(name) for name in expected} != expected:
        raise ValueError(
            f"{folder} holds another cache than {expected}: the key must depend on count and size; delete it"
        )
    path = folder / "images.u8"
    if not path.exists() or path.stat().st_size != count * 3 * size * size:
        return None  # damaged from outside: built again
    bad = {int(row): reason for row, reason in found["bad"].items()}
    return Cache(folder, np.memmap(path, np.uint8, "r", shape=(count, 3, size, size)), bad)


@contextlib.contextmanager
def _lock(folder):
    # The operating system drops the lock with its process, so a killed build leaves nothing to clean up.
    lock, holder = FileLock(folder / "build.lock"), folder / "holder.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError):
            who = "process {process} on {machine}".format(**support.read_json(holder))
        print(f"{who} is decoding these images: waiting for it", flush=True)
        lock.acquire(poll_interval=0.2)
    try:
        support.write_json(holder, {"process": os.getpid(), "machine": socket.gethostname()})
        yield
    finally:
        lock.release()


def _decode_all(folder, load, count, size, key, workers, desc):
    start = time.monotonic()
    (folder / "index.json").unlink(missing_ok=True)
    images, flags, bad = _resume(folder, count, size)
    rows = np.flatnonzero(flags == PENDING)
    done = []

    def commit():
        # Pixels reach the disk before the flags that vouch for them, reasons before the flags that need them.
        _sync(images)
        bad.update({row: reason for row, reason in done if reason})
        if any(reason for _, reason in done):
            support.write_json(folder / "bad.json", {str(row): bad[row] for row in sorted(bad)})
        for row, reason in done:
            flags[row] = BAD if reason else OK
        flags.flush()
        done.clear()

    committed = time.monotonic()
    try:
        stream = contextlib.closing(_decoded(load, images, size, rows, workers))
        with bar(count, desc, "img", initial=count - len(rows)) as progress, stream as decoded:
            for row, reason in decoded:
                done.append((row, reason))
                progress.update(1)
                if time.monotonic() - committed >= SYNC_SECONDS:
                    commit()
                    committed = time.monotonic()
    finally:
        commit()
    seconds = round(time.monotonic() - start, 3)
    found = {str(row): bad[row] for row in sorted(bad)}
    support.write_json(
        folder / "index.json", {"count": count, "size": size, "key": key, "seconds": seconds, "bad": found}
    )


def _resume(folder, count, size):
    images, flags = folder / "images.u8", folder / "done.u8"
    length = count * 3 * size * size
    bad = {}
    if not (_length(images) == length and _length(flags) == count):
        flags.unlink(missing_ok=True)
        _allocate(images, length)
        with support.atomic(flags) as temporary:
            temporary.write_bytes(bytes(count))
    elif (folder / "bad.json").exists():
        bad = {int(row): reason for row, reason in support.read_json(folder / "bad.json").items()}
    flags = np.memmap(flags, np.uint8, "r+", shape=(count,))
    bad = {row: reason for row, reason in bad.items() if flags[row] == BAD}
    flags[[row for row in np.flatnonzero(flags == BAD) if row not in bad]] = PENDING
    return images, flags, bad


def _length(path):
    return path.stat().st_size if path.exists() else -1


def _allocate(path, length):
    # The whole length at once: a disk that is too small says so now, not after an hour.
    try:
        with open(path, "wb") as file:
            if shutil.disk_usage(path.parent).free < length:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.truncate(length)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, length)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot reserve: the length stands
            return
        path.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            text = f"the decoded images need {length:,} bytes ({length / 2**30:.1f} GiB) in {path.parent}"
            raise OSError(
                error.errno, f"{text}: free some space, choose another cache folder or a smaller size"
            ) from error
        raise


def _sync(path):
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _decoded(load, images, size, rows, workers):
    """Decode `rows` into the file `images` and yield (row, None or the reason it is bad), in any order."""
    rows, begun, alone = [int(row) for row in rows], time.monotonic(), 0
    for alone, found in enumerate(_write_rows(load, images, size, rows), 1):
        yield found
        left = (time.monotonic() - begun) / alone * (len(rows) - alone)
        if workers > 1 and alone >= CHUNK and left > POOL_SECONDS:
            break
    chunks = [rows[start : start + CHUNK] for start in range(alone, len(rows), CHUNK)]
    if not chunks:
        return
    # Spawned, not forked: torch's threads may be alive in this process, and a fork would copy their locks.
    pool = ProcessPoolExecutor(
        min(workers, len(chunks)), multiprocessing.get_context("spawn"), start_worker, (load, images, size)
    )
    try:
        for task in as_completed([pool.submit(_work, chunk) for chunk in chunks]):
            yield from task.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a decoding process died: out of memory, or started from a script without `if __name__ == '__main__':`. "
            "What was decoded is kept; run it again, with workers=1 if it happens again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_rows(load, images, size, rows):
    # Plain writes, not a memmap: on a full or failing disk they raise, where a memmap kills the process (SIGBUS).
    with open(images, "r+b", buffering=0) as file:
        for row in rows:
            try:
                pixels = load(row)
            except BadImage as error:
                yield row, str(error) or "unusable"
                continue
            if pixels.shape != (3, size, size) or pixels.dtype != np.uint8:
                raise TypeError(f"image {row} is {pixels.dtype} {pixels.shape}, expected uint8 (3, {size}, {size})")
            file.seek(row * pixels.nbytes)
            left = memoryview(np.ascontiguousarray(pixels)).cast("B")
            while left:  # a raw write may take only a part
                left = left[file.write(left) :]
            yield row, None


_job = None  # what this worker process was started for


def start_worker(*job):
    """Begin a worker process that works for this `job`, leaves Ctrl-C to its parent and ends with it."""
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def job():
    """Return what this worker process was started for."""
    return _job


def _end_with_parent():
    # A worker of a killed parent would wait for its next task for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(rows):
    return list(_write_rows(*_job, rows))


def check_bad(bad, names, policy):
    """Return the bad files as a sorted list of (file, reason); with policy "error" raise BadFiles if there are any.

    `bad` maps row to reason, `names` [N] are the files of all rows, `policy` is "error" or "skip" (else ValueError).
    """
    if policy not in ("error", "skip"):
        raise ValueError(f"unknown policy {policy!r} for bad files, expected 'error' or 'skip'")
    found = sorted((names[row], reason) for row, reason in bad.items())
    if found and policy == "error":
        lines = listed((f"{file}: {reason}" for file, reason in found), join="\n  ")
        raise BadFiles(
            f"{len(found):,} of {len(names):,} image files cannot be used:\n  {lines}\n"
            "Repair them or remove their rows, or go on without them: data.bad_files=skip"
        )
    return found
