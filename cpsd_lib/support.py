"""What all rooms need: atomic files, device and precision, seeds, progress bars, names imported on first use.

It imports neither torch nor numpy, so that a command line answers at once.
"""

import ctypes
import errno
import hashlib
import json
import os
import platform
import shutil
from contextlib import contextmanager, nullcontext
from functools import partial
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


class Sentence:
    """An error that a notebook shows as its sentence, without the calls that led to it."""

    def _render_traceback_(self):
        return [f"{type(self).__name__}: {self}"]


class Interrupted(Sentence, KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop button; the message says where the work stands."""


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
        handle = os.open(path.parent, os.O_RDONLY)
        os.fsync(handle)  # the rename itself must reach the disk too
        os.close(handle)
    finally:
        temporary.unlink(missing_ok=True)


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
            f"{path} is not valid JSON ({error}); mend it, or, where a run wrote it, move it away and run that stage again"
        ) from error


def need_space(folder, length, what):
    """Raise OSError (ENOSPC) when a disk has no room for `length` bytes in `folder`: now, not after an hour; what: they are."""
    if shutil.disk_usage(folder).free < length:
        size = f"{length:,} bytes ({memory(length / 2**30)})"
        raise OSError(errno.ENOSPC, f"{what} need {size} in {folder}: free some space, or make fewer")


def cores():
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sha256(path):
    """Return the hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value):
    """Return a 16-digit hex hash of any JSON-able value (dictionary order does not matter)."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# A notebook that papermill runs has no terminal: its runner names its own here, after the stage. The executed notebook then
# stays free of half-drawn bars.
TERMINAL_VARIABLE = "CPSD_TERMINAL"  # "03_teachers:/dev/pts/0"
bar_class = None  # of a process whose bars another one draws, in place of tqdm's


@contextmanager
def bar(total, desc, unit="it", initial=0):
    """Yield tqdm's bar (`.update(n)`) with a `.note(text)`, on the runner's terminal or here: the count, the time left."""
    from tqdm import auto, tqdm  # 0.1 s that a command line does not wait for

    stage, _, terminal = os.environ.get(TERMINAL_VARIABLE, "").partition(":")
    with _opened(terminal) if terminal else nullcontext() as file:
        # disable=None: not drawn into what is no terminal.
        make = partial(tqdm, file=file, disable=None) if terminal else bar_class or auto.tqdm
        desc = f"{stage} {desc}".lstrip()
        with make(total=total, desc=desc, unit=unit, initial=initial, mininterval=0.5, leave=bool(terminal)) as shown:
            shown.note = partial(shown.set_postfix_str, refresh=False)
            try:
                yield shown
            except KeyboardInterrupt as error:
                where = str(error) or f"{desc}: stopped at {unit} {shown.n:,} of {total:,}"
                raise Interrupted(where) from None


def _opened(terminal):
    try:  # not to become the terminal of this process as well, whose Ctrl-C would then reach it
        return open(terminal, "w", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NOCTTY", 0)))
    except OSError:  # a runner that is gone took it along; that must not end a training
        return open(os.devnull, "w")


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
    """Return the memory of a torch device, used or free, in GiB: a GPU's own, or the machine's."""
    import psutil
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return psutil.virtual_memory().total / 2**30


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


def listed(items, shown=20, join=", "):
    """Return up to `shown` of `items` as one line (or lines, by `join`), with the number of those left out."""
    items = [str(item) for item in items]
    rest = [f"... and {len(items) - shown:,} more"] if len(items) > shown else []
    return join.join(items[:shown] + rest)


def memory(gib):
    """Return GiB (2**30 bytes) as words: "13.0 GiB", "320 MiB" below one."""
    return f"{gib:.1f} GiB" if gib >= 1 else f"{gib * 1024:.0f} MiB"
