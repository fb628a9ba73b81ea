"""What the stages do with a run's parameters, without notebooks: one very small run, shared by most tests (about 15 s)."""

import json
import re
import shutil
import socket
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from cpsd_lib import graph
from cpsd_lib.losses import asymmetric_loss
from cpsd_lib.objectives import MultiLabelDistillation, SelfDistillation
from cpsd_lib.partition import Partition, ncut
from cpsd_lib.support import read_json, write_json
from cpsd_lib.teachers import logits_of
from cpsd_lib.training import loop
from cpsd_lib.training.batches import Batches
from cpsd_lib.viz.parts import export
from cpsd_lib.workbench import making, recipes, scoring
from cpsd_lib.workbench.cost import equal_epochs
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.making import (
    StoredTargets,
    history,
    load_artifact,
    load_student,
    load_teachers,
    student_batches,
    target_groups,
    train_student,
    train_teachers,
)
from cpsd_lib.workbench.open import explore, load_model
from cpsd_lib.workbench.preflight import check_run
from cpsd_lib.workbench.recipes import VERSIONS, _task, student_task, teacher_tasks
from cpsd_lib.workbench.report import scores_text, write_report
from cpsd_lib.workbench.rows import ROWS
from cpsd_lib.workbench.run import (
    MissingStage,
    Run,
    cut_labels,
    describe_data,
    label_graph,
    load_partitions,
    open_run,
    params_text,
    save_params,
    training_indices,
)
from cpsd_lib.workbench.scoring import component_table, evaluate, load_records, score_path
from cpsd_lib.workbench.store import Store
from cpsd_lib.workbench.yaml_files import ParameterError

SMALL = {"data.images": 100, "data.size": 16, "train.epochs": 1, "train.batch_size": 32, "partition.k": 2}
DISTILLED = ("sd", "cgpd", "dgpd", "cpsd")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Outputs of the module: a finished run named `base`, and room for others beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPSD_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        run = small()
        describe_data(run)
        everything(run)
        yield run.folder.parent


def small(**overrides):
    return open_run("tiny", SMALL | {"name": "base"} | {key.replace("__", "."): v for key, v in overrides.items()})


def everything(run):
    cut_labels(run)
    for seed in run.params.seed_list():
        train_teachers(run, seed)
        for row in run.params.student.rows:
            if row != "baseline":
                train_student(run, seed, row)


def fill_targets(run, seed):
    for group in target_groups(run, seed):
        group.obtain(run)


def models_in(run):
    """The keys of all models in the store."""
    return {path.name for path in (run.store.root / "model").glob("*")}


def about(run, row, seed=0):
    return run.store.record("model", run.keys(seed, row)[0])["about"]


def epochs_of(run, name):
    return pd.read_csv(history(run, run.keys(0, name)[0]))["epoch"]


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def no_training(monkeypatch):
    """From here on nothing may be trained, only loaded."""

    def refuse(*_):
        raise AssertionError("this was to be loaded, not trained")

    monkeypatch.setattr("cpsd_lib.training.loop._step", refuse)


# ---- which images ----------------------------------------------------------------------------------------------------


def test_without_selection_every_train_image_is_trained_on_and_no_other(outputs):
    run = small()
    rows, selection = training_indices(run, run.params.teachers, 0)
    assert selection is None and set(rows) == set(np.flatnonzero(run.dataset.table.split == "train"))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.001])
def test_validation_holds_out_a_seeded_part_of_train_and_never_test(outputs, share):
    run = small(train__select="val", train__val_share=share)
    train = set(run.dataset.table.indices("train"))
    rows, held_out = training_indices(run, run.params.teachers, 0)
    assert len(held_out) == max(1, int(share * len(train)))
    assert set(rows) | set(held_out) == train and not set(rows) & set(held_out)
    assert training_indices(run, run.params.student, 0)[1].tolist() == held_out.tolist()
    assert share < 0.01 or training_indices(run, run.params.teachers, 1)[1].tolist() != held_out.tolist()


def test_protocol_paper_selects_on_test_and_records_it(outputs):
    run = small(name="paper", protocol="paper", student__rows=["baseline", "sd"])
    rows, selection = training_indices(run, run.params.teachers, 0)
    assert set(run.dataset.table.split[rows]) == {"train"} and set(run.dataset.table.split[selection]) == {"test"}
    everything(run)
    entry = about(run, "sd")
    assert entry["protocol"] == "paper" and entry["weights"] in ("ema", "raw") and entry["val_map"] is not None
    assert "val_map_raw" in history(run, run.keys(0, "sd")[0]).read_text()
    with pytest.raises(MissingStage):  # an honest run does not take a model that has seen test
        load_student(small(name="paper", student__rows=["baseline", "sd"]), 0, "sd")


def test_the_honest_protocol_never_shows_test_images_to_training(outputs, monkeypatch):
    run = small(name="honest", train__select="val", student__rows=["baseline", "sd"])
    seen, read = set(), Batches._gather
    predict = loop.predict_logits

    def watched(forward, images, rows, *arguments, **more):
        seen.update(np.asarray(rows).tolist())
        return predict(forward, images, rows, *arguments, **more)

    monkeypatch.setattr("cpsd_lib.training.loop.predict_logits", watched)
    monkeypatch.setattr(
        Batches, "_gather", lambda self, rows: seen.update(np.asarray(rows).tolist()) or read(self, rows)
    )
    everything(run)
    assert len(seen) > 0 and set(run.dataset.table.split[sorted(seen)]) == {"train"}
    assert about(run, "sd")["val_map"] is not None


# ---- the order of the stages -----------------------------------------------------------------------------------------


def test_each_stage_names_the_notebook_that_has_to_run_first(outputs):
    run = small(name="fresh", seed=11)
    with pytest.raises(MissingStage, match="run 02_partition first"):
        load_partitions(run)
    with pytest.raises(MissingStage, match="run 02_partition first"):
        train_teachers(run, 11)
    cut_labels(run)
    with pytest.raises(MissingStage, match="run 03_teachers first"):
        fill_targets(run, 11)
    with pytest.raises(MissingStage, match="run 03_teachers first"):
        load_teachers(run, 11)
    with pytest.raises(MissingStage, match="run 03_teachers first"):
        load_student(run, 11, "baseline")
    with pytest.raises(MissingStage):
        load_student(run, 11, "cpsd")


