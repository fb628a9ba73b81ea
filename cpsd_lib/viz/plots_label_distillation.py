"""Figures of 08_label_distillation: MLD over one logit, and what LED compares, distances among embeddings."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.ticker import MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist, squareform
from scipy.special import huber

from cpsd_lib.viz.plots import BASELINE, CO, DIS, panels, short

ANNOTATED = 8  # a matrix of more rows than this has no room for its numbers


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


def neighbours_first(distances):
    """Return an order [n] of the members of distances [n, n] that puts near ones side by side (average linkage)."""
    if len(distances) <= 2:
        return np.arange(len(distances))
    return leaves_list(linkage(squareform(distances, checks=False), "average"))


def triangles(points):
    """Groups of three embeddings as triangles, each side with its relative distance; points {title: [3, 2]}."""
    figure, axes = panels(1, len(points), 3.9 * len(points), 4.3)
    for axis, (title, corners) in zip(axes[0], points.items(), strict=True):
        corners = np.asarray(corners, dtype=float)
        distances, centre = relative_distances(corners), corners.mean(0)
        axis.fill(*corners.T, facecolor=(CO, 0.12), edgecolor=CO, linewidth=2.5)
        axis.plot(*corners.T, "o", color=BASELINE, markersize=8)
        for number, corner in enumerate(corners):
            _outside(axis, corner, centre, f"e{'₁₂₃'[number]}", 14)
        for i, j in ((0, 1), (1, 2), (0, 2)):
            _outside(axis, (corners[i] + corners[j]) / 2, centre, f"{distances[i, j]:.2f}", 18, color=DIS)
        axis.set_aspect("equal", adjustable="datalim")
        axis.margins(0.3)
        axis.set(title=title, xlabel="1st coordinate", ylabel="2nd coordinate")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def _outside(axis, place, centre, text, points, **look):
    away = np.asarray(place) - centre
    away = points * away / max(np.linalg.norm(away), 1e-9)
    axis.annotate(text, place, away, textcoords="offset points", ha="center", va="center", fontsize=12, **look)


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
