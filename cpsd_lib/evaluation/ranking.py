"""How many scores reach each of some: what average precision needs of a ranking, for less than a sort."""

import numpy as np

BINS = 1 << 14
# Share of chosen up to which counting in bins is quicker than sorting; of 40,137 scores 0.2 to 0.4 ms instead of 0.8.
FEW = 1 / 16


def count_reaching(scores, chosen):
    """Return how many of scores [N] are at least as high as each of `chosen` [P], which rise and are among the scores.

    Scores are counted in bins of equal width, and only those that share a bin with a chosen one are sorted.
    """
    bin_of = _bins(scores) if 0 < len(chosen) <= FEW * len(scores) else None
    if bin_of is None:
        return _at_least(np.sort(scores), chosen)
    bins, mine = bin_of(scores), bin_of(chosen)
    held = np.zeros(BINS + 1, bool)
    held[mine] = True
    near = np.sort(scores[held[bins]])
    # A higher bin holds higher scores only: count those bins whole, and in its own bin those that reach it.
    in_higher = np.cumsum(np.bincount(bins, minlength=BINS + 1)[::-1])[::-1][mine + 1]
    near_in_higher = _at_least(bin_of(near), mine + 1)
    return in_higher + _at_least(near, chosen) - near_in_higher


def _at_least(rising, values):
    return len(rising) - np.searchsorted(rising, values, side="left")


def _bins(scores):
    """Return the function from scores to bins 0..BINS-1, which never falls; None where they cannot be told apart by width."""
    low = scores.min()
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scale = scores.dtype.type(BINS - 1) / (scores.max() - low)
    if not 0 < scale < np.inf:  # all the same, infinite, or too close for this dtype
        return None
    # Cut off as whole numbers: float16 has no 16383, and would make a bin more.
    return lambda values: np.minimum(((values - low) * scale).astype(np.int32), BINS - 1)