def test_more_parts_than_classes_is_an_error_in_words(outputs):
    run = small(name="fresh", partition__k=50)
    with pytest.raises(ParameterError, match=r"partition\.k is 50, but the data set has only \d+ classes"):
        cut_labels(run)


def test_another_k_makes_the_partition_missing(outputs):
    with pytest.raises(MissingStage, match="run 02_partition first"):
        load_partitions(small(partition__k=3))


def test_teachers_of_other_parameters_are_not_distilled_even_when_their_soft_targets_are_complete(outputs):
    everything(small())
    with pytest.raises(MissingStage, match="run 03_teachers first"):
        fill_targets(small(teachers__lr=0.1), 0)


def test_students_of_other_teachers_are_missing(outputs):
    run = small(name="relearned")
    everything(run)
    again = small(name="relearned", teachers__lr=0.1)
    train_teachers(again, 0)
    for row in DISTILLED:
        with pytest.raises(MissingStage, match="run 04_student first"):
            load_student(again, 0, row)
    load_student(again, 0, "baseline")


def test_another_alpha_is_another_cpsd_student_and_nothing_else(outputs, no_training):
    changed = small(student__alpha=0.3)
    for row in ("baseline", "sd", "cgpd", "dgpd"):
        load_student(changed, 0, row)
    with pytest.raises(MissingStage, match="run 04_student first"):
        load_student(changed, 0, "cpsd")
    load_student(small(), 0, "cpsd")


def test_a_model_that_is_gone_from_the_store_is_named_and_made_again_by_its_stage(outputs):
    run = small(name="harmed", student__rows=["baseline"], seed=77)
    everything(run)
    before, key = load_student(run, 77, "baseline"), run.keys(77, "baseline")[0]
    (run.store.folder("model", key) / "model.safetensors").unlink()
    with pytest.raises(MissingStage, match=f"the model {key} is not in"):
        load_student(run, 77, "baseline")
    train_teachers(run, 77)
    assert same(load_student(run, 77, "baseline"), before)


# ---- what is trained, and what is not --------------------------------------------------------------------------------


def test_a_finished_run_is_only_loaded(outputs, no_training):
    before = models_in(small())
    everything(small())
    assert models_in(small()) == before and sum(map(len, small().noted(["teachers", "students"]).values())) == 9


@pytest.mark.parametrize(
    "change", [{"train__checkpoint_seconds": 1}, {"student__rows": ["cpsd"]}, {"evaluation__threshold": 0.3}]
)
def test_what_does_not_change_a_result_retrains_nothing(outputs, no_training, change):
    everything(small(**change))


def test_a_second_seed_trains_itself_alone(outputs):
    rows = ["baseline", "sd"]
    run, both = small(name="seeds", student__rows=rows), small(name="seeds", student__rows=rows, seeds=2)
    everything(run)
    before = models_in(run)
    everything(both)
    assert len(models_in(run) - before) == 2
    assert not same(load_student(both, 0, "baseline"), load_student(both, 1, "baseline"))


def test_rows_added_later_train_only_what_is_missing_and_another_name_trains_nothing(outputs, no_training):
    run = small(name="rows", student__rows=["baseline", "cgpd"])
    everything(run)
    assert sorted(run.noted(["teachers", "students"])) == [
        f"seed0/{n}" for n in ("students/cgpd", "teachers/co", "teachers/whole")
    ]
    everything(small(name="rows"))
    for row in ("baseline", *DISTILLED):
        assert small(name="rows").keys(0, row)[0] == small().keys(0, row)[0]


def test_every_row_starts_from_the_same_weights_and_sees_the_same_views(outputs, monkeypatch):
    run, started, views = small(name="starts", seed=5), {}, {}
    cut_labels(run)
    train_teachers(run, 5)

    class Looked(Exception):
        pass

    def look(learners, batches, *_, desc, **__):
        started[desc] = [tensor.clone() for tensor in learners[0].model.state_dict().values()]
        views[desc] = [batch.images for batch in batches.epoch(0)]
        raise Looked

    monkeypatch.setattr(making, "fit", look)
    for row in DISTILLED:
        with pytest.raises(Looked):
            train_student(run, 5, row)
    first, *others = started
    assert len(others) == 3
    for name in others:
        for tensor, expected in zip(started[name] + views[name], started[first] + views[first], strict=True):
            assert torch.equal(tensor, expected)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_the_teachers_of_a_branch_are_noted_by_part_in_order_and_cover_every_class(outputs):
    run = small()
    partitions, names = load_partitions(run), run.dataset.table.names
    for branch in ("whole", "co", "dis"):
        keys = run.keys(0, f"teachers_{branch}")
        classes = [run.store.record("model", key)["recipe"]["classes"] for key in keys]
        assert classes == [[names[c] for c in part] for part in partitions[branch].parts]


def test_soft_targets_are_what_the_teachers_compute_for_the_view_the_student_sees(outputs):
    run, branches = small(), ["whole", "co", "dis"]
    merged, source = load_teachers(run, 0), StoredTargets(run, 0, branches)
    batch = next(iter(student_batches(run, 0, source).epoch(0)))
    assert list(batch.soft) == branches
    for branch in branches:
        torch.testing.assert_close(batch.soft[branch], merged[branch].soft_targets(batch.images), rtol=2e-3, atol=2e-3)


def test_another_view_has_soft_targets_of_its_own_and_more_stored_views_contain_the_first(outputs):
    run = small(name="views", student__rows=["sd"], student__views=2, student__epochs=3)
    everything(run)
    two = run.noted(["soft_targets"])["seed0/soft_targets/whole"]
    plain = small(name="plain_views", student__rows=["sd"], student__views=2, student__epochs=3, student__view="plain")
    everything(plain)
    assert len(two) == 2 and not set(two) & set(plain.noted(["soft_targets"])["seed0/soft_targets/whole"])
    more = small(name="more_views", student__rows=["sd"], student__views=3, student__epochs=3)
    everything(more)
    assert more.noted(["soft_targets"])["seed0/soft_targets/whole"][:2] == two


