"""The partition explorer: what the branch, k, the exponent and the seed do to the parts."""

from functools import partial
from pathlib import Path

import ipywidgets
import numpy as np
from matplotlib.transforms import Bbox, IdentityTransform
from sklearn.preprocessing import minmax_scale, robust_scale

from cpsd_lib import graph
from cpsd_lib.evaluation import PAPER_EXPONENT, partition_numbers
from cpsd_lib.partition import adjusted_rand, cut, spectral_embedding
from cpsd_lib.viz.explorer import Explorer, canvas, name_rows
from cpsd_lib.viz.plots import BASELINE, CO, CPSD, DIS, MARKERS, SD, graph_by_part, short

COLOURS = (CO, SD, CPSD, DIS, "#CC79A7", "#56B4E9", BASELINE)  # with 10 marks: 70 parts before one repeats
BRANCHES = {"co": "CGP (cuts P+)", "dis": "DGP (cuts P-)"}
MOST_PARTS = 16  # the papers' largest k is 13
GAP = 7  # pixels from the middle of a point's mark to its name


def partition_explorer(
    counts, occurrence, names, start=None, compare=None, folder=None, self_loops=False, balance=None
):
    """Return an Explorer of the cuts of a label graph: branch, k, exponent, seed, refined or not; written at a button.

    counts [C, C], occurrence [C]: from graph.cooccurrence; names [C]. start: settings to begin with, such as
    {"branch": "dis", "k": 5, "exponent": 0.5, "seed": 0, "refine": {"co": False, "dis": True}}. compare {branch: Partition}:
    what the ARI is taken to. folder: "export" writes to explored_partitions/ in it, for partition.released_co / released_dis.
    self_loops: as in graph.affinity; balance: as in partition.cut.
    Its numbers are those of evaluation.partition_numbers, "partition", and with compare "ARI". Raises ValueError for what
    does not fit together.
    """

    def draw(branch, k, exponent, seed, refine):
        exponent = round(exponent, 6)  # a slider says 0.31000000000000005; the exported name says 0.31
        affinity = graph.affinity(counts, occurrence, branch, exponent, self_loops)
        partition = cut(affinity, k, seed, refine, balance)
        numbers = partition_numbers(affinity, partition)
        kind = "balanced" if balance else "refined" if refine else "plain"
        if branch in (compare or {}):
            numbers["ARI"] = adjusted_rand(partition, compare[branch])
        title = f"{BRANCHES[branch]}, k = {k}, p = {exponent:g}, seed {seed}, {kind} cut"
        sizes, agree = ", ".join(map(str, numbers["sizes"])), ""
        if "ARI" in numbers:
            agree = f";  ARI to the other partition {numbers['ARI']:.3f}"
        summary = f"Ncut {numbers['Ncut']:.4f};  parts of {sizes} classes;  singletons {numbers['singletons']}{agree}"
        figure = canvas(title, summary)
        draw_graph(figure, affinity, partition, names)
        draw_points(figure, partition, _spread(embedding(affinity)), names)
        return figure, numbers | {"partition": partition}

    defaults = {"branch": "co", "k": 2, "exponent": PAPER_EXPONENT, "seed": 0, "refine": {}}
    first = defaults | (start or {})
    refined = {"co": False, "dis": False} | first["refine"]
    first["refine"] = refined.get(first["branch"])
    branches = [(title, name) for name, title in BRANCHES.items()]
    most = min(len(names), max(MOST_PARTS, first["k"]))
    limits = {"min": min(0.05, first["exponent"]), "max": max(2.0, first["exponent"]), "step": 0.01}
    controls = {
        "branch": partial(ipywidgets.ToggleButtons, options=branches, style={"button_width": "auto"}),
        "k": partial(ipywidgets.IntSlider, min=1, max=most, description="parts k"),
        "exponent": partial(ipywidgets.FloatSlider, **limits, description="exponent p"),
        "seed": partial(ipywidgets.BoundedIntText, min=0, max=2**31 - 1, description="seed", layout={"width": "160px"}),
        "refine": partial(ipywidgets.ToggleButton, description="refine"),
    }
    buttons = {} if folder is None else {"export": lambda explorer: export(explorer, folder)}
    return Explorer(draw, defaults, first, controls, buttons, {"branch": lambda branch: {"refine": refined[branch]}})


