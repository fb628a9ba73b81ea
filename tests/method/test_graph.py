import tracemalloc

import numpy as np
import pytest

from cpsd_lib import graph

TARGETS = np.array([[1, 1, 0, 0], [1, 0, 0, -1], [1, 1, 1, 0], [0, -1, 1, 0]])


def naive_cooccurrence(targets):
    n, c = targets.shape
    counts, occurrence = np.zeros((c, c), dtype=int), np.zeros(c, dtype=int)
    for image in range(n):
        for i in range(c):
            occurrence[i] += targets[image, i] == 1
            for j in range(c):
                counts[i, j] += i != j and targets[image, i] == 1 and targets[image, j] == 1
    return counts, occurrence


def naive_affinity(counts, occurrence, exponent):
    c = len(counts)
    result = np.zeros((c, c))
    for i in range(c):
        for j in range(c):
            forth = counts[i, j] / occurrence[i] if occurrence[i] else 0
            back = counts[j, i] / occurrence[j] if occurrence[j] else 0
            result[i, j] = (forth**exponent + back**exponent) / 2
    return result


def random_targets(seed, n=60, c=7):
    return np.random.default_rng(seed).choice([-1, 0, 0, 0, 1], size=(n, c))


def test_counts_of_a_hand_made_table():
    counts, occurrence = graph.cooccurrence(TARGETS)
    assert occurrence.tolist() == [3, 2, 2, 0]
    assert counts.tolist() == [[0, 2, 1, 0], [2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_counts_equal_the_naive_loop(seed):
    targets = random_targets(seed)
    for ours, naive in zip(graph.cooccurrence(targets), naive_cooccurrence(targets), strict=True):
        assert np.array_equal(ours, naive)


@pytest.mark.parametrize("block", [1, 7, 20, 419, 420, 10**6])
def test_counts_of_blocks_of_rows_are_those_of_the_whole(monkeypatch, block):
    monkeypatch.setattr(graph, "BLOCK", block)
    targets = random_targets(3)
    for ours, naive in zip(graph.cooccurrence(targets), naive_cooccurrence(targets), strict=True):
        assert np.array_equal(ours, naive) and ours.dtype == np.int64
    assert [values.size for values in graph.cooccurrence(np.zeros((0, 3)))] == [9, 3]
    with pytest.raises(ValueError, match=r"found \[-2, 3\]"):
        graph.cooccurrence(np.where(np.arange(420).reshape(60, 7) == 400, 3, np.where(targets == -1, -2, targets)))


def test_the_labels_are_multiplied_in_little_memory(monkeypatch):
    monkeypatch.setattr(graph, "BLOCK", 2**16)
    targets = np.zeros((200_000, 50), np.int8)
    tracemalloc.start()
    graph.cooccurrence(targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < targets.nbytes / 4


def test_an_unknown_entry_counts_as_absent():
    known = np.where(TARGETS == -1, 0, TARGETS)
    for with_unknown, without in zip(graph.cooccurrence(TARGETS), graph.cooccurrence(known), strict=True):
        assert np.array_equal(with_unknown, without)


def test_counts_of_small_integer_types_do_not_overflow():
    counts, occurrence = graph.cooccurrence(np.ones((1000, 2), dtype=np.int8))
    assert occurrence.tolist() == [1000, 1000] and counts[0, 1] == 1000


@pytest.mark.parametrize("bad", [np.zeros(3), np.full((2, 2), 2), np.full((2, 2), 0.5), np.full((2, 2), np.nan)])
def test_targets_of_another_shape_or_value_are_refused(bad):
    with pytest.raises(ValueError, match="targets"):
        graph.cooccurrence(bad)


@pytest.mark.parametrize("exponent", [0.5, 1 / 3, 1, 2])
def test_affinity_equals_the_naive_loop(exponent):
    counts, occurrence = graph.cooccurrence(random_targets(5))
    naive = naive_affinity(counts, occurrence, exponent)
    np.testing.assert_allclose(graph.affinity(counts, occurrence, "co", exponent), naive, rtol=1e-12)
    np.testing.assert_allclose(
        graph.affinity(counts, occurrence, "dis", exponent, self_loops=True), 1 - naive, rtol=1e-12
    )


def test_two_classes_that_always_come_together_have_affinity_one():
    company = graph.affinity(*graph.cooccurrence(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])))
    assert company.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_a_class_that_never_occurs_gets_a_zero_row():
    counts, occurrence = graph.cooccurrence(TARGETS)
    assert not graph.affinity(counts, occurrence, "co")[3].any()
    assert graph.affinity(counts, occurrence, "dis")[3].tolist() == [1, 1, 1, 0]
    assert (graph.affinity(counts, occurrence, "dis", self_loops=True)[3] == 1).all()


def test_both_branches_are_symmetric_and_only_dis_can_have_the_formulas_diagonal():
    counts, occurrence = graph.cooccurrence(random_targets(1))
    for branch, self_loops, diagonal in (("co", False, 0), ("co", True, 0), ("dis", False, 0), ("dis", True, 1)):
        affinity = graph.affinity(counts, occurrence, branch, self_loops=self_loops)
        assert np.array_equal(affinity, affinity.T) and (affinity.diagonal() == diagonal).all()
        assert affinity.min() >= 0 and affinity.max() <= 1


def test_an_unknown_branch_is_refused_with_the_two_that_exist():
    with pytest.raises(ValueError, match=r'"co".*"dis".*plus'):
        graph.affinity(*graph.cooccurrence(TARGETS), branch="plus")


@pytest.mark.parametrize("exponent", [0, -1, float("nan"), float("inf"), "half", None])
def test_an_exponent_that_is_not_a_positive_number_is_refused(exponent):
    with pytest.raises(ValueError, match="exponent must be a finite number above 0"):
        graph.affinity(*graph.cooccurrence(TARGETS), exponent=exponent)


@pytest.mark.parametrize(
    ("counts", "occurrence"),
    [
        (np.zeros((2, 3)), np.ones(2)),
        (np.zeros((2, 2)), np.ones(3)),
        ([[0, 2], [2, 0]], [3, 1]),  # more pairs than images with the rarer class
        ([[0, 1], [0, 0]], [3, 3]),  # not symmetric
        ([[1, 0], [0, 1]], [1, 1]),  # a diagonal
        ([[0, -1], [-1, 0]], [1, 1]),
        ([[0, np.nan], [np.nan, 0]], [1, 1]),
    ],
)
def test_counts_that_cannot_be_are_refused(counts, occurrence):
    with pytest.raises(ValueError, match="counts must be"):
        graph.affinity(counts, occurrence)


def test_counts_of_real_labels_equal_the_naive_loop(shared_data):
    file = np.load(shared_data / "coco_val2014_labels" / "labels.npz")
    targets = np.unpackbits(file["targets"][:200], axis=1)[:, : len(file["class_names"])]
    for ours, naive in zip(graph.cooccurrence(targets), naive_cooccurrence(targets), strict=True):
        assert np.array_equal(ours, naive)


def test_classes_that_occur_with_no_other_are_known():
    targets = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, -1, 0]])
    assert graph.alone(*graph.cooccurrence(targets)).tolist() == [2]
