"""Figures of notebook 06: where each model looks, and how much of that lies inside the boxes."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.patheffects import Normal, Stroke

from cpsd_lib.viz.plots import BASELINE, CO, DIS, GREY, ROW_COLOURS

MAP = matplotlib.colormaps["inferno"]
COLOURS = ROW_COLOURS | {"co teachers": CO, "dis teachers": DIS, "teacher": BASELINE}
LONGEST = 22  # letters above a picture; more would run into the next one


def overlay(image, heat):
    """Return a map [S, S] in [0, 1] over the grey copy of an image uint8 [3, S, S], float [S, S, 3] in [0, 1]."""
    grey, strength = (
        np.moveaxis(np.asarray(image), 0, -1).mean(2, keepdims=True) / 255,
        0.6 * np.asarray(heat)[..., None],
    )
    return (1 - strength) * grey + strength * MAP(np.asarray(heat))[..., :3]


def looking(images, words, maps, captions, boxes, title):
    """A column a picture: itself, then each model's map over its grey copy, the boxes of the class outlined in all.

    images uint8 [n, 3, S, S]; words [n]; maps {model: [n, S, S] in [0, 1]}; captions {model: [n]}; boxes: of each picture
    [(left, top, right, bottom) in pixels, ...], or None where nobody knows them.
    """
    count, size = len(images), images.shape[-1]
    rows = {"picture": np.moveaxis(np.asarray(images), 1, -1)}
    rows |= {name: [overlay(*both) for both in zip(images, found, strict=True)] for name, found in maps.items()}
    captions = {"picture": words} | captions
    figure, axes = plt.subplots(
        len(rows), count, figsize=(1.62 * count + 2.2, 1.78 * len(rows) + 0.4), squeeze=False, layout="constrained"
    )
    for line, (name, shown) in zip(axes, rows.items(), strict=True):
        for number, (axis, pixels) in enumerate(zip(line, shown, strict=True)):
            axis.imshow(np.clip(pixels, 0, 1) if name != "picture" else pixels, extent=(0, size, size, 0))
            for box in boxes[number] if boxes else []:
                _outline(axis, *box)
            text = captions[name][number]
            axis.set_title(text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…", fontsize=10, loc="center")
            axis.set(xticks=[], yticks=[], xlim=(0, size), ylim=(size, 0))
            axis.grid(visible=False)
        colour = COLOURS.get(name, BASELINE)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=12, color=colour, fontweight="bold")
    bar = figure.colorbar(ScalarMappable(cmap=MAP), ax=axes[1:], shrink=0.5, aspect=30)
    bar.set_label("map / its own maximum")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    return figure


def _outline(axis, left, top, right, bottom):
    # White on black is seen on every ground.
    effects = [Stroke(linewidth=2.6, foreground="black"), Normal()]
    sides = {"fill": False, "edgecolor": "white", "linewidth": 1.2, "path_effects": effects}
    axis.add_patch(plt.Rectangle((left, top), right - left, bottom - top, **sides))


def shares_inside(tables, title):
    """A panel a split, a dot and an interval a model and seed, beside chance and the best its maps could do.

    tables {split: DataFrame of explanation.summarise with a line a (seed, strategy, map)}.
    """
    lines = list(dict.fromkeys(next(iter(tables.values())).index.droplevel("seed")))
    figure, axes = plt.subplots(
        *(1, len(tables)),
        **{"figsize": (5.6 * len(tables) + 1.6, 0.5 * len(lines) + 2.2), "sharex": True, "sharey": True},
        **{"squeeze": False, "layout": "constrained"},
    )
    for axis, (split, table) in zip(axes[0], tables.items(), strict=True):
        for place, (strategy, kind) in enumerate(lines):
            _draw_line(axis, place, table.xs((strategy, kind), level=("strategy", "map")), COLOURS.get(strategy, GREY))
        level = table.groupby(["strategy", "map"], sort=False)[["chance", "best"]].mean()
        (chance,) = axis.plot(level["chance"], range(len(lines)), ":", color=GREY, linewidth=2.5, zorder=1)
        (best,) = axis.plot(level["best"], range(len(lines)), "|", color=GREY)
        best.set(markersize=20, markeredgewidth=3)
        axis.set(xlabel="share of the map inside the boxes (%)", title=split)
        axis.margins(x=0.08)
        axis.grid(axis="y", visible=False)
    axes[0, 0].set_yticks(range(len(lines)), [s if kind == "activation" else f"{s}, {kind}" for s, kind in lines])
    axes[0, 0].set_ylim(len(lines) - 0.4, -0.6)
    told = ["chance: the area of the boxes", "the best that maps of so few places could do"]
    figure.legend([chance, best], told, loc="outside lower center", ncol=2, fontsize=10)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    return figure


def _draw_line(axis, place, its, colour):
    offsets = np.linspace(-0.2, 0.2, len(its)) if len(its) > 1 else [0.0]
    for y, (_, one) in zip(place + np.array(offsets), its.iterrows(), strict=True):
        axis.plot([one["share_low"], one["share_high"]], [y, y], color=colour, linewidth=2.5)
        axis.plot(one["share"], y, "o", color=colour, markersize=7)
    if its["share"].notna().any():
        beside = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 11}
        axis.annotate(f"{its['share'].mean():.1f}", (its["share_high"].max(), place), **beside)
