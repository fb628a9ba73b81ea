"""Scores of a multi-label classifier, in fractions 0..1. Unknown targets (-1) are left out everywhere."""

import numpy as np
import torch


def average_precision(scores, targets):
    """Average precision of each class [C]: the mean, over its positives, of the precision at that positive's score.

    scores [N, C]: any finite or infinite ranking values; targets [N, C] of 1, 0, -1 = unknown (that entry is left out).
    Tied scores enter together, as in scikit-learn. A class without a positive gets NaN.
    Raises ValueError for other shapes, other targets or a NaN score.
    """
    scores, targets = _check(scores, targets)
    result = np.full(targets.shape[1], np.nan)
    for c in range(targets.shape[1]):
        ranked = np.sort(scores[targets[:, c] != -1, c])
        positives = np.sort(scores[targets[:, c] == 1, c])
        if len(positives):
            # At the threshold s of each positive: how many score s or more, and how many of those are positives.
            chosen = len(ranked) - np.searchsorted(ranked, positives, side="left")
            right = len(positives) - np.searchsorted(positives, positives, side="left")
            result[c] = (right / chosen).mean()
    return result


def mean_average_precision(scores, targets):
    """Mean of `average_precision` over the classes that have a positive; NaN when none has."""
    values = average_precision(scores, targets)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def precision_recall_f1(scores, targets, threshold=0.5, top_k=None):
    """Precision, recall and F1 per class then averaged (CP CR CF1) and over all decisions (OP OR OF1), as a dict.

    scores [N, C]: probabilities; a label is predicted where its score >= threshold and, with top_k, it is among the
    image's top_k known classes (of equal scores the lower class index first). targets [N, C] of 1, 0, -1 = unknown.
    Definitions of the field's code (golden `overall_*`): CF1 is the harmonic mean of CP and CR, not a mean of F1s; a
    class without a prediction has precision 0 and counts as one wrong prediction in OP; a class without a positive has
    recall 0. Raises ValueError for other shapes or targets, scores outside 0..1 or NaN, or a top_k below 1.
    """
    scores, targets = _check(scores, targets)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("scores must be probabilities in 0..1 here; pass sigmoid(logits)")
    known = targets != -1
    # A Python float compares in the precision of the scores: a float32 0.7 reaches a threshold of 0.7.
    predicted = known & (scores >= float(threshold))
    if top_k is not None:
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


def _check(scores, targets):
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
