"""Folders that live outside the repository; tests that need one are skipped, with the reason, where it is not there."""

import os
import signal
import sys
from pathlib import Path

import pytest

# In the background of a shell Ctrl-C is ignored, by all processes that are started from there too: not by those of tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Before torch is imported: the processes of pytest-xdist share the cores, and a pool of threads does not survive a fork.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _folder(variable, holds):
    if not os.environ.get(variable):
        pytest.skip(f"set {variable} to the folder with {holds}")
    path = Path(os.environ[variable])
    assert path.is_dir(), f"{variable} names {path}, which is not a folder"
    return path


@pytest.fixture(autouse=True)
def no_figure_is_left():
    """Close what a test drew: which tests share a process changes, and from 20 open figures on Matplotlib warns."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def golden():
    """Folder with numbers produced by the papers' releases."""
    return _folder("CPSD_GOLDEN", "the golden numbers (losses.npz, metrics.npz, idx_*.json)")


@pytest.fixture
def shared_data():
    """Folder with real photos and label tables."""
    return _folder("CPSD_DATA", "the real data sets (coco18, coco_val2014_labels)")
