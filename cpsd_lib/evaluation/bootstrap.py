"""How sure a score is: bootstrap intervals over the images, of mAP, of the difference of two mAPs, and of a mean."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from scipy import sparse

from cpsd_lib.evaluation import metrics
from cpsd_lib.support import bar, cores

BLOCK = 2**25  # scores whose rankings are in memory at a time: 0.5 GiB


class Interval(NamedTuple):
    """A score or mean on the images as they are, and the ends of its bootstrap interval."""

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
    out. It measures the luck of the test images, not of the training's seed. Raises ValueError for tables that cannot be
    scored or hold no positive, resamples below 1, or a level outside 0..1. Percentile method, Efron & Tibshirani 1993.

    With few positives it lies too high, as mAP itself does: a positive drawn twice enters together with itself. On made-up
    scores (30-60 tests a case) an 80% interval held the true mAP in 37-72% of tests with about 20 positives a class, in
    63-73% with about 200, in 83% with 370.
    """
    _check_resampling(resamples, level)
    (values,) = _resampled([scores], targets, resamples, seed)
    return Interval(metrics.mean_average_precision(scores, targets), *_ends(values, level))


def paired_bootstrap(scores_a, scores_b, targets, resamples=1000, seed=0, level=0.95):
    """Return mAP of a minus mAP of b, and its interval and p-value over the same resamples for both, as a Paired.

    scores_a, scores_b, targets [N, C]; resamples and errors as in `bootstrap_interval`. With R resamples, the p-value is
    min(1, 2 min(1 + #(difference <= 0), 1 + #(difference >= 0)) / (R + 1)): never 0, at least 2 / (R + 1).
    """
    _check_resampling(resamples, level)
    a, b = _resampled([scores_a, scores_b], targets, resamples, seed)
    differences = a - b
    sides = 1 + min((differences <= 0).sum(), (differences >= 0).sum())
    difference = metrics.mean_average_precision(scores_a, targets) - metrics.mean_average_precision(scores_b, targets)
    return Paired(difference, *_ends(differences, level), min(1.0, float(2 * sides / (len(differences) + 1))))


def bootstrap_f1(scores, targets, threshold=0.5, resamples=1000, seed=0, level=0.95):
    """Return {"CF1": Interval, "OF1": Interval} over the resamples of `bootstrap_interval`.

    scores, targets [N, C] and threshold as in `precision_recall_f1`. Raises ValueError as these two do.
    """
    _check_resampling(resamples, level)
    scores, targets = metrics.check_probabilities(scores, targets)
    predicted, positive = metrics.decisions(scores, threshold, known=targets != -1), targets == 1
    tables = [table.astype(np.float64) for table in (predicted & positive, predicted, positive)]
    drawn = [
        metrics.averages(*(counts.T @ table for table in tables)) for counts in _draws(len(scores), resamples, seed)
    ]
    values = metrics.precision_recall_f1(scores, targets, threshold)
    return {
        name: Interval(values[name], *_ends(np.concatenate([one[name] for one in drawn]), level))
        for name in ("CF1", "OF1")
    }


def bootstrap_mean(values, images, resamples=1000, seed=0, level=0.95):
    """Return the mean of values [P] and the interval that holds `level` of its values over resamples of the images (Interval).

    images [P]: the image of each value; NaN values are left out, and their images are drawn all the same, so that values with
    different gaps have the same resamples. A resample is a multinomial draw of default_rng(seed). NaN where no value is known.
    Raises ValueError for resamples below 1, or a level outside 0..1.
    """
    _check_resampling(resamples, level)
    distinct, image = np.unique(images, return_inverse=True)
    even = np.full(len(distinct), 1 / max(len(distinct), 1))
    counts = np.random.default_rng(seed).multinomial(len(distinct), even, resamples)
    known = ~np.isnan(values)
    image, values = image[known], np.asarray(values)[known]
    sums, drawn = (counts @ np.bincount(image, weights, len(distinct)) for weights in (values, None))
    means = sums[drawn > 0] / drawn[drawn > 0]
    return Interval(float(values.mean()), *_ends(means, level)) if len(means) else Interval(np.nan, np.nan, np.nan)


def _ends(values, level):
    tail = round((1 - level) / 2, 12)  # of 0.95 it is 0.025, not 0.025000000000000022
    return (float(end) for end in np.quantile(values, [tail, 1 - tail]))


def _check_resampling(resamples, level):
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}; 1000 is usual")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}; 0.95 is usual")


def _draws(images, resamples, seed):
    """Yield how often each image is in a resample, int32 [images, R], for all resamples one after the other."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, 64):  # the table of counts of COCO's 40,137 test images is then 10 MB
        drawn = (random.integers(images, size=images) for _ in range(min(64, resamples - start)))
        yield np.stack([np.bincount(one, minlength=images) for one in drawn], axis=1).astype(np.int32)


def _resampled(models, targets, resamples, seed):
    """Return mAP [models, resamples that hold a positive] of every table of scores in `models` on the same resamples."""
    tables = [metrics.check(scores, targets) for scores in models]
    images, classes = tables[0][1].shape
    columns = [(scores[:, c], targets[:, c]) for scores, targets in tables for c in range(classes)]
    blocks = range(0, len(columns), max(1, BLOCK // images))
    ap = np.empty((len(columns), resamples))
    with ThreadPoolExecutor(cores()) as pool, bar(resamples * len(blocks), "bootstrap", "resample") as progress:
        for first in blocks:
            block, done = slice(first, first + blocks.step), 0
            rankings = list(pool.map(lambda column: _ranking(*column), columns[block]))
            for counts in _draws(images, resamples, seed):  # the same for every block
                found = pool.map(lambda ranking, counts=counts: _weighted_ap(*ranking, counts), rankings)
                ap[block, done : done + counts.shape[1]] = np.stack(list(found))
                done += counts.shape[1]
                progress.update(counts.shape[1])
    ap = ap.reshape(len(models), classes, resamples)
    result = np.array([[metrics.mean_of_known(model[:, r]) for r in range(resamples)] for model in ap])
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
    return [sparse.csr_array((np.ones(len(images), np.int32), images, ends), shape=shape) for images, ends in parts]


def _weighted_ap(everyone, positives, counts):
    """Return AP [R] of one class (`_ranking`) where image i is there counts[i, r] times, NaN without a positive."""
    drawn = positives @ counts
    right, chosen = drawn.cumsum(0), (everyone @ counts).cumsum(0)
    present = drawn.sum(0)
    total = (drawn * (right / np.maximum(chosen, 1))).sum(0)
    return np.where(present > 0, total / np.maximum(present, 1), np.nan)
