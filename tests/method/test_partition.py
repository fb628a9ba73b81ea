import json
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.cluster import SpectralClustering

from cpsd_lib import graph, partition
from cpsd_lib.partition import Partition

# Ncut on the COCO labels: what refinement must reach.
REFINED = {"co": {2: 0.5711, 3: 1.3830, 5: 3.0248, 8: 5.6819}, "dis": {2: 0.9861, 3: 1.9758, 5: 3.9620, 8: 6.9449}}
# Ncut of the released files, which fixes the definition (the diagonal of P- counts).
RELEASED = {"co": {2: 0.5711, 3: 1.3904, 5: 3.0296, 8: 5.6819}, "dis": {2: 0.9906, 3: 1.9849, 5: 3.9754, 8: 6.9632}}
FILES = {"co": "idx_coocurrence{}_0.json", "dis": "idx_cluster{}_0.json"}


def naive_ncut(affinity, parts):
    total, classes = 0.0, range(len(affinity))
    for part in parts:
        volume = sum(affinity[i][j] for i in part for j in classes)
        leaves = sum(affinity[i][j] for i in part for j in classes if j not in part)
        total += leaves / volume if volume else 0.0
    return total


def blocks(sizes, inside=1.0, outside=0.05):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    affinity = np.where(labels[:, None] == labels, inside, outside)
    np.fill_diagonal(affinity, 0)
    return affinity, labels


def random_affinity(seed, c=9):
    half = np.random.default_rng(seed).random((c, c)) ** 3
    return half + half.T


def coco(golden, branch):
    counts = np.load(golden / "coco_label_counts.npz")
    return graph.affinity(counts["cooccurrence"], counts["occurrence"], branch, self_loops=True)


# --- Partition


def test_classes_are_sorted_within_a_part_and_parts_keep_their_order():
    assert Partition([[3, 1], [2, 0]], 4).parts == [[1, 3], [0, 2]]


def test_equality_is_by_value():
    assert Partition([[2, 1], [0]], 3) == Partition([np.array([1, 2]), (0,)], 3)
    assert hash(Partition([[2, 1], [0]], 3)) == hash(Partition([[1, 2], [0]], 3))
    assert Partition([[1, 2], [0]], 3) != Partition([[0], [1, 2]], 3)
    assert Partition([[0], [1]], 2) != [[0], [1]]


def test_labels_give_the_part_of_each_class():
    assert Partition([[1, 3], [0, 2]], 4).labels().tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([[0], [2]], r"missing: \[1\]"),
        ([[0, 1], [1, 2]], r"repeated: \[1\]"),
        ([[0, 1, 2], []], r"empty: \[1\]"),
        ([[0, 1, 2, 3]], r"name classes \[3\], but 3 classes are 0\.\.2"),
        ([[-1, 0, 1, 2]], r"name classes \[-1\]"),
        ([], r"missing: \[0, 1, 2\]"),
    ],
)
def test_parts_that_do_not_hold_each_class_once_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        Partition(parts, 3)


@pytest.mark.parametrize("trailing", [(), (4,), (2, 3)])
@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_merge_is_the_exact_inverse_of_split(trailing, make):
    parts = partition.random_partition(11, 4, seed=0)
    x = make(np.random.default_rng(0).standard_normal((5, 11, *trailing)))
    pieces = parts.split(x)
    assert [p.shape for p in pieces] == [(5, len(part), *trailing) for part in parts.parts]
    assert type(parts.merge(pieces)) is type(x) and (parts.merge(pieces) == x).all()
    again = parts.split(parts.merge(pieces))
    assert all((a == b).all() for a, b in zip(again, pieces, strict=True))


def test_split_takes_the_columns_of_each_part():
    a, b = Partition([[1, 3], [0, 2]], 4).split(np.array([[10, 11, 12, 13]]))
    assert a.tolist() == [[11, 13]] and b.tolist() == [[10, 12]]


