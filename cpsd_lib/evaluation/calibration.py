"""Does a probability mean what it says? Of the decisions scored 0.7, seven in ten should be positives."""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from cpsd_lib.evaluation import metrics


def reliability(scores, targets, bins=15):
    """Return the reliability diagram as a DataFrame, one line per bin of equal width, over all known decisions.

    scores [N, C]: probabilities; targets [N, C] of 1, 0, -1 = unknown (that decision is left out). Columns: low, high (a
    score equal to `low` is in, one equal to `high` is not, but 1 is in the last bin), confidence (mean score),
    share_positive, count; an empty bin has NaN and count 0. Raises ValueError for tables that cannot be scored, scores
    outside 0..1, no known decision, or bins below 1.
    """
    scores, targets = metrics.check_probabilities(scores, targets)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}; 15 is usual")
    known = targets != -1
    if not known.any():
        raise ValueError("targets hold only -1 (unknown), so no decision can be judged; pass images with labels")
    scores, positive = scores[known], targets[known] == 1
    edges = np.arange(bins + 1) / bins
    # In the precision of the scores: a float32 0.7 belongs to the bin that begins at 0.7.
    index = np.searchsorted(edges[1:-1].astype(scores.dtype), scores, side="right")
    decisions = pd.DataFrame({"confidence": scores.astype(float), "share_positive": positive}).groupby(index)
    table = decisions.mean().reindex(range(bins))
    table.insert(0, "low", edges[:-1])
    table.insert(1, "high", edges[1:])
    return table.assign(count=decisions.size().reindex(range(bins), fill_value=0))


def expected_calibration_error(scores, targets, bins=15):
    """Mean over all known decisions of |confidence - share_positive| of their bin: 0 is perfect, 1 is always wrong.

    Arguments and errors as in `reliability`; Guo et al., On Calibration of Modern Neural Networks, 2017, with every
    (image, class) as a yes-or-no decision of its own. Most labels of an image are absent, so a model that says 0
    everywhere looks good: read it beside mAP.
    """
    table = reliability(scores, targets, bins)
    gaps = (table["confidence"] - table["share_positive"]).abs()
    return float((gaps * table["count"]).sum() / table["count"].sum())


def fit_temperature(logits, targets):
    """Return the T > 0 for which sigmoid(logits / T) has the highest likelihood: temperature scaling (Guo et al. 2017).

    logits, targets [N, C] of 1, 0, -1 = unknown (left out), of held-out TRAINING images. One number for all classes changes
    neither a ranking nor a decision at 0.5. Raises ValueError for tables that cannot be scored or hold no known decision.
    """
    logits, targets = metrics.check(logits, targets)
    known = targets != -1
    if not known.any():
        raise ValueError("targets hold only -1 (unknown), so no temperature can be fitted; pass images with labels")
    margins = np.where(targets == 1, logits, -logits)[known].astype(float)

    def loss(exponent):
        return np.logaddexp(0, -margins * np.exp(-exponent)).mean()

    return float(np.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded").x))
