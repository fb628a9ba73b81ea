"""Two ways to one result, run in turn and compared every time."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

REFERENCE, OURS = "reference", "ours"
INPUT, TEACHERS, SOFT = "photos and views", "training teachers", "soft targets"
STUDENTS, VALIDATION = "training students", "validation"
STAGES = (INPUT, TEACHERS, SOFT, STUDENTS, VALIDATION)


@dataclass(frozen=True)
class Pair:
    """One part of the benchmark: two functions of what `prepare()` returned before the clock started.

    difference(reference's result, ours) -> float, at most `tolerance`. about: what is timed and compared, in words.
    goal: the ratio to reach, None where none was.
    """

    name: str
    reference: Callable
    ours: Callable
    difference: Callable
    tolerance: float
    about: str
    goal: float | None = None
    prepare: Callable = lambda: None


def measure(pair, repeats):
    """Run reference, ours, reference, ours, ... `repeats` times each and return the row of the table, a JSON-able dict.

    One more run of each before warms up; it is compared and not timed. `spread` holds the lowest and the highest ratio
    of a reference and the run of ours that followed it.
    """
    times, difference = {REFERENCE: [], OURS: []}, 0.0
    for number in range(repeats + 1):
        results = {}
        for side, way in ((REFERENCE, pair.reference), (OURS, pair.ours)):
            took, results[side] = seconds(way, pair.prepare())
            times[side] += [took] if number else []
        difference = worst([difference, pair.difference(results[REFERENCE], results[OURS])])
    slow, fast = (statistics.median(times[side]) for side in (REFERENCE, OURS))
    ratios = [one / other for one, other in zip(times[REFERENCE], times[OURS], strict=True)]
    return {
        "part": pair.name,
        "about": pair.about,
        "reference_seconds": slow,
        "our_seconds": fast,
        "ratio": slow / fast,
        "spread": [min(ratios), max(ratios)],
        "goal": pair.goal,
        "reached": None if pair.goal is None else slow / fast >= pair.goal,
        "difference": difference if math.isfinite(difference) else None,  # JSON has no NaN
        "tolerance": pair.tolerance,
        "same": difference <= pair.tolerance,  # False for NaN
        "runs": times,
    }


def worst(differences):
    """Return the largest of some numbers, NaN when one is: Python's own max would let a NaN pass."""
    return float(np.max(list(differences)))


def seconds(work, *arguments):
    """Return (seconds that `work` took, its result); a GPU has finished before either look at the clock."""
    _settle()
    began = time.perf_counter()
    result = work(*arguments)
    _settle()
    return time.perf_counter() - began, result


def _settle():
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Stopwatch:
    """Adds the time between two calls of `switch` to the stage that the first of them names."""

    def __init__(self):
        self.seconds, self._stage, self._since = dict.fromkeys(STAGES, 0.0), None, 0.0

    def switch(self, stage):
        """From now on the time is `stage`'s; None stops."""
        _settle()
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now
