"""The threshold of each class, chosen on images that the test does not see."""

import numpy as np

from cpsd_lib.evaluation import metrics


def best_thresholds(scores, targets):
    """Return the threshold [C] that maximises F1 of each class by itself.

    Tune on held-out TRAINING images, never on the test split: a threshold that has seen the test reads its answers.
    scores [N, C]: probabilities; targets [N, C] of 1, 0, -1 = unknown (that entry is left out). A threshold is a score of
    a positive, the highest of equally good ones, for `metrics.precision_recall_f1(..., threshold=...)`. A class without
    a positive gets 0.5. Raises ValueError for tables that cannot be scored or scores outside 0..1.
    """
    scores, targets = metrics.check_probabilities(scores, targets)
    result = np.full(targets.shape[1], 0.5)
    for c in range(targets.shape[1]):
        # Between two positives F1 only falls, so the best threshold is at one.
        positives, right, chosen = metrics.at_each_positive(scores[:, c], targets[:, c])
        if len(positives):
            f1 = 2 * right / (chosen + len(positives))
            result[c] = positives[np.flatnonzero(f1 == f1.max())[-1]]
    return result
