"""Which bytes are in a file: known again without reading, and found twice under two names."""

import contextlib
import hashlib
import json
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cpsd_lib import support
from cpsd_lib.support import bar


def fingerprint(paths, index_path, workers=None):
    """Return the content digest of each file (hex, 32 digits; '' for one that is missing or cannot be read).

    Digests are remembered in `index_path` by (absolute path, size, mtime), so that only new and changed files are read.
    """
    index_path = Path(index_path)
    known = {}
    with contextlib.suppress(FileNotFoundError, ValueError):  # only a memory: broken or gone, it is made anew
        known = dict(support.read_json(index_path))
    states = [_state(path) for path in paths]
    new = [(path, state) for path, state in zip(paths, states, strict=True) if state and not _known(known, path, state)]
    fresh = {}
    if new:
        with bar(len(new), "reading files", "file") as progress, ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            for start in range(0, len(new), 10_000):  # saved now and then: a killed run need not read all again
                block = new[start : start + 10_000]
                for (path, state), digest in zip(block, pool.map(_digest, [path for path, _ in block]), strict=True):
                    fresh[str(path)] = digest
                    # A file changed this very moment could change again without a new mtime: not remembered.
                    if digest and time.time_ns() - state[1] > 2_000_000_000:
                        known[os.path.abspath(path)] = [*state, digest]
                    progress.update(1)
                support.write_text(index_path, json.dumps(known))
    return [
        "" if not state else fresh[str(path)] if str(path) in fresh else known[os.path.abspath(path)][2]
        for path, state in zip(paths, states, strict=True)
    ]


def _state(path):
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns] if stat.S_ISREG(status.st_mode) else None


def _known(known, path, state):
    return known.get(os.path.abspath(path), [])[:2] == state


def _digest(path):
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""


def overlap(digests, table):
    """Return (file in train or val, file in a test split) for each test file whose content a training file has too.

    `digests` [N] are those of `fingerprint`; a test file is paired with the first such training file, '' with none.
    """
    trained = {}
    for split in ("train", "val"):
        for row in table.indices(split):
            trained.setdefault(digests[row], row)
    trained.pop("", None)
    tested = np.concatenate([table.indices("test"), table.indices("test_shifted")])
    return [(table.files[trained[digests[row]]], table.files[row]) for row in sorted(tested) if digests[row] in trained]
