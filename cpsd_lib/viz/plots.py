"""The figures of the notebooks, in one colour-blind-safe style that a projector can show."""

import re
import textwrap
import warnings
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import colormaps, font_manager
from matplotlib.cm import ScalarMappable
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import LogFormatter
from scipy.spatial.distance import pdist, squareform
from scipy.special import huber
from scipy.stats import spearmanr

from cpsd_lib.support import atomic

# Okabe and Ito's palette: distinct to every common kind of colour vision, and in grey by the markers beside it.
BASELINE, SD, CO, DIS, CPSD, GREY = "#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
MARKERS = "osD^vP*X<>"
ROW_COLOURS = {"baseline": BASELINE, "+ SD": SD, "+ CGPD": CO, "+ DGPD": DIS, "+ CPSD": CPSD}
ROW_COLOURS |= {"student only": BASELINE, "+ MLD": "#CC79A7", "+ LED": "#56B4E9", "+ MLD + LED": "#882255"}
ROW_COLOURS |= {"+ random parts": "#999933", "baseline, CPSD's compute": "#555555", "+ SD, CPSD's compute": "#AA7700"}
ROW_COLOURS |= {"+ CGPD by MLD": CO, "+ DGPD by MLD": DIS, "+ random parts by MLD": "#999933", "+ ensemble by MLD": SD}
ROW_COLOURS |= {"+ two draws of random parts by MLD": "#666600", "+ wide teacher by MLD": "#AA4499"}
ROW_COLOURS |= {"+ SD, teacher continued": "#CC6677", "+ class-aware pseudo-labels": "#882222"}
ROW_COLOURS |= {"+ CPSD by MLD": CPSD, "+ CPSD by MLD + LED": "#117733", "released checkpoint": GREY}
COLOURS = ROW_COLOURS | {"co teachers": CO, "dis teachers": DIS, "teacher": BASELINE}
COLOURS |= {"co": CO, "dis": DIS, "random": "#999933", "random_2": "#666600", "ensemble": SD}
COLOURS |= {"wide": "#AA4499", "equal_compute": "#AA7700", "continued": "#CC6677"}
MAP = colormaps["inferno"]
OUTLINE = {"fill": False, "edgecolor": "white", "linewidth": 1.2}  # white on black is seen on every ground
OUTLINE["path_effects"] = [Stroke(linewidth=2.6, foreground="black"), Normal()]
ANNOTATED = 8  # a matrix of more rows than this has no room for its numbers
# Where they are installed, for class names in other scripts than the first font's.
FONTS = "Noto Sans CJK SC, Noto Sans CJK JP, Microsoft YaHei, PingFang SC, Hiragino Sans, Malgun Gothic, "
FONTS += "Noto Sans Arabic, Noto Sans Hebrew, Noto Sans Devanagari, Noto Sans Thai, Arial Unicode MS, Noto Emoji"


def use_style():
    """Set the style of all figures of a notebook: white ground, light grid, 11-point text, 110 dots an inch."""
    sns.set_theme(context="notebook", style="whitegrid", palette=[CO, DIS, CPSD, SD, "#CC79A7", "#56B4E9", "#332288"])
    plt.rcParams.update({"figure.dpi": 110, "savefig.dpi": 150, "axes.titlesize": 12, "font.size": 11})
    plt.rcParams.update({"axes.titlelocation": "left", "figure.constrained_layout.use": True})
    plt.rcParams["text.parse_math"] = False  # a class may be called "US$ or $": that is no formula
    installed = set(font_manager.get_font_names())
    plt.rcParams["font.family"] = ["sans-serif", *(name for name in FONTS.split(", ") if name in installed)]
    warnings.filterwarnings("ignore", r"Glyph .* missing from font")  # 01_data says so once, see `undrawn`


def undrawn(names):
    """Return the letters of some names that no font of the figures has, which they show as boxes (list of str)."""
    found = (font_manager.FontProperties(family=[family]) for family in plt.rcParams["font.family"])
    fonts = [font_manager.get_font(font_manager.findfont(one)) for one in found]
    letters = sorted({letter for name in names for letter in name if not letter.isspace()})
    return [letter for letter in letters if not any(font.get_char_index(ord(letter)) for font in fonts)]


def short(names, longest=24):
    """Return names [n] of at most `longest` letters for a figure: a longer one keeps its two ends, and no two are alike."""
    lines = [" ".join(name.split()) for name in names]
    ends = {line: line if len(line) <= longest else f"{line[: longest - 7]}…{line[-6:]}" for line in lines}
    count = Counter(ends.values())
    alike = {line: f"{end[: longest - 6]}…{n}" for n, (line, end) in enumerate(ends.items()) if count[end] > 1}
    return [alike.get(line, ends[line]) for line in lines]