def test_a_student_is_the_same_whoever_needed_its_soft_targets_first(outputs, tmp_path, monkeypatch):
    settings = {"student__rows": ["sd", "cpsd"], "student__epochs": 3, "student__views": 2}
    weights = []
    for order in (("sd", "cpsd"), ("cpsd", "sd"), ("ahead", "sd", "cpsd")):
        monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "-".join(order)))
        run = small(name="order", **settings)
        cut_labels(run)
        train_teachers(run, 0)
        for row in order:
            fill_targets(run, 0) if row == "ahead" else train_student(run, 0, row)
        weights.append([load_student(run, 0, row) for row in ("sd", "cpsd")])
    assert all(same(one, other) for other in weights[1:] for one, other in zip(weights[0], other, strict=True))


def test_a_students_own_seconds_are_without_its_teachers(outputs, monkeypatch):
    run, opened = small(name="clock", student__rows=["sd"], seed=3), StoredTargets.open
    cut_labels(run)
    train_teachers(run, 3)

    def slow(self, number):
        self.seconds += 100
        return opened(self, number)

    monkeypatch.setattr(StoredTargets, "open", slow)
    train_student(run, 3, "sd")
    assert about(run, "sd", 3)["seconds"] < 0  # a hundred seconds that did not pass were taken off, batch by batch


def test_an_artifact_records_what_the_model_needs_to_be_used_and_what_made_it(outputs):
    run = small()
    record = run.store.record("model", run.keys(0, "cpsd")[0])
    assert record["recipe"]["classes"] == run.dataset.table.names and record["about"]["preprocessing"]["size"] == 16
    assert record["about"]["architecture"]["name"] == "test_resnet" and record["about"]["protocol"] == "honest"
    assert record["recipe"]["objective"]["weights"] == {"co": 0.5, "dis": 0.5} and set(record["recipe"]["soft"]) == {
        "co",
        "dis",
    }
    assert {"versions", "hardware", "commit", "files"} <= record.keys() and record["about"]["seconds"] > 0


@pytest.mark.parametrize("section", ["model", "teacher_model"])
@pytest.mark.parametrize(
    "setting",
    [{"weights": "{}.safetensors"}, {"head": "label_transformer", "label_vectors": "{}.npz"}],
    ids=["weights", "label_vectors"],
)
def test_weights_and_label_vectors_count_by_their_bytes_and_not_by_their_name(outputs, tmp_path, section, setting):
    for content, letters in ((b"the same bytes", "ab"), (b"other bytes", "c")):
        for letter in letters:
            for ending in ("safetensors", "npz"):
                (tmp_path / f"{letter}.{ending}").write_bytes(content)
    keys = {}
    for letter in "abc":
        values = {k: str(tmp_path / v.format(letter)) if "{" in v else v for k, v in setting.items()}
        # A teacher of its own is no baseline: the row is left out.
        settings = {"name": "bytes", "student__rows": ["sd"], section: {"name": "test_resnet"} | values}
        run = small(**settings)
        cut_labels(run)
        keys[letter] = [teacher_tasks(run, 0, "co")[0].key, student_task(run, 0, "sd").key]
    assert keys["a"] == keys["b"] and not set(keys["a"]) & set(keys["c"])


