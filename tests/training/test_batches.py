"""Batches: what an epoch shows depends on (seed, epoch, image row) and on nothing else."""

import threading

import numpy as np
import pytest
import torch

from cpsd_lib.data.augment import views
from cpsd_lib.training.batches import Batches, predict_logits


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 3, 16, 16), dtype=np.uint8)


@pytest.fixture(scope="module")
def targets():
    # The label of an image is its row number in binary: a mixed-up row cannot hide.
    return ((np.arange(30)[:, None] >> np.arange(5)) & 1).astype(np.int8)


ROWS = np.array([1, 2, 4, 7, 8, 11, 13, 14, 17, 19, 20, 22, 23, 25, 26, 28, 29])


def make(images, targets, **changes):
    settings = {"batch_size": 4, "view": "default", "seed": 3, "device": "cpu"} | changes
    return Batches(images, targets, settings.pop("rows", ROWS), **settings)


def by_row(batches, epoch, start=0):
    return {
        int(row): image for b in batches.epoch(epoch, start) for row, image in zip(b.indices, b.images, strict=True)
    }


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


def test_the_order_and_the_pixels_do_not_depend_on_the_batch_size(images, targets):
    small, large = make(images, targets, batch_size=2), make(images, targets, batch_size=8)
    assert [r for b in small.epoch(1) for r in b.indices] == [
        r for b in large.epoch(1) for r in b.indices
    ]  # 16 of 17 rows
    first, second = by_row(small, 1), by_row(large, 1)
    assert all(torch.equal(first[row], second[row]) for row in first)


def test_a_batch_is_the_train_view_of_its_rows(images, targets):
    for batch in make(images, targets).epoch(2):
        expected = views.train_view(torch.from_numpy(images[batch.indices]), views.DEFAULT, 3, 2, batch.indices)
        assert torch.equal(batch.images, expected)
        assert batch.targets.dtype == torch.float32
        assert batch.targets.tolist() == targets[batch.indices].tolist()


def test_the_view_of_an_image_does_not_depend_on_which_other_rows_are_trained_on(images, targets):
    all_rows = by_row(make(images, targets, rows=np.arange(30), batch_size=30), 0)
    some = by_row(make(images, targets, batch_size=17), 0)
    assert all(torch.equal(some[row], all_rows[row]) for row in some)


def test_every_image_is_seen_at_most_once_an_epoch_and_full_batches_only(images, targets):
    batches = make(images, targets)
    for epoch in range(5):
        sizes = [len(b.indices) for b in batches.epoch(epoch)]
        rows = list(by_row(batches, epoch))
        assert sizes == [4] * 4 == [batches.batch_size] * batches.steps
        assert len(set(rows)) == 16 and set(rows) <= set(ROWS.tolist())


def test_over_some_epochs_every_image_is_seen(images, targets):
    batches = make(images, targets)
    assert {row for epoch in range(20) for b in batches.epoch(epoch) for row in b.indices} == set(ROWS.tolist())


def test_epochs_and_seeds_differ_and_the_same_ask_gets_the_same(images, targets):
    batches = make(images, targets)
    order = [r for b in batches.epoch(0) for r in b.indices]
    assert order != [r for b in batches.epoch(1) for r in b.indices]
    assert order != [r for b in make(images, targets, seed=4).epoch(0) for r in b.indices]
    first, again, later = by_row(batches, 0), by_row(batches, 0), by_row(batches, 1)
    assert all(torch.equal(first[row], again[row]) for row in first)
    assert not all(torch.equal(first[row], later[row]) for row in set(first) & set(later))


@pytest.mark.parametrize("start", range(5))
def test_an_epoch_continued_at_a_step_gives_the_batches_it_would_have_given(images, targets, start):
    batches = make(images, targets)
    whole, rest = list(batches.epoch(2))[start:], list(batches.epoch(2, start))
    assert len(rest) == 4 - start
    for expected, found in zip(whole, rest, strict=True):
        assert expected.indices.tolist() == found.indices.tolist() and torch.equal(expected.images, found.images)