def shortened(names):
    """Return a DataFrame of the names that figures shorten: as they stand there (its index), and in full."""
    both = [(one, name) for one, name in zip(short(names), names, strict=True) if one != name]
    return pd.DataFrame(both, columns=["in figures", "class"]).set_index("in figures")


def save(figure, path):
    """Write a figure as PNG to `path` (atomically) and return it, so that a notebook's cell shows it."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        figure.savefig(file, format="png", bbox_inches="tight")
    plt.close(figure)
    return figure


def panels(rows, columns, width, height, title=None, **options):
    """Return (figure, axes [rows, columns]) of width x height inches with a title above all; options: of plt.subplots."""
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    return figure, axes


def graph_by_part(axis, affinity, partition, **look):
    """Return a graph [C, C] drawn as an image, classes ordered by part, parts outlined, the diagonal empty; look: of imshow."""
    order = [c for part in partition.parts for c in part]
    off_diagonal = affinity[np.ix_(order, order)].astype(float)
    np.fill_diagonal(off_diagonal, np.nan)
    axis.grid(visible=False)  # would cross the empty diagonal
    axis.set(xticks=[], yticks=[])
    edges = np.cumsum([0, *map(len, partition.parts)]) - 0.5
    for low, high in pairwise(edges):
        frame = {"fill": False, "edgecolor": DIS, "linewidth": 2.5, "clip_on": False}
        axis.add_patch(plt.Rectangle((low, low), high - low, high - low, **frame))
    return axis.imshow(off_diagonal, cmap="viridis", interpolation="nearest", **look)


def affinity_by_part(affinities, partitions, names, titles):
    """One `graph_by_part` a branch; affinities, partitions: lists of one length."""
    figure, axes = panels(1, len(affinities), 5.4 * len(affinities) + 0.6, 5.8)
    for axis, affinity, partition, title in zip(axes[0], affinities, partitions, titles, strict=True):
        image = graph_by_part(axis, affinity, partition)
        figure.colorbar(image, ax=axis, shrink=0.7, label="affinity")
        title = textwrap.fill(title, 28)  # else it lies over the bar where names take the room
        axis.set(title=title, xlabel="class, ordered by part", ylabel="class, ordered by part")
        if len(names) <= 30:
            labels = short(names)
            ticks = {"ticks": range(len(names)), "labels": [labels[c] for part in partition.parts for c in part]}
            axis.set_xticks(**ticks, rotation=90, fontsize=11)
            axis.set_yticks(**ticks, fontsize=11)
    return figure


def curve_colours(labels):
    """Return {label: colour}: the experts of a branch, "co-0", "co-1", ..., in shades of one hue, no two curves alike."""
    colours = {}
    hue_of = {label: COLOURS.get(re.sub(r"-\d+$", "", label), BASELINE) for label in labels}
    for hue in dict.fromkeys(hue_of.values()):
        mine = [label for label in labels if hue_of[label] == hue]
        colours |= zip(mine, sns.light_palette(hue, len(mine) + 2, reverse=True), strict=False)
    return colours


def training_curves(histories, value, ylabel, title, scale="linear"):
    """Lines of a column of fit's history over epochs; histories {label: DataFrame}; scale: of the value, "log" as well."""
    figure, axis = plt.subplots(figsize=(10, 4.4))
    colours, last = curve_colours(list(histories)), max(history["epoch"].max() for history in histories.values())
    for number, (label, history) in enumerate(histories.items()):
        look = {"marker": MARKERS[number % 10], "color": colours[label], "markersize": 5, "label": label}
        axis.plot(history["epoch"], history[value], **look)
    axis.set(xlabel="epoch", ylabel=ylabel, title=title, yscale=scale, xlim=(0.5, last + 0.5))
    axis.xaxis.get_major_locator().set_params(integer=True)
    if scale == "log":
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(LogFormatter())  # the default writes formulas
    axis.legend(fontsize=11, ncol=1 + len(histories) // 14, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def class_bars(values, xlabel, title, colour=CO):
    """A bar a class, the first at the top; values: a Series by class name."""
    figure, axis = plt.subplots(figsize=(8.5, max(3.0, 0.27 * len(values) + 1.2)))
    axis.barh(range(len(values)), values, color=colour, height=0.6)
    axis.set_yticks(range(len(values)), short(values.index))
    axis.invert_yaxis()
    axis.axvline(0, color=BASELINE, linewidth=1)
    axis.margins(y=0.01)
    axis.set(xlabel=xlabel, title=title)
    return figure


def components(scores, title, against=None):
    """The component table as a picture: a dot a seed, a bar at the mean of each row, a line at that of row `against`.

    scores {split: {title of a row: [mAP of each seed]}}, in the order of the table; a second split is hollow, below the first.
    """
    rows = list(next(iter(scores.values())))
    figure, axis = plt.subplots(figsize=(10, 0.4 * len(scores) * len(rows) + 1.8))
    for number, (split, values_of) in enumerate(scores.items()):
        mark = {"marker": "oD"[number], "fillstyle": ("full", "none")[number], "linestyle": "", "markersize": 7}
        axis.plot([], [], color=GREY, label=split, **mark)
        for place, (row, values) in enumerate(values_of.items()):
            place, mean, colour = place + 0.4 * number, np.mean(values), ROW_COLOURS[row]
            axis.plot(values, [place] * len(values), color=colour, alpha=0.7, **mark)
            axis.plot([mean, mean], [place - 0.18, place + 0.18], color=colour, linewidth=3)
            beside = {"xytext": (9, 0), "textcoords": "offset points", "va": "center"}
            axis.annotate(f"{mean:.1f}", (max(values), place), **beside)
        if against in values_of:
            axis.axvline(np.mean(values_of[against]), color=GREY, linestyle=(":", "--")[number], linewidth=1.5)
    axis.set_yticks(range(len(rows)), rows)
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.15)
    axis.set(xlabel="mAP (%)", title=title)
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def pictures(images, captions, title, columns=6):
    """A sheet of images uint8 [n, 3, S, S] or float in [0, 1] with a caption each."""
    # matplotlib's own wrapping takes dollars for formulas, whatever the style says.
    captions = ["\n".join(textwrap.fill(line, 20) for line in caption.splitlines()) for caption in captions]
    rows = range(0, len(images), columns)
    lines = sum(1 + max(caption.count("\n") for caption in captions[row : row + columns]) for row in rows)
    figure, axes = panels(len(rows), columns, 11, 11 / columns * len(rows) + 0.19 * lines + 0.45, title)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(np.moveaxis(np.asarray(image), 0, -1))
        axis.set_title(caption, fontsize=11, loc="center")
    return figure


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


