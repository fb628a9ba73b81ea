"""The benchmark's record as two figures: the ratios, and the share of each stage of the whole table."""

import matplotlib.pyplot as plt
import numpy as np

from bench.timing import OURS, REFERENCE
from cpsd_lib.viz.plots import CO, CPSD, DIS, GREY, SD

STAGE_COLOURS = (CO, CPSD, DIS, SD, GREY)


def ratios(record):
    """A bar a part: how many times faster ours is, its lowest and highest ratio, and a line where a goal was asked for."""
    rows = [row for row in record["rows"] if row["ratio"] is not None]
    place, values = np.arange(len(rows)), np.array([row["ratio"] for row in rows])
    spread = np.array([row["spread"] for row in rows]).T
    figure, axis = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.4))
    axis.barh(place, values - 1, left=1, color=[CPSD if row["same"] else GREY for row in rows])
    # A median ratio may lie outside the pairwise ones by a rounding of time.
    errors = np.maximum(0, [values - spread[0], spread[1] - values])
    axis.errorbar(values, place, xerr=errors, fmt="none", ecolor="black", capsize=3, linewidth=1)
    for row, y in zip(rows, place, strict=True):
        if row["goal"] is not None:
            axis.plot([row["goal"]] * 2, [y - 0.45, y + 0.45], color=DIS, linewidth=3)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log")
    axis.set_yticks(place, [row["part"] for row in rows])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="reference's seconds / ours (1: no gain)", title=f"Ratios; goals in orange{_stamp(record)}")
    return figure


def stages(record):
    """Two bars, reference and ours: the whole table's seconds by stage, with each stage's share."""
    found = record["stages"]
    figure, axis = plt.subplots(figsize=(9, 2.8))
    for y, side in enumerate((REFERENCE, OURS)):
        left, total = 0.0, sum(found[side].values())
        for (stage, seconds), colour in zip(found[side].items(), STAGE_COLOURS, strict=True):
            axis.barh(y, seconds, left=left, color=colour, label=stage if y == 0 else None)
            if seconds > 0.06 * total:
                axis.text(left + seconds / 2, y, f"{100 * seconds / total:.0f} %", ha="center", va="center")
            left += seconds
    axis.set_yticks([0, 1], [REFERENCE, OURS])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set(xlabel="seconds", title=f"The whole component table, by stage{_stamp(record)}")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3), ncols=3, frameon=False)
    return figure


def _stamp(record):
    return " [SMOKE TEST]" if record["settings"]["quick"] else ""
