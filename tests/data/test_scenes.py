import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from cpsd_lib import graph, partition
from cpsd_lib.data.scenes.scenes import NAMES, Scenes


@pytest.fixture(scope="module")
def scenes():
    return Scenes()


@pytest.fixture(scope="module")
def table(scenes):
    return scenes.table


def targets_of(table, split):
    return table.targets[table.split == split]


def ratio_to_chance(targets, groups):
    """Pairs of classes seen together, against independent classes: (within a group, across groups)."""
    together = targets.T.astype(float) @ targets
    occurrence = np.diag(together)
    chance = np.outer(occurrence, occurrence) / len(targets)
    same = np.equal.outer(groups, groups)
    other = ~np.eye(len(groups), dtype=bool)
    return tuple(together[mask].sum() / chance[mask].sum() for mask in (same & other, ~same))


def test_the_table_holds_clean_labels_of_at_least_sixteen_classes(scenes, table):
    assert len(table.names) == len(set(table.names)) == len(scenes.groups_of_classes) >= 16
    assert table.targets.shape == (6000, len(table.names)) and table.targets.dtype == np.int8
    assert set(np.unique(table.targets)) == {0, 1}
    assert table.files[42] == "scene-00042"
    names, sizes = np.unique(table.split, return_counts=True)
    assert dict(zip(names.tolist(), sizes.tolist(), strict=True)) == {"train": 3600, "test": 1200, "test_shifted": 1200}


def test_a_changed_table_changes_no_picture():
    scenes = Scenes(images=100)
    before = scenes.load(3)
    scenes.table.targets[:] = 0
    assert scenes.table.targets.any() and np.array_equal(scenes.load(3), before)


def test_the_same_index_gives_the_same_picture_in_any_order():
    first, second = Scenes(images=120, seed=3), Scenes(images=120, seed=3)
    forward = {i: first.load(i) for i in range(20)}
    backward = {i: second.load(i) for i in reversed(range(20))}
    for i in range(20):
        assert forward[i].shape == (3, 64, 64) and forward[i].dtype == np.uint8
        assert np.array_equal(forward[i], backward[i])
    assert np.array_equal(first.table.targets, second.table.targets)


def test_another_process_draws_the_same_bytes():
    code = (
        "import sys, hashlib; from cpsd_lib.data import Scenes; "
        "print(hashlib.sha256(Scenes(images=100, seed=5).load(7).tobytes()).hexdigest(), 'torch' in sys.modules)"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert there == [hashlib.sha256(Scenes(images=100, seed=5).load(7).tobytes()).hexdigest(), "False"]


def test_a_pickled_data_set_is_small_and_draws_the_same_picture(scenes):
    parcel = pickle.dumps(scenes)
    assert len(parcel) < 1000  # four parameters, no table: it travels with every task of a process pool
    assert pickle.loads(parcel) == scenes and np.array_equal(pickle.loads(parcel).load(11), scenes.load(11))


def test_pictures_and_seeds_differ_from_each_other():
    pictures = [Scenes(images=100, seed=s).load(i) for s in (0, 1) for i in (0, 1)]
    for a in range(4):
        for b in range(a):
            assert not np.array_equal(pictures[a], pictures[b])


def test_the_key_follows_every_parameter():
    variants = [{}, {"images": 6001}, {"size": 65}, {"seed": 1}, {"groups": 5}]
    assert len({Scenes(**v).key for v in variants}) == len(variants)
    assert Scenes().key == Scenes(6000, 64, 0, 4).key


def test_every_positive_class_has_a_box_and_no_other_class_has_one(scenes, table):
    for i in range(0, 6000, 40):
        boxes = scenes.boxes(i)
        assert {box[0] for box in boxes} == set(np.flatnonzero(table.targets[i]).tolist())
        for _, x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64


def test_a_box_of_any_class_holds_more_contrast_than_noise():
    # Pixel noise alone has a spread of at most 0.05 * 255 = 13 inside a box.
    scenes = Scenes(images=1000)
    table, contrast = scenes.table, {c: [] for c in range(len(NAMES))}
    for c in contrast:
        for i in np.flatnonzero(table.targets[:, c])[:6]:
            picture = scenes.load(i).astype(float)
            for _, x0, y0, x1, y1 in (box for box in scenes.boxes(i) if box[0] == c):
                contrast[c].append(picture[:, y0:y1, x0:x1].std(axis=(1, 2)).mean())
    assert min(np.mean(values) for values in contrast.values()) > 15


@pytest.mark.parametrize("seed", range(5))
def test_the_cut_of_the_co_occurrence_graph_finds_the_planted_groups(seed):
    scenes = Scenes(seed=seed)
    affinity = graph.affinity(*graph.cooccurrence(targets_of(scenes.table, "train")), "co")
    assigned = np.empty(len(NAMES), int)
    for number, part in enumerate(partition.cut(affinity, 4, seed=seed).parts):
        assigned[list(part)] = number
    assert adjusted_rand_score(scenes.groups_of_classes, assigned) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_class_frequencies_have_a_long_tail_and_every_class_can_be_learned(seed):
    counts = np.sort(targets_of(Scenes(seed=seed).table, "train").sum(axis=0))[::-1]
    assert 0.25 < counts[0] / 3600 < 0.4  # the most frequent class
    assert 60 <= counts[-1] < 0.04 * 3600  # the rarest
    assert counts[:5].sum() > 0.4 * counts.sum()


def test_the_shifted_split_breaks_co_occurrence_up_and_keeps_all_counts(scenes, table):
    groups = scenes.groups_of_classes
    test, shifted = targets_of(table, "test"), targets_of(table, "test_shifted")
    assert np.array_equal(test.sum(axis=0), shifted.sum(axis=0))  # each class as often
    assert np.array_equal(test.sum(axis=1), shifted.sum(axis=1))  # each picture with as many labels
    for split in ("train", "test"):
        within, across = ratio_to_chance(targets_of(table, split), groups)
        assert within > 2 and across < 0.5
    within, across = ratio_to_chance(shifted, groups)
    assert abs(within - across) < 0.15


def test_train_and_test_have_the_same_frequencies(table):
    train, test = (targets_of(table, split).mean(axis=0) for split in ("train", "test"))
    assert np.abs(train - test).max() < 0.04


@pytest.mark.parametrize("size", [16, 32, 96])
def test_other_sizes_show_the_same_labels(size, table):
    scenes = Scenes(size=size)
    assert np.array_equal(scenes.table.targets, table.targets)
    for i in range(10):
        assert scenes.load(i).shape == (3, size, size)
        assert {box[0] for box in scenes.boxes(i)} == set(np.flatnonzero(table.targets[i]).tolist())


@pytest.mark.parametrize("groups", [2, 3, 4, 5])
def test_any_number_of_groups_uses_all_classes(groups):
    scenes = Scenes(images=1000, groups=groups)
    assert sorted(set(scenes.groups_of_classes)) == list(range(groups))
    assert scenes.table.targets.any(axis=0).all()
