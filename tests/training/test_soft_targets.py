"""What was stored comes back to the bit, whatever was killed, cut or changed; the rest is asked for, once."""

import contextlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from cpsd_lib.models.classifier import build_model
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import PartTeachers, TrainModeTeachers
from cpsd_lib.training import soft_targets
from cpsd_lib.training.batches import Batches
from cpsd_lib.training.soft_targets import SoftTargets, StaleTargets, TargetSource, expected, fill, remove_store

MADE_OF = {"teachers": [["abc", [0, 1]], ["def", [2]]], "classes": ["a", "b", "c"], "view": "default", "view_seed": 0}
ROWS = [3, 5, 6, 9, 10, 14, 20]


class Counts(nn.Module):
    """A three-class teacher that counts what it is asked; its answer is `gain` x (row, view, 1), read from the pixels."""

    def __init__(self, gain=1.0):
        super().__init__()
        self.gain, self.asked = gain, []

    def forward(self, images):
        row, view = images[:, 0, 0, 0], images[:, 1, 0, 0]
        self.asked += list(zip(view.int().tolist(), row.int().tolist(), strict=True))
        return self.gain * torch.stack([row, view, torch.ones_like(row)], 1)


def view_of(view, rows):
    images = torch.zeros(len(rows), 3, 2, 2)
    images[:, 0] = torch.as_tensor(np.asarray(rows), dtype=torch.float32)[:, None, None]
    images[:, 1] = view
    return images


class Epochs:
    """Stands in for Batches: the rows two by two, forwards and backwards in turn; the last of an epoch waits."""

    def __init__(self, views=2, killed_at=None):
        self.stored_views, self.batch_size, self.steps, self.killed_at, self.made = views, 2, 3, killed_at, 0

    def order(self, epoch):
        rows = ROWS if epoch % 2 == 0 else ROWS[::-1]
        return [np.array(rows[i : i + 2]) for i in (0, 2, 4)]

    def view_number(self, epoch):
        return epoch % self.stored_views

    def view(self, view, rows):
        if self.made == self.killed_at:
            raise KeyboardInterrupt
        self.made += 1
        return view_of(view, rows)


def store(folder, name="co", fingerprint=MADE_OF, rows=ROWS, num_classes=3, views=2):
    return SoftTargets(folder / f"{name}.f16", fingerprint, rows, num_classes, views)


def filled(folder, **more):
    made = store(folder, **more)
    for view in range(made.shape[0]):
        made.write(view, ROWS, Counts()(view_of(view, ROWS)))
    made.spend(1.5)
    made.flush()
    return made


def asking(stores, **teachers):
    return TargetSource(stores, lambda: {b: whole(teacher) for b, teacher in teachers.items()}, "cpu")


def whole(teacher):
    """A plain model as the one teacher over all three classes."""
    return teacher if isinstance(teacher, PartTeachers) else PartTeachers([teacher], Partition([[0, 1, 2]], 3))


# ---- values ----------------------------------------------------------------------------------------------------------


def test_stored_logits_are_the_teachers_own_up_to_half_precision(tmp_path):
    torch.manual_seed(0)
    experts = (
        PartTeachers([build_model("test_resnet", 2), build_model("test_resnet", 1)], Partition([[0, 2], [1]], 3))
        .eval()
        .requires_grad_(False)
    )
    images, made = torch.rand(21, 3, 32, 32), store(tmp_path)
    asked = asking({"co": made}, co=experts)
    for number in (0, 1):
        asked(number, np.array(ROWS), images[ROWS].roll(number, dims=3))
        for rows in (np.array(ROWS), np.array([20, 3, 9, 9])):  # any order, any number of times
            found = made.read(number, rows)
            assert found.dtype == torch.float32 and not found.requires_grad
            torch.testing.assert_close(found, experts(images[rows].roll(number, dims=3)), atol=2e-3, rtol=0)


def test_what_comes_back_can_be_learned_from(tmp_path):
    weight = torch.ones(3, requires_grad=True)  # autograd takes no tensor that inference mode has made
    soft = asking({"co": store(tmp_path)}, co=Counts())(0, ROWS, view_of(0, ROWS))["co"]
    (soft * weight).sum().backward()
    assert weight.grad.tolist() == [sum(ROWS), 0, len(ROWS)]


