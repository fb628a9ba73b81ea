"""One progress bar for three places: a notebook, a terminal, and a notebook run by papermill for someone at a terminal."""

import json
import os
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm.auto import tqdm

# papermill's kernel cannot draw on the terminal: when the runner sets this variable the bar's state goes into the file it
# names, and the runner draws it (run.py). The executed notebook then stays free of half-drawn bars.
FILE_VARIABLE = "CPSD_PROGRESS_FILE"


@contextmanager
def bar(total, desc, unit="it", initial=0):
    """Yield a progress bar with `.update(n)` and `.note(text)`; it shows `desc`, the count of `total` and the time left."""
    path = os.environ.get(FILE_VARIABLE)
    progress = _FileBar(Path(path), total, desc, unit, initial) if path else _ScreenBar(total, desc, unit, initial)
    try:
        yield progress
    finally:
        progress.close()


class _ScreenBar:
    def __init__(self, total, desc, unit, initial):
        self._bar = tqdm(total=total, desc=desc, unit=unit, initial=initial, mininterval=0.5, leave=False)
        self.update, self.close = self._bar.update, self._bar.close

    def note(self, text):
        self._bar.set_postfix_str(text, refresh=False)


class _FileBar:
    def __init__(self, path, total, desc, unit, initial):
        self._path, self._written = path, 0.0
        self._state = {"desc": desc, "total": total, "unit": unit, "initial": initial, "n": initial, "note": ""}
        self._write()

    def update(self, n=1):
        self._state["n"] += n
        if time.monotonic() - self._written > 0.5:
            self._write()

    def note(self, text):
        self._state["note"] = text

    def close(self):
        self._write()

    def _write(self):
        # Not `files.atomic`: half a second of progress needs no fsync, only a reader that never sees half a file.
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with suppress(OSError):  # a runner that is gone took its folder along; that must not end a training
            temporary.write_text(json.dumps(self._state))
            os.replace(temporary, self._path)
        self._written = time.monotonic()
