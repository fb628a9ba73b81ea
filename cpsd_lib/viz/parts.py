"""The partition explorer: what the branch, k, the exponent and the seed do to the parts."""

from functools import lru_cache
from pathlib import Path

import ipywidgets
import numpy as np
from matplotlib import rc_context
from matplotlib.collections import PathCollection
from matplotlib.textpath import TextPath
from matplotlib.transforms import IdentityTransform
from sklearn.preprocessing import minmax_scale, robust_scale

from cpsd_lib import graph
from cpsd_lib.evaluation import PAPER_EXPONENT, partition_numbers
from cpsd_lib.partition import adjusted_rand, cut, spectral_embedding
from cpsd_lib.viz.explorer import DPI, Explorer, Picture, label_size
from cpsd_lib.viz.plots import BASELINE, CO, CPSD, DIS, MARKERS, SD
from cpsd_lib.viz.plots_partition import BRANCHES

COLOURS = (CO, SD, CPSD, DIS, "#CC79A7", "#56B4E9", BASELINE)  # with 10 marks: 70 parts before one repeats
HEIGHT = 8  # inches
MOST_PARTS = 16  # the papers' largest k is 13
GAP = 7  # pixels from the middle of a point's mark to its name


def partition_explorer(counts, occurrence, names, start=None, compare=None, folder=None, self_loops=False):
    """Return an Explorer of the cuts of a label graph: branch, k, exponent, seed; refined at a button, written at another.

    counts [C, C], occurrence [C]: from graph.cooccurrence; names [C]. start: settings to begin with, such as
    {"branch": "dis", "k": 5, "exponent": 0.5, "seed": 0, "refine": True}. compare: a Partition, or {branch: Partition}, that
    the ARI is taken to. folder: "export" writes to explored_partitions/ in it, for partition.released_co / released_dis.
    self_loops: as in graph.affinity.
    Its numbers are those of evaluation.partition_numbers, "partition", and with compare "ARI". Raises ValueError for what
    does not fit together.
    """
    if len(names) != len(occurrence):
        raise ValueError(f"{len(names)} names for {len(occurrence)} classes; pass the names of the same label table")

    figure = PartitionFigure(names)

    # A setting that was there before costs a drawing only; 512 graphs of 80 classes are 30 MB.
    @lru_cache(512)
    def graph_of(branch, exponent):
        affinity = graph.affinity(counts, occurrence, branch, exponent, self_loops)
        return affinity, embedding(affinity)

    @lru_cache(512)
    def cut_of(branch, k, exponent, seed, refine):
        return cut(graph_of(branch, exponent)[0], k, seed, refine)

    def draw(branch, k, exponent, seed, refine):
        exponent = round(exponent, 6)  # a slider says 0.31000000000000005; the exported name says 0.31
        affinity, points = graph_of(branch, exponent)
        partition = cut_of(branch, k, exponent, seed, refine)
        numbers = partition_numbers(affinity, partition)
        other = compare.get(branch) if isinstance(compare, dict) else compare
        if other is not None:
            numbers["ARI"] = adjusted_rand(partition, other)
        title = f"{BRANCHES[branch][0]}, k = {k}, p = {exponent:g}, seed {seed}, {'refined' if refine else 'plain'} cut"
        return figure.show(affinity, partition, points, title, numbers), numbers | {"partition": partition}

    def controls(settings):
        branches = [(title, name) for name, (title, _) in BRANCHES.items()]
        most = min(len(names), max(MOST_PARTS, settings["k"]))
        limits = {"min": min(0.05, settings["exponent"]), "max": max(2.0, settings["exponent"]), "step": 0.01}
        return {
            "branch": ipywidgets.ToggleButtons(options=branches, style={"button_width": "auto"}),
            "k": ipywidgets.IntSlider(min=1, max=most, description="parts k"),
            "exponent": ipywidgets.FloatSlider(**limits, description="exponent p"),
            "seed": ipywidgets.BoundedIntText(min=0, max=2**31 - 1, description="seed", layout={"width": "160px"}),
        }

    buttons = {"refine": lambda explorer: explorer.set(refine=True)}
    if folder is not None:
        buttons["export"] = lambda explorer: export(explorer, folder)
    defaults = {"branch": "co", "k": 2, "exponent": PAPER_EXPONENT, "seed": 0, "refine": False}
    return Explorer(draw, defaults, start, controls, buttons, live={"refine": False})


