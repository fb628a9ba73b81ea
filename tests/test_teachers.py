import contextlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from cpsd_lib import teachers
from cpsd_lib.models import Output, build_model
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import SoftTargets, StaleTargets, Teachers, fill, remove_store

MADE_OF = {"teachers": [["abc", [0, 1]], ["def", [2]]], "classes": ["a", "b", "c"], "view": "default", "view_seed": 0}
ROWS = [3, 5, 6, 9, 10, 14, 20]  # 7 images in blocks of 3: three blocks, the last one short


class Says(nn.Module):
    """A model that answers its columns' class numbers, whatever it sees."""

    def __init__(self, columns):
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(columns, dtype=torch.float32))

    def forward(self, images):
        return Output(self.answer.expand(len(images), -1), None, None)


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


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(SoftTargets, "BLOCK", 3)


def store(folder, name="co", made_of=MADE_OF, rows=ROWS, num_classes=3, views=2):
    return SoftTargets(folder / f"{name}.f16", made_of, rows, num_classes, views)


def filled(folder, **more):
    made = store(folder, **more)
    fill({"co": made}, {"co": Counts()}, view_of, "cpu", batch_size=2)
    return made


# ---- teachers ------------------------------------------------------------------------------------------------------


def test_teachers_cannot_leave_eval_mode():
    experts = Teachers([build_model("test_resnet", 2), build_model("test_resnet", 1)], Partition([[0, 2], [1]], 3))
    parent = nn.Sequential(experts)
    for attempt in (experts.train, lambda: experts.train(True), parent.train, parent.eval, lambda: parent.train(True)):
        attempt()
        assert not any(module.training for module in experts.modules())
    before = {name: value.clone() for name, value in experts.state_dict().items()}
    first = experts(torch.rand(4, 3, 32, 32))
    assert first.shape == (4, 3)
    assert all(torch.equal(value, before[name]) for name, value in experts.state_dict().items())


def test_teachers_have_no_gradient():
    models = [Says([0.0]), Says([1.0])]
    experts = Teachers(models, Partition([[0], [1]], 2))
    assert not any(parameter.requires_grad for parameter in experts.parameters())
    assert not experts(torch.rand(1, 3, 2, 2)).requires_grad


def test_twelve_parts_are_merged_by_number_and_not_by_the_spelling_of_the_number():
    parts = [[c, 23 - c] for c in (5, 0, 11, 3, 8, 1, 10, 2, 9, 4, 7, 6)]
    experts = Teachers([Says(sorted(part)) for part in parts], Partition(parts, 24))
    assert experts(torch.rand(2, 3, 2, 2)).tolist() == [list(range(24))] * 2


def test_half_precision_experts_are_merged_in_float32():
    experts = Teachers([Says([0.0]).bfloat16(), Says([1.0])], Partition([[0], [1]], 2))
    assert experts(torch.rand(1, 3, 2, 2)).dtype == torch.float32


@pytest.mark.parametrize("number", [0, 1, 3])
def test_another_number_of_models_than_parts_is_refused(number):
    with pytest.raises(ValueError, match=f"{number} teachers for 2 parts"):
        Teachers([Says([0.0]) for _ in range(number)], Partition([[0], [1]], 2))


def test_a_model_of_another_width_than_its_part_is_refused():
    with pytest.raises(ValueError, match="classes on axis 1"):
        Teachers([Says([0.0, 1.0]), Says([1.0])], Partition([[0], [1, 2]], 3))(torch.rand(1, 3, 2, 2))


# ---- soft targets --------------------------------------------------------------------------------------------------


def test_stored_logits_are_the_teachers_own_up_to_half_precision(tmp_path):
    torch.manual_seed(0)
    experts = Teachers([build_model("test_resnet", 2), build_model("test_resnet", 1)], Partition([[0, 2], [1]], 3))
    images = torch.rand(21, 3, 32, 32)

    def view(number, rows):
        return images[rows].roll(number, dims=3)

    made = store(tmp_path)
    fill({"co": made}, {"co": experts}, view, "cpu", batch_size=2)
    for number in (0, 1):
        for rows in (np.array(ROWS), np.array([20, 3, 9, 9])):  # any order, any number of times
            found = made.read(number, rows)
            assert found.dtype == torch.float32 and not found.requires_grad
            torch.testing.assert_close(found, experts(view(number, rows)), atol=2e-3, rtol=0)


