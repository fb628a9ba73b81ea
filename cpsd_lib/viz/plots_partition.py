"""Figures of evaluation.partitions: what the exponent does, how stable a cut is, where two partitions differ."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from cpsd_lib.evaluation import PAPER_EXPONENT
from cpsd_lib.viz.plots import BASELINE, CO, CPSD, DIS, GREY, panels

BRANCHES = {"co": ("CGP (cuts P+)", CO), "dis": ("DGP (cuts P-)", DIS)}
KINDS = {"seeds": "other seeds, all images", "halves": "two halves of the images"}
LABELLED = 0.06  # a share of the classes below this leaves no room for its number inside the bar


def exponent_effect(tables):
    """Bars of part sizes over the exponent, the agreement (ARI) below them; tables {branch: DataFrame of over_exponents}.

    The largest part is at the bottom, and darkest. A key other than "co" and "dis" is its panel's title, as it is.
    """
    shared = {"sharex": "col", "sharey": "row", "height_ratios": [2.2, 1]}
    title = 'Part sizes and agreement by exponent\n("n × 1": n parts hold one class only)'
    figure, axes = panels(2, len(tables), 6.0 * len(tables) + 0.5, 7.0, title, **shared)
    for (bars, lines), (branch, table) in zip(axes.T, tables.items(), strict=True):
        name, colour = BRANCHES.get(branch, (branch, CPSD))
        _stack(bars, table["sizes"], colour)
        bars.set_title(f"{name}, k = {len(table['sizes'].iloc[0])}", loc="left")
        lines.plot(range(len(table)), table["ARI to p = 0.5"], "o-", color=colour, label="to the cut at p = 0.5")
        if "ARI to other" in table:
            lines.plot(range(len(table)), table["ARI to other"], "s--", color=BASELINE, label="to the released file")
        lines.legend(fontsize=10, loc="best")
        ticks = [f"{p:.2g}\n(paper)" if p == PAPER_EXPONENT else f"{p:.2g}" for p in table["exponent"]]
        lines.set_xticks(range(len(table)), ticks)
        lines.set_xlabel("exponent p of the label graph")
    lowest = min(0, *(table.filter(like="ARI").min().min() for table in tables.values()))
    axes[1, 0].set_ylim(lowest - 0.05, 1.05)
    axes[0, 0].set_ylabel("classes in each part (number)")
    axes[0, 0].yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[1, 0].set_ylabel("ARI\n(1 = same parts)")
    return figure


def _stack(axis, partitions, colour):
    # From the colour itself to a light tint, so that rank is seen in grey as well.
    sizes = pd.DataFrame(partitions.to_list())
    shades = sns.light_palette(colour, sizes.shape[1] + 1, reverse=True)[:-1]
    sizes.plot.bar(stacked=True, ax=axis, width=0.8, color=shades, edgecolor="white", linewidth=0.8, legend=False)
    total, alone = sizes.sum(axis=1), (sizes == 1).sum(axis=1)
    for rank, shade in enumerate(shades):
        texts = [f"{size}" if size >= LABELLED * one else "" for size, one in zip(sizes[rank], total, strict=True)]
        ink = "white" if np.dot(shade[:3], (0.3, 0.59, 0.11)) < 0.55 else "black"
        axis.bar_label(axis.containers[rank], texts, label_type="center", color=ink, fontsize=10)
    axis.bar_label(axis.containers[-1], [f"{n} × 1" if n else "" for n in alone], padding=1, fontsize=10)
    axis.margins(x=0.02)
    axis.set_ylim(0, total.max() * 1.09)
    axis.grid(axis="x", visible=False)


def stability_by_k(tables):
    """Mean agreement (ARI) over k with a band from worst to best repeat; tables {branch: DataFrame of stability}.

    A key other than "co" and "dis" is its panel's title, as it is.
    """
    title = "Is the same partition found again?\n(mean; band from worst to best repeat)"
    figure, axes = panels(1, len(tables), 6.0 * len(tables) + 0.5, 4.8, title, sharey=True)
    for axis, (branch, table) in zip(axes[0], tables.items(), strict=True):
        name, colour = BRANCHES.get(branch, (branch, CPSD))
        lines = table.assign(kind=table["kind"].map(KINDS))
        kind = {"hue": "kind", "style": "kind", "markers": True, "palette": [GREY, colour]}
        sns.lineplot(lines, x="k", y="ari", **kind, errorbar=("pi", 100), err_kws={"linewidth": 0}, ax=axis)
        axis.set(xticks=sorted(set(table["k"])), xlabel="number of parts k")
        axis.set_title(name, loc="left")
        axis.legend(fontsize=10)
    axes[0, 0].set_ylim(min(0, *(table["ari"].min() for table in tables.values())) - 0.05, 1.05)
    axes[0, 0].set_ylabel("ARI of two cuts\n(1 = same parts, 0 = chance)")
    return figure
