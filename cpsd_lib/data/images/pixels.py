"""Pixels of the rows a batch needs: read from the cache's file, or decoded anew where there is no room for a cache."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from cpsd_lib import support
from cpsd_lib.data.images import cache
from cpsd_lib.data.images.decode import BadImage
from cpsd_lib.support import bar

TASK = 8  # images a worker is handed at once
BLOCK = 256  # images looked at before what was found is written down


def take(images, rows):
    """Return the pixels uint8 [B, 3, S, S] of `rows` [B] of images [N, 3, S, S], in that order.

    A memory map's file is read instead: pages that are mapped count as this process's memory, and an epoch touches all of
    a cache, however large.
    """
    rows = np.asarray(rows)
    if not isinstance(images, np.memmap):
        return images[rows]
    found = np.empty((len(rows), *images.shape[1:]), images.dtype)
    length = found[:1].nbytes
    with open(images.filename, "rb", buffering=0) as file:
        for place in np.argsort(rows):  # in the order of the file: the disk likes it
            if os.preadv(file.fileno(), [found[place]], images.offset + int(rows[place]) * length) != length:
                raise OSError(f"{images.filename} ends before image {rows[place]}: delete it, and it is made again")
    return found


class OnTheFly:
    """Images decoded each time they are asked for, by worker processes: `data.cache: none`, the same pixels as the cache's.

    load(row) -> uint8 [3, size, size] is picklable, as for cache.build. Indexed by rows like an array [count, 3, size, size].
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, load, count, size, workers=None):
        self.shape, self._load = (count, 3, size, size), load
        self._workers, self._pool = workers or os.cpu_count() or 1, None

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        rows, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        rows = np.arange(len(self))[rows]
        if rows.ndim == 0:
            return self._decoded(rows[None])[0][rest]
        return self._decoded(rows)[(slice(None), *rest)]

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype)

    def faults(self, rows):
        """Return [(row, reason)] of those of `rows` that cannot be decoded."""
        return [fault for found in self._in_tasks(_faults, rows) for fault in found]

    def _decoded(self, rows):
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *self._in_tasks(_stack, rows)])

    def _in_tasks(self, work, rows):
        tasks = [rows[start : start + TASK] for start in range(0, len(rows), TASK)]
        if len(tasks) < 2 or self._workers == 1:
            return [work(self._load, task) for task in tasks]
        if self._pool is None:
            # Spawned, not forked: torch's threads may be alive in this process, and a fork would copy their locks.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, spawn, cache.start_worker, (self._load,))
        return list(self._pool.map(_work, [work] * len(tasks), tasks))


def _work(work, rows):
    return work(*cache.job(), rows)


def _stack(load, rows):
    return np.stack([load(int(row)) for row in rows])


def _faults(load, rows):
    found = []
    for row in rows:
        try:
            load(int(row))
        except BadImage as error:
            found.append((int(row), str(error) or "unusable"))
    return found


def look_through(images, folder, desc="looking through"):
    """Return {row: reason} of the images of an OnTheFly that cannot be decoded; each is tried once.

    Without a cache this is what finds a bad file before a training does. What was found is kept in folder/looked.json; a
    look that was killed goes on there.
    """
    path = Path(folder) / "looked.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = support.read_json(path) if path.exists() else {"images": 0, "bad": {}}
    with bar(len(images), desc, "img", initial=found["images"]) as progress:
        for start in range(found["images"], len(images), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(images)))
            found["bad"] |= {str(row): reason for row, reason in images.faults(rows)}
            found["images"] = start + len(rows)
            support.write_json(path, found)
            progress.update(len(rows))
    return {int(row): reason for row, reason in found["bad"].items()}
