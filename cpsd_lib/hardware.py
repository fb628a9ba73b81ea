"""Which device, which precision, which seed: decided once, in words that a run records."""

import ctypes
import hashlib
import os
import platform

import torch


def derive_seed(*parts):
    """Return a 63-bit seed that is a function of `parts` and nothing else."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def pick_device(name):
    """Return the torch device for "auto" (a GPU when there is one), "cpu" or "cuda:N"."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name} was asked for, but torch sees no GPU; use device=auto or device=cpu")
    return torch.device(name)


def pick_precision(name, device):
    """Return the autocast dtype, or None for float32.

    "auto" is bfloat16 on GPUs that have it, else float32. On a CPU it is float32: MobileNetV2 at 128 px, channels_last,
    two Zen cores with avx512_bf16, takes 7.6 ms an image either way. float16 needs a GPU and is float32 elsewhere.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    if name == "float16" and device.type != "cuda":
        return None
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def memory_gib(device):
    """Return the memory of a torch device, used or free, in GiB: a GPU's own, or the machine's; None where nobody says."""
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