# ---- what label-wise embedding distillation compares -----------------------------------------------------------------


def relative_distances(embeddings):
    """Return the Euclidean distances [n, n] (float64) among embeddings [n, D], divided by the mean of those above 0.

    What L2D's label-wise embedding distillation (LED) compares. A group whose distances are all 0 keeps them.
    """
    distances = pdist(np.asarray(torch.as_tensor(embeddings).cpu(), dtype=np.float64))
    mean = distances[distances > 0].mean() if (distances > 0).any() else 1.0
    return squareform(distances / mean)


def mean_huber(student, teacher):
    """Return the mean over all pairs of the Huber distance (beta 1) between two matrices [n, n] of relative distances.

    One group adds (n - 1) times this to LED: it sums over n (n - 1) entries and divides by n. 0 for fewer than two members.
    """
    gap = np.abs(squareform(np.asarray(student) - np.asarray(teacher), checks=False))
    return float(huber(1, gap).mean()) if len(gap) else 0.0


def distance_matrices(matrices, member, about, names=None):
    """Heatmaps of relative distances on one scale, the first one the teacher's; matrices {title: [n, n]}.

    Every other title carries its mean Huber distance to the first. member: what a line of a matrix is; names [n]: theirs.
    """
    teacher = next(iter(matrices.values()))
    diagonal = np.eye(len(teacher), dtype=bool)  # its zeros say nothing and would take half of the colours
    distances = np.concatenate([matrix[~diagonal] for matrix in matrices.values()])
    # A group of two has no distance but 1, and a scale needs two ends.
    scale = {"vmin": np.min(distances, initial=0.99), "vmax": np.max(distances, initial=1.01), "cmap": "viridis"}
    cells = {"annot": len(teacher) <= ANNOTATED, "fmt": ".2f", "annot_kws": {"fontsize": 11}, "cbar": False}
    ticks = dict.fromkeys(("xticklabels", "yticklabels"), short(names, 14) if names else False)
    figure, axes = panels(1, len(matrices), 3.7 * len(matrices) + 0.9, 5.0, about, sharey=True)
    for number, (axis, (title, matrix)) in enumerate(zip(axes[0], matrices.items(), strict=True)):
        axis.grid(visible=False)
        axis.set_facecolor("#D9D9D9")  # shows through the diagonal
        sns.heatmap(matrix, mask=diagonal, ax=axis, square=True, **scale, **cells, **ticks)
        distance = f"Huber to the teacher {mean_huber(matrix, teacher):.4f}" if number else "to be copied"
        axis.set_title(f"{title}\n{distance}", loc="left")
        axis.set_xlabel(member)
        plt.setp(axis.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
        axis.tick_params(axis="y", rotation=0)
    axes[0, 0].set_ylabel(member)
    figure.colorbar(axis.collections[0], ax=axes, label="distance / the group's mean", shrink=0.75)
    return figure