def test_members_of_an_ensemble_are_models_of_their_own(outputs):
    run = small()
    training, everything_there = run.params.teachers, list(range(len(run.dataset.table.names)))
    members = [_task(run, run.params.model, training, everything_there, None, 0, member=m) for m in range(3)]
    assert members[0].key == teacher_tasks(run, 0, "whole")[0].key
    assert len({task.key for task in members}) == 3
    making._train(run, 0, members, [task.key for task in members[1:]], "three members")
    models = [load_artifact(run.store, task.key) for task in members]
    assert same(models[0], load_teachers(run, 0, ["whole"])["whole"].experts[0])
    assert not any(same(models[a], models[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_the_parameters_shown_are_the_parameters_a_run_can_be_repeated_with(outputs, tmp_path):
    run = small(train__lr=1e-5, student__rows=["sd"], model__options={"channels": [8, 8, 16, 16]})
    path = tmp_path / "params.yaml"
    path.write_text(params_text(run.params))
    assert load_params(path) == run.params


def test_overrides_may_come_as_yaml_text(outputs):
    assert open_run("tiny", "{student.epochs: 7, name: seven}").params.student.epochs == 7
    assert open_run("tiny", "").params.name == open_run("tiny", None).params.name == "tiny"


@pytest.mark.parametrize(("row", "words"), [("sd", {}), ("cpsd", {"student__teacher_mode": "train"})])
def test_a_student_never_learns_from_teachers_that_an_older_version_trained(outputs, monkeypatch, row, words):
    run = small(name="upgraded", **words)
    describe_data(run)
    cut_labels(run)
    train_teachers(run, 0)
    monkeypatch.setitem(VERSIONS, "training", 99)
    with pytest.raises(MissingStage, match="of other data or code than there is now; run 03_teachers first"):
        train_student(run, 0, row)


def test_models_of_other_data_are_not_scored(outputs):
    run = Run(small(student__rows=["baseline", "sd"]).params)
    run.__dict__["dataset"] = replace(run.dataset, key="another")  # annotations that were edited after 04_student
    with pytest.raises(MissingStage, match="teachers_whole is of other data than there is now; run 03_teachers and 04"):
        evaluate(run)


def test_scores_are_those_of_the_parameters_that_they_are_shown_under(outputs):
    words = {"name": "shown", "student__rows": ["baseline", "sd"]}
    run = small(**words)
    everything(run)
    evaluate(run)
    assert len(load_records(run)) == 4 and len(scoring.scores_of(run, 0, "sd", "test"))
    for changed in ({"student__epochs": 2}, {"teachers__lr": 0.01}, {"data__seed": 7}):
        other = small(**words, **changed)
        with pytest.raises(MissingStage, match=r"for these parameters; run 0[34]_"):
            load_records(other)
        with pytest.raises(MissingStage, match=r"for these parameters; run 0[34]_"):
            scoring.scores_of(other, 0, "sd", "test")
    with pytest.raises(MissingStage, match="of other models or another threshold; run 05_evaluation first"):
        load_records(small(**words, evaluation__threshold=0.3))
    retrained = small(**words, student__epochs=2)  # stopped before 05_evaluation
    everything(retrained)
    with pytest.raises(MissingStage, match="of other models or another threshold; run 05_evaluation first"):
        load_records(retrained)
    assert scoring.scored_by(retrained, 0, "sd", "test") is None


def test_a_table_of_models_of_two_machines_says_so(outputs, monkeypatch):
    run, record = small(), Store.record
    assert scoring.caveats(run) == []
    (elsewhere,) = run.keys(0, "sd")

    def made_elsewhere(store, kind, key):
        found = record(store, kind, key)
        return found | {"hardware": found["hardware"] | {"gpu": "a GPU"}} if key == elsewhere else found

    monkeypatch.setattr(Store, "record", made_elsewhere)
    assert scoring.caveats(run) == ["models made on 2 kinds of machine or torch"]


@pytest.mark.parametrize(("of_teachers", "of_student"), [("val", "last"), ("last", "val"), ("val", "val")])
def test_the_baseline_of_cpsd_s_compute_trains_on_the_images_of_the_baseline(outputs, of_teachers, of_student):
    words = {"teachers.select": of_teachers, "student.select": of_student, "teachers.val_share": 0.3}
    run = open_run("tiny", SMALL | words | {"name": "base", "student.rows": ["baseline", "baseline_equal_compute"]})
    cut_labels(run)
    baseline, longer = teacher_tasks(run, 0, "whole")[0], student_task(run, 0, "baseline_equal_compute")
    assert baseline.images.tolist() == longer.images.tolist()
    assert (baseline.selection is None) == (longer.selection is None) == (of_teachers == "last")
    assert of_teachers == "last" or not set(longer.images) & set(longer.selection)


def test_describe_data_counts_every_split(outputs):
    run = small()
    found = read_json(run.folder / "data.json")
    table = run.dataset.table
    assert found["class_names"] == table.names and sum(found["images"].values()) == 100
    assert found["positives"]["train"] == (table.targets[table.indices("train")] == 1).sum(0).tolist()


# ---- other rows ------------------------------------------------------------------------------------------------------


def test_a_student_alone_is_the_baseline_where_both_are_the_same_model(outputs):
    run = small(name="student_only", student__rows=["baseline", "student_only"])
    everything(run)
    assert run.keys(0, "student_only")[0] == run.keys(0, "baseline")[0]  # one recipe, one artifact
    assert run.noted(["soft_targets"]) == {}


def test_the_rows_of_equal_compute_train_one_model_as_long_as_the_whole_method_takes(outputs):
    rows = ["baseline", "cpsd", "baseline_equal_compute", "sd_equal_compute", "rand"]
    run = small(name="equal_compute", student__rows=rows, partition__k=2, train__epochs=2, student__views=1)
    everything(run)
    epochs, teacher_epochs = equal_epochs(run.params.teachers, run.params.student, 2)
    assert (epochs, teacher_epochs) == (11, 8)  # 2 x 2 teachers of 2 epochs, 4/3 of targets, a student of 2
    assert epochs_of(run, "teachers_equal_compute").max() == 8
    assert epochs_of(run, "baseline_equal_compute").max() == 11
    assert epochs_of(run, "teachers_whole").max() == 2
    assert [len(load_teachers(run, 0)[branch].experts) for branch in ("random", "equal_compute", "co")] == [2, 1, 2]
    for row in rows:
        load_student(run, 0, row)


SHARED = {"teachers__start": "baseline", "teachers__frozen_stages": 4, "data__size": 32}


def test_teachers_that_share_a_trunk_start_from_the_baseline_and_own_the_rest(outputs):
    rows = ["baseline", "sd", "cpsd", "sd_continued", "sd_equal_compute"]
    run = small(name="shared", student__rows=rows, teachers__more_epochs=2, **SHARED)
    everything(run)
    loaded = load_teachers(run, 0)
    whole, part = loaded["whole"].experts[0].state_dict(), loaded["co"].experts[1].state_dict()
    assert {name.split(".")[1] for name in part if name.startswith("backbone")} == {"layer4"}
    assert any(not torch.equal(part[name], whole[name]) for name in part if name.startswith("backbone.layer4"))
    for branch, last in (("co", 2), ("dis", 2), ("continued", 2), ("whole", 1)):
        assert epochs_of(run, f"teachers_{branch}").max() == last
    assert loaded["co"].experts[0].shared[0] is loaded["co"].experts[1].shared[0]  # one trunk for all
    assert loaded["co"].experts[0].shared[0] is loaded["dis"].experts[1].shared[0]
    batches = student_batches(run, 0)
    some = batches.order(0)[0][:4]
    view = batches.view_of(0, some)
    stored = StoredTargets(run, 0, ["co"])(0, some, view)["co"]
    torch.testing.assert_close(stored, loaded["co"].soft_targets(view), atol=2e-3, rtol=2e-3)
    for row in rows:
        load_student(run, 0, row)
    evaluate(run)
    seconds = load_records(run).query("split == 'test'").set_index("row")["seconds"]
    from_scratch = seconds[["teachers_co", "teachers_dis", "teachers_continued", "cpsd"]]
    assert from_scratch.min() > seconds["baseline"]


def test_a_teacher_with_a_trunk_is_the_same_alone_beside_others(outputs, tmp_path, monkeypatch):
    experts = {}
    for rows in (["baseline", "cgpd"], ["baseline", "cpsd"]):
        monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / rows[1]))
        run = small(name="shared_alone", student__rows=rows, **SHARED)
        cut_labels(run)
        train_teachers(run, 0)
        experts[rows[1]] = load_teachers(run, 0, ["co"])["co"].experts[0]
    assert same(experts["cgpd"], experts["cpsd"])
    full = small(name="shared_alone", student__rows=["baseline", "cgpd"], **SHARED | {"teachers__frozen_stages": 0})
    with pytest.raises(MissingStage):
        load_teachers(full, 0, ["co"])
    cut_labels(full)
    before = run.keys(0, "baseline")[0]
    train_teachers(full, 0)
    assert full.keys(0, "baseline")[0] == before  # the baseline is the same, and not trained again
    assert "backbone.conv1.0.weight" in load_teachers(full, 0, ["co"])["co"].experts[0].state_dict()


def test_a_student_may_start_from_the_baseline_and_another_baseline_makes_it_another(outputs):
    standing = {"student__start": "baseline", "student__lr": 1e-9, "student__ema_decay": 0.0}
    run = small(name="warm", student__rows=["baseline", "sd"], **standing)
    everything(run)
    whole, student = (load_student(run, 0, row).state_dict() for row in ("baseline", "sd"))
    for name in whole:
        if "running" not in name and whole[name].is_floating_point():
            torch.testing.assert_close(student[name], whole[name], atol=1e-6, rtol=0)
    other = small(name="warm", student__rows=["baseline", "sd"], teachers__weight_decay=0.5, **standing)
    with pytest.raises(MissingStage):
        load_student(other, 0, "sd")
    assert student_task(other, 0, "sd").key != student_task(run, 0, "sd").key


def test_a_backbone_that_cannot_be_cut_is_refused_before_anything_is_trained(outputs):
    run = small(
        name="vit", model={"name": "test_vit"}, student__rows=["baseline", "cgpd"], **SHARED | {"data__size": 160}
    )
    cut_labels(run)
    with pytest.raises(ValueError, match=r"VisionTransformer cannot be cut at teachers\.frozen_stages=4"):
        train_teachers(run, 0)
    assert run.noted(["teachers"]) == {}


def test_every_row_of_l2d_trains_and_its_teacher_may_be_another_model(outputs):
    head = {"head": "ml_decoder", "head_width": 16}
    student, teacher = {"name": "test_resnet"} | head, {"name": "test_vit"} | head | {"head_width": 24}
    rows = ["student_only", "mld", "led", "mld_led", "cpsd_mld_led"]
    run = small(name="l2d", model=student, teacher_model=teacher, student__rows=rows, data__size=160, data__images=100)
    everything(run)
    for row in rows:
        losses = pd.read_csv(history(run, run.keys(0, row)[0]))
        named = {name for name in losses if name.startswith(("mld", "cd", "id"))}
        assert (
            named
            == {
                **{"student_only": set(), "mld": {"mld_whole"}, "led": {"cd_whole", "id_whole"}},
                **{"mld_led": {"mld_whole", "cd_whole", "id_whole"}},
                "cpsd_mld_led": {f"{loss}_{branch}" for loss in ("mld", "cd", "id") for branch in ("co", "dis")},
            }[row]
        )
        assert (losses[sorted(named)] > 0).all(axis=None)
    assert load_teachers(run, 0, ["whole"])["whole"].experts[0].head.project.out_features == 24
    assert load_student(run, 0, "mld_led").head.project.out_features == 16


def test_teachers_in_train_mode_depend_on_the_batch_are_never_stored_and_make_another_student(outputs):
    run, fault = small(name="mode", student__rows=["sd"]), {"student__teacher_mode": "train"}
    everything(run)
    train_mode = small(name="mode", student__rows=["sd"], **fault)
    with pytest.raises(MissingStage):
        load_student(train_mode, 0, "sd")
    key, student = run.keys(0, "baseline")[0], load_student(run, 0, "sd")
    everything(train_mode)
    assert not same(load_student(train_mode, 0, "sd"), student)
    assert train_mode.keys(0, "baseline")[0] == key  # their weights stay what they were
    assert about(train_mode, "sd")["soft_targets"] == {}


def test_a_teacher_may_leave_its_schedule_before_the_end(outputs):
    rows = ["baseline", "baseline_equal_compute", "sd_equal_compute"]
    run = small(name="stops", student__rows=rows, train__epochs=3, teachers__stop_after=1, student__views=1)
    everything(run)
    lines = pd.read_csv(history(run, run.keys(0, "baseline")[0]))
    assert lines["epoch"].tolist() == [1] and lines["lr"].iloc[-1] > 1e-4  # OneCycle has not come down yet
    # The rows of equal compute are made for their own epochs, and go to the end: 2 x 2 teachers, 4/3 of targets, a student.
    assert epochs_of(run, "teachers_equal_compute").max() == 4
    assert epochs_of(run, "baseline_equal_compute").max() == round(4 + 4 / 3 + 3)


def test_a_released_partition_can_take_the_place_of_the_cut(outputs, tmp_path):
    for name, parts in (("co", [range(10), range(10, 20)]), ("dis", [range(0, 20, 2), range(1, 20, 2)])):
        released = [{str(c): place for place, c in enumerate(part)} for part in parts]
        (tmp_path / f"{name}.json").write_text(json.dumps(released))
    files = {f"partition__released_{name}": str(tmp_path / f"{name}.json") for name in ("co", "dis")}
    compared, used = small(name="compared", **files), small(name="used", partition__use_released=True, **files)
    assert cut_labels(compared) == cut_labels(small(name="plain"))  # to compare is not to use
    found = cut_labels(used)
    assert found["co"].parts == [list(range(10)), list(range(10, 20))] == load_partitions(used)["co"].parts
    assert found["dis"].parts[0] == list(range(0, 20, 2))
    (tmp_path / "co.json").rename(tmp_path / "elsewhere.json")
    assert load_partitions(used)["co"] == found["co"]  # a finished run opens without the files
    (tmp_path / "elsewhere.json").rename(tmp_path / "co.json")
    (tmp_path / "dis.json").write_text((tmp_path / "co.json").read_text())
    with pytest.raises(MissingStage):  # the file holds something else now
        load_partitions(used)


def test_self_loops_are_the_diagonal_of_the_label_graph(outputs):
    there, gone = small(partition__self_loops=True), small()
    assert (np.diag(label_graph(there, "dis")) == 1).all() and (np.diag(label_graph(gone, "dis")) == 0).all()
    off = ~np.eye(20, dtype=bool)
    assert np.array_equal(label_graph(there, "dis")[off], label_graph(gone, "dis")[off])


def test_the_test_images_are_read_once_for_all_models_and_each_has_its_own_scores(outputs, monkeypatch):
    run, read = small(), []
    original = scoring.predict_logits

    def counted(forward, images, indices, *rest):
        read.append(len(indices))
        return original(forward, images, indices, *rest)

    monkeypatch.setattr(scoring, "predict_logits", counted)
    evaluate(run)
    indices = run.dataset.table.indices("test")
    assert read == [len(indices), len(run.dataset.table.indices("test_shifted"))]
    models = {"cpsd": load_student(run, 0, "cpsd"), "teachers_dis": load_teachers(run, 0, ["dis"])["dis"]}
    for row, model in models.items():
        (alone,) = original([model], run.dataset.need_images(), indices, run.device)
        np.testing.assert_allclose(np.load(score_path(run, 0, row, "test")), alone, rtol=1e-5, atol=1e-5)


def test_a_rows_seconds_are_those_of_its_teachers_its_soft_targets_and_its_own(outputs):
    run = small()
    seconds = {record["row"]: record["seconds"] for record in evaluate(run)}

    def spent(kind, name):
        records = (run.store.record(kind, key) for key in run.noted(["teachers", "soft_targets"])[f"seed0/{name}"])
        return sum(record["about"]["seconds"] for record in records)

    for row in DISTILLED:
        teachers = sum(spent("model", f"teachers/{branch}") for branch in ROWS[row].teachers)
        targets = sum(spent("soft_targets", f"soft_targets/{branch}") for branch in ROWS[row].teachers)
        assert targets > 0 and seconds[row] == pytest.approx(teachers + targets + about(run, row)["seconds"])
    assert seconds["baseline"] == pytest.approx(spent("model", "teachers/whole"))


def test_a_student_that_went_on_after_a_stop_has_the_soft_targets_of_both_times(outputs, monkeypatch):
    patient = {"train__epochs": 3, "student__rows": ["baseline", "sd"], "train__checkpoint_seconds": 0}
    run, opened = small(name="stopped", seed=77, **patient), []
    cut_labels(run)
    train_teachers(run, 77)
    views = StoredTargets.open

    def stop_at_the_third(self, number):
        opened.append(number)
        if len(set(opened)) == 3:
            raise KeyboardInterrupt
        return views(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(StoredTargets, "open", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            train_student(run, 77, "sd")
    train_student(run, 77, "sd")
    of_student = about(run, "sd", 77)
    assert [len(keys) for keys in of_student["soft_targets"].values()] == [3]
    records = [run.store.record("soft_targets", key) for key in of_student["soft_targets"]["whole"]]
    assert of_student["soft_target_seconds"] == sum(record["about"]["seconds"] for record in records)


# ---- finished work is read anywhere ----------------------------------------------------------------------------------


@pytest.fixture
def folder_of_photos(tmp_path):
    """Sixty photos on disk, and weights of the backbone."""
    root, random = tmp_path / "photos", np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    lines = ["file_name,split,labels"]
    for number in range(60):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(root / "images" / f"{number}.png")
        labels = [name for name in "abcd" if random.random() < 0.5]
        lines.append(f"{number}.png,{'test' if number % 3 == 0 else 'train'},{';'.join(labels)}")
    (root / "annotations.csv").write_text("\n".join(lines))
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "backbone.safetensors")
    return root


def test_a_finished_run_is_read_where_its_photos_weights_and_network_are_not(folder_of_photos, tmp_path, monkeypatch):
    there, here, weights = tmp_path / "there", tmp_path / "here", tmp_path / "backbone.safetensors"
    monkeypatch.setenv("CPSD_OUTPUTS", str(there))
    photos = {
        "data.kind": "csv",
        "data.root": str(folder_of_photos),
        "data.images": 6000,
        "model.weights": str(weights),
    }
    run = open_run("tiny", SMALL | photos | {"name": "photos"})
    everything(run)
    save_params(run)
    evaluate(run)
    last = {"hardware": {"gpu": None, "cpu": "a CPU", "cores": 2, "torch_threads": 1}, "versions": {}, "commit": "abc"}
    manifest = {"stages": {"05_evaluation": last | {"finished": "today", "seconds": 1, "outputs": {}}}}
    write_json(run.folder / "manifest.json", manifest)
    images, table = torch.rand(4, 3, 16, 16), component_table(load_records(run))
    expected = {row: logits_of(load_model(run, row)(images)) for row in ("baseline", "cpsd", "teachers_co")}
    shutil.rmtree(folder_of_photos)
    weights.unlink()
    shutil.copytree(there, here, ignore=shutil.ignore_patterns(".cache"))
    shutil.rmtree(there)
    monkeypatch.setenv("CPSD_OUTPUTS", str(here))
    monkeypatch.setattr(socket, "socket", None)
    for row, logits in expected.items():
        model = load_model("photos", row)
        assert torch.equal(logits_of(model(images)), logits) and model.class_names == ["a", "b", "c", "d"]
    copied = Run(load_params(str(here / "photos" / "params.yaml"), paths=False))
    pd.testing.assert_frame_equal(component_table(load_records(copied)), table)
    assert "+ CPSD" in scores_text(copied) and "+ CPSD" in write_report(copied).read_text()


def test_without_any_co_occurrence_rows_of_cgp_are_refused_before_the_run_and_the_others_work(
    folder_of_photos, tmp_path, monkeypatch
):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    lines = [f"{n}.png,{'test' if n % 3 == 0 else 'train'},{'abcd'[n % 4]}" for n in range(60)]
    (folder_of_photos / "annotations.csv").write_text("\n".join(["file_name,split,labels", *lines]))
    photos = SMALL | {"data.kind": "csv", "data.root": str(folder_of_photos), "name": "single"}
    with pytest.raises(
        ParameterError, match=r"cgpd, cpsd learn from parts of classes that co-occur \(CGP\), and no two"
    ):
        check_run(load_params("tiny", photos))
    with pytest.raises(ParameterError, match=r"student.rows=\[baseline, sd, dgpd\]"):
        cut_labels(open_run("tiny", photos))
    others = photos | {"student.rows": ["baseline", "sd", "dgpd"]}
    check_run(load_params("tiny", others))
    run = open_run("tiny", others)
    everything(run)
    evaluate(run)
    assert set(load_records(run)["row"]) >= {"baseline", "sd", "dgpd", "teachers_dis"}


def test_a_split_without_a_positive_label_has_no_map_and_stops_nothing(folder_of_photos, tmp_path, monkeypatch):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    path = folder_of_photos / "annotations.csv"
    path.write_text(re.sub(r"^(3|6|9)\.png,test,.*$", r"\1.png,test_shifted,", path.read_text(), flags=re.MULTILINE))
    photos = {
        "data.kind": "csv",
        "data.root": str(folder_of_photos),
        "name": "shifted",
        "student.rows": ["baseline", "sd"],
    }
    run = open_run("tiny", SMALL | photos)
    everything(run)
    evaluate(run)
    records = load_records(run).set_index(["row", "split"])["mAP"]
    assert records["sd", "test"] > 0 and np.isnan(records["sd", "test_shifted"])
    assert "test_shifted" not in scores_text(run) and "+ SD" in scores_text(run)


def test_soft_targets_that_do_not_fit_on_the_disk_say_what_they_need_before_they_are_computed(outputs, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    stored = StoredTargets(small(), 0, ["co", "dis"])
    with pytest.raises(OSError, match=r"the soft targets of view 77 need 4,\d00 bytes .* free some space"):
        stored.open(77)


def test_killed_while_finished_models_are_put_into_place_nothing_is_trained_again(outputs, monkeypatch):
    # A seed that no other test of this module trains.
    run, commit, done = small(seed=1234, name="between"), Store.commit, []
    cut_labels(run)
    before = set((run.store.root / ".work").iterdir())  # other tests break artifacts and stop trainings on purpose

    def killed(self, *arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(commit(self, *arguments))

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            train_teachers(run, 1234)
    monkeypatch.setattr("cpsd_lib.training.loop._step", None)
    train_teachers(run, 1234)
    assert set((run.store.root / ".work").iterdir()) == before  # nothing half made is left


def test_released_parts_of_fewer_classes_than_the_default_k_are_used(folder_of_photos, tmp_path, monkeypatch):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    files = {}
    for branch in ("co", "dis"):
        files[f"partition.released_{branch}"] = str(tmp_path / f"{branch}.json")
        Partition([[0, 2], [1, 3]], 4).save(tmp_path / f"{branch}.json")
    photos = {
        "data.kind": "csv",
        "data.root": str(folder_of_photos),
        "name": "released",
        "partition.use_released": True,
    }
    settings = SMALL | photos | files | {"partition.k": 8}
    check_run(load_params("tiny", settings))
    assert [len(found) for found in cut_labels(open_run("tiny", settings)).values()] == [2, 2]


@pytest.mark.parametrize(("loops", "balance"), [(False, None), (True, None), (False, 1)])
def test_the_partition_explorer_cuts_the_graph_of_the_run_and_exports_what_the_run_would_cut(outputs, loops, balance):
    run = small(name=f"explored{loops}{balance}", partition__self_loops=loops, partition__balance=balance)
    cuts, explorer = cut_labels(run), explore(run, "partition")
    assert explorer.numbers["partition"] == cuts["co"]
    explorer.set(branch="dis", refine=run.params.partition.refine_dis)
    assert explorer.numbers["partition"] == cuts["dis"] and explorer.numbers["ARI"] == 1
    assert explorer.numbers["Ncut"] == pytest.approx(ncut(label_graph(run, "dis"), cuts["dis"]))  # whatever the parts
    path = export(explorer, run.folder).removeprefix("written to ").partition(";")[0]
    assert Partition.load(path) == cuts["dis"]
    sizes = {branch: {len(part) for part in cut.parts} for branch, cut in cuts.items()}
    assert balance is None or all(max(of_branch) - min(of_branch) <= 1 for of_branch in sizes.values())


def test_a_run_of_before_a_parameter_was_added_opens_where_that_has_its_default(outputs, no_training):
    shutil.copytree(outputs / "base", outputs / "older")
    noted, cut = outputs / "older" / "artifacts.json", outputs / "older" / "partition" / "fingerprint.json"

    def without(section, name):
        artifacts, fingerprint = read_json(noted), read_json(cut)
        for entry in artifacts.values():
            entry["params"].get(section, {}).pop(name, None)
        fingerprint["partition"].pop(name, None)
        write_json(noted, artifacts)
        write_json(cut, fingerprint)

    without("partition", "balance")
    assert load_partitions(small(name="older"))["co"] == load_partitions(small())["co"]
    for name in ("teachers_co", "sd"):
        assert small(name="older").keys(0, name) == small().keys(0, name)
    for other in (small(name="older", partition__balance=1.5), small(name="older", partition__k=3)):
        with pytest.raises(MissingStage, match="02_partition"):
            load_partitions(other)
        with pytest.raises(MissingStage, match="03_teachers"):
            other.keys(0, "teachers_co")
    without("partition", "k")  # the default, 4, was not what this run had
    with pytest.raises(MissingStage, match="02_partition"):
        load_partitions(small(name="older"))


@pytest.mark.parametrize(
    ("file", "value", "reads"),
    [
        ("artifacts.json", ["seed0"], lambda run: load_student(run, 0, "sd")),
        ("artifacts.json", {"seed0/students/sd": {"keys": "a", "params": {}}}, lambda run: load_student(run, 0, "sd")),
        ("artifacts.json", {"seed0/students/sd": {"keys": [], "params": "1f"}}, lambda run: run.noted(["students"])),
        ("data.json", {"class_names": ["a"]}, lambda run: run.described),
        ("data.json", {"key": "a", "class_names": [1], "positives": {}, "images": {}}, lambda run: run.described),
        ("partition/fingerprint.json", 3, load_partitions),
        ("evaluation/metrics.json", {"row": "sd"}, load_records),
        ("evaluation/metrics.json", [{"row": "sd", "split": "test", "mAP": 1.0}], load_records),
    ],
)
def test_a_file_of_another_form_is_one_sentence_that_names_it(outputs, tmp_path, monkeypatch, file, value, reads):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    (tmp_path / "base" / "evaluation").mkdir(parents=True)
    for name in ("data.json", "artifacts.json", "partition"):
        copy = shutil.copytree if name == "partition" else shutil.copy
        copy(outputs / "base" / name, tmp_path / "base" / name)
    write_json(tmp_path / "base" / file, value)
    with pytest.raises(
        ValueError, match=rf"{file} is not as this version writes it \(.*\); delete it and run its stage"
    ):
        reads(small())


# ---- what reaches a training -----------------------------------------------------------------------------------------


def test_the_teacher_of_a_part_learns_the_columns_of_its_own_classes(outputs):
    run, draw = small(teachers__gamma_neg=1.0, device="cpu"), torch.Generator().manual_seed(0)
    targets = torch.randint(0, 2, (6, 20), generator=draw)
    for branch in ("whole", "co", "dis"):
        for task, part in zip(teacher_tasks(run, 0, branch), load_partitions(run)[branch].parts, strict=True):
            logits = torch.randn(6, len(part), generator=draw)
            expected = asymmetric_loss(logits, targets[:, part], gamma_neg=1.0)
            assert task.class_indices == part
            torch.testing.assert_close(task.objective(logits, targets)["asl"], expected)


@pytest.mark.parametrize("seed", [21, 22])
def test_a_soft_target_is_that_of_its_image_its_view_and_its_seed(outputs, monkeypatch, seed):
    def numbered(teachers, batches, number, *_):  # whole numbers below 2,048 are exact in float16
        column = batches.indices[:, None] + 100 * number + 1000 * (batches.seed == 22)
        return {"whole": np.repeat(column, 20, 1).astype(np.float16)}

    monkeypatch.setattr(making, "_teachers_of", lambda *_: {"whole": torch.nn.Linear(1, 1)})
    monkeypatch.setattr(making, "fold_models", lambda merged, size: merged)
    monkeypatch.setattr(making, "view_logits", numbered)
    stored = StoredTargets(small(), seed, ["whole"])
    some = stored.indices[[5, 0, 41]]
    for view in (1, 2):
        expected = torch.from_numpy(some)[:, None] + 100 * view + 1000 * (seed == 22)
        assert (stored(view, some, None)["whole"] == expected).all()


def test_a_seed_is_another_start_and_other_batches_each_by_itself(outputs, monkeypatch):
    class Looked(Exception):
        pass

    seen = []

    def look(learners, batches, *_, **__):
        seen.append((batches.seed, learners[0].model.head.linear.weight.clone()))
        raise Looked

    monkeypatch.setattr(making, "fit", look)
    for seed in (31, 32):  # trained by no other test
        with pytest.raises(Looked):
            train_student(small(), seed, "student_only")
    assert [seed for seed, _ in seen] == [31, 32] and not torch.equal(seen[0][1], seen[1][1])


def test_a_students_parameters_reach_its_objective(outputs):
    of_labels = {"gamma_neg": 1.0, "gamma_pos": 0.5, "clip": 0.2}
    words = of_labels | {"alpha": 0.3, "match": "kl", "mld": 7.0, "temperature": 2.0, "cd": 3.0, "id": 5.0}
    run, weights = small(**{f"student__{name}": value for name, value in words.items()}), {"co": 0.3, "dis": 0.7}
    assert student_task(run, 0, "cpsd").objective == SelfDistillation(weights, "kl", of_labels)
    expected = MultiLabelDistillation(weights, "mld+led", mld=7.0, cd=3.0, id=5.0, asl=of_labels, temperature=2.0)
    assert student_task(run, 0, "cpsd_mld_led").objective == expected


def keys_of_tasks(run):
    return {teacher_tasks(run, 0, "co")[0].key} | {
        student_task(run, 0, row).key for row in ("student_only", "cpsd_mld")
    }


OF_BOTH = {"batch_size": 16, "view": "plain", "gamma_neg": 1.0, "gamma_pos": 1.0, "clip": 0.2, "optimizer": "adam"}
OF_BOTH |= {"weight_decay": 0.5, "pct_start": 0.3, "ema_decay": 0.5, "ema_warmup": False, "precision": "bfloat16"}


@pytest.mark.parametrize("change", [*({f"train__{n}": value} for n, value in OF_BOTH.items()), {"model__prior": 0.3}])
def test_what_changes_weights_changes_every_key(outputs, change):
    assert not keys_of_tasks(small(device="cpu")) & keys_of_tasks(small(device="cpu", **change))


def test_other_code_changes_every_key(outputs, monkeypatch):
    before = keys_of_tasks(small())
    monkeypatch.setattr(recipes, "code_of", lambda *_: "edited")
    assert recipes.soft_recipe(small(), 0, "co")["code"] == "edited"
    assert not before & keys_of_tasks(small())


@pytest.mark.parametrize("change", [{"mld": 3.0}, {"temperature": 2.0}, {"views": 1}])
def test_what_changes_a_students_match_changes_its_key(outputs, change):
    other = small(**{f"student__{name}": value for name, value in change.items()})
    assert student_task(other, 0, "cpsd_mld").key != student_task(small(), 0, "cpsd_mld").key


def test_another_model_under_the_same_name_is_missing(outputs):
    with pytest.raises(MissingStage, match="03_teachers"):
        load_student(small(model__prior=0.3), 0, "baseline")


def test_a_teacher_of_a_part_starts_with_the_baselines_rows_of_its_classes(outputs):
    run, whole = small(teachers__start="baseline"), load_student(small(), 0, "baseline").head.linear
    for branch in ("co", "dis"):
        tasks = teacher_tasks(run, 0, branch)
        for task, one in zip(tasks, making._learners(run, tasks), strict=True):
            assert torch.equal(one.model.head.linear.weight, whole.weight[task.class_indices])


def test_the_exponent_of_a_run_is_that_of_its_graph(outputs):
    run = small(partition__exponent=1.0)
    table = run.dataset.table
    expected = graph.affinity(*graph.cooccurrence(table.targets[table.indices("train")]), "co", 1.0)
    assert np.array_equal(label_graph(run, "co"), expected)
    assert not np.array_equal(label_graph(small(), "co"), expected)