def test_a_store_opened_again_has_what_was_filled(tmp_path):
    filled(tmp_path)
    again = store(tmp_path, rows=list(reversed(ROWS)))
    assert again.missing() == []
    assert again.read(1, np.array([14, 3])).tolist() == [[14, 1, 1], [3, 1, 1]]
    asked = Counts()
    fill({"co": again}, {"co": asked}, view_of, "cpu")
    assert asked.asked == []


def test_stored_views_are_taken_round_robin(tmp_path):
    made = filled(tmp_path)
    assert [made.read(view, np.array([5]))[0, 1].item() for view in range(5)] == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("killed_at", range(8))
def test_a_killed_filling_goes_on_with_the_block_it_was_in(tmp_path, killed_at):
    calls, first, second = [], Counts(), Counts()

    def killed(view, rows):
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        calls.append((view, list(rows)))
        return view_of(view, rows)

    made = store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fill({"co": made}, {"co": first}, killed, "cpu", batch_size=2)
    del made
    again = store(tmp_path)
    # Each view takes 2 + 2 + 1 batches, because its blocks hold 3, 3 and 1 images.
    whole = [[3, 5, 6], [9, 10, 14], [20]] * 2
    done = sum(end <= killed_at for end in (2, 4, 5, 7, 9, 10))
    assert len(again.missing()) == 6 - done
    fill({"co": again}, {"co": second}, view_of, "cpu", batch_size=2)
    assert [row for _, row in second.asked] == [row for block in whole[done:] for row in block]
    everything = [again.read(view, np.array(ROWS)).tolist() for view in (0, 1)]
    assert everything == [[[row, view, 1] for row in ROWS] for view in (0, 1)]


def test_two_branches_are_filled_on_one_pass_over_the_views(tmp_path):
    made = {"co": store(tmp_path, "co"), "dis": store(tmp_path, "dis")}
    asked, calls = {"co": Counts(), "dis": Counts(-2.0)}, []

    def counted(view, rows):
        calls.append(view)
        return view_of(view, rows)

    fill(made, asked, counted, "cpu", batch_size=3)
    assert calls == [0, 0, 0, 1, 1, 1]
    assert asked["co"].asked == asked["dis"].asked and len(asked["co"].asked) == 14
    assert made["dis"].read(1, np.array([6])).tolist() == [[-12, -2, -2]]
    assert all(branch.seconds > 0 for branch in made.values())


def test_a_branch_that_is_done_is_not_computed_again_and_needs_no_teachers(tmp_path):
    made = {"co": filled(tmp_path), "dis": store(tmp_path, "dis")}
    before, dis = made["co"].seconds, Counts(3.0)
    fill(made, {"dis": dis}, view_of, "cpu")
    assert len(dis.asked) == 14 and made["co"].seconds == before
    assert made["co"].read(0, np.array([6])).tolist() == [[6, 0, 1]]
    assert made["dis"].read(0, np.array([6])).tolist() == [[18, 0, 3]]


def test_stores_over_different_images_are_not_filled_together(tmp_path):
    made = {"co": store(tmp_path, "co"), "dis": store(tmp_path, "dis", rows=[row + 1 for row in ROWS])}
    with pytest.raises(ValueError, match="different images"):
        fill(made, {"co": Counts(), "dis": Counts()}, view_of, "cpu")


def test_a_view_that_is_not_filled_cannot_be_read(tmp_path):
    made = store(tmp_path)
    with pytest.raises(RuntimeError, match=r"view 1 of co\.f16 is not filled"):
        made.read(1, np.array([3]))
    made._mark_done(1, 0, 0.0)
    made.read(1, np.array([3, 5, 6]))
    with pytest.raises(RuntimeError, match="not filled"):
        made.read(1, np.array([3, 9]))


@pytest.mark.parametrize("row", [-1, 0, 4, 19, 21, 10_000])
def test_an_image_outside_the_store_is_an_error_and_not_another_images_logits(tmp_path, row):
    made = filled(tmp_path)
    with pytest.raises(ValueError, match=rf"does not cover the image rows \[{row}\]"):
        made.read(0, np.array([3, row, 20]))


def test_logits_beyond_half_precision_are_stored_as_its_edge(tmp_path):
    made = store(tmp_path, views=1)
    fill({"co": made}, {"co": Counts(1e30)}, view_of, "cpu")
    assert made.read(0, np.array([3, 20])).tolist() == [[60_000, 0, 60_000]] * 2
    fill(
        {"dis": (low := store(tmp_path, "dis", views=1))},
        {"dis": Counts(float("-inf"))},
        lambda v, r: view_of(1, r),
        "cpu",
    )
    assert low.read(0, np.array([3])).tolist() == [[-60_000] * 3]


