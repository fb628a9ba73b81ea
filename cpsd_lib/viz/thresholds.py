"""The threshold explorer: precision, recall and F1 as the threshold moves."""

from functools import partial

import ipywidgets
import numpy as np

from cpsd_lib.evaluation import averages, check_probabilities, of_classes
from cpsd_lib.viz.explorer import Explorer, canvas, name_rows
from cpsd_lib.viz.plots import BASELINE, CO, CPSD, DIS, GREY, short

GRID = np.linspace(0, 1, 101)
# Name of a class's score: of the mean over classes, of all decisions together, colour, mark.
STYLES = {"precision": ("CP", "OP", CO, "o"), "recall": ("CR", "OR", DIS, "s"), "F1": ("CF1", "OF1", CPSD, "D")}


def threshold_explorer(scores, targets, names, start=None):
    """Return an Explorer of the threshold: of all classes, or of one beside the others.

    scores [N, C]: probabilities; targets [N, C] of 1, 0, -1 = unknown (that entry is left out); names [C]. start:
    {"threshold": 0.5, "shown": ""}, shown: the name of a class, or "" for all. Its numbers are fractions: those of
    evaluation.precision_recall_f1, and with a class its "precision", "recall", "F1".
    A threshold is to be chosen on held-out TRAINING images; on the test split this is a look at the answers.
    Raises ValueError for tables that cannot be scored, or a class or threshold that is not there.
    """
    (scores, targets), names = check_probabilities(scores, targets), list(names)
    # A class's scores side by side: COCO's 40,137 x 80 are counted in 4 ms.
    by_class, positive, known = (np.ascontiguousarray(x.T) for x in (scores, targets == 1, targets != -1))
    present = positive.sum(1)

    def count(threshold):
        predicted = known & (by_class >= threshold)
        return np.count_nonzero(predicted & positive, axis=1), np.count_nonzero(predicted, axis=1), present

    right, chosen, _ = zip(*map(count, GRID), strict=True)
    counts = np.stack(right), np.stack(chosen), present
    curves = of_classes(*counts) | averages(*counts)

    def draw(threshold, shown):
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in 0..1, got {threshold}")
        now = count(threshold)
        each, numbers = of_classes(*now), {name: float(value) for name, value in averages(*now).items()}
        title, scores, about, c = "all classes", numbers, "CP CR CF1: classes averaged, OP OR OF1: all decisions", None
        if shown:
            (title,), c = short([shown], 50), names.index(shown)
            scores = {name: float(values[c]) for name, values in each.items()}
            about = f"{now[0][c]:,} of {present[c]:,} positives found, predicted in {now[1][c]:,} images"
        text = "   ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())
        figure = canvas(f"{title}, threshold {threshold:.2f}", f"{text}  (%; {about})")
        draw_curves(figure, curves, c, threshold, scores)
        draw_classes(figure, each, np.argsort(-present, kind="stable"), c, names)
        # Above the curves, which may be anywhere.
        figure.legend(loc="upper right", bbox_to_anchor=(0.99, 1.0), ncols=3, fontsize=11, frameon=False)
        return figure, numbers | scores

    classes = [("all classes", ""), *zip(names, names, strict=True)]
    controls = {
        "threshold": partial(ipywidgets.FloatSlider, min=0, max=1, step=0.01, description="threshold"),
        "shown": partial(ipywidgets.Dropdown, options=classes, description="class"),
    }
    return Explorer(draw, {"threshold": 0.5, "shown": ""}, start, controls)


def draw_curves(figure, curves, c, threshold, scores):
    """Draw scores of all classes (c None) or of class c over the threshold into the left of a figure, in percent.

    curves {name: [101] or [101, C]} of all scores over GRID; scores {name: number} now.
    """
    axis = figure.add_axes((0.065, 0.11, 0.43, 0.72))
    axis.set(xlim=(0, 1), ylim=(-1, 103), xlabel="threshold (probability)", ylabel="percent")
    axis.set_title("solid: shown; dotted: all decisions (OP, OR, OF1)", loc="left", fontsize=11)
    axis.axvline(threshold, color=BASELINE, linewidth=1)
    for name, (mean, overall, colour, mark) in STYLES.items():
        shown, now = (curves[mean], scores[mean]) if c is None else (curves[name][:, c], scores[name])
        axis.plot(GRID, 100 * curves[overall], ":", color=colour, linewidth=1.5)
        axis.plot(GRID, 100 * shown, color=colour, linewidth=2.5)
        axis.plot([threshold], [100 * now], mark, color=colour, markersize=9, label=name)


def draw_classes(figure, each, order, c, names):
    """Draw the scores {name: [C]} of each class into the right of a figure, in this order [C], class c marked; percent."""
    axis, rows = figure.add_axes((0.68, 0.11, 0.305, 0.72)), range(len(names))
    axis.set(xlim=(-1, 103), ylim=(len(names) - 0.4, -0.6), yticks=[], xlabel="percent")
    axis.set_title("each class, frequent ones first", loc="left", fontsize=11)
    if c is not None:
        axis.axhline(np.flatnonzero(order == c)[0], color=GREY, alpha=0.35, linewidth=8, zorder=1)
    for name, (_, _, colour, mark) in STYLES.items():
        axis.plot(100 * each[name][order], rows, mark, color=colour, markersize=5)
    name_rows(axis, [names[i] for i in order])
