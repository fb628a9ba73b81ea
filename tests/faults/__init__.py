"""Kills, damaged files, full disks, hostile input, many times each. `make faults` counts all, `make test` a twentieth.

A test calls `tries(n)` for how often it tries and `count(row, outcome)` for each outcome; `make faults` ends with the table.
"""

import os
from collections import Counter, defaultdict

import pytest

ALL = bool(os.environ.get("CPSD_FAULTS"))  # `make faults` sets it
TABLE = defaultdict(Counter)  # {row: {outcome: how often}}, in the order of the tests

# For a test of which even a twentieth is too long for `make test`.
only_with_all = pytest.mark.skipif(not ALL, reason="takes minutes: make faults")


def tries(number):
    """Return how often a fault is tried: `number` times by `make faults`, a twentieth of it, at least once, else."""
    return number if ALL else max(1, number // 20)


def count(row, outcome):
    """Add one outcome to a row of the table that `make faults` prints."""
    TABLE[row][outcome] += 1
