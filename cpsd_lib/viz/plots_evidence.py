"""Figures of notebooks 06 and 07: where models look, which classes gain, what that costs, whether a probability is honest."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.patheffects import Normal, Stroke
from scipy.stats import spearmanr

from cpsd_lib.viz.plots import BASELINE, CO, CPSD, DIS, GREY, ROW_COLOURS, panels, short

MAP = matplotlib.colormaps["inferno"]
COLOURS = ROW_COLOURS | {"co teachers": CO, "dis teachers": DIS, "teacher": BASELINE}
OUTLINE = {"fill": False, "edgecolor": "white", "linewidth": 1.2}  # white on black is seen on every ground
OUTLINE["path_effects"] = [Stroke(linewidth=2.6, foreground="black"), Normal()]


# ---- where a model looks ---------------------------------------------------------------------------------------------


def overlay(image, heat, strength=0.6):
    """Return a map [S, S] in [0, 1] over the grey copy of an image uint8 [3, S, S], float [S, S, 3] in [0, 1]."""
    heat = np.asarray(heat)
    grey = np.moveaxis(np.asarray(image), 0, -1).mean(2, keepdims=True) / 255
    strength = strength * heat[..., None]
    return np.clip((1 - strength) * grey + strength * MAP(heat)[..., :3], 0, 1)


def looking(images, words, maps, captions, boxes, title):
    """A column a picture: itself, then each model's map over its grey copy, the boxes of the class outlined in all.

    images uint8 [n, 3, S, S]; words [n]; maps {model: [n, S, S] in [0, 1]}; captions {model: [n]}; boxes: of each picture
    [(left, top, right, bottom) in pixels, ...], or None where nobody knows them.
    """
    count, size = len(images), images.shape[-1]
    # More letters above a picture would run into the next one.
    lines = {"picture": (np.moveaxis(np.asarray(images), 1, -1), short(words, 18))}
    for name, heats in maps.items():
        lines[name] = ([overlay(image, heat) for image, heat in zip(images, heats, strict=True)], captions[name])
    figure, axes = panels(len(lines), count, 1.62 * count + 2.2, 1.78 * len(lines) + 0.4, title)
    for line, (name, (pictures, texts)) in zip(axes, lines.items(), strict=True):
        for axis, pixels, text, sides in zip(line, pictures, texts, boxes or [[]] * count, strict=True):
            axis.imshow(pixels, extent=(0, size, size, 0))
            for left, top, right, bottom in sides:
                axis.add_patch(plt.Rectangle((left, top), right - left, bottom - top, **OUTLINE))
            axis.set_title(text, fontsize=11, loc="center")
            axis.set(xticks=[], yticks=[], xlim=(0, size), ylim=(size, 0))
            axis.grid(visible=False)
        colour = COLOURS.get(name, BASELINE)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12, color=colour, fontweight="bold")
    bar = figure.colorbar(ScalarMappable(cmap=MAP), ax=axes[1:], shrink=0.5, aspect=30)
    bar.set_label("map / its own maximum")
    return figure


def shares_inside(tables, title):
    """A panel a split, a dot and an interval a model and seed, beside chance and the best its maps could do.

    tables {split: DataFrame of localisation.summarise with a line a (seed, strategy, map)}.
    """
    lines = list(dict.fromkeys(next(iter(tables.values())).index.droplevel("seed")))
    width, height = 5.6 * len(tables) + 1.6, 0.5 * len(lines) + 2.2
    figure, axes = panels(1, len(tables), width, height, title, sharex=True, sharey=True)
    for axis, (split, table) in zip(axes[0], tables.items(), strict=True):
        for place, (strategy, kind) in enumerate(lines):
            seeds = table.xs((strategy, kind), level=("strategy", "map"))
            colour, places = COLOURS.get(strategy, GREY), place + np.linspace(-0.25, 0.25, 2 * len(seeds) + 1)[1::2]
            axis.hlines(places, seeds["share_low"], seeds["share_high"], color=colour, linewidth=2.5)
            axis.plot(seeds["share"], places, "o", color=colour, markersize=7)
            if seeds["share"].notna().any():
                beside = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 11}
                axis.annotate(f"{seeds['share'].mean():.1f}", (seeds["share_high"].max(), place), **beside)
        level = table.groupby(["strategy", "map"], sort=False)[["chance", "best"]].mean()
        (chance,) = axis.plot(level["chance"], range(len(lines)), ":", color=GREY, linewidth=2.5, zorder=1)
        (best,) = axis.plot(level["best"], range(len(lines)), "|", color=GREY, markersize=20, markeredgewidth=3)
        axis.set(xlabel="share of the map inside the boxes (%)", title=split)
        axis.margins(x=0.08)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(lines)), [s if kind == "activation" else f"{s}, {kind}" for s, kind in lines])
    axes[0, 0].set_ylim(len(lines) - 0.4, -0.6)
    texts = ["chance: the area of the boxes", "the best that maps of so few places could do"]
    figure.legend([chance, best], texts, loc="outside lower center", ncol=2, fontsize=11)
    return figure


# ---- gains, cost, calibration ----------------------------------------------------------------------------------------


def gain_against(gain, properties, title):
    """Return dots, one a class, its gain in AP over each of its properties {label: values [C]}, and {label: Spearman's result}.

    gain [C] in AP points; a class whose gain is NaN is left out. Where all gains, or all values of a property, are alike the
    result is None.
    """
    known, ranks = ~np.isnan(gain), {}
    figure, axes = panels(1, len(properties), 5.6 * len(properties), 4.2, title, sharey=True)
    for axis, (label, values) in zip(axes[0], properties.items(), strict=True):
        both = np.asarray(values)[known], gain[known]
        rank = ranks[label] = spearmanr(*both) if all(len(set(one)) > 1 for one in both) else None
        axis.axhline(0, color=GREY, linewidth=1.5)
        axis.plot(*both, "o", color=CPSD, alpha=0.8, markersize=7)
        text = f"rank correlation {rank.statistic:+.2f} (p = {rank.pvalue:.2f})" if rank else "all classes alike"
        axis.set(xlabel=label, title=text)
    axes[0][0].set_ylabel("gain (AP points)")
    return figure, ranks