def test_a_store_opened_again_has_what_was_filled(tmp_path):
    filled(tmp_path)
    again = store(tmp_path, rows=list(reversed(ROWS)))
    assert again.missing() == 0 and again.seconds == 1.5
    assert again.read(1, np.array([14, 3])).tolist() == [[14, 1, 1], [3, 1, 1]]


def test_stored_views_are_taken_round_robin(tmp_path):
    made = filled(tmp_path)
    assert [made.read(view, np.array([5]))[0, 1].item() for view in range(5)] == [0, 1, 0, 1, 0]


def test_logits_beyond_half_precision_are_stored_as_its_edge(tmp_path):
    made = store(tmp_path)
    made.write(0, [3], torch.tensor([[1e30, 0.0, float("-inf")]]))
    assert made.read(0, [3]).tolist() == [[60_000, 0, -60_000]]


def test_a_teacher_that_answers_nan_is_not_stored(tmp_path):
    made = store(tmp_path)
    with pytest.raises(FloatingPointError, match="teachers of co compute NaN"):
        asking({"co": made}, co=Counts(float("nan")))(0, ROWS, view_of(0, ROWS))
    assert made.missing() == 14


@pytest.mark.parametrize("row", [-1, 0, 4, 19, 21, 10_000])
def test_an_image_outside_the_store_is_an_error_and_not_another_images_logits(tmp_path, row):
    made = filled(tmp_path)
    for look in (made.read, made.has, lambda view, rows: made.write(view, rows, torch.zeros(3, 3))):
        with pytest.raises(ValueError, match=rf"does not cover the images \[{row}\]"):
            look(0, np.array([3, row, 20]))


# ---- lazily, and ahead -----------------------------------------------------------------------------------------------


def test_what_is_there_is_read_and_what_is_not_is_asked_for_once(tmp_path):
    teacher, made = Counts(), store(tmp_path)
    asked = asking({"co": made}, co=teacher)
    with pytest.raises(RuntimeError, match=r"view 1 of co\.f16 lacks the images \[3, 9\]; compute them first"):
        made.read(1, [3, 9])
    for _ in range(2):
        assert asked(1, [3, 9], view_of(1, [3, 9]))["co"].tolist() == [[3, 1, 1], [9, 1, 1]]
    assert teacher.asked == [(1, 3), (1, 9)] and made.has(1, [9, 5, 3]).tolist() == [True, False, True]
    # Of a batch that is there in part the rest is asked about, and what was there stays.
    made.write(1, [3], torch.tensor([[7.0, 7.0, 7.0]]))
    assert asked(1, [3, 5], view_of(1, [3, 5]))["co"].tolist() == [[7, 7, 7], [5, 1, 1]]
    assert teacher.asked[2:] == [(1, 5)]
    assert asked.seconds > 0 and made.seconds == pytest.approx(asked.seconds)


def test_teachers_are_loaded_only_when_something_is_asked(tmp_path):
    loads = []
    asked = TargetSource({"co": filled(tmp_path)}, lambda: loads.append(1), "cpu")
    assert asked.there(0, ROWS) and len(asked(1, ROWS, view_of(1, ROWS))["co"]) == 7 and loads == []


def test_filling_ahead_asks_in_the_batches_that_students_read(tmp_path):
    """In epoch 0 row 20 waits, in epoch 1 row 3; both views of it are asked for when an epoch shows them."""
    co, dis = Counts(), Counts(-2.0)
    stores = {"co": store(tmp_path, "co"), "dis": store(tmp_path, "dis")}
    batches = Epochs()
    fill(asking(stores, co=co, dis=dis), batches, 2)
    assert co.asked == dis.asked == [(0, r) for r in ROWS[:-1]] + [(1, r) for r in reversed(ROWS[1:])]
    assert batches.made == 6 and stores["dis"].read(1, [6]).tolist() == [[-12, -2, -2]]
    assert stores["co"].missing() == 2 and all(branch.seconds > 0 for branch in stores.values())
    fill(asking(stores, co=co, dis=dis), batches, 2)
    assert batches.made == 6  # all that is read is there
    fill(asking(stores, co=co, dis=dis), Epochs(views=1), 2)  # view 0 backwards: row 20 beside row 14, which is there
    assert co.asked[12:] == [(0, 20)]