def export(explorer, folder):
    """Write the partition that a partition explorer shows to folder/explored_partitions and return a message naming it."""
    now = explorer.settings
    name = (
        f"{now['branch']}-k{now['k']}-p{now['exponent']:g}-seed{now['seed']}{'-refined' if now['refine'] else ''}.json"
    )
    # Not into partition/: a file more in there would make 02_partition stale.
    path = Path(folder) / "explored_partitions" / name
    explorer.numbers["partition"].save(path)
    return f"written to {path}; a run takes it as partition.released_{now['branch']}"


def embedding(affinity):
    """Return where each class of a graph [C, C] lies on the 2nd and 3rd eigenvector that the cut clusters, [C, 2].

    Those of the normalised Laplacian I - D^-1/2 P D^-1/2, rescaled by D^-1/2; the first says nothing. NaN for a class without any
    weight, zeros on an axis for which there are too few classes.
    """
    connected = np.flatnonzero(affinity.sum(1) > 0)
    points = np.full((len(affinity), 2), np.nan)
    points[connected] = 0
    if len(connected) > 1:
        count = min(3, len(connected))
        vectors = spectral_embedding(affinity[np.ix_(connected, connected)], count)[:, 1:]
        # The sign is arbitrary; left to it, the picture would flip while a control moves.
        points[connected, : count - 1] = vectors * np.where((vectors**3).sum(0) < 0, -1, 1)
    return points


class PartitionFigure:
    """A graph ordered by part, and beside it the classes where the cut sees them; one mark and colour a part."""

    def __init__(self, names):
        self._names, self._picture, self._marks = names, Picture(13.5, HEIGHT), []
        figure = self._picture.figure
        self._heat, bar = figure.add_axes((0.088, 0.035, 0.488, 0.85)), (0.584, 0.035, 0.01, 0.85)
        empty = np.zeros((len(names), len(names)))
        # One scale for all settings: with its own for each, moving the exponent would show nothing.
        self._image = self._heat.imshow(empty, cmap="viridis", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
        self._heat.set(xticks=[], yticks=[], xlabel="class, in the same order", autoscale_on=False)
        figure.colorbar(self._image, cax=figure.add_axes(bar)).ax.set_title("affinity", fontsize=10)
        self._plane = figure.add_axes((0.655, 0.06, 0.335, 0.79))
        self._plane.set(
            xlabel="2nd eigenvector", ylabel="3rd eigenvector", xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1)
        )
        self._plane.set_title("Spectral embedding, arsinh scale", loc="left", fontsize=11)
        self._margin, size = -0.012 * len(names) - 0.5, label_size(0.85 * HEIGHT, len(names))
        # Outlines of all names in one collection that only moves: 80 texts of matplotlib's take 2 ms each, at every drawing.
        self._rows, self._row_sizes = _outlines(self._heat, names, size or 1)
        self._rows.set_visible(size is not None)
        self._labels, self._label_sizes = _outlines(self._plane, names, 7 if len(names) > 40 else 9)

    def show(self, affinity, partition, points, title, numbers):
        """Draw a graph [C, C], its Partition, the classes' points [C, 2] and the explorer's numbers; return the PNG."""
        agree = f";  ARI to the other partition {numbers['ARI']:.3f}" if "ARI" in numbers else ""
        sizes = ", ".join(map(str, numbers["sizes"]))
        summary = f"Ncut {numbers['Ncut']:.4f};  parts of {sizes} classes;  singletons {numbers['singletons']}{agree}"
        order = [c for part in partition.parts for c in part]
        shown = affinity[np.ix_(order, order)].astype(float)
        np.fill_diagonal(shown, np.nan)
        self._image.set_data(shown)
        points = _spread(points)
        while self._marks:
            self._marks.pop().remove()
        row = 0
        for number, part in enumerate(partition.parts):
            self._marks += self._draw_part(number, points[part], row, len(part))
            row += len(part)
        rows = np.empty(len(order))
        rows[order] = range(len(order))
        anchors = self._heat.transData.transform(np.column_stack([0 * rows + self._margin, rows]))
        self._rows.set_offsets(anchors - self._row_sizes * (1, 0.5) - (GAP, 0))
        placed = np.flatnonzero(~np.isnan(points[:, 0]))
        # Outliers first: they are what one asks about, and the middle has no room for all.
        placed = placed[np.argsort(-np.abs(points[placed]).max(1), kind="stable")]
        corners = np.full((len(points), 2), np.nan)
        anchors = self._plane.transData.transform(points[placed])
        corners[placed] = where_free(self._label_sizes[placed], anchors, self._plane.bbox)
        self._labels.set_offsets(corners)
        return self._picture.png([self._image, self._rows, self._labels, *self._marks], title, summary)

    def _draw_part(self, number, points, row, size):
        """Draw a part of `size` classes, the first in `row`: its frame and marks in the graph, its points; return all."""
        mark, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
        low, high = row - 0.5, row + size - 0.5
        rows = {"markersize": 4.5, "clip_on": False}
        return [
            *self._heat.plot([low, high, high, low, low], [low, low, high, high, low], color=DIS, linewidth=1.5),
            *self._heat.plot([self._margin] * size, range(row, row + size), mark, color=colour, **rows),
            *self._plane.plot(*points.T, mark, color=colour, markersize=7, scalex=False, scaley=False),
        ]


