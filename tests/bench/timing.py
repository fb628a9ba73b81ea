"""Two ways to one result, run in turn and compared every time."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

REFERENCE, OURS = "reference", "ours"


@dataclass(frozen=True)
class Pair:
    """One part of the benchmark: a straightforward way and ours.

    reference, ours: called before the clock starts, each returns the work; the work is timed and returns its result.
    difference(reference's result, ours) -> float, at most `tolerance`. compared: what it is, in words. counted: what is in
    the time. goal: the ratio that was asked for, None where none was. items: how many things one work makes, of `unit`.
    """

    name: str
    reference: Callable
    ours: Callable
    difference: Callable
    tolerance: float
    compared: str
    counted: str
    goal: float | None = None
    items: int | None = None
    unit: str = ""


def measure(pair, repeats, warm_up=True, seconds_of=None, after=lambda: None):
    """Run reference, ours, reference, ours, ... `repeats` times each and return the row of the table, a JSON-able dict.

    warm_up: one more run of each before, compared and not timed. seconds_of: work -> (seconds, result). after: called
    after each run. `spread` holds the lowest and the highest ratio of a reference and the run of ours that followed it.
    """
    seconds_of, times, worst = seconds_of or seconds, {REFERENCE: [], OURS: []}, 0.0
    for number in range(-1 if warm_up else 0, repeats):
        found = {}
        for side, way in ((REFERENCE, pair.reference), (OURS, pair.ours)):
            took, found[side] = seconds_of(way())
            if number >= 0:
                times[side].append(took)
            after()
        difference = float(pair.difference(found[REFERENCE], found[OURS]))
        worst = difference if math.isnan(difference) else max(worst, difference)
        if math.isnan(worst):
            break  # no later run can make it whole
    return row(pair, times, worst)


def row(pair, times, difference):
    """Return a row of the table from both ways' seconds {"reference": [..], "ours": [..]} and the largest difference."""
    runs = [list(map(float, times[side])) for side in (REFERENCE, OURS)]
    medians = [statistics.median(side) if side else math.nan for side in runs]
    ratios = [slow / fast for slow, fast in zip(*runs, strict=True)]
    ratio = medians[0] / medians[1]
    return {
        "part": pair.name,
        "reference_seconds": _number(medians[0]),
        "our_seconds": _number(medians[1]),
        "ratio": _number(ratio),
        "spread": [min(ratios), max(ratios)] if ratios else [None, None],
        "goal": pair.goal,
        "reached": None if pair.goal is None else bool(ratio >= pair.goal),
        "difference": _number(difference),
        "tolerance": pair.tolerance,
        "same": bool(difference <= pair.tolerance),  # False for NaN
        "compared": pair.compared,
        "counted": pair.counted,
        "items": pair.items,
        "unit": pair.unit,
        "runs": dict(zip((REFERENCE, OURS), runs, strict=True)),
    }


def _number(value):
    return value if math.isfinite(value) else None  # JSON has no NaN


def seconds(work):
    """Return (seconds that `work` took, its result); a GPU has finished before either look at the clock."""
    settle()
    began = time.perf_counter()
    result = work()
    settle()
    return time.perf_counter() - began, result


def settle():
    """Wait until a GPU has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class Stopwatch:
    """Shares out the time between calls of `switch` to the stages they name."""

    def __init__(self):
        self.seconds, self._stage, self._since = {}, None, 0.0

    def switch(self, stage):
        """From now on the time is `stage`'s; None stops."""
        settle()
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now


class Unwatched:
    """A Stopwatch that does not look: nothing waits for a GPU inside what is timed as a whole."""

    def switch(self, stage):
        """Do nothing."""
