"""Scores of a multi-label classifier and how sure they are, in fractions 0..1. Unknown targets (-1) are left out."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse

from cpsd_lib.progress import bar
from cpsd_lib.ranking import count_reaching

CLASSES_AT_ONCE = 8


def average_precision(scores, targets):
    """Average precision of each class [C]: the mean, over its positives, of the precision at that positive's score.

    scores [N, C]: any finite or infinite ranking values; targets [N, C] of 1, 0, -1 = unknown (that entry is left out).
    Tied scores enter together, as in scikit-learn. A class without a positive gets NaN.
    Raises ValueError for other shapes, other targets or a NaN score.
    """
    scores, targets = check(scores, targets)
    result = np.full(targets.shape[1], np.nan)

    def score(start):
        # Copied, a class's scores lie side by side; some classes at a time, or each cache line is read once for each.
        block = slice(start, start + CLASSES_AT_ONCE)
        for c, (mine, truth) in enumerate(
            zip(scores[:, block].T.copy(), targets[:, block].T.copy(), strict=True), start
        ):
            _, right, chosen = at_each_positive(mine, truth)
            if len(right):
                result[c] = (right / chosen).mean()

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy sorts without the interpreter's lock
        list(pool.map(score, range(0, targets.shape[1], CLASSES_AT_ONCE)))
    return result


def at_each_positive(scores, targets):
    """Return three arrays [P] of one class: its positives' scores, rising; how many positives, how many images reach each.

    scores, targets [N] of a table that passed `check`.
    """
    positives = np.sort(scores[targets == 1])
    right = len(positives) - np.searchsorted(positives, positives, side="left")
    chosen = count_reaching(scores if targets.min() >= 0 else scores[targets != -1], positives)
    return positives, right, chosen


def mean_average_precision(scores, targets):
    """Mean of `average_precision` over the classes that have a positive; NaN when none has."""
    return _mean_of_known(average_precision(scores, targets))


class Interval(NamedTuple):
    """A score on the images as they are, and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