def test_gradients_flow_through_split_and_merge():
    parts, x = Partition([[2, 0], [1]], 3), torch.zeros(1, 3, requires_grad=True)
    (parts.merge(parts.split(x)) * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert x.grad.tolist() == [[1, 2, 3]]


def test_the_indices_of_merge_are_made_once_a_device_because_making_them_waits_for_a_gpu():
    parts, x = Partition([[2, 0], [1]], 3), torch.zeros(1, 3)
    first, others = parts._indices(x), parts._indices(x.numpy())
    assert parts._indices(x + 1) is first and all(torch.is_tensor(index) for index in first)
    assert others is not first and parts._indices(x.numpy()) is others


def test_a_partition_first_used_in_inference_mode_takes_part_in_a_gradient_later():
    parts, x = Partition([[2, 0], [1]], 3), torch.zeros(1, 3, requires_grad=True)
    with torch.inference_mode():
        parts.merge(parts.split(torch.zeros(1, 3)))
    (parts.merge(parts.split(x)) * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert x.grad.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("x", [np.zeros(3), np.zeros((3, 2)), np.zeros((2, 4))])
def test_split_refuses_another_number_of_classes(x):
    with pytest.raises(ValueError, match=r"expected \[N, 3"):
        Partition([[0, 1], [2]], 3).split(x)


@pytest.mark.parametrize("pieces", [[], [np.zeros((1, 2))], [np.zeros((1, 1)), np.zeros((1, 2))], [np.zeros(2)] * 2])
def test_merge_refuses_pieces_that_do_not_fit(pieces):
    with pytest.raises(ValueError, match=r"expected pieces with \[2, 1\] classes"):
        Partition([[0, 1], [2]], 3).merge(pieces)


def test_a_saved_partition_loads_as_itself(tmp_path):
    parts = partition.random_partition(11, 4, seed=3)
    parts.save(tmp_path / "co.json")
    assert Partition.load(tmp_path / "co.json") == parts == Partition.load(tmp_path / "co.json", num_classes=11)
    with pytest.raises(ValueError, match=r"co\.json: it is a partition of 11 classes, not 12"):
        Partition.load(tmp_path / "co.json", num_classes=12)


def test_the_released_form_loads_with_and_without_the_number_of_classes(tmp_path):
    (tmp_path / "idx.json").write_text('[{"1": 0, "2": 1}, {"0": 0}]')
    assert Partition.load(tmp_path / "idx.json") == Partition([[1, 2], [0]], 3)
    assert Partition.load(tmp_path / "idx.json", num_classes=3) == Partition([[1, 2], [0]], 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid JSON"),
        ("3", "expected"),
        ("[[0, 1], [2]]", "expected"),
        ("{}", "expected keys version = 1"),
        ('{"version": 2, "num_classes": 1, "parts": [[0]]}', "expected keys version = 1"),
        ('{"version": 1, "num_classes": 2, "parts": [[0]]}', r"missing: \[1\]"),
        ('{"version": 1, "num_classes": 2, "parts": 7}', "cannot use the partition"),
        ('[{"0": 0}, {"1": 1}]', "positions"),
        ('[{"0": 1, "1": 0}]', "positions"),
        ('[{"cat": 0}]', "cannot use the partition"),
        ('[{"0": 0, "2": 1}]', r"name classes \[2\]"),
    ],
)
def test_a_file_that_is_no_partition_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        Partition.load(tmp_path / "bad.json")
    assert "bad.json" in str(error.value)


def test_the_released_file_with_81_keys_for_80_classes_is_refused(golden):
    with pytest.raises(ValueError, match=r"idx_coocurrence1_0\.json: the parts name classes \[80\], but 80 classes"):
        Partition.load(golden / "idx_coocurrence1_0.json", num_classes=80)


@pytest.mark.parametrize("branch", ["co", "dis"])
@pytest.mark.parametrize("k", [2, 3, 5, 8, 13])
def test_released_files_load_with_their_parts_in_the_files_order(golden, branch, k):
    path = golden / FILES[branch].format(k)
    parts = Partition.load(path, num_classes=80)
    assert parts.parts == [[int(c) for c in part] for part in json.loads(path.read_text())]


# --- measures


@pytest.mark.parametrize("seed", range(3))
def test_ncut_equals_the_naive_loop(seed):
    affinity, parts = random_affinity(seed), partition.random_partition(9, 3, seed)
    assert partition.ncut(affinity, parts) == pytest.approx(naive_ncut(affinity, parts.parts), rel=1e-12)


def test_ncut_of_separate_blocks_is_zero_and_of_the_whole_set_too():
    affinity, _ = blocks([3, 2], outside=0.0)
    assert partition.ncut(affinity, Partition([[0, 1, 2], [3, 4]], 5)) == 0
    assert partition.ncut(affinity, Partition([range(5)], 5)) == 0


def test_a_part_without_any_weight_adds_nothing_to_ncut():
    affinity = np.zeros((3, 3))
    affinity[0, 1] = affinity[1, 0] = 1
    assert partition.ncut(affinity, Partition([[0, 1], [2]], 3)) == 0


def test_ncut_refuses_a_partition_of_another_size():
    with pytest.raises(ValueError, match="affinity is of 9 classes, the partition of 3"):
        partition.ncut(random_affinity(0), Partition([[0, 1, 2]], 3))


@pytest.mark.parametrize("branch", ["co", "dis"])
@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_ncut_of_the_released_files_is_the_one_measured(golden, branch, k):
    parts = Partition.load(golden / FILES[branch].format(k), num_classes=80)
    assert partition.ncut(coco(golden, branch), parts) == pytest.approx(RELEASED[branch][k], abs=6e-5)


def test_adjusted_rand_is_one_for_the_same_groups_in_another_order():
    assert partition.adjusted_rand(Partition([[1, 2], [0]], 3), Partition([[0], [1, 2]], 3)) == 1.0
    with pytest.raises(ValueError, match="cannot compare"):
        partition.adjusted_rand(Partition([[0]], 1), Partition([[0], [1]], 2))


def test_random_parts_are_balanced_and_depend_on_the_seed_only():
    parts = partition.random_partition(80, 3, seed=1)
    assert sorted(map(len, parts.parts)) == [26, 27, 27]
    assert parts == partition.random_partition(80, 3, seed=1) != partition.random_partition(80, 3, seed=2)


# --- cut


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_planted_blocks_are_found(refine, seed):
    affinity, labels = blocks([5, 3, 4, 2])
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = partition.cut(affinity[np.ix_(order, order)], 4, seed=seed, refine=refine)
    expected = sorted(np.flatnonzero(labels[order] == block).tolist() for block in range(4))
    assert parts.parts == expected


@pytest.mark.parametrize("refine", [False, True])
def test_separate_blocks_and_classes_alone_are_cut_without_a_warning(refine):
    affinity, _ = blocks([3, 3], outside=0.0)
    affinity = np.pad(affinity, (0, 3))  # classes 6, 7 and 8 have no neighbour
    parts = partition.cut(affinity, 2, refine=refine)
    assert sorted(map(len, parts.parts)) == [4, 5] and partition.ncut(affinity, parts) == 0


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("k", range(1, 7))
def test_any_k_gives_k_parts_whatever_the_graph(refine, k):
    ring = np.roll(np.eye(6), 1, axis=0)
    star = np.zeros((6, 6))
    star[0, 1:] = star[1:, 0] = 1
    graphs = {"ring": ring + ring.T, "star": star, "equal": np.ones((6, 6)), "none": np.zeros((6, 6)), "own": np.eye(6)}
    for name, affinity in graphs.items():
        parts = partition.cut(affinity, k, refine=refine)
        assert len(parts) == k, name
        assert parts.parts == sorted(parts.parts), name


def test_one_part_is_the_whole_set_and_k_equal_to_the_classes_gives_singletons():
    assert partition.cut(random_affinity(0), 1).parts == [list(range(9))]
    assert partition.cut(random_affinity(0), 9, refine=True).parts == [[c] for c in range(9)]


@pytest.mark.parametrize("k", [0, -1, 10])
def test_a_k_that_cannot_be_is_refused(k):
    for build in (lambda: partition.cut(random_affinity(0), k), lambda: partition.random_partition(9, k, 0)):
        with pytest.raises(ValueError, match=f"k must be between 1 and the number of classes, 9; got {k}"):
            build()


@pytest.mark.parametrize(
    "affinity",
    [np.zeros(3), np.zeros((2, 3)), [[0, 1], [0.5, 0]], [[0, -1], [-1, 0]], np.full((2, 2), np.nan), [[0, np.inf]] * 2],
)
def test_an_affinity_that_cannot_be_is_refused(affinity):
    with pytest.raises(ValueError, match="affinity must be"):
        partition.cut(affinity, 2)


@pytest.mark.parametrize("refine", [False, True])
def test_the_same_seed_gives_the_same_cut(refine):
    affinity = random_affinity(2, c=20)
    assert partition.cut(affinity, 4, seed=7, refine=refine) == partition.cut(affinity, 4, seed=7, refine=refine)


@pytest.mark.parametrize("seed", range(5))
def test_the_refined_cut_is_the_best_there_is_on_small_graphs(seed):
    affinity = random_affinity(seed, c=8)
    every = (labels for labels in product(range(3), repeat=8) if len(set(labels)) == 3)
    best = min(partition._ncut(affinity, np.array(labels), 3) for labels in every)
    assert partition.ncut(affinity, partition.cut(affinity, 3, refine=True)) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_refined_cut_is_never_above_the_plain_cut(seed):
    affinity = random_affinity(seed, c=30)
    plain, refined = (partition.cut(affinity, 5, seed=seed, refine=refine) for refine in (False, True))
    assert partition.ncut(affinity, refined) <= partition.ncut(affinity, plain) + 1e-12


def test_move_and_swap_changes_equal_ncut_before_and_after():
    affinity, k = random_affinity(4), 3
    labels = np.array([0, 0, 1, 1, 1, 1, 0, 0, 2])  # part 2 holds one class only
    before = naive_ncut(affinity, [np.flatnonzero(labels == t) for t in range(k)])

    def change(new):
        return naive_ncut(affinity, [np.flatnonzero(new == t) for t in range(k)]) - before

    found, every = partition._Cut(affinity, labels, k), np.arange(9)
    moves, swaps = found.move_changes(), found.swap_changes(every, every)
    for c, t in product(range(9), range(k)):
        new = labels.copy()
        new[c] = t
        empties, stays = (np.bincount(new, minlength=k) == 0).any(), labels[c] == t
        assert moves[c, t] == (np.inf if empties or stays else pytest.approx(change(new), abs=1e-12))
    for a, b in product(range(9), range(9)):
        new = labels.copy()
        new[[a, b]] = labels[[b, a]]
        assert swaps[a, b] == (np.inf if labels[a] == labels[b] else pytest.approx(change(new), abs=1e-12))


def test_the_sums_kept_while_classes_move_are_those_of_the_parts_at_the_end():
    affinity, random = random_affinity(5, c=30), np.random.default_rng(0)
    found = partition._Cut(affinity, np.arange(30) % 4, 4)
    for _ in range(100):
        movable = np.flatnonzero(found.count[found.labels] > 1)
        found.move(random.choice(movable), random.integers(4))
    kept = (found.to_part, found.within, found.volume)
    for sums, anew in zip(kept, partition._weights(affinity, found.labels, 4), strict=True):
        np.testing.assert_allclose(sums, anew, atol=1e-9)
    assert found.count.tolist() == np.bincount(found.labels, minlength=4).tolist()


def test_swaps_looked_at_in_blocks_are_those_of_one_array(monkeypatch):
    affinity = random_affinity(6, c=40)
    whole = partition.cut(affinity, 4, refine=True)
    monkeypatch.setattr(partition, "BLOCK", 100)
    assert partition.cut(affinity, 4, refine=True) == whole


@pytest.mark.parametrize("refine", [False, True])
def test_components_stay_together_while_there_are_as_many_of_them_as_parts(refine):
    affinity, labels = blocks([9, 2, 3, 2], outside=0.0)
    affinity = np.pad(affinity, (0, 1))  # class 16 has no neighbour
    for k in (1, 2, 3, 4):
        parts = partition.cut(affinity, k, refine=refine)
        assert partition.ncut(affinity, parts) == 0 and len(parts) == k
    assert sorted(map(len, partition.cut(affinity, 3, refine=refine).parts)) == [4, 4, 9]
    for k in (5, 6, 8):  # then components are cut, and no part has classes of two of them but for the class alone
        parts = partition.cut(affinity, k, refine=refine)
        assert len(parts) == k
        assert all(len(set(labels[[c for c in part if c < 16]])) <= 1 for part in parts.parts)


@pytest.mark.parametrize("refine", [False, True])
def test_one_component_of_fewer_classes_than_parts_is_taken_apart_and_the_others_fill_up(refine):
    affinity = np.pad(1 - np.eye(3), (0, 5))  # classes 3 to 7 have no neighbour
    for k in range(1, 9):
        assert len(partition.cut(affinity, k, refine=refine)) == k


@pytest.mark.parametrize("refine", [False, True])
def test_a_component_that_falls_apart_easily_gets_the_further_part(refine):
    loose, _ = blocks([4, 4], outside=0.01)
    tight = 1 - np.eye(8)
    affinity = np.block([[tight, np.zeros((8, 8))], [np.zeros((8, 8)), loose]])
    assert partition.cut(affinity, 3, refine=refine).parts == [list(range(8)), [8, 9, 10, 11], [12, 13, 14, 15]]


@pytest.mark.parametrize("c", [40, partition.FULL + 1, graph.SPARSE + 20])
@pytest.mark.parametrize("branch", ["co", "dis"])
def test_many_classes_are_cut_as_few_are(c, branch):
    """Lanczos' method, several swaps a look and fewer starts: planted groups are found, and no cut is above the plain one."""
    random = np.random.default_rng(0)
    group = random.permutation(c) % 4
    targets = np.array([random.random(c) < np.where(group == n % 4, 0.3, 0.01) for n in range(800)]).astype(np.int8)
    affinity = graph.affinity(*graph.cooccurrence(targets), branch)
    plain, refined = (partition.cut(affinity, 4, refine=refine) for refine in (False, True))
    assert partition.ncut(affinity, refined) <= partition.ncut(affinity, plain) + 1e-12
    if branch == "co":
        planted = Partition([np.flatnonzero(group == g).tolist() for g in range(4)], c)
        assert partition.adjusted_rand(plain, planted) == partition.adjusted_rand(refined, planted) == 1.0


def test_the_spectrum_of_many_classes_is_that_of_the_whole_decomposition(monkeypatch):
    affinity = graph.check_affinity(random_affinity(1, c=60))
    whole = graph.spectrum(affinity, 5)
    monkeypatch.setattr(graph, "SPARSE", 10)
    values, vectors = graph.spectrum(affinity, 5)
    np.testing.assert_allclose(values, whole[0], atol=1e-9)
    np.testing.assert_allclose(np.abs((vectors * whole[1]).sum(0)), 1, atol=1e-6)


# At k = 5 k-means on P-, which is nearly constant, has minima that are alike: 200 starts of theirs find another one.
@pytest.mark.parametrize(("branch", "k"), [("co", 2), ("co", 3), ("co", 5), ("dis", 2), ("dis", 3)])
def test_the_plain_cut_without_self_loops_is_that_of_scikit_learn(golden, branch, k):
    counts = np.load(golden / "coco_label_counts.npz")
    affinity = graph.affinity(counts["cooccurrence"], counts["occurrence"], branch)
    labels = SpectralClustering(k, affinity="precomputed", n_init=200, random_state=0).fit(affinity).labels_
    theirs = Partition([np.flatnonzero(labels == part).tolist() for part in range(k)], 80)
    assert partition.adjusted_rand(partition.cut(affinity, k), theirs) == 1.0


@pytest.mark.parametrize("k", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_plain_cut_of_coco_is_the_released_one_for_every_seed(golden, k, seed):
    released = Partition.load(golden / FILES["co"].format(k), num_classes=80)
    parts = partition.cut(coco(golden, "co"), k, seed=seed)
    assert partition.adjusted_rand(parts, released) == 1.0
    assert parts.parts == sorted(released.parts)


@pytest.mark.parametrize("branch", ["co", "dis"])
@pytest.mark.parametrize("k", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_refined_cut_of_coco_ends_at_or_below_the_figures_of_method(golden, branch, k, seed):
    affinity = coco(golden, branch)
    parts = partition.cut(affinity, k, seed=seed, refine=True)
    assert partition.ncut(affinity, parts) <= REFINED[branch][k] + 1e-4


# --- parts of alike sizes


def sizes_in(parts):
    return sorted(map(len, parts.parts))


@pytest.mark.parametrize("balance", [1, 1.5, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_balanced_cut_is_the_best_there_is_on_small_graphs(seed, balance):
    affinity = random_affinity(seed, c=7)
    best = np.inf
    for labels in product(range(3), repeat=7):
        sizes = [labels.count(part) for part in range(3)]
        if min(sizes) and max(sizes) <= max(balance * min(sizes), min(sizes) + 1):
            best = min(best, naive_ncut(affinity, [[c for c in range(7) if labels[c] == part] for part in range(3)]))
    found = partition.cut(affinity, 3, balance=balance)
    sizes = sizes_in(found)
    assert sizes[-1] <= max(balance * sizes[0], sizes[0] + 1)
    assert partition.ncut(affinity, found) == pytest.approx(best)


def test_a_cut_that_leaves_one_class_alone_is_balanced_and_a_balanced_one_stays():
    affinity, _ = blocks([9, 1], outside=0.01)
    affinity[0, 9] = affinity[9, 0] = 0.02
    assert sizes_in(partition.cut(affinity, 2)) == [1, 9]
    assert sizes_in(partition.cut(affinity, 2, balance=1)) == [5, 5]
    assert sizes_in(partition.cut(affinity, 2, balance=2.4)) == [3, 7]
    even, _ = blocks([5, 5])
    assert partition.cut(even, 2, balance=1) == partition.cut(even, 2) == partition.cut(even, 2, balance=9)


def test_components_and_classes_without_any_weight_are_balanced_too():
    affinity, _ = blocks([8, 2], outside=0)
    affinity = np.pad(affinity, (0, 2))
    assert sizes_in(partition.cut(affinity, 2)) == [4, 8]
    assert sizes_in(partition.cut(affinity, 2, balance=1)) == [6, 6]
    assert sizes_in(partition.cut(affinity, 5, balance=1)) == [2, 2, 2, 3, 3]  # no equal sizes: one class more


@pytest.mark.parametrize("balance", [0.5, float("nan")])
def test_a_balance_below_one_is_refused(balance):
    with pytest.raises(ValueError, match="balance must be at least 1"):
        partition.cut(random_affinity(0), 2, balance=balance)
