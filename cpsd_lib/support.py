"""What all rooms need: atomic files, device and precision, seeds, progress bars, names imported on first use.

It imports neither torch nor numpy, so that a command line answers at once.
"""

import ctypes
import hashlib
import json
import multiprocessing
import os
import platform
import threading
import time
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path


def exports(package, homes):
    """Return (__getattr__, __dir__, __all__) of a package whose names are imported on first use (PEP 562, SPEC 1).

    homes: {module of the package: its public names in one string}.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}

    def get(name):
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{home[name]}"), name)

    return get, lambda: sorted(home), sorted(home)


# ---- files that are either whole or not there ------------------------------------------------------------------------


@contextmanager
def atomic(path):
    """Yield a temporary path beside `path` and move it into place (fsync, rename) when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder):
    # The rename itself must reach the disk too; Windows cannot open a folder, and does not need it.
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path, text):
    """Write `text` (str) to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    """Write `value` as indented JSON to `path` atomically; NaN is refused (ValueError), because JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path):
    """Return the JSON value in `path`; a broken file raises ValueError naming it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); delete it and run the stage that writes it again"
        ) from error


def sha256(path):
    """Return the hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value):
    """Return a 16-digit hex hash of any JSON-able value (dictionary order does not matter)."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
        from tqdm.auto import tqdm  # 0.1 s that a command line does not wait for

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


def end_with_parent():
    """Let this worker process end when its parent is gone: a parent that is killed cannot tell its workers to."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def derive_seed(*parts):
    """Return a 63-bit seed that is a function of `parts` and nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def pick_device(name):
    """Return the torch device for "auto" (a GPU when there is one), "cpu" or "cuda:N"."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {name}, but torch sees no GPU; use device=auto or device=cpu")
    return torch.device(name)


def pick_precision(name, device):
    """Return the autocast dtype, or None for float32.

    "auto" is bfloat16 on GPUs that have it, else float32. On a CPU it is float32: MobileNetV2 at 128 px, channels_last,
    two Zen cores with avx512_bf16, takes 7.6 ms an image either way. float16 needs a GPU and is float32 elsewhere.
    """
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if name == "float16" and device.type != "cuda":
        return None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def memory_gib(device):
    """Return the memory of a torch device, used or free, in GiB: a GPU's own, or the machine's; None where nobody says."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):  # Windows
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def keep_freed_memory():
    """Tell glibc's malloc to keep what is freed instead of giving it back to the system; nothing on other systems.

    A batch's activations are tens of MB each. By default malloc maps every one anew and the kernel zeroes its pages: on two
    Zen cores, MobileNetV2 at 128 px in eval mode took 14.6 ms an image in batches of 128 and 7.3 in batches of 32, with this
    4.5 and 3.8 (training in batches of 32: 22.1 and 16.4).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc.mallopt(m_mmap_max, 0)  # no mapping of its own for any block
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def counted(count, one, many=None):
    """Return a count with its noun: "1 image", "2,000 images"; many: the plural that is not `one` + s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def memory(gib):
    """Return GiB (2**30 bytes) as words: "13.0 GiB", "320 MiB" below one."""
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"
