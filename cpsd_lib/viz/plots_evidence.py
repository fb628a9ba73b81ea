"""Figures of notebook 07: which classes gain, and whether a probability means what it says."""

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

from cpsd_lib.viz.plots import CPSD, GREY, ROW_COLOURS


def rank_correlations(gain, properties):
    """Return {label: Spearman's result} of the classes' gain [C] with each of their properties {label: values [C]}.

    A class whose gain is NaN is left out; where all gains, or all values of a property, are alike the result is None.
    """
    known, found = ~np.isnan(gain), {}
    for label, values in properties.items():
        both = np.asarray(values)[known], gain[known]
        found[label] = spearmanr(*both) if all(len(set(one)) > 1 for one in both) else None
    return found


def gain_against(gain, properties, title):
    """Dots, one a class: its gain in AP over each of its properties {label: values [C]}, with `rank_correlations`.

    gain [C] in AP points, NaN for a class without a score.
    """
    known, correlations = ~np.isnan(gain), rank_correlations(gain, properties)
    figure, axes = plt.subplots(1, len(properties), figsize=(5.6 * len(properties), 4.2), sharey=True, squeeze=False)
    for axis, (label, values) in zip(axes[0], properties.items(), strict=True):
        axis.axhline(0, color=GREY, linewidth=1.5)
        axis.plot(np.asarray(values)[known], gain[known], "o", color=CPSD, alpha=0.8, markersize=7)
        found = correlations[label]
        told = f"rank correlation {found.statistic:+.2f} (p = {found.pvalue:.2f})" if found else "all classes alike"
        axis.set(xlabel=label, title=told)
    axes[0][0].set_ylabel("gain (AP points)")
    figure.suptitle(title, fontsize=12)
    return figure


def map_against_work(lines, title):
    """What each row pays and gets: mAP over work in trainings of one baseline, bars of a standard deviation over seeds.

    lines: DataFrame by row's title with work, mAP, spread (NaN for one seed).
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.4))
    for number, (row, line) in enumerate(lines.iterrows()):
        style = {"fmt": "osD^vP*X"[number % 8], "color": ROW_COLOURS.get(row, GREY), "markersize": 9, "capsize": 3}
        axis.errorbar(line["work"], line["mAP"], np.nan_to_num(line["spread"]), label=row, **style)
    axis.set_xlim(left=0)
    axis.set(xlabel="work from scratch (trainings of one baseline)", ylabel="mAP (%)", title=title)
    axis.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def reliability_curves(tables, title):
    """Share of positives over mean probability, a line a row of {title: reliability table}, and a perfect model's diagonal."""
    figure, axis = plt.subplots(figsize=(6.4, 5.2))
    axis.plot([0, 1], [0, 1], ":", color=GREY, linewidth=2, label="perfect")
    for number, (row, table) in enumerate(tables.items()):
        filled = table[table["count"] > 0]
        style = {"marker": "osD^vP*X"[number % 8], "color": ROW_COLOURS.get(row), "markersize": 6}
        axis.plot(filled["confidence"], filled["share_positive"], label=row, **style)
    axis.set(
        xlabel="mean probability of a bin", ylabel="share of positives in it", title=title, xlim=(0, 1), ylim=(0, 1)
    )
    axis.legend(fontsize=9)
    return figure
