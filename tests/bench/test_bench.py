"""The benchmark: the straightforward references give what ours gives, and a difference is never called a speed-up."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from bench import __main__ as command
from bench import pairs, reference, reference_training, reference_views, timing, whole
from bench.timing import STAGES, Pair, Stopwatch, measure
from bench.workspace import QUICK, TRAINING, Settings, Workspace, apart
from cpsd_lib import losses
from cpsd_lib.data.augment import randaugment
from cpsd_lib.evaluation import average_precision
from cpsd_lib.objectives import Supervised
from cpsd_lib.training import Learner, fit


@pytest.fixture(scope="module")
def w(tmp_path_factory):
    return Workspace(Settings(**QUICK | {"device": "cpu"}), tmp_path_factory.mktemp("photos"))


# ---- the references give what ours gives -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "by_reference", [reference.average_precision_walked, reference.average_precision_class_by_class]
)
def test_ap_of_four_images_by_hand_and_of_many_by_ours(by_reference):
    scores, targets = np.array([[0.9], [0.8], [0.7], [0.1]]), np.array([[1], [0], [1], [0]])
    assert by_reference(scores, targets) == pytest.approx([(1 + 2 / 3) / 2])
    targets = pairs.random_targets(300, 7)
    scores = np.random.default_rng(3).normal(size=targets.shape)
    assert by_reference(scores, targets) == pytest.approx(average_precision(scores, targets), abs=1e-12)


def test_led_of_three_images_by_hand():
    # Distances 1, 2, 3 over their mean 2 against 1, 1, 2 over 4/3: differences .25, .25, 0, each pair twice, 3 members.
    student, teacher = torch.tensor([0.0, 1, 3]).view(3, 1, 1), torch.tensor([0.0, 1, 2]).view(3, 1, 1)
    for led in (reference.led_group_by_group, losses.led):
        of_classes, of_images = led(student, teacher, torch.ones(3, 1))
        assert of_classes.item() == pytest.approx(2 * 2 * 0.5 * 0.25**2 / 3) and of_images.item() == 0


def test_a_moving_average_by_hand():
    model = nn.BatchNorm1d(2)
    shadow = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.weight += 2
        model.num_batches_tracked += 5
    reference.average_tensor_by_tensor(shadow, model, 0.75)
    assert shadow["weight"].tolist() == [1.5, 1.5] and shadow["num_batches_tracked"] == 5


@pytest.mark.parametrize(("view", "levels"), [("plain", 0), ("flip", 0.1), ("default", 3), ("release", 0)])
@pytest.mark.parametrize("size", [32, 16])  # at 16 the files are four times as large: libjpeg decodes them smaller
def test_views_made_from_files_in_pillow_are_ours(tmp_path, view, levels, size):
    w = Workspace(Settings(**QUICK | {"device": "cpu", "size": size}), tmp_path)
    batches = list(zip(w.batches(view).epoch(0), reference_training.epoch_from_files(w, view), strict=True))
    assert len(batches) == 4
    for ours, other in batches:
        assert ours.indices.tolist() == other.indices.tolist() and torch.equal(ours.targets, other.targets)
        assert pairs.levels_apart(ours.images, other.images) <= levels


def test_every_operation_of_randaugment_is_in_the_reference():
    assert len(reference_views.OPERATIONS) == len(randaugment.OPERATIONS)


def test_a_model_trained_by_the_reference_is_ours(w):
    objective, start = Supervised(torch.arange(len(w.classes))), w.student()
    other, ours = (Learner("student", w.student(), objective) for _ in range(2))
    reference_training.train(w, other, w.batches().epoch(0))
    fit(ours, w.batches(), TRAINING)
    assert apart([other.model], [ours.model], [start]) < 1e-3


def test_led_of_a_batch_by_the_reference_is_ours():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(9, 5, 4, generator=generator) for _ in range(2))
    targets = (torch.rand(9, 5, generator=generator) < 0.5).float()
    both = losses.led(student, teacher, targets), reference.led_group_by_group(student, teacher, targets)
    for mine, other in zip(*both, strict=True):
        assert mine.item() == pytest.approx(other.item(), rel=1e-5) and mine > 0


def test_teachers_computed_one_expert_after_another_are_part_teachers(w):
    teachers = w.teachers(w.experts(("co", "dis")))
    for batch in reference_training.with_teachers(w, w.batches().epoch(0), teachers):
        for branch, logits in batch.soft.items():
            assert torch.equal(logits, teachers[branch].soft_targets(batch.images))


# ---- a wrong result is found -----------------------------------------------------------------------------------------


def differences(pair):
    """Return (what a pair finds of one run of each way, its tolerance)."""
    row = measure(pair, 1)
    return row["difference"], row["tolerance"]


@pytest.mark.parametrize("wrong", [lambda logits: logits.flip(0), lambda logits: logits.roll(1, 1)])
def test_soft_targets_of_other_photos_or_classes_make_a_students_results_differ(w, monkeypatch, wrong):
    stored = w.stored

    def mixed_up(teachers, batches):
        soft = stored(teachers, batches)
        return lambda *what: {branch: wrong(logits) for branch, logits in soft(*what).items()}

    monkeypatch.setattr(w, "stored", mixed_up)
    difference, tolerance = differences(pairs.student(w))
    assert difference > tolerance


def test_views_of_another_epoch_differ(w, monkeypatch):
    batches = w.batches

    def of_another_epoch(*what):
        made = batches(*what)
        augmented = made._augmented
        made._augmented = lambda pixels, view, indices: augmented(pixels, view + 1, indices)
        return made

    monkeypatch.setattr(w, "batches", of_another_epoch)
    difference, tolerance = differences(pairs.views(w, "default"))
    assert difference > tolerance


def test_the_objective_of_one_model_among_all_of_the_table_is_enough_to_differ(w, monkeypatch):
    rows = dict(whole.ROWS)
    right = whole.by_reference(w)
    monkeypatch.setattr(whole, "ROWS", rows | {"cgpd": {"dis": 1.0}})
    starts = [learner.model for learner in [*w.experts(whole.BRANCHES), *whole._students(w)]]
    wrong = whole.by_ours(w)
    assert apart([one.model for one in right], [one.model for one in wrong], starts) > pairs.STUDENTS_APART


def test_apart_is_a_share_of_the_way_and_hides_no_nan():
    start, one, other, broken = (nn.Linear(1, 1, bias=False) for _ in range(4))
    for model, weight in ((start, 0.0), (one, 4.0), (other, 5.0), (broken, float("nan"))):
        nn.init.constant_(model.weight, weight)
    assert apart([one], [other], [start]) == pytest.approx(0.25) and apart([one], [one], [start]) == 0
    assert np.isnan(apart([one, one], [broken, one], [start, start]))


# ---- measuring -------------------------------------------------------------------------------------------------------


def made_up(difference=lambda a, b: 0.0, goal=None):
    """Return a Pair of nothing, and the list that tells in which order its parts were called."""
    order = []

    def way(name):
        return lambda _: order.append(name) or name

    return Pair(
        "made up", way("reference"), way("ours"), difference, 1e-9, "names", goal, lambda: order.append("-")
    ), order


def clock(monkeypatch, seconds):
    """Let the works take the next of `seconds`, one after the other."""
    left = iter(seconds)
    monkeypatch.setattr(timing, "seconds", lambda work, *arguments: (next(left), work(*arguments)))


def test_runs_alternate_after_one_to_warm_up():
    pair, order = made_up()
    measure(pair, 3)
    assert order == ["-", "reference", "-", "ours"] * 4


def test_a_row_holds_medians_the_ratio_of_medians_and_the_spread_of_neighbours(monkeypatch):
    clock(monkeypatch, [100, 100, 6, 2, 9, 1, 7, 3])
    row = measure(made_up(goal=3)[0], 3)
    assert (row["reference_seconds"], row["our_seconds"], row["ratio"]) == (7, 2, 3.5)
    assert row["spread"] == [7 / 3, 9] and row["reached"] and row["same"]
    assert row["runs"] == {"reference": [6, 9, 7], "ours": [2, 1, 3]}


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
@pytest.mark.parametrize("when", [0, 1, 2])  # 0: the run that warms up
def test_one_run_that_differs_is_enough(wrong, when):
    found = iter([wrong if number == when else 0.0 for number in range(3)])
    row = measure(made_up(lambda a, b: next(found))[0], 2)
    assert not row["same"] and row["difference"] == (wrong if wrong == 1e-3 else None)
    json.dumps(row, allow_nan=False)


def test_a_stopwatch_adds_up_what_each_stage_took(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    for stage in (STAGES[0], STAGES[1], STAGES[0], None):
        watch.switch(stage)
    assert watch.seconds == dict.fromkeys(STAGES, 0.0) | {STAGES[0]: 5.0, STAGES[1]: 2.0}


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("difference", "goal", "status"), [(0.0, 1e9, 0), (0.5, None, 1), (float("nan"), None, 1)])
def test_another_result_makes_the_command_fail_and_a_missed_goal_does_not(
    difference, goal, status, tmp_path, monkeypatch, capsys
):
    row = measure(made_up(lambda a, b: difference, goal)[0], 2)
    record = {"rows": [row], "table": [command.cells(row)], "of_stages": "", "measured": ""}
    monkeypatch.setattr(command, "run_bench", lambda settings: record)
    assert command.main(["--out", str(tmp_path / "bench.json")]) == status
    printed = capsys.readouterr().out
    assert ("DIFFERS" in printed) == bool(status) and (">= 1e+09 no" in printed) == (goal is not None)
    assert json.loads((tmp_path / "bench.json").read_text())["rows"] == [row]


def test_the_quick_benchmark_runs_from_end_to_end_with_equal_results(tmp_path, capsys, monkeypatch):
    """About 15 s on a free core."""
    monkeypatch.setattr(command, "outputs_root", lambda: tmp_path)
    assert command.main(["--quick", "--device", "cpu", "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert len(record["rows"]) == 13 and all(row["same"] and row["goal"] is None for row in record["rows"])
    assert all(row["part"] in printed for row in record["rows"]) and "smoke test" in record["measured"]
    assert all(tuple(spent) == STAGES and min(spent.values()) > 0 for spent in record["stages"].values())


@pytest.mark.parametrize("words", [["--images", "96"], ["--batch", "64"]])
def test_a_training_too_short_to_compare_is_refused(words, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([*words, "--out", str(tmp_path / "bench.json")])
    assert "4 batches" in capsys.readouterr().err and not (tmp_path / "bench.json").exists()


def test_the_goals_are_those_that_were_asked_for(w):
    parts = [*pairs.scoring(w.settings), pairs.embeddings(w.settings), pairs.averaging(w.settings), pairs.student(w)]
    assert [pair.goal for pair in [*parts, whole.component_table(w)[0]]] == [500, None, 10, 5, 10, 3.5, 3]