def export(explorer, folder):
    """Write the partition that a partition explorer shows to folder/explored_partitions and return a message naming it."""
    now = explorer.settings
    refined = "-refined" if now["refine"] else ""
    name = f"{now['branch']}-k{now['k']}-p{now['exponent']:g}-seed{now['seed']}{refined}.json"
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


def _mark(number):
    return {"marker": MARKERS[number % len(MARKERS)], "color": COLOURS[number % len(COLOURS)], "linestyle": ""}


def draw_graph(figure, affinity, partition, names):
    """Draw a graph [C, C] ordered by part into the left of a figure, each class with its name and the mark of its part."""
    axis, bar = figure.add_axes((0.175, 0.06, 0.4, 0.79)), figure.add_axes((0.585, 0.06, 0.01, 0.79))
    # One scale for all settings: with its own for each, moving the exponent would show nothing.
    image = graph_by_part(axis, affinity, partition, vmin=0, vmax=1, aspect="auto")
    axis.set(xlabel="class, in the same order", autoscale_on=False)
    figure.colorbar(image, cax=bar).ax.set_title("affinity", fontsize=11)
    row = 0
    for number, part in enumerate(partition.parts):
        rows, row = np.arange(row, row + len(part)), row + len(part)
        axis.plot(0 * rows - 0.012 * len(names) - 0.5, rows, markersize=4.5, clip_on=False, **_mark(number))
    name_rows(axis, [names[c] for part in partition.parts for c in part])


def draw_points(figure, partition, points, names):
    """Draw the classes' points [C, 2] in 0..1, or NaN, into the right of a figure, with the marks of their parts."""
    axis = figure.add_axes((0.67, 0.07, 0.32, 0.75))
    axis.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), xlabel="2nd eigenvector", ylabel="3rd eigenvector")
    axis.set_title("Spectral embedding, arsinh scale", loc="left", fontsize=11)
    for number, part in enumerate(partition.parts):
        axis.plot(*points[part].T, markersize=7, **_mark(number))
    placed = np.flatnonzero(~np.isnan(points[:, 0]))
    # Outliers first: they are what one asks about, and the middle has no room for all.
    placed = placed[np.argsort(-np.abs(points[placed]).max(1), kind="stable")]
    name_points(axis, points[placed], short([names[c] for c in placed]), fontsize=11)


def _spread(points):
    """Return points [C, 2] in 0.08..0.92 of each axis, their distances from the median on an arsinh scale; NaN stays."""
    # Linear, one class far out (person, in COCO's P-) puts all others on one spot.
    if np.isnan(points).all():
        return points
    return minmax_scale(np.arcsinh(robust_scale(points)), (0.08, 0.92))


def name_points(axis, points, names, **look):
    """Write each of names [n] beside its point [n, 2] where it covers no point and no other; the first has the first choice."""
    anchors, look = axis.transData.transform(points), look | {"ha": "center", "va": "center"}
    taken = [Bbox([anchor - GAP + 1, anchor + GAP - 1]) for anchor in anchors]
    for name, anchor in zip(names, anchors, strict=True):
        text = axis.text(0, 0, name, transform=IdentityTransform(), **look)
        size = text.get_window_extent().size
        for side in ((1, 0), (-1, 0), (0, 1), (0, -1)):  # right, left, above, below
            middle = anchor + side * (size / 2 + GAP)
            box = Bbox([middle - size / 2, middle + size / 2])
            inside = axis.bbox.contains(*box.min) and axis.bbox.contains(*box.max)
            if inside and not box.count_overlaps(taken):
                text.set_position(middle)
                taken.append(box)
                break
        else:
            text.remove()
