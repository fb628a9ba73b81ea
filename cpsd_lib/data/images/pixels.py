"""Pixels decoded anew, by worker processes: to fill a cache, where there is no room for one, or of photos seen once."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from itertools import chain, islice
from tempfile import NamedTemporaryFile

import numpy as np

from cpsd_lib.data.images.decode import MAX_PIXELS, BadImage, decode_from
from cpsd_lib.support import cores

CHUNK = 8  # images a task: handing one over costs about a millisecond, decoding one 0.3 (170 px) to 30 ms (12 Mpx)
AHEAD = 32  # chunks, at least: decoded while the caller works on an earlier one, and then held in memory
POOL_SECONDS = 4.0  # of decoding here, then worker processes take over: they need about as long to start


class OnTheFly:
    """Images decoded each time they are read, where that takes long by worker processes: the pixels a cache would hold.

    load(index) returns uint8 [3, size, size] and is picklable. The first axis is indexed as that of an array uint8
    [count, 3, size, size].
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, load, count, size, workers=None):
        self.shape, self._load = (count, 3, size, size), load
        self._workers, self._pool = workers or cores(), None
        self._seconds = 0.0  # spent in this process, before there is a pool

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key):
        key, *rest = key if isinstance(key, tuple) else (key,)
        indices = np.arange(len(self))[np.asarray(key, int) if isinstance(key, list) else key]
        return self._read(np.atleast_1d(indices))[(slice(None) if indices.ndim else 0, *rest)]

    def _read(self, indices):
        return np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *self.in_chunks(_stack, indices)])

    def in_chunks(self, work, indices, *arguments):
        """Yield work(load, chunk, *arguments) of each `CHUNK` of `indices`, in order; `work` is picklable.

        Worker processes are a bounded number of images ahead. Raises RuntimeError when one dies, and what `load` and `work`
        raise.
        """
        chunks = [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]
        alone = self._workers == 1 or len(chunks) == 1
        while chunks and (alone or self._seconds <= POOL_SECONDS):
            begun = time.monotonic()
            result = work(self._load, chunks.pop(0), *arguments)
            self._seconds += time.monotonic() - begun
            yield result
        if not chunks:
            return
        if self._pool is None:
            # Spawned, not forked: torch's threads may be alive in this process, and a fork would copy their locks. What they
            # decode by is in a file: in a pipe, which 64 KiB fill, it would wait for ever for a worker that died at its start.
            spawn, self._sent = multiprocessing.get_context("spawn"), NamedTemporaryFile()  # noqa: SIM115
            pickle.dump(self._load, self._sent)
            self._sent.flush()
            self._pool = ProcessPoolExecutor(self._workers, spawn, _start_worker, (self._sent.name,))
        ahead = deque()
        try:
            for chunk in chunks:
                ahead.append(self._pool.submit(_work, (work, chunk, arguments)))
                if len(ahead) > max(AHEAD, 2 * self._workers):
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            self.close()
            raise RuntimeError(
                "a decoding process died: out of memory, or started from a script without `if __name__ == '__main__':`. "
                "What a cache holds already is kept; run it again, on fewer CPU cores if it happens again"
            ) from error
        finally:
            for task in ahead:
                task.cancel()

    def close(self):
        """End the worker processes, if there are any."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            self._sent.close()


def _stack(load, indices):
    return np.stack([load(int(index)) for index in indices])


def readable(load, indices):
    """Return (index, its pixels, None), or (index, None, the reason why it has none), of each of `indices`."""
    images = []
    for index in indices:
        try:
            images.append((index, load(index), None))
        except BadImage as error:
            images.append((index, None, str(error) or "unusable"))
    return images


_load = None  # what this worker process decodes by: sent once, it may hold the paths of 270,000 images


def _start_worker(path):
    global _load
    with open(path, "rb") as file:
        _load = pickle.load(file)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    # A worker of a killed parent would wait for its next task for ever.
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(task):
    work, chunk, arguments = task
    return work(_load, chunk, *arguments)


def decode_batches(pictures, size, batch_size, workers=1):
    """Yield (indices [b], pixels uint8 [b, 3, size, size], {index: reason}) of a list of pictures, in order, batch by batch.

    What `decode` cannot read is in the dictionary. workers: processes, which need a script's `if __name__ == "__main__":`.
    """
    images = OnTheFly(partial(decode_from, pictures, size, MAX_PIXELS), len(pictures), size, workers)
    with closing(images):
        each = chain.from_iterable(images.in_chunks(readable, range(len(pictures))))
        while batch := list(islice(each, batch_size)):
            good = {index: pixels for index, pixels, reason in batch if reason is None}
            stacked = np.array([*good.values()], np.uint8).reshape(-1, 3, size, size)
            yield list(good), stacked, {index: reason for index, _, reason in batch if reason is not None}