class Paired(NamedTuple):
    """First model's score minus the second's, the ends of its bootstrap interval, and a two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(scores, targets, resamples=1000, seed=0, level=0.95):
    """Return mAP and the interval that holds `level` of its values over resamples of the images, as an Interval.

    scores, targets [N, C] as in `average_precision`. A resample is `rng.integers(N, size=N)` of default_rng(seed), one
    after the other; a class without a positive in it is left out of its mean, a resample without any positive is left
    out. It tells the luck of the test images, not of the training's seed. Raises ValueError for tables that cannot be
    scored or hold no positive, resamples below 1, or a level outside 0..1. Percentile method, Efron & Tibshirani 1993.

    With few positives it lies too high, as mAP itself does: a positive drawn twice enters together with itself. On made-up
    scores (30-60 tests a case) an 80% interval held the true mAP in 37-72% of tests with about 20 positives a class, in
    63-73% with about 200, in 83% with 370.
    """
    _check_resampling(resamples, level)
    (values,) = _resampled([scores], targets, resamples, seed)
    return Interval(mean_average_precision(scores, targets), *_ends(values, level))


def paired_bootstrap(scores_a, scores_b, targets, resamples=1000, seed=0, level=0.95):
    """Return mAP of a minus mAP of b, and its interval and p-value over the same resamples for both, as a Paired.

    scores_a, scores_b, targets [N, C]; resamples and errors as in `bootstrap_interval`. With R resamples, the p-value is
    min(1, 2 min(1 + #(difference <= 0), 1 + #(difference >= 0)) / (R + 1)): never 0, at least 2 / (R + 1).
    """
    _check_resampling(resamples, level)
    a, b = _resampled([scores_a, scores_b], targets, resamples, seed)
    differences = a - b
    sides = 1 + min((differences <= 0).sum(), (differences >= 0).sum())
    difference = mean_average_precision(scores_a, targets) - mean_average_precision(scores_b, targets)
    return Paired(difference, *_ends(differences, level), min(1.0, float(2 * sides / (len(differences) + 1))))


def _ends(values, level):
    return (float(end) for end in np.quantile(values, [(1 - level) / 2, (1 + level) / 2]))


def _check_resampling(resamples, level):
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}; 1000 is usual")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 0.95 is usual")


def _resampled(models, targets, resamples, seed):
    """Return mAP [models, resamples that hold a positive] of every table of scores in `models` on the same resamples."""
    tables = [check(scores, targets) for scores in models]
    images, classes = tables[0][1].shape
    random, result = np.random.default_rng(seed), []
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar(resamples, "bootstrap", "resample") as progress:
        columns = ((scores[:, c], targets[:, c]) for scores, targets in tables for c in range(classes))
        rankings = list(pool.map(lambda column: _ranking(*column), columns))
        while len(result) < resamples:
            # 64 at a time: the table of counts of COCO's 40,137 test images is then 10 MB.
            drawn = range(min(64, resamples - len(result)))
            draws = [np.bincount(random.integers(images, size=images), minlength=images) for _ in drawn]
            counts = np.stack(draws, axis=1).astype(np.int32)
            ap = np.stack(list(pool.map(lambda ranking, counts=counts: _weighted_ap(*ranking, counts), rankings)))
            ap = ap.reshape(len(models), classes, len(drawn))
            result += [[_mean_of_known(model[:, r]) for model in ap] for r in drawn]
            progress.update(len(drawn))
    result = np.array(result).T
    result = result[:, ~np.isnan(result[0])]
    if not result.size:
        raise ValueError(f"none of the {resamples} resamples holds a positive, so mAP has no interval; add images")
    return result


def _ranking(scores, targets):
    """Return, of one class, the 0/1 matrices [segments, N] of all its images and of its positives (scipy csr, int32).

    The ranking is cut behind every group of tied scores that holds a positive, because precision is read only there. So a
    class is sorted once, and a matrix times the images' counts gives the sums of every resample.
    """
    order = np.flatnonzero(targets != -1)
    order = order[np.argsort(-scores[order])]
    ranked, positives = -scores[order], np.flatnonzero(targets[order] == 1)
    cuts, first = np.unique(np.searchsorted(ranked, ranked[positives], side="right"), return_index=True)
    cuts = np.append(0, cuts)
    parts = ((order[: cuts[-1]], cuts), (order[positives], np.append(first, len(positives))))
    shape = (len(first), len(scores))
    return [sparse.csr_array((np.ones(len(rows), np.int32), rows, bounds), shape=shape) for rows, bounds in parts]


def _weighted_ap(everyone, positives, counts):
    """Return AP [R] of one class (`_ranking`) where image i is there counts[i, r] times, NaN without a positive."""
    found = positives @ counts
    right, chosen = found.cumsum(0), (everyone @ counts).cumsum(0)
    present = found.sum(0)
    total = (found * (right / np.maximum(chosen, 1))).sum(0)
    return np.where(present > 0, total / np.maximum(present, 1), np.nan)


def _mean_of_known(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def precision_recall_f1(scores, targets, threshold=0.5, top_k=None):
    """Precision, recall and F1 per class then averaged (CP CR CF1) and over all decisions (OP OR OF1), as a dict.

    scores [N, C]: probabilities; a label is predicted where its score >= threshold (one number, or one per class [C]) and,
    with top_k, it is among the image's top_k known classes (of equal scores the lower class index first). targets [N, C]
    of 1, 0, -1 = unknown.
    Definitions of the field's code (golden `overall_*`): CF1 is the harmonic mean of CP and CR, not a mean of F1s; a
    class without a prediction has precision 0 and counts as one wrong prediction in OP; a class without a positive has
    recall 0. Raises ValueError for other shapes or targets, scores outside 0..1 or NaN, a top_k below 1, or a top_k per
    image or "oracle" (the L2D release's: as many labels as the image really has).
    """
    scores, targets = check_probabilities(scores, targets)
    known = targets != -1
    predicted = known & (scores >= _threshold(threshold, scores))
    if top_k is not None:
        if isinstance(top_k, str) or np.ndim(top_k):
            raise ValueError(
                "top_k must be one number for all images, such as 3: as many labels as each image really has is an "
                "oracle, it reads the answer from the targets and no classifier can be used that way"
            )
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, or None for no limit; got {top_k}")
        order = np.argsort(np.where(known, -scores, np.inf), axis=1, kind="stable")
        best = np.zeros_like(known)
        np.put_along_axis(best, order[:, :top_k], True, axis=1)
        predicted &= best
    positive = targets == 1
    right = (predicted & positive).sum(0)
    # At least 1: the field's code avoids 0 / 0 so, and therefore OP has the extra predictions in its sum.
    chosen, present = np.maximum(predicted.sum(0), 1), positive.sum(0)
    cp, cr = (right / chosen).mean(), (right / np.maximum(present, 1)).mean()
    op, or_ = right.sum() / chosen.sum(), right.sum() / max(present.sum(), 1)
    values = {"CP": cp, "CR": cr, "CF1": _f1(cp, cr), "OP": op, "OR": or_, "OF1": _f1(op, or_)}
    return {name: float(value) for name, value in values.items()}


def _f1(precision, recall):
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _threshold(threshold, scores):
    # Either way the comparison is in the precision of the scores: a float32 0.7 reaches a threshold of 0.7.
    if _array(threshold).ndim == 0:
        return float(threshold)
    threshold = _array(threshold).astype(scores.dtype)
    if threshold.shape != scores.shape[1:] or np.isnan(threshold).any():
        raise ValueError(
            f"threshold must be one number or one per class [{scores.shape[1]}] without NaN, got {threshold.shape}"
        )
    return threshold


def check_probabilities(scores, targets):
    """Return what `check` returns; also ValueError for scores outside 0..1."""
    scores, targets = check(scores, targets)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("scores must be probabilities in 0..1 here; pass sigmoid(logits)")
    return scores, targets


def check(scores, targets):
    """Return scores (floats) and targets as arrays [N, C]; ValueError for other shapes, targets but 1, 0, -1, or NaN."""
    scores, targets = _array(scores), _array(targets)
    scores = scores if scores.dtype.kind == "f" else scores.astype(np.float64)
    if scores.ndim != 2 or scores.shape != targets.shape or not scores.size:
        raise ValueError(f"scores and targets must both be [images, classes], got {scores.shape} and {targets.shape}")
    if np.isnan(scores).any():
        raise ValueError(
            f"scores hold NaN in {int(np.isnan(scores).any(1).sum())} images; look at the model that made them"
        )
    if not ((targets == 0) | (targets == 1) | (targets == -1)).all():
        raise ValueError("targets may hold 1, 0 and -1 (unknown) only; threshold or re-code them first")
    return scores, targets


def _array(x):
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = x.float() if x.dtype == torch.bfloat16 else x  # numpy has no bfloat16
    return np.asarray(x)
