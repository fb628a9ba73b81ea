"""Pixels of the rows a batch needs: read from the cache's file, or decoded anew where there is no room for a cache."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from cpsd_lib import files
from cpsd_lib.data import cache
from cpsd_lib.data.decode import BadImage
from cpsd_lib.progress import bar

TASK = 8  # images a worker is handed at once


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
        found = self._decoded(np.atleast_1d(rows))
        return (found if np.ndim(rows) else found[0])[(slice(None), *rest) if np.ndim(rows) else rest]

    def __array__(self, dtype=None, copy=None):
        return self[:].astype(dtype or self.dtype)

    def _decoded(self, rows):
        tasks = [rows[start : start + TASK] for start in range(0, len(rows), TASK)]
        if len(tasks) < 2 or self._workers == 1:
            return _stack(self._load, rows, self.shape[1:])
        if self._pool is None:
            # Spawned, not forked: torch's threads may be alive in this process, and a fork would copy their locks.
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, spawn, cache.start_worker, (self._load, self.shape[1:]))
        return np.concatenate(list(self._pool.map(_work, tasks)))


def _work(rows):
    load, shape = cache.job()
    return _stack(load, rows, shape)


def _stack(load, rows, shape):
    return np.stack([load(int(row)) for row in rows]) if len(rows) else np.empty((0, *shape), np.uint8)


def look_through(load, count, size, key, root, desc="looking through"):
    """Return {row: reason} of the images that cannot be decoded; each is tried once, and what was found is kept in root/key.

    Without a cache this is what finds a bad file before a training does.
    """
    path, bad = root / key / f"looked_{size}.json", {}
    if path.exists():
        return {int(row): reason for row, reason in files.read_json(path).items()}
    with bar(count, desc, "img") as progress:
        for row in range(count):
            try:
                load(row)
            except BadImage as error:
                bad[row] = str(error) or "unusable"
            progress.update(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {str(row): reason for row, reason in bad.items()})
    return bad