def _spread(points):
    """Return points [C, 2] in 0.08..0.92 of each axis, their distances from the median on an arsinh scale; NaN stays."""
    # Linear, one class far out (person, in COCO's P-) puts all others on one spot.
    if np.isnan(points).all():
        return points
    return minmax_scale(np.arcsinh(robust_scale(points)), (0.08, 0.92))


def _outlines(axis, names, size):
    """Return a collection of names, `size` in points, and their sizes [n, 2]; its offsets are lower left corners; in pixels."""
    em = size * DPI / 72
    with rc_context({"text.parse_math": False}):
        paths = [TextPath((0, 0.2 * em), name, size=em) for name in names]  # letters such as g reach below
    sizes = np.array([(path.get_extents().x1, 1.2 * em) for path in paths])  # alike in height, with and without a g
    look = {"facecolor": "black", "linewidth": 0, "clip_on": False, "zorder": 5}
    collection = PathCollection(paths, offsets=0 * sizes, offset_transform=IdentityTransform(), **look)
    collection.set_transform(IdentityTransform())
    return axis.add_artist(collection), sizes


def where_free(sizes, anchors, box):
    """Return the lower left corners [n, 2] of labels beside their points, NaN where each side is taken or out of the box.

    sizes [n, 2], width and height: the first has the first choice, and none covers a point or another label; anchors
    [n, 2]: the points; box: has min and max. All in pixels.
    """
    lows, highs, corners = anchors - GAP + 1, anchors + GAP - 1, np.full((len(sizes), 2), np.nan)
    for number, (size, anchor) in enumerate(zip(sizes, anchors, strict=True)):
        for side in ((1, 0), (-1, 0), (0, 1), (0, -1)):  # right, left, above, below
            low = anchor - size / 2 + side * (size / 2 + GAP)
            high = low + size
            if (low >= box.min).all() and (high <= box.max).all() and not ((lows < high) & (low < highs)).all(1).any():
                lows, highs, corners[number] = np.vstack([lows, low]), np.vstack([highs, high]), low
                break
    return corners