@pytest.mark.parametrize("killed_at", range(7))
def test_a_killed_filling_goes_on_with_the_batch_it_was_in(tmp_path, killed_at):
    first, second = Counts(), Counts()
    with contextlib.suppress(KeyboardInterrupt):
        fill(asking({"co": store(tmp_path)}, co=first), Epochs(killed_at=killed_at), 2)
    again = store(tmp_path)
    fill(asking({"co": again}, co=second), Epochs(), 2)
    assert first.asked + second.asked == [(0, r) for r in ROWS[:-1]] + [(1, r) for r in reversed(ROWS[1:])]
    assert again.read(0, ROWS[:-1]).tolist() == [[row, 0, 1] for row in ROWS[:-1]]


def test_size_and_time_are_foretold_from_two_batches_which_are_kept(tmp_path):
    made, teacher, batches = store(tmp_path), Counts(), Epochs()
    size, seconds = expected(asking({"co": made}, co=teacher), batches, 2)
    assert size == 2 * 7 * (3 * 2 + 4) == sum((tmp_path / f"co.{kind}").stat().st_size for kind in ("f16", "sums"))
    assert seconds > 0 and made.missing() == 14 - 4
    fill(asking({"co": made}, co=teacher), batches, 2)
    assert expected(asking({"co": made}, co=teacher), batches, 2) == (size, 0.0)


def test_teachers_in_train_mode_answer_by_what_is_asked_and_not_by_what_was_drawn_before(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    model.forward = lambda images: type("Output", (), {"logits": nn.functional.dropout(images.mean((2, 3)), 0.5, True)})
    found = []
    for number in range(2):
        torch.manual_seed(number)
        teachers = {"co": TrainModeTeachers([model], Partition([[0, 1, 2]], 3))}
        asked = TargetSource({"co": store(tmp_path, f"co{number}")}, lambda teachers=teachers: teachers, "cpu")
        found.append(asked(0, ROWS, view_of(1, ROWS))["co"])
    assert torch.equal(*found) and (found[0] == 0).any()


def test_a_student_that_asks_and_one_that_reads_see_the_same(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (21, 3, 32, 32), np.uint8)
    experts = PartTeachers([build_model("test_resnet", 3)], Partition([[0, 1, 2]], 3)).eval()
    made, targets = store(tmp_path), np.zeros((21, 3), np.int8)
    settings = {"batch_size": 3, "view": "default", "seed": 0, "device": "cpu", "stored_views": 2}
    epochs = []
    for _ in range(2):
        batches = Batches(images, targets, ROWS, soft=asking({"co": made}, co=experts), **settings)
        epochs.append([batch.soft["co"] for epoch in range(3) for batch in batches.epoch(epoch)])
        spent = batches.soft_seconds
    assert spent == 0 and all(torch.equal(asked, read) for asked, read in zip(*epochs, strict=True))
    with torch.inference_mode():
        online = [experts(batch.images) for epoch in range(3) for batch in batches.epoch(epoch)]
    for read, said in zip(epochs[1], online, strict=True):
        torch.testing.assert_close(read, said, atol=2e-3, rtol=2e-3)


# ---- what a store is made of -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [*MADE_OF, "more"])
def test_a_store_made_of_something_else_is_refused_by_the_name_of_what_differs(tmp_path, field):
    filled(tmp_path)
    with pytest.raises(StaleTargets, match=rf"has another {field};"):
        store(tmp_path, fingerprint=MADE_OF | {field: None})
    with pytest.raises(StaleTargets, match=rf"has another {field};") as caught:
        less = {name: value for name, value in MADE_OF.items() if name != field}
        store(tmp_path, fingerprint=less if field in MADE_OF else MADE_OF | {field: 1})
    assert "co.json" in str(caught.value)
    assert store(tmp_path).missing() == 0  # and what is there stays


@pytest.mark.parametrize("shape", [{"views": 3}, {"num_classes": 4}, {"rows": ROWS[:-1]}])
def test_a_store_of_another_shape_is_refused(tmp_path, shape):
    filled(tmp_path)
    with pytest.raises(StaleTargets, match="has another shape;"):
        store(tmp_path, **shape)
    with pytest.raises(StaleTargets, match="has another shape, view;"):
        store(tmp_path, fingerprint=MADE_OF | {"view": "plain"}, **shape)


def test_the_order_of_a_dictionary_and_tuples_for_lists_make_no_other_store(tmp_path):
    filled(tmp_path)
    same = dict(reversed(MADE_OF.items())) | {"classes": ("a", "b", "c")}
    assert store(tmp_path, fingerprint=same).missing() == 0


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "size"), [(".f16", 6), (".sums", 4)])
def test_a_changed_byte_takes_one_image_away_and_no_other(tmp_path, suffix, size):
    filled(tmp_path)
    path = tmp_path / f"co{suffix}"
    content = bytearray(path.read_bytes())
    for place in range(len(content)):
        changed = bytes(content[:place]) + bytes([content[place] ^ 1 << place % 8]) + bytes(content[place + 1 :])
        path.write_bytes(changed)
        again = store(tmp_path)
        lost = [(view, row) for view in (0, 1) for row in ROWS if not again.has(view, [row]).all()]
        assert lost == [(place // size // 7, ROWS[place // size % 7])]
    with pytest.raises(RuntimeError, match="lacks the images"):
        again.read(lost[0][0], [lost[0][1]])
    again.write(1, ROWS, Counts()(view_of(1, ROWS)))
    assert again.missing() == 0


def test_values_of_another_image_under_a_checksum_of_their_own_are_as_good_as_none(tmp_path):
    made = filled(tmp_path)
    made._bits[0, 0] = made._bits[0, 1]  # a torn write: the values of one, the checksum of another
    assert made.missing() == 1


@pytest.mark.parametrize("suffix", [".f16", ".sums"])
@pytest.mark.parametrize("damage", ["deleted", "cut", "grown", "emptied"])
def test_checksums_without_their_values_vouch_for_nothing(tmp_path, suffix, damage):
    filled(tmp_path)
    path = tmp_path / f"co{suffix}"
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-1], "grown": content + b"\1", "emptied": b""}[damage])
    again = store(tmp_path)
    assert again.missing() == 14 and again.seconds == 0


