"""Counting in bins gives what looking at every pair gives, for any scores."""

import numpy as np
import pytest

from cpsd_lib.evaluation import ranking
from cpsd_lib.evaluation.ranking import count_reaching


def naive(scores, chosen):
    return [int(sum(score >= one for score in scores)) for one in chosen]


def tables():
    rng = np.random.default_rng(0)
    plain = rng.normal(size=300)
    yield "normal", plain
    yield "tied", np.round(plain, 1)
    yield "probabilities, most of them next to 0", 1 / (1 + np.exp(-(8 * plain - 12)))
    yield "one far away", np.append(plain, 1e30)
    yield "infinite", np.append(plain, [np.inf, -np.inf, np.inf])
    yield "as far apart as numbers are", np.append(plain, [1.7e308, -1.7e308])
    yield "as close as numbers are", np.arange(300) * 5e-324
    yield "all the same", np.full(300, 0.25)
    yield "one", np.array([3.0])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("name", "scores"), list(tables()), ids=[name for name, _ in tables()])
@pytest.mark.parametrize("few", [1, 7, 200])
def test_it_counts_what_a_loop_counts(name, scores, dtype, few):
    with np.errstate(over="ignore"):
        scores = scores.astype(dtype)
    chosen = np.sort(np.random.default_rng(1).permutation(scores)[:few])
    assert count_reaching(scores, chosen).tolist() == naive(scores, chosen)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_highest_and_the_lowest_are_counted_too(dtype):
    scores = np.linspace(0, 1, 300).astype(dtype)
    ends = np.sort(scores)[[0, -1]]
    assert count_reaching(scores, ends).tolist() == naive(scores, ends)


def test_few_are_counted_in_bins_and_many_by_a_sort(monkeypatch):
    sorted_lengths, sort = [], np.sort
    monkeypatch.setattr(ranking.np, "sort", lambda x: sorted_lengths.append(len(x)) or sort(x))
    scores = np.random.default_rng(0).random(4000)
    count_reaching(scores, sort(scores[:40]))
    count_reaching(scores, sort(scores[:400]))
    assert sorted_lengths[0] < 100 and sorted_lengths[1:] == [4000]


def test_nothing_chosen_counts_nothing():
    assert count_reaching(np.random.default_rng(0).random(50), np.array([])).tolist() == []
    assert count_reaching(np.array([]), np.array([])).tolist() == []
