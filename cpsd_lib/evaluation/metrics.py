"""Scores of a multi-label classifier, in fractions 0..1. Unknown targets (-1) are left out."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from cpsd_lib.support import cores


def average_precision(scores, targets):
    """Average precision of each class [C]: the mean, over its positives, of the precision at that positive's score.

    scores [N, C]: any finite or infinite ranking values; targets [N, C] of 1, 0, -1 = unknown (that entry is left out).
    Tied scores enter together, as in scikit-learn. A class without a positive gets NaN.
    Raises ValueError for other shapes, other targets or a NaN score.
    """
    scores, targets = check(scores, targets)

    def score(scores, targets):
        _, right, chosen = at_each_positive(scores, targets)
        return (right / chosen).mean() if len(right) else np.nan

    # Transposed, a class's scores lie side by side; numpy sorts without the interpreter's lock.
    with ThreadPoolExecutor(cores()) as pool:
        return np.array(list(pool.map(score, scores.T.copy(), targets.T.copy())))


def at_each_positive(scores, targets):
    """Return three arrays [P] of one class: its positives' scores, rising; how many positives, how many images reach each.

    scores, targets [N] of a table that passed `check`.
    """
    positives = np.sort(scores[targets == 1])
    right = len(positives) - np.searchsorted(positives, positives, side="left")
    known = np.sort(scores if targets.min() >= 0 else scores[targets != -1])
    return positives, right, len(known) - np.searchsorted(known, positives, side="left")


def mean_average_precision(scores, targets):
    """Mean of `average_precision` over the classes that have a positive; NaN when none has."""
    return mean_of_known(average_precision(scores, targets))


def mean_of_known(values):
    """Return the mean of values [C] that are not NaN; NaN where all are."""
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
    predicted = decisions(scores, threshold, top_k, targets != -1)
    positive = targets == 1
    right = (predicted & positive).sum(0)
    return {name: float(value) for name, value in averages(right, predicted.sum(0), positive.sum(0)).items()}


def decisions(scores, threshold=0.5, top_k=None, known=True):
    """Return which labels are predicted, bool [N, C], by the rule of `precision_recall_f1`, whose arguments these are.

    known: bool [N, C], the decisions that are to be made; the others are False and take no place among the top_k.
    """
    known = np.broadcast_to(known, scores.shape)
    predicted = known & (scores >= _threshold(threshold, scores))
    if top_k is None:
        return predicted
    if isinstance(top_k, str) or np.ndim(top_k):
        raise ValueError(
            "top_k must be one number for all images, such as 3: as many labels as each image really has is an "
            "oracle, it reads the answer from the targets and no classifier can be used that way"
        )
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for no limit; got {top_k}")
    order = np.argsort(np.where(known, -scores, np.inf), axis=1, kind="stable")
    best = np.zeros_like(predicted)
    np.put_along_axis(best, order[:, :top_k], True, axis=1)
    return predicted & best


def best_thresholds(scores, targets):
    """Return the threshold [C] that maximises F1 of each class by itself.

    Tune on held-out TRAINING images, never on the test split: a threshold that has seen the test reads its answers.
    scores [N, C]: probabilities; targets [N, C] of 1, 0, -1 = unknown (that entry is left out). A threshold is a score of
    a positive, the highest of equally good ones, for `precision_recall_f1`. A class without
    a positive gets 0.5. Raises ValueError for tables that cannot be scored or scores outside 0..1.
    """
    scores, targets = check_probabilities(scores, targets)
    result = np.full(targets.shape[1], 0.5)
    for c in range(targets.shape[1]):
        # Between two positives F1 only falls, so the best threshold is at one.
        positives, right, chosen = at_each_positive(scores[:, c], targets[:, c])
        if len(positives):
            f1 = 2 * right / (chosen + len(positives))
            result[c] = positives[np.flatnonzero(f1 == f1.max())[-1]]
    return result


def of_classes(right, chosen, present):
    """Return {"precision", "recall", "F1"} of each class, arrays [..., C], from counts that broadcast to that shape.

    right: positives that are predicted; chosen: predictions; present: positives.
    """
    precision, recall = right / np.maximum(chosen, 1), right / np.maximum(present, 1)
    return {"precision": precision, "recall": recall, "F1": _f1(precision, recall)}


def averages(right, chosen, present):
    """Return {"CP", "CR", "CF1", "OP", "OR", "OF1"} [...] from counts [..., C] as in `of_classes`."""
    each = of_classes(right, chosen, present)
    cp, cr = each["precision"].mean(-1), each["recall"].mean(-1)
    # At least 1 prediction a class: the field's code avoids 0 / 0 so, and therefore OP has the extra ones in its sum.
    op, or_ = right.sum(-1) / np.maximum(chosen, 1).sum(-1), right.sum(-1) / np.maximum(present.sum(-1), 1)
    return {"CP": cp, "CR": cr, "CF1": _f1(cp, cr), "OP": op, "OR": or_, "OF1": _f1(op, or_)}


def _f1(precision, recall):
    return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)


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
        raise ValueError(f"scores hold NaN in {np.isnan(scores).any(1).sum()} images; look at the model that made them")
    if not ((targets == 0) | (targets == 1) | (targets == -1)).all():
        raise ValueError("targets may hold 1, 0 and -1 (unknown) only; threshold or re-code them first")
    return scores, targets


def _array(x):
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        x = x.float() if x.dtype == torch.bfloat16 else x  # numpy has no bfloat16
    return np.asarray(x)