def test_values_and_checksums_without_a_record_are_begun_anew(tmp_path):
    filled(tmp_path)
    (tmp_path / "co.json").unlink()
    again = store(tmp_path, fingerprint={"other": 1})
    assert again.missing() == 14 and again.seconds == 0


def test_a_record_that_is_no_json_is_named(tmp_path):
    filled(tmp_path)
    (tmp_path / "co.json").write_text('{"fingerprint":')
    with pytest.raises(ValueError, match=r"co\.json is not valid JSON"):
        store(tmp_path)


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_kill_while_a_store_is_opened_never_leaves_another_ones_values(tmp_path, monkeypatch, stop):
    """Every step that touches a file is a moment to be killed at: opening anew, and opening with the values gone."""

    class Killed(BaseException):
        pass

    def limited(function):
        def wrapped(*arguments, **more):
            steps.append(1)
            if len(steps) >= stop:
                raise Killed
            return function(*arguments, **more)

        return wrapped

    for values_gone in (False, True):
        folder = tmp_path / str(values_gone)
        filled(folder)
        fingerprint = MADE_OF
        if values_gone:
            (folder / "co.f16").unlink()
        else:
            (folder / "co.json").unlink()
            fingerprint = {"other": 1}
        steps = []
        with monkeypatch.context() as patch:
            patch.setattr(soft_targets.Path, "unlink", limited(soft_targets.Path.unlink))
            patch.setattr(soft_targets, "write_json", limited(soft_targets.write_json))
            patch.setattr(soft_targets, "open", limited(open), raising=False)
            with contextlib.suppress(Killed):
                store(folder, fingerprint=fingerprint)
        assert store(folder, fingerprint=fingerprint).missing() == 14


def test_a_removed_store_is_gone_with_its_record_first(tmp_path, monkeypatch):
    made = filled(tmp_path)
    gone = []
    unlink = soft_targets.Path.unlink
    monkeypatch.setattr(
        soft_targets.Path,
        "unlink",
        lambda path, missing_ok=False: (gone.append(path.name), unlink(path, missing_ok))[1],
    )
    remove_store(made.path)
    assert gone[0] == "co.json" and list(tmp_path.iterdir()) == []
    remove_store(tmp_path / "co.f16")  # once more does no harm
    assert store(tmp_path, fingerprint={"other": 1}).missing() == 14


def test_the_record_says_what_a_store_is_made_of(tmp_path):
    filled(tmp_path)
    assert json.loads((tmp_path / "co.json").read_text()) == {"fingerprint": MADE_OF, "shape": [2, 7, 3]}


def test_a_store_takes_no_room_before_it_is_written_to(tmp_path):
    store(tmp_path, rows=range(100_000), num_classes=80, views=10)
    path = tmp_path / "co.f16"
    assert path.stat().st_size == 160_000_000 and path.stat().st_blocks * 512 < 1_000_000
