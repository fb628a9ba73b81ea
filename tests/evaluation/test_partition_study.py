from contextlib import contextmanager
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest

from cpsd_lib import graph, partition
from cpsd_lib.data.readers.labels import read_labels
from cpsd_lib.evaluation import partitions as study
from cpsd_lib.partition import Partition

NAMES = list("abcdef")
OURS = Partition([[0, 1, 2], [3, 4], [5]], 6)
FILES = {"co": "idx_coocurrence{}_0.json", "dis": "idx_cluster{}_0.json"}


def planted(seed=0, images=400, mixed=0.05):
    """Labels [N, 6]: an image holds most classes of one of the groups 0 1 2 / 3 4 5, and now and then another class."""
    random = np.random.default_rng(seed)
    group = random.integers(2, size=images)
    inside = group[:, None] == np.repeat([0, 1], 3)
    return (random.random((images, 6)) < np.where(inside, 0.8, mixed)).astype(np.int8)


def coco_counts(golden):
    counts = np.load(golden / "coco_label_counts.npz")
    return counts["cooccurrence"], counts["occurrence"]


def released(golden, branch, k):
    return Partition.load(golden / FILES[branch].format(k), num_classes=80)


# --- two partitions


def test_overlap_counts_the_classes_in_common():
    other = Partition([[5, 0], [1, 2, 3, 4]], 6)
    assert study.overlap(OURS, other).tolist() == [[1, 2], [0, 2], [1, 0]]
    assert study.overlap(other, OURS).tolist() == [[1, 0, 1], [2, 2, 0]]


def test_the_same_groups_in_another_order_have_moved_nothing():
    other = Partition([[5], [0, 1, 2], [3, 4]], 6)
    assert study.match(OURS, other).tolist() == [2, 0, 1]
    moved = study.moved(OURS, other, NAMES)
    assert moved.empty and list(moved.columns) == ["class", "ours", "other"]


def test_one_class_elsewhere_is_the_one_that_moved():
    other = Partition([[2, 3, 4], [5], [0, 1]], 6)
    assert study.moved(OURS, other, NAMES).values.tolist() == [["c", 0, 1]]


def test_parts_without_a_partner_get_the_next_numbers():
    other = Partition([[0], [1, 2], [3], [4], [5]], 6)  # of [0, 1, 2] most is in [1, 2]; 3 and 4 are alike
    numbers = study.match(OURS, other)
    assert numbers[[1, 4]].tolist() == [0, 2] and sorted(numbers) == [0, 1, 2, 3, 4]
    moved = study.moved(OURS, other, NAMES)
    assert moved["class"].tolist() in (["a", "d"], ["a", "e"]) and set(moved["other"]) == {3, 4}


def test_classes_of_a_part_that_the_other_partition_lacks_have_all_moved():
    moved = study.moved(OURS, Partition([range(6)], 6), NAMES)
    assert moved.values.tolist() == [["d", 1, 0], ["e", 1, 0], ["f", 2, 0]]


@pytest.mark.parametrize("sizes", [(3, 3), (2, 4), (4, 2)])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_numbering_keeps_more_classes_in_place(sizes, seed):
    ours, other = (partition.random_partition(12, k, 2 * seed + part) for part, k in enumerate(sizes))
    kept = 12 - len(study.moved(ours, other, range(12)))
    every = permutations(range(max(sizes)), len(other))
    assert kept == max((ours.labels() == np.array(numbers)[other.labels()]).sum() for numbers in every)


@pytest.mark.parametrize("k", [2, 3, 5, 8])
def test_the_plain_cut_of_coco_and_the_released_cgp_file_differ_in_no_class(golden, k):
    affinity = graph.affinity(*coco_counts(golden), "co")
    ours, other = partition.cut(affinity, k), released(golden, "co", k)
    assert partition.adjusted_rand(ours, other) == 1.0 and study.moved(ours, other, range(80)).empty
    assert partition.ncut(affinity, ours) == pytest.approx(partition.ncut(affinity, other))


# --- exponents


def test_a_clear_structure_is_cut_alike_at_every_exponent():
    counts = graph.cooccurrence(planted())
    groups = Partition([[0, 1, 2], [3, 4, 5]], 6)
    table = study.over_exponents(*counts, "co", 2, [0.25, 0.5, 1], other=groups)
    assert list(table["exponent"]) == [0.25, 0.5, 1]
    assert list(table["sizes"]) == [[3, 3]] * 3
    assert (table[["ARI to p = 0.5", "ARI to other"]] == 1).all(axis=None) and (table["singletons"] == 0).all()
    assert table["Ncut"][1] == pytest.approx(partition.ncut(graph.affinity(*counts, "co"), groups))


def test_the_paper_s_exponent_is_the_measure_though_it_is_not_asked_for():
    counts = graph.cooccurrence(planted())
    table = study.over_exponents(*counts, "co", 2, np.array([1.0], dtype=np.float32))
    assert list(table["ARI to p = 0.5"]) == [1.0] and "ARI to other" not in table


def test_singletons_and_sizes_are_those_of_the_cut():
    one = Partition([[0], [1, 2, 3], [4], [5]], 6)
    numbers = study.partition_numbers(np.ones((6, 6)), one)
    assert (numbers["sizes"], numbers["singletons"]) == ([3, 1, 1, 1], 3)


