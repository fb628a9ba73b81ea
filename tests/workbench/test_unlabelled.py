"""Photos without labels: which ones they are, who learns from them, and the teachers that are compared for it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from cpsd_lib import load_model
from cpsd_lib.cli import main
from cpsd_lib.data.table import UNLABELLED
from cpsd_lib.evaluation.cam import class_activation, gradient_map
from cpsd_lib.losses import asymmetric_loss
from cpsd_lib.support import read_json, write_json
from cpsd_lib.teachers import Copies, PartTeachers, logits_of
from cpsd_lib.training import PseudoLabels, loop
from cpsd_lib.training.batches import Batches
from cpsd_lib.viz.plots import ROW_COLOURS
from cpsd_lib.workbench.cost import estimate, work_of
from cpsd_lib.workbench.handover import export
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.making import (
    StoredTargets,
    load_student,
    load_teachers,
    student_batches,
    train_student,
    train_teachers,
)
from cpsd_lib.workbench.preflight import images_of
from cpsd_lib.workbench.published import no_figure, published
from cpsd_lib.workbench.recipes import pseudo_labels, student_task, teacher_tasks, work_in_baselines
from cpsd_lib.workbench.rows import ROWS as ROWS_OF_ALL
from cpsd_lib.workbench.rows import branches_of
from cpsd_lib.workbench.run import cut_labels, describe_data, label_graph, load_partitions, open_run
from cpsd_lib.workbench.scoring import evaluate

SMALL = {"data.images": 100, "data.size": 16, "train.epochs": 1, "train.batch_size": 16, "partition.k": 2}
WIDE = {"name": "test_resnet", "options": {"channels": [64, 96, 96, 192], "stem_width": 32}}
ROWS = ["baseline", "student_only", "mld", "cpsd_mld", "rand2_mld", "ensemble_mld", "wide_mld", "cap"]


def few(**overrides):
    shared = {"name": "few", "data.labelled": 24, "student.rows": ROWS, "wide_model": WIDE}
    return open_run("tiny", SMALL | shared | {key.replace("__", "."): v for key, v in overrides.items()})


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPSD_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        run = few()
        describe_data(run)
        cut_labels(run)
        train_teachers(run, 0)
        for row in ROWS[1:]:
            train_student(run, 0, row)
        yield run.folder.parent


def test_labels_are_hidden_from_a_seeded_part_and_fewer_are_part_of_more(outputs):
    table, less, other = (few(data__labelled=n, data__seed=s).dataset.table for n, s in ((24, 0), (10, 0), (24, 1)))
    assert len(table.indices("train")) == 24 and len(table.indices(UNLABELLED)) == 36
    assert (table.targets[table.indices(UNLABELLED)] == -1).all()
    assert set(less.indices("train")) < set(table.indices("train")) != set(other.indices("train"))
    everything = open_run("tiny", SMALL).dataset.table
    assert (table.targets[table.indices("train")] == everything.targets[table.indices("train")]).all()
    assert len(few(data__labelled=0.5).dataset.table.indices("train")) == 30


@pytest.mark.parametrize("labelled", [0, 1, 1.5, -3])
def test_a_number_of_labelled_images_that_means_nothing_is_refused(outputs, labelled):
    with pytest.raises(Exception, match=r"data\.labelled"):
        load_params("tiny", {"data.labelled": labelled})


def test_graph_and_teachers_see_labelled_images_alone_and_students_all(outputs, monkeypatch):
    run = few()
    table = run.dataset.table
    labelled = table.targets[table.indices("train")]
    assert (run.params.data.labelled, len(labelled)) == (24, 24)
    together = (labelled[:, :, None] * labelled[:, None, :]).sum(0)
    assert ((label_graph(run, "co") > 0) == (together * (1 - np.eye(20)) > 0)).all()
    assert {
        task.recipe["images"]["train"] for branch in ("whole", "co", "wide") for task in teacher_tasks(run, 0, branch)
    } == {student_task(run, 0, "student_only").recipe["images"]["train"]}
    both = sorted([*table.indices("train"), *table.indices(UNLABELLED)])
    for row in ("mld", "cpsd_mld", "cap"):
        assert student_task(run, 0, row).images.tolist() == both
    assert student_task(run, 0, "student_only").images.tolist() == table.indices("train").tolist()
    shown = []
    step = loop._step
    monkeypatch.setattr(
        loop, "_step", lambda state, batch, *rest: shown.append(batch.indices) or step(state, batch, *rest)
    )
    longer = few(name="again", student__lr=0.01, student__rows=["mld"])
    cut_labels(longer)
    train_teachers(longer, 0)
    train_student(longer, 0, "mld")
    assert len(set(np.concatenate(shown))) == 48  # three batches of 16 of the 60 images


def test_soft_targets_cover_the_unlabelled_images_and_are_what_the_teachers_compute(outputs):
    run = few()
    stored, merged = StoredTargets(run, 0, ["co", "random_2"]), load_teachers(run, 0, ["co", "random_2"])
    assert len(stored.indices) == 60
    for batch in student_batches(run, 0, stored, row="cpsd_mld").epoch(0):
        for branch, teachers in merged.items():
            expected = logits_of(teachers.soft_targets(batch.images))
            assert torch.allclose(batch.soft[branch], expected, atol=2e-2)


def test_an_ensemble_has_as_many_whole_models_as_both_branches_have_teachers_and_answers_with_their_mean(outputs):
    run = few()
    tasks = teacher_tasks(run, 0, "ensemble")
    assert [task.recipe["member"] for task in tasks] == [0, 1, 2, 3] and len({task.key for task in tasks}) == 4
    assert tasks[0].key == run.keys(0, "baseline")[0]
    (merged,) = load_teachers(run, 0, ["ensemble"]).values()
    images = torch.rand(3, 3, 16, 16)
    expected = sum(logits_of(model(images)) for model in merged.experts) / 4
    assert torch.allclose(merged.soft_targets(images), expected, atol=1e-5)


def test_an_ensemble_can_be_handed_over_and_answers_as_before(outputs, tmp_path):
    here = load_model(few(), "teachers_ensemble")
    export(few(), "teachers_ensemble", None, tmp_path / "folder")
    there, images = load_model(tmp_path / "folder"), torch.rand(3, 3, 16, 16)
    assert len(there.experts) == 4 and torch.allclose(logits_of(here(images)), logits_of(there(images)), atol=1e-6)
    config = read_json(tmp_path / "folder" / "config.json")
    write_json(tmp_path / "folder" / "config.json", config | {"thresholds": [0.5]})
    with pytest.raises(ValueError, match="one threshold a class"):
        load_model(tmp_path / "folder")


def test_an_ensemble_trains_each_of_its_models_on_all_classes():
    models = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)) for _ in range(2)]
    images, targets = torch.rand(5, 3, 2, 2), torch.randint(0, 2, (5, 3))
    expected = sum(asymmetric_loss(model(images), targets) for model in models)
    assert torch.allclose(PartTeachers(models, Copies(2, 3)).loss(images, targets), expected)


def test_the_two_draws_of_random_parts_differ_and_the_wide_teacher_is_the_wide_model(outputs):
    run = few()
    parts = load_partitions(run)
    assert parts["random"].parts != parts["random_2"].parts and len(parts["random_2"]) == 2
    (wide,) = load_teachers(run, 0, ["wide"])["wide"].experts
    assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in load_student(run, 0, "mld").parameters())


def test_every_row_and_its_teachers_are_scored(outputs):
    rows = {record["row"] for record in evaluate(few())}
    assert rows == {*ROWS, *(f"teachers_{b}" for b in ("co", "dis", "random", "random_2", "ensemble", "wide"))}


def test_pseudo_labels_give_each_class_its_share_of_positives_where_the_scores_are_highest():
    logits = np.array([[3.0, 0], [1, 9], [2, 8], [0, 7]])
    found = PseudoLabels(np.arange(4), np.array([0.5, 0.25])).positives(logits)
    assert found.tolist() == [[1, 0], [0, 1], [1, 0], [0, 0]]


def test_the_shares_of_pseudo_labels_are_those_of_the_labelled_images(outputs):
    run = few()
    table, pseudo = run.dataset.table, pseudo_labels(run, 0)
    positives = [np.mean([t for t in column if t != -1]) for column in table.targets[table.indices("train")].T]
    assert np.allclose(pseudo.shares, positives) and pseudo.indices.tolist() == table.indices(UNLABELLED).tolist()


@pytest.fixture
def pseudo_training(tmp_path):
    """A function that trains one small model with pseudo-labels; returns (its weights, the targets it ended with)."""
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)
    targets = np.random.default_rng(1).integers(0, 2, (24, 2)).astype(np.int8)
    targets[12:] = -1
    settings = load_params("tiny", {"train.epochs": 4, "train.checkpoint_seconds": 0}).student

    def train(folder=None, stop=None):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
        batches = Batches(images, targets, batch_size=8, view="plain")
        pseudo = PseudoLabels(np.arange(12, 24), np.array([0.5, 0.25]))
        steps = iter(range(1000))
        with pytest.MonkeyPatch.context() as patch:
            if stop is not None:
                step = loop._step

                def stopping(*arguments):
                    if next(steps) == stop:
                        raise KeyboardInterrupt
                    return step(*arguments)

                patch.setattr(loop, "_step", stopping)
            loop.fit(model, batches, settings, folder, pseudo=pseudo)
        return model[1].weight.detach().clone(), batches.targets.clone()

    return train


def test_images_without_labels_get_those_of_the_moving_average_and_the_others_keep_theirs(pseudo_training):
    _, labelled = pseudo_training()
    assert labelled[12:].sum(0).tolist() == [6, 3] and (labelled[12:] >= 0).all()
    assert (labelled[:12] == torch.from_numpy(np.random.default_rng(1).integers(0, 2, (24, 2)))[:12]).all()


def test_a_student_of_pseudo_labels_starts_from_the_trained_baseline_and_pays_for_it(outputs):
    run = few()
    assert student_task(run, 0, "cap").recipe["start"] == [run.keys(0, "baseline")[0], 0]
    seconds = {r["row"]: r["seconds"] for r in evaluate(run)}
    own = run.store.record("model", run.keys(0, "cap")[0])["about"]["seconds"]
    assert seconds["cap"] == pytest.approx(seconds["baseline"] + own)
    assert "whole" in branches_of(["cap"])


@pytest.mark.parametrize("stop", [4, 5, 6, 10])
def test_stopped_within_an_epoch_the_same_pseudo_labels_go_on(pseudo_training, tmp_path, stop):
    whole, _ = pseudo_training()
    with pytest.raises(KeyboardInterrupt):
        pseudo_training(tmp_path, stop=stop)
    again, _ = pseudo_training(tmp_path)
    assert torch.equal(whole, again)


def test_work_counts_the_unlabelled_images_and_the_width(outputs):
    run = few()
    works, teachers, student = work_in_baselines(run), run.params.teachers, run.params.student
    assert works["baseline"] == works["student_only"] == 1
    # One epoch each: the teacher's on 24 images, a third of a pass and a whole one on 60.
    assert works["mld"] == pytest.approx(1 + (1 / 3 + 1) * 60 / 24)
    assert works["cpsd_mld"] == works["rand2_mld"] == pytest.approx(4 + (4 / 3 + 1) * 60 / 24)
    assert works["ensemble_mld"] == pytest.approx(works["cpsd_mld"])
    assert works["cap"] == pytest.approx(1 + 60 / 24 + 36 / 24 / 3)  # it labels the 36 anew in every epoch
    wider = 3.9  # FLOP: twice the channels are four times, but for the image's three
    assert works["wide_mld"] == pytest.approx(wider + (wider / 3 + 1) * 60 / 24, rel=0.05)
    assert work_of("wide_mld", teachers, student, 2, 1.0, 2.0, 3.0) == pytest.approx(3 + 2 + 2)
    there = images_of(run.params.data)
    assert (there.train, there.unlabelled, there.test) == (24, 36, 40)
    cost, without = (estimate(run.params, 20, 24, 40, unlabelled=n) for n in (36, 0))
    assert (
        cost.stages["teachers"] == without.stages["teachers"] and cost.stages["students"] > without.stages["students"]
    )


def test_a_wide_teacher_needs_its_model():
    with pytest.raises(Exception, match="wide_mld has a wider teacher"):
        load_params("tiny", {"student.rows": ["baseline", "wide_mld"]})


def test_the_cost_card_and_the_data_say_how_many_images_have_no_labels(outputs, capsys):
    assert main(["cost", "tiny", "data.labelled=100"]) == 0
    assert "100 training, 140 unlabelled and 160 test images" in capsys.readouterr().out
    assert few().described["images"] == {"test": 20, "test_shifted": 20, "train": 24, UNLABELLED: 36}
    assert any("24 of 60 training images keep their labels" in note for note in few().described["notes"])


def test_an_ensembles_activation_maps_are_the_mean_of_its_models(outputs):
    (merged,) = load_teachers(few(), 0, ["ensemble"]).values()
    images = torch.rand(2, 3, 16, 16)
    maps = [[gradient_map(model, images, c) for c in (3, 5)] for model in merged.experts]
    mean = torch.stack([torch.stack(of_model, 1) for of_model in maps]).mean(0).relu()
    found, expected = class_activation(merged, images, [3, 5]), functional.interpolate(mean, (16, 16), mode="bilinear")
    highest = expected.amax((2, 3), keepdim=True).clamp(min=1e-9)
    assert torch.allclose(found, expected / highest, atol=1e-4)


def test_every_row_has_a_colour_of_its_own_figures():
    assert {row.title for row in ROWS_OF_ALL.values()} <= set(ROW_COLOURS)


def test_figures_of_few_labels_stand_beside_those_of_cap_and_not_beside_the_papers():
    few = load_params("coco_resnet50_few", {"data.labelled": 0.1}, paths=False)
    assert published(few)["mAP"].to_dict() == {"baseline": 63.5, "cap": 65.2}
    of_paper = load_params("coco_resnet101", {}, paths=False)
    assert len(published(of_paper))
    assert published(load_params("coco_resnet101", {"data.labelled": 0.1}, paths=False)).empty
    assert "data.labelled = 0.1" in no_figure(load_params("coco_resnet101", {"data.labelled": 0.1}, paths=False))


def test_pseudo_labels_are_the_moving_averages_and_new_in_every_epoch():
    images = np.full((4, 3, 2, 2), 60, np.uint8) * np.arange(4, dtype=np.uint8)[:, None, None, None]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 1, bias=False))
    torch.nn.init.ones_(model[1].weight)  # bright is high; the average says the opposite
    average = {"1.weight": -torch.ones(1, 12)}
    state = SimpleNamespace(learner=SimpleNamespace(model=model), ema=SimpleNamespace(state=average))
    batches = Batches(images, np.array([[1], [-1], [-1], [-1]], np.int8), batch_size=2, view="plain")
    pseudo, progress, found = PseudoLabels(np.array([1, 2, 3]), np.array([1 / 3])), {}, []
    for step, sign in ((0, 1), (1, -1), (0, 1)):  # a beginning, within the epoch, the next beginning
        average["1.weight"].mul_(sign)
        progress["step"] = step
        pseudo.label([state], batches, progress, None)
        found.append(batches.targets[:, 0].tolist())
    assert found == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1]]


def test_equal_work_counts_the_images_that_are_trained_on_not_those_held_out(outputs):
    one, held = (work_in_baselines(few(**{"train.select": s, "train.val_share": 0.25}))["mld"] for s in ("last", "val"))
    assert one == pytest.approx(1 + (1 / 3 + 1) * (24 + 36) / 24)
    assert held == pytest.approx(1 + (1 / 3 + 1) * (18 + 36) / 18)
