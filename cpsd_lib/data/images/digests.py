"""Which bytes are in a file, known again without reading."""

import contextlib
import hashlib
import json
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from cpsd_lib import support
from cpsd_lib.support import bar, cores


def file_digests(paths, index_path):
    """Return the content digest of each file (hex, 32 digits; '' for one that is missing or cannot be read).

    Digests are remembered in `index_path` by absolute path and `file_states`, so that only new and changed files are read.
    """
    known, names = {}, [os.path.abspath(path) for path in paths]
    with contextlib.suppress(FileNotFoundError, ValueError):  # only a memory: broken or gone, it is made anew
        known = dict(support.read_json(index_path))
    states = dict(zip(names, file_states(names), strict=True))
    unread = [name for name, state in states.items() if state and known.get(name, [])[:-1] != state]
    shown = bar(len(unread), "reading files", "file") if unread else contextlib.nullcontext()
    with shown as progress, ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(unread), 10_000):  # saved now and then: a killed run need not read all again
            block = unread[start : start + 10_000]
            for name, digest in zip(block, pool.map(_digest, block), strict=True):
                known[name] = [*states[name], digest]
                progress.update(1)
            # A file changed this very moment could change again without a new time: not remembered.
            sure = time.time_ns() - 2_000_000_000
            old = {name: entry for name, entry in known.items() if entry[-1] and max(entry[-3:-1]) < sure}
            support.write_text(index_path, json.dumps(old))
    return [known[name][-1] if states[name] else "" for name in names]


def file_states(paths):
    """Return what changes with the file that each path leads to: [size in bytes, inode, mtime, ctime in ns], None for no file.

    The inode and the ctime see what a tool that restores sizes and mtimes (rsync, unpacking) hides.
    """
    # Many at a time: one by one, 270,000 files take minutes on a network drive.
    with ThreadPoolExecutor(32) as pool:
        blocks = [paths[start : start + 1000] for start in range(0, len(paths), 1000)]
        return list(chain.from_iterable(pool.map(lambda block: [*map(_state, block)], blocks)))


def _state(path):
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _digest(path):
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return ""