def test_the_released_dgp_file_of_two_parts_is_the_plain_cut_at_a_third_of_the_graph_without_loops(golden):
    two = released(golden, "dis", 2)
    without, with_loops = (
        study.over_exponents(*coco_counts(golden), "dis", 2, [1 / 3, 0.5], other=two, self_loops=loops)
        for loops in (False, True)
    )
    assert without["ARI to other"][0] == 1.0 and without["sizes"][0] == [44, 36]
    # P- as the paper writes it, with a diagonal of ones: one class against 79 at both exponents.
    assert list(with_loops["singletons"]) == [1, 1] and with_loops["ARI to other"].max() < 0.01


def test_the_loops_make_the_single_class_cheap(golden):
    refined = {
        loops: study.over_exponents(*coco_counts(golden), "dis", 2, [0.5], refine=True, self_loops=loops)["sizes"][0][
            -1
        ]
        for loops in (True, False)
    }
    assert refined[True] == 1 and refined[False] > 30


# --- seeds, halves, k


def test_a_clear_structure_is_found_again_by_every_seed_and_in_every_half():
    table = study.stability(planted(), "co", [2], repeats=2)
    assert list(table.columns) == ["k", "kind", "repeat", "ari"]
    assert table.values.tolist() == [[2, kind, repeat, 1.0] for kind in ("seeds", "halves") for repeat in (0, 1)]


def test_labels_without_structure_are_cut_otherwise_in_another_half():
    noise = (np.random.default_rng(0).random((300, 12)) < 0.3).astype(np.int8)
    table = study.stability(noise, "co", [3, 4], repeats=2, refine=True)
    assert table[table["kind"] == "halves"]["ari"].mean() < 0.4
    assert list(table["k"].unique()) == [3, 4] and len(table) == 2 * 2 * 2


def test_halves_are_the_cut_of_two_halves_of_the_images():
    targets, seed = planted(images=41, mixed=0.4), 5
    order = np.random.default_rng([seed, 0]).permutation(41)
    one, two = (
        partition.cut(graph.affinity(*graph.cooccurrence(targets[rows]), "dis", 0.7), 3, seed)
        for rows in (order[:20], order[20:])
    )
    table = study.stability(targets, "dis", [3], exponent=0.7, seed=seed, repeats=1)
    assert table["ari"][1] == partition.adjusted_rand(one, two)


def test_the_cuts_of_the_study_are_counted_while_they_are_made(monkeypatch):
    totals, made = [], []

    @contextmanager
    def bar(total, *_):
        totals.append(total)
        yield SimpleNamespace(update=made.append)

    monkeypatch.setattr(study, "bar", bar)
    study.stability(planted(), "dis", [2, 3, 5], repeats=2)
    assert totals == [sum(made)] == [3 * 7]


def test_the_result_is_a_function_of_the_seed():
    targets = planted(mixed=0.5)
    first, again, other = (study.stability(targets, "dis", [3], seed=seed, repeats=2) for seed in (0, 0, 1))
    assert first.equals(again) and not first.equals(other)


def test_unknown_labels_count_as_absent():
    known = planted()
    unknown = np.where((known == 0) & (np.random.default_rng(1).random(known.shape) < 0.5), -1, known)
    assert study.stability(unknown, "co", [2]).equals(study.stability(known, "co", [2]))


def test_a_class_that_a_half_lacks_stops_nothing():
    targets = planted(images=30)
    targets[:, 5] = 0
    targets[0, 5] = 1  # one image in all, so that one half has none
    assert study.stability(targets, "co", [2, 3], refine=True)["ari"].notna().all()


def test_a_cut_is_described_by_its_ncut_its_sizes_and_its_parts_of_one_class():
    affinity = graph.affinity(*graph.cooccurrence(planted()), "co")
    numbers = [study.partition_numbers(affinity, partition.cut(affinity, k)) for k in (1, 2, 6)]
    assert [one["singletons"] for one in numbers] == [0, 0, 6]
    assert [one["sizes"] for one in numbers] == [[6], [3, 3], [1] * 6]
    # P+ has no loops: of parts of one class all leaves.
    assert numbers[0]["Ncut"] == 0 and numbers[2]["Ncut"] == pytest.approx(6)


def test_cgp_of_real_labels_is_found_again_on_other_images_and_dgp_is_not(shared_data):
    targets = read_labels(shared_data / "coco_val2014_labels").table.targets
    halves = {}
    for branch in ("co", "dis"):
        table = study.stability(targets, branch, [5], refine=True, repeats=2)
        halves[branch] = table[table["kind"] == "halves"]["ari"].mean()
    assert halves["co"] > 0.8 and halves["dis"] < 0.6


def test_no_stability_is_claimed_for_classes_that_occur_with_no_other():
    groups = np.random.default_rng(0).integers(2, size=200)
    paired = np.stack([groups == 0, groups == 0, groups == 1, groups == 1], 1)
    lonely = np.eye(3, dtype=bool)[np.arange(30) % 3]
    targets = np.block([[paired, np.zeros((200, 3))], [np.zeros((30, 4)), lonely]]).astype(np.int8)
    found = study.stability(targets, "co", [2, 4, 5, 7], repeats=2)
    assert sorted(set(found["k"])) == [2, 4]  # four classes co-occur
    assert study.stability(lonely.astype(np.int8), "co", [2, 3]).empty


def test_a_cut_is_compared_with_those_of_the_next_seeds(monkeypatch):
    seeds, real = [], study.cut
    monkeypatch.setattr(study, "cut", lambda graph, k, seed, *rest: seeds.append(seed) or real(graph, k, seed, *rest))
    study.stability(planted(), "co", [2], seed=5, repeats=2)
    assert sorted(seeds) == [5] * 5 + [6, 7]  # the run's own and four halves, then the others
