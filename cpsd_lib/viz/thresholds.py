"""The threshold explorer: precision, recall and F1 as the threshold moves."""

import ipywidgets
import numpy as np

from cpsd_lib.evaluation import averages, check_probabilities, of_classes
from cpsd_lib.viz.explorer import Explorer, Picture, label_size
from cpsd_lib.viz.plots import BASELINE, CO, CPSD, DIS, GREY

GRID = np.linspace(0, 1, 101)
STYLES = {"precision": (CO, "o"), "recall": (DIS, "s"), "F1": (CPSD, "D")}
HEIGHT = 8  # inches


def threshold_explorer(scores, targets, names, start=None):
    """Return an Explorer of the threshold: of all classes, or of one beside the others.

    scores [N, C]: probabilities; targets [N, C] of 1, 0, -1 = unknown (that entry is left out); names [C]. start:
    {"threshold": 0.5, "shown": None}, shown: the name of a class, or None. Its numbers are fractions: those of
    evaluation.precision_recall_f1, and with a class its "precision", "recall", "F1".
    A threshold is to be chosen on held-out TRAINING images; on the test split this is a look at the answers.
    Raises ValueError for tables that cannot be scored, scores outside 0..1, other names, a threshold outside 0..1.
    """
    (scores, targets), names = check_probabilities(scores, targets), list(names)
    if len(names) != scores.shape[1]:
        raise ValueError(f"{len(names)} names for {scores.shape[1]} classes; pass the names of the label table")
    figure = ThresholdFigure(scores, targets, names)

    def draw(threshold, shown):
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must lie in 0..1, got {threshold}")
        if shown is not None and shown not in names:
            raise ValueError(
                f"there is no class {shown!r}; shown is None for all, or one of {', '.join(names[:10])} ..."
            )
        return figure.show(threshold, None if shown is None else names.index(shown))

    def controls(_):
        return {
            "threshold": ipywidgets.FloatSlider(min=0, max=1, step=0.01, description="threshold"),
            "shown": ipywidgets.Dropdown(
                options=[("all classes", None), *zip(names, names, strict=True)], description="class"
            ),
        }

    return Explorer(draw, {"threshold": 0.5, "shown": None}, start, controls)


class ThresholdFigure:
    """Curves over the threshold, and beside them every class at the threshold, frequent classes first; percent."""

    def __init__(self, scores, targets, names):
        # A class's scores side by side: COCO's 40,137 x 80 are counted in 4 ms.
        self._scores, self._positive, self._known = (
            np.ascontiguousarray(x.T) for x in (scores, targets == 1, targets != -1)
        )
        self._present, self._names, self._picture = self._positive.sum(1), names, Picture(13.5, HEIGHT)
        figure = self._picture.figure
        right, chosen = np.stack([self._count(threshold) for threshold in GRID], axis=1)
        each, mean = of_classes(right, chosen, self._present), averages(right, chosen, self._present)
        # What is shown, as a column of each of these: a class, or after them all classes.
        together = {"precision": mean["CP"], "recall": mean["CR"], "F1": mean["CF1"]}
        self._curves = {name: 100 * np.column_stack([each[name], together[name]]) for name in STYLES}
        self._order = np.argsort(-self._present, kind="stable")
        curves, classes = figure.add_axes((0.06, 0.07, 0.44, 0.79)), figure.add_axes((0.605, 0.07, 0.385, 0.79))
        curves.set(xlim=(0, 1), ylim=(-1, 103), xlabel="threshold (probability)", ylabel="percent")
        curves.set_title("solid: what is shown; dotted: all decisions together (OP, OR, OF1)", loc="left", fontsize=11)
        classes.set(xlim=(-1, 103), ylim=(len(names) - 0.4, -0.6), yticks=[], xlabel="percent")
        classes.set_title("each class at this threshold, frequent classes first", loc="left", fontsize=11)
        self._lines, self._dots, self._classes = {}, {}, {}
        for (name, (colour, mark)), overall in zip(STYLES.items(), ("OP", "OR", "OF1"), strict=True):
            curves.plot(GRID, 100 * mean[overall], ":", color=colour, linewidth=1.5)
            (self._lines[name],) = curves.plot(GRID, 0 * GRID, color=colour, linewidth=2.5)
            (self._dots[name],) = curves.plot([0], [0], mark, color=colour, markersize=9, label=name)
            (self._classes[name],) = classes.plot(
                0.0 * self._order, range(len(names)), mark, color=colour, markersize=5
            )
        # Above the curves, which may be anywhere.
        figure.legend(loc="upper right", bbox_to_anchor=(0.99, 1.0), ncols=3, fontsize=11, frameon=False)
        self._here = curves.axvline(0, color=BASELINE, linewidth=1)
        self._band = classes.axhline(-9, color=GREY, alpha=0.35, linewidth=8, zorder=1)
        size = label_size(0.79 * HEIGHT, len(names))
        if size:
            classes.set_yticks(range(len(names)), [names[c] for c in self._order], fontsize=size)
            classes.tick_params(axis="y", length=0, pad=5)

    def _count(self, threshold):
        """Return (positives, images) of each class that reach a threshold, two int arrays [C]."""
        predicted = self._known & (self._scores >= threshold)
        return np.count_nonzero(predicted & self._positive, axis=1), np.count_nonzero(predicted, axis=1)

    def show(self, threshold, shown):
        """Draw all classes (shown None) or class `shown` at a threshold; return the PNG and the numbers, fractions."""
        right, chosen = self._count(threshold)
        each = of_classes(right, chosen, self._present)
        numbers = {name: float(value) for name, value in averages(right, chosen, self._present).items()}
        text = "   ".join(f"{name} {100 * value:.1f}" for name, value in numbers.items())
        text = f"{text}  (%; CP CR CF1: classes averaged, OP OR OF1: all decisions)"
        if shown is not None:
            numbers |= {name: float(values[shown]) for name, values in each.items()}
            text = "   ".join(f"{name} {100 * numbers[name]:.1f}" for name in STYLES)
            positives = f"{right[shown]:,} of {self._present[shown]:,} positives found"
            text = f"{text}  (%; {positives}, predicted in {chosen[shown]:,} images)"
        title = f"{'all classes' if shown is None else self._names[shown]}, threshold {threshold:.2f}"
        self._here.set_xdata([threshold] * 2)
        self._band.set_ydata([-9 if shown is None else np.flatnonzero(self._order == shown)[0]] * 2)
        now = {"precision": numbers["CP"], "recall": numbers["CR"], "F1": numbers["CF1"]} | numbers
        for name in STYLES:
            self._lines[name].set_ydata(self._curves[name][:, -1 if shown is None else shown])
            self._dots[name].set_data([threshold], [100 * now[name]])
            self._classes[name].set_xdata(100 * each[name][self._order])
        moving = [*self._lines.values(), *self._dots.values(), *self._classes.values()]
        return self._picture.png([*moving, self._here, self._band], title, text), numbers