def test_a_teacher_that_answers_nan_is_not_stored(tmp_path):
    made = store(tmp_path)
    with pytest.raises(FloatingPointError, match="co teachers answer NaN"):
        fill({"co": made}, {"co": Counts(float("nan"))}, view_of, "cpu")
    assert len(made.missing()) == 6


@pytest.mark.parametrize("field", [*MADE_OF, "more"])
def test_a_store_made_of_something_else_is_refused_by_the_name_of_what_differs(tmp_path, field):
    filled(tmp_path)
    with pytest.raises(StaleTargets, match=rf"made of another {field};"):
        store(tmp_path, made_of=MADE_OF | {field: None})
    with pytest.raises(StaleTargets, match=rf"made of another {field};") as caught:
        less = {name: value for name, value in MADE_OF.items() if name != field}
        store(tmp_path, made_of=less if field in MADE_OF else MADE_OF | {field: 1})
    assert "co.json" in str(caught.value)
    assert store(tmp_path).missing() == []  # and what is there stays


@pytest.mark.parametrize("shape", [{"views": 3}, {"num_classes": 4}, {"rows": ROWS[:-1]}])
def test_a_store_of_another_shape_is_refused(tmp_path, shape):
    filled(tmp_path)
    with pytest.raises(StaleTargets, match="made of another shape;"):
        store(tmp_path, **shape)
    with pytest.raises(StaleTargets, match="made of another shape, view;"):
        store(tmp_path, made_of=MADE_OF | {"view": "plain"}, **shape)


def test_the_order_of_a_dictionary_and_tuples_for_lists_make_no_other_store(tmp_path):
    filled(tmp_path)
    same = dict(reversed(MADE_OF.items())) | {"classes": ("a", "b", "c")}
    assert store(tmp_path, made_of=same).missing() == []


@pytest.mark.parametrize("suffix", [".f16", ".done"])
@pytest.mark.parametrize("damage", ["deleted", "cut", "grown", "emptied"])
def test_marks_without_their_values_vouch_for_nothing(tmp_path, suffix, damage):
    filled(tmp_path)
    path = tmp_path / f"co{suffix}"
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-1], "grown": content + b"\1", "emptied": b""}[damage])
    again = store(tmp_path)
    assert len(again.missing()) == 6 and again.seconds == 0
    with pytest.raises(RuntimeError, match="not filled"):
        again.read(0, np.array([3]))
    fill({"co": again}, {"co": Counts()}, view_of, "cpu")
    assert again.read(1, np.array([20])).tolist() == [[20, 1, 1]]


def test_values_and_marks_without_a_record_are_begun_anew(tmp_path):
    filled(tmp_path)
    (tmp_path / "co.json").unlink()
    again = store(tmp_path, made_of={"other": 1})
    assert len(again.missing()) == 6 and again.seconds == 0


def test_a_record_that_is_no_json_is_named(tmp_path):
    filled(tmp_path)
    (tmp_path / "co.json").write_text('{"made_of":')
    with pytest.raises(ValueError, match=r"co\.json is not valid JSON"):
        store(tmp_path)


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_kill_while_a_store_is_opened_never_leaves_marks_without_values(tmp_path, monkeypatch, stop):
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
        made_of = MADE_OF
        if values_gone:
            (folder / "co.f16").unlink()
        else:
            (folder / "co.json").unlink()
            made_of = {"other": 1}
        steps = []
        with monkeypatch.context() as patch:
            patch.setattr(teachers.Path, "unlink", limited(teachers.Path.unlink))
            patch.setattr(teachers, "write_json", limited(teachers.write_json))
            patch.setattr(teachers, "open", limited(open), raising=False)
            with contextlib.suppress(Killed):
                store(folder, made_of=made_of)
        assert len(store(folder, made_of=made_of).missing()) == 6


def test_a_removed_store_is_gone_with_its_record_first(tmp_path, monkeypatch):
    made = filled(tmp_path)
    gone = []
    unlink = teachers.Path.unlink
    monkeypatch.setattr(
        teachers.Path, "unlink", lambda path, missing_ok=False: (gone.append(path.name), unlink(path, missing_ok))[1]
    )
    made.delete()
    assert gone[0] == "co.json"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == []
    remove_store(tmp_path / "co.f16")  # once more does no harm
    assert len(store(tmp_path, made_of={"other": 1}).missing()) == 6


def test_the_record_says_what_a_store_is_made_of(tmp_path):
    filled(tmp_path)
    assert json.loads((tmp_path / "co.json").read_text()) == {"made_of": MADE_OF, "shape": [2, 7, 3]}