def test_a_batch_larger_than_the_data_is_all_the_data(images, targets):
    batches = make(images, targets, batch_size=1000)
    (batch,) = batches.epoch(0)
    assert batches.steps == 1 and sorted(batch.indices.tolist()) == ROWS.tolist()


def test_stored_views_come_round_while_the_order_goes_on(images, targets):
    batches = make(images, targets, stored_views=2)
    first, third = by_row(batches, 0), by_row(batches, 2)
    assert all(torch.equal(first[row], third[row]) for row in set(first) & set(third))
    assert list(first) != list(third)


def test_view_of_gives_the_pixels_that_an_epoch_gives(images, targets):
    batches = make(images, targets, stored_views=2)
    seen = by_row(batches, 3)  # view 1
    assert torch.equal(batches.view_of(1, ROWS[:5])[2], seen.get(int(ROWS[2]), batches.view_of(1, ROWS[2:3])[0]))
    for row, image in seen.items():
        assert torch.equal(batches.view_of(1, np.array([row]))[0], image)


class Says:
    """Answers like an TargetSource: 100 * view + row, and for dis 1000 more."""

    seconds = 0.0

    def __call__(self, view, rows, images):
        assert len(images) == len(rows)
        co = torch.tensor(rows)[:, None].float().expand(-1, 3) + 100 * view
        return {"co": co, "dis": co + 1000}


def test_soft_targets_come_with_the_rows_and_the_view_they_were_stored_for(images, targets):
    batches = make(images, targets, stored_views=2, soft=Says())
    for epoch in range(4):
        for batch in batches.epoch(epoch):
            expected = torch.tensor(batch.indices)[:, None].float().expand(-1, 3) + 100 * (epoch % 2)
            assert torch.equal(batch.soft["co"], expected)
            assert torch.equal(batch.soft["dis"], expected + 1000)


def test_a_memory_map_that_may_not_be_written_is_enough(images, targets, tmp_path):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    plain, from_disk = by_row(make(images, targets), 0), by_row(make(mapped, targets), 0)
    assert all(torch.equal(plain[row], from_disk[row]) for row in plain)


def test_no_reading_thread_is_left_when_the_consumer_stops_early_or_fails(images, targets):
    batches, before = make(images, targets), readers()
    for _ in batches.epoch(0):
        break
    assert readers() == before

    def fails():
        for _ in batches.epoch(0):
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails()
    assert readers() == before


def test_an_error_while_reading_ahead_reaches_the_consumer_and_leaves_no_thread(targets):
    class Broken:
        shape = (30, 3, 16, 16)

        def __getitem__(self, rows):
            raise OSError("the disk is gone")

    before = readers()
    with pytest.raises(OSError, match="the disk is gone"):
        list(make(Broken(), targets).epoch(0))
    assert readers() == before


def test_predict_equals_a_naive_loop_in_the_order_of_the_rows(images):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 5)).eval()
    rows = np.array([5, 3, 29, 0, 3, 17, 8])
    (found,) = predict_logits([model], images, rows, "cpu", batch_size=3)
    assert found.dtype == np.float32 and found.shape == (7, 5)
    for logits, row in zip(found, rows, strict=True):
        with torch.no_grad():
            expected = model(torch.from_numpy(images[row : row + 1]).float() / 255)[0]
        torch.testing.assert_close(torch.from_numpy(logits), expected)


def test_predict_makes_no_gradient_and_answers_in_float32_under_bfloat16(images):
    seen = []

    def forward(batch):
        seen.append(torch.is_grad_enabled() or batch.requires_grad)
        return torch.nn.functional.linear(batch.flatten(1), torch.ones(2, 768, requires_grad=True))

    (found,) = predict_logits([forward], images, np.arange(6), "cpu", 4, torch.bfloat16)
    assert seen == [False, False] and found.dtype == np.float32
