"""What the stages do with a run's parameters, without notebooks: one very small run, shared by most tests (about 15 s)."""

import json

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from cpsd_lib.cli import main
from cpsd_lib.support import read_json, sha256
from cpsd_lib.training import loop
from cpsd_lib.training.batches import Batches
from cpsd_lib.workbench import distill, run_training
from cpsd_lib.workbench.cost import equal_epochs
from cpsd_lib.workbench.distill import (
    fill_targets,
    load_student,
    open_targets,
    student_batches,
    target_source,
    train_student,
)
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.run import (
    MissingStage,
    cut_labels,
    describe_data,
    label_graph,
    load_partitions,
    open_run,
    show_params,
    training_indices,
)
from cpsd_lib.workbench.run_training import training_fingerprint
from cpsd_lib.workbench.scoring import evaluate, load_records
from cpsd_lib.workbench.teaching import load_teachers, train_teachers
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
        stores = fill_targets(run, seed)
        for row in run.params.student.rows:
            if row != "baseline":
                train_student(run, seed, row, stores)


def weights_of(folder):
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.glob("**/*.safetensors")}


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
    entry = load_student(run, 0, "sd")[1]
    assert entry["protocol"] == "paper" and entry["weights"] in ("ema", "raw") and entry["val_map"] is not None
    assert "val_map_raw" in (run.student_folder(0, "sd") / "history.csv").read_text()
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
    assert load_student(run, 0, "sd")[1]["val_map"] is not None


# ---- the order of the stages -----------------------------------------------------------------------------------------


def test_each_stage_names_the_notebook_that_has_to_run_first(outputs):
    run = small(name="fresh")
    with pytest.raises(MissingStage, match="run 02_partition first"):
        load_partitions(run)
    with pytest.raises(MissingStage, match="run 02_partition first"):
        train_teachers(run, 0)
    cut_labels(run)
    with pytest.raises(MissingStage, match="run 03_teachers first"):
        fill_targets(run, 0)
    with pytest.raises(MissingStage, match="run 03_teachers first"):
        load_teachers(run, 0)
    with pytest.raises(MissingStage, match="run 03_teachers first"):
        load_student(run, 0, "baseline")
    with pytest.raises(MissingStage):
        load_student(run, 0, "cpsd")


def test_more_parts_than_classes_is_an_error_in_words(outputs):
    run = small(name="fresh", partition__k=50)
    with pytest.raises(ParameterError, match=r"partition\.k is 50, but the data set has only \d+ classes"):
        cut_labels(run)


def test_another_k_makes_the_partition_missing(outputs):
    with pytest.raises(MissingStage, match="run 02_partition first"):
        load_partitions(small(partition__k=3))


def test_teachers_of_other_parameters_are_not_distilled_even_when_their_soft_targets_are_complete(outputs):
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


def test_weights_that_were_changed_are_missing_in_words(outputs):
    run = small(name="harmed", student__rows=["baseline"])
    everything(run)
    path = run.teacher_folder(0) / "whole.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(MissingStage, match="gone or were changed; run 03_teachers again"):
        load_student(run, 0, "baseline")


# ---- what is trained, and what is not --------------------------------------------------------------------------------


def test_a_finished_run_is_only_loaded(outputs, no_training):
    before = weights_of(outputs / "base")
    everything(small())
    assert weights_of(outputs / "base") == before and len(before) == 1 + 2 * 2 + 4


@pytest.mark.parametrize(
    "change", [{"train__checkpoint_seconds": 1}, {"student__rows": ["cpsd"]}, {"evaluation__threshold": 0.3}]
)
def test_what_does_not_change_a_result_retrains_nothing(outputs, no_training, change):
    everything(small(**change))


def test_a_second_seed_trains_itself_alone(outputs):
    rows = ["baseline", "sd"]
    everything(small(name="seeds", student__rows=rows))
    before = weights_of(outputs / "seeds")
    everything(small(name="seeds", student__rows=rows, seeds=2))
    after = weights_of(outputs / "seeds")
    assert before.items() <= after.items()
    assert {name.split("/")[0] for name in after.keys() - before.keys()} == {"seed1"}
    first, second = outputs / "seeds" / "seed0", outputs / "seeds" / "seed1"
    assert sha256(first / "teachers" / "whole.safetensors") != sha256(second / "teachers" / "whole.safetensors")


def test_rows_added_later_train_only_the_teachers_they_need_and_get_the_weights_of_a_run_of_all_rows(outputs):
    everything(small(name="rows", student__rows=["baseline", "cgpd"]))
    before = weights_of(outputs / "rows")
    assert sorted(before) == [
        f"seed0/{n}.safetensors" for n in ("students/cgpd/student", "teachers/co-0", "teachers/co-1", "teachers/whole")
    ]
    everything(small(name="rows"))
    assert before.items() <= weights_of(outputs / "rows").items()
    for name in weights_of(outputs / "base"):
        assert sha256(outputs / "rows" / name) == sha256(outputs / "base" / name), name


def test_every_row_starts_from_the_same_weights_and_sees_the_same_views(outputs, monkeypatch):
    run, started, views = small(), {}, {}
    stores = fill_targets(run, 0)

    def look(learners, batches, training, folder, **_):
        started[folder.name] = [tensor.clone() for tensor in learners[0].model.state_dict().values()]
        views[folder.name] = [batch.images for batch in batches.epoch(0)]
        return {"student": {}}

    monkeypatch.setattr(run_training, "fit", look)
    for row in DISTILLED:
        train_student(run, 0, row, stores)
    assert sorted(started) == sorted(DISTILLED)
    for row in DISTILLED:
        for found, expected in zip(started[row] + views[row], started["sd"] + views["sd"], strict=True):
            assert torch.equal(found, expected)


# ---- what is written -------------------------------------------------------------------------------------------------


def test_the_list_of_teachers_is_by_part_in_order_and_covers_every_class(outputs):
    run = small()
    listing, partitions = read_json(run.teacher_folder(0) / "teachers.json"), load_partitions(run)
    assert list(listing) == ["whole", "co", "dis"]
    for branch, teachers in listing.items():
        assert [teacher["part"] for teacher in teachers] == list(range(len(partitions[branch].parts)))
        assert [teacher["class_indices"] for teacher in teachers] == [
            list(map(int, part)) for part in partitions[branch].parts
        ]
        for teacher in teachers:
            assert sha256(run.teacher_folder(0) / teacher["file"]) == teacher["sha256"]


def test_soft_targets_are_what_the_teachers_say_of_the_view_the_student_sees(outputs):
    run = small()
    stores, merged = fill_targets(run, 0), load_teachers(run, 0)
    batches = student_batches(run, 0, target_source(run, 0, stores))
    batch = next(iter(batches.epoch(0)))
    assert set(stores) == {"whole", "co", "dis"}
    for branch in stores:
        with torch.no_grad():
            torch.testing.assert_close(batch.soft[branch], merged[branch](batch.images), rtol=2e-3, atol=2e-3)


def test_soft_targets_are_filled_again_for_other_views(outputs, capsys):
    run = small(name="views", student__rows=["sd"])
    everything(run)
    everything(small(name="views", student__rows=["sd"], student__view="plain"))
    assert "computed again" in capsys.readouterr().out
    assert read_json(run.student_folder(0, "sd") / "student.json")["fingerprint"]["training"]["view"]["flip"] is False


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_students_that_ask_as_they_go_are_those_that_read_what_was_asked_ahead(outputs, mode):
    settings = {
        "student__rows": ["sd", "cpsd"],
        "student__teacher_mode": mode,
        "student__epochs": 3,
        "student__views": 2,
    }
    ahead, lazy = small(name=f"ahead_{mode}", **settings), small(name=f"lazy_{mode}", **settings)
    everything(ahead)
    cut_labels(lazy)
    train_teachers(lazy, 0)
    for row in ("sd", "cpsd"):
        train_student(lazy, 0, row, open_targets(lazy, 0))
    for row in ("sd", "cpsd"):
        one, other = (run.student_folder(0, row) / "student.safetensors" for run in (ahead, lazy))
        assert sha256(one) == sha256(other)
    asked = {branch: store.seconds for branch, store in open_targets(lazy, 0).items()}
    assert all(seconds > 0 for seconds in asked.values())
    fill_targets(lazy, 0)
    assert asked == {
        branch: store.seconds for branch, store in open_targets(lazy, 0).items()
    }  # nothing was left to ask


def test_a_students_own_seconds_are_without_its_teachers(outputs, monkeypatch):
    run = small(name="clock", student__rows=["sd"])
    cut_labels(run)
    train_teachers(run, 0)
    slow = distill.TargetSource._compute
    monkeypatch.setattr(
        distill.TargetSource,
        "_compute",
        lambda self, *a: (slow(self, *a), setattr(self, "seconds", self.seconds + 100)),
    )
    _, entry = train_student(run, 0, "sd", open_targets(run, 0))
    assert entry["seconds"] < 0  # a hundred seconds that did not pass were taken off, batch by batch


def test_targets_can_be_filled_ahead_from_the_command_line(outputs, capsys):
    words = ["tiny", *(f"{key}={value}" for key, value in SMALL.items()), "name=by_hand", "student.rows=[sd]"]
    assert main(["targets", *words]) == 1
    assert "there is no run by_hand" in capsys.readouterr().err and not (outputs / "by_hand").exists()
    run = small(name="by_hand", student__rows=["sd"])
    cut_labels(run)
    assert main(["targets", *words]) == 1
    assert "run 03_teachers first" in capsys.readouterr().err
    train_teachers(run, 0)
    for expected in ("the teachers need about", "are there"):
        assert main(["targets", *words]) == 0
        assert "seed 0: soft targets, 1 store, 0.0 MB" in (out := capsys.readouterr().out) and expected in out


def test_a_record_says_what_the_model_needs_to_be_used(outputs):
    run = small()
    entry = read_json(run.student_folder(0, "cpsd") / "student.json")
    assert entry["class_names"] == run.dataset.table.names and entry["preprocessing"]["size"] == 16
    assert entry["architecture"]["name"] == "test_resnet" and entry["seed"] == 0 and entry["protocol"] == "honest"
    assert entry["fingerprint"]["weights"] == {"co": 0.5, "dis": 0.5} and set(entry["fingerprint"]["targets"]) == {
        "co",
        "dis",
    }


def test_the_same_weights_file_under_another_name_is_the_same_model(outputs, tmp_path):
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"the same bytes")
    (tmp_path / "c.safetensors").write_bytes(b"other bytes")
    made = {}
    for name in "abc":
        run = small(model__weights=str(tmp_path / f"{name}.safetensors"))
        made[name] = training_fingerprint(run, run.params.teachers, run.params.model, 0)
    assert made["a"] == made["b"] != made["c"]


def test_the_parameters_shown_are_the_parameters_a_run_can_be_repeated_with(outputs, tmp_path):
    run = small(train__lr=1e-5, student__rows=["sd"], model__options={"channels": [8, 8, 16, 16]})
    path = tmp_path / "params.yaml"
    path.write_text(show_params(run))
    assert load_params(path) == run.params


def test_overrides_may_come_as_yaml_text(outputs):
    assert open_run("tiny", "{student.epochs: 7, name: seven}").params.student.epochs == 7
    assert open_run("tiny", "").params.name == open_run("tiny", None).params.name == "tiny"


def test_describe_data_counts_every_split(outputs):
    run = small()
    found = read_json(run.folder / "data.json")
    table = run.dataset.table
    assert found["class_names"] == table.names and sum(found["images"].values()) == 100
    assert found["positives"]["train"] == (table.targets[table.indices("train")] == 1).sum(0).tolist()


# ---- other rows ------------------------------------------------------------------------------------------------------


def state(path):
    return safetensors.torch.load_file(path)


def test_a_student_alone_is_the_baseline_where_both_are_the_same_model(outputs):
    run = small(name="student_only", student__rows=["baseline", "student_only"])
    everything(run)
    alone, baseline = (run.student_folder(0, "student_only") / "student", run.teacher_folder(0) / "whole")
    one, other = (state(path.with_suffix(".safetensors")) for path in (alone, baseline))
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    assert not (run.folder / "seed0" / "soft_targets").exists()  # nobody was asked


def test_the_rows_of_equal_time_train_one_model_as_long_as_the_whole_method_takes(outputs):
    rows = ["baseline", "cpsd", "baseline_equal_compute", "sd_equal_compute", "rand"]
    run = small(
        name="equal_compute", student__rows=rows, partition__k=2, train__epochs=2, student__views=1, data__images=100
    )
    everything(run)
    epochs, teacher_epochs = equal_epochs(run.params.teachers, run.params.student, 2)
    assert (epochs, teacher_epochs) == (11, 8)  # 2 x 2 teachers of 2 epochs, 4/3 of targets, a student of 2
    assert pd.read_csv(run.teacher_folder(0) / "equal_compute" / "history.csv")["epoch"].max() == 8
    assert pd.read_csv(run.student_folder(0, "baseline_equal_compute") / "history.csv")["epoch"].max() == 11
    assert pd.read_csv(run.teacher_folder(0) / "history.csv")["epoch"].max() == 2
    assert [len(load_teachers(run, 0)[branch].experts) for branch in ("random", "equal_compute", "co")] == [2, 1, 2]
    for row in rows:
        load_student(run, 0, row)
    listing = read_json(run.teacher_folder(0) / "teachers.json")
    assert [len(teacher["class_indices"]) for teacher in listing["random"]] == [10, 10]


SHARED = {"teachers__start": "baseline", "teachers__frozen_stages": 4, "data__size": 32}


def test_teachers_that_share_a_trunk_start_from_the_baseline_and_own_the_rest(outputs):
    rows = ["baseline", "sd", "cpsd", "sd_continued", "sd_equal_compute"]
    run = small(name="shared", student__rows=rows, teachers__more_epochs=2, **SHARED)
    everything(run)
    whole, parts = (
        state(run.teacher_folder(0) / "whole.safetensors"),
        state(run.teacher_folder(0) / "from_baseline/co-1.safetensors"),
    )
    assert {name.split(".")[1] for name in parts if name.startswith("backbone")} == {"layer4"}
    assert any(not torch.equal(parts[name], whole[name]) for name in parts if name.startswith("backbone.layer4"))
    history = pd.read_csv(run.teacher_folder(0) / "from_baseline" / "history.csv")
    assert set(history["learner"]) == {"co-0", "co-1", "dis-0", "dis-1", "continued"} and history["epoch"].max() == 2
    assert set(pd.read_csv(run.teacher_folder(0) / "history.csv")["learner"]) == {"whole"}
    loaded = load_teachers(run, 0)
    assert loaded["co"].experts[0].shared[0] is loaded["dis"].experts[1].shared[0]  # one trunk for all
    stores, images = fill_targets(run, 0), student_batches(run, 0)
    some = images.order(0)[0][:4]
    with torch.inference_mode():
        online = loaded["co"](images.view(0, some))
    torch.testing.assert_close(stores["co"].read(0, some), online, atol=2e-3, rtol=2e-3)
    for row in rows:
        load_student(run, 0, row)
    evaluate(run)
    seconds = load_records(run).query("split == 'test'").set_index("row")["seconds"]
    assert (
        seconds[["teachers_co", "teachers_dis", "teachers_continued", "cpsd"]].min() > seconds["baseline"]
    )  # from scratch


def test_a_teacher_with_a_trunk_is_the_same_alone_beside_others_and_after_another_start(outputs):
    run = small(name="shared_alone", student__rows=["baseline", "cgpd"], **SHARED)
    both = small(name="shared_both", student__rows=["baseline", "cpsd"], **SHARED)
    for one in (run, both):
        cut_labels(one)
        train_teachers(one, 0)
    one, other = (state(r.teacher_folder(0) / "from_baseline" / "co-0.safetensors") for r in (run, both))
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    full = small(name="shared_alone", student__rows=["baseline", "cgpd"], **SHARED | {"teachers__frozen_stages": 0})
    with pytest.raises(MissingStage):
        load_teachers(full, 0, ["co"])
    before = read_json(full.teacher_folder(0) / "whole.json")["sha256"]
    train_teachers(full, 0)
    after = read_json(full.teacher_folder(0) / "whole.json")["sha256"]
    assert after == before  # the baseline is the same, and not trained again
    assert "backbone.conv1.0.weight" in state(full.teacher_folder(0) / "from_baseline" / "co-0.safetensors")


def test_a_student_may_start_from_the_baseline_and_another_baseline_makes_it_another(outputs):
    standing = {"student__start": "baseline", "student__lr": 1e-9, "student__ema_decay": 0.0}
    run = small(name="warm", student__rows=["baseline", "sd"], **standing)
    everything(run)
    whole = state(run.teacher_folder(0) / "whole.safetensors")
    student = state(run.student_folder(0, "sd") / "student.safetensors")
    for name in whole:
        if "running" not in name and whole[name].is_floating_point():
            torch.testing.assert_close(student[name], whole[name], atol=1e-6, rtol=0)
    other = small(name="warm", student__rows=["baseline", "sd"], teachers__weight_decay=0.5, **standing)
    with pytest.raises(MissingStage):
        load_student(other, 0, "sd")


def test_a_backbone_that_cannot_be_cut_is_refused_before_anything_is_trained(outputs):
    run = small(
        name="vit", model={"name": "test_vit"}, student__rows=["baseline", "cgpd"], **SHARED | {"data__size": 160}
    )
    cut_labels(run)
    with pytest.raises(ValueError, match=r"VisionTransformer cannot be cut at teachers\.frozen_stages=4"):
        train_teachers(run, 0)
    assert not (run.teacher_folder(0) / "whole.json").exists()


def test_every_row_of_l2d_trains_and_its_teacher_may_be_another_model(outputs):
    head = {"head": "ml_decoder", "head_width": 16}
    student, teacher = {"name": "test_resnet"} | head, {"name": "test_vit"} | head | {"head_width": 24}
    rows = ["student_only", "mld", "led", "mld_led", "cpsd_mld_led"]
    run = small(name="l2d", model=student, teacher_model=teacher, student__rows=rows, data__size=160, data__images=100)
    everything(run)
    for row in rows:
        history = pd.read_csv(run.student_folder(0, row) / "history.csv")
        named = {name for name in history if name.startswith(("mld", "cd", "id"))}
        assert (
            named
            == {
                **{"student_only": set(), "mld": {"mld_whole"}, "led": {"cd_whole", "id_whole"}},
                **{"mld_led": {"mld_whole", "cd_whole", "id_whole"}},
                "cpsd_mld_led": {f"{loss}_{branch}" for loss in ("mld", "cd", "id") for branch in ("co", "dis")},
            }[row]
        )
        assert (history[sorted(named)] > 0).all(axis=None)
    assert load_teachers(run, 0, ["whole"])["whole"].experts[0].head.project.out_features == 24
    assert load_student(run, 0, "mld_led")[0].head.project.out_features == 16


def test_teachers_in_train_mode_say_something_else_and_are_told_apart(outputs):
    run = small(name="mode", student__rows=["sd"])
    everything(run)
    there, train_mode = (
        load_student(run, 0, "sd"),
        small(name="mode", student__rows=["sd"], student__teacher_mode="train"),
    )
    with pytest.raises(MissingStage):
        load_student(train_mode, 0, "sd")
    everything(train_mode)
    said = load_student(train_mode, 0, "sd")
    assert said[1]["sha256"] != there[1]["sha256"]
    before = read_json(train_mode.teacher_folder(0) / "whole.json")["sha256"]
    assert sha256(train_mode.teacher_folder(0) / "whole.safetensors") == before  # their weights stay what they were


def test_a_teacher_may_leave_its_schedule_before_the_end(outputs):
    rows = ["baseline", "baseline_equal_compute", "sd_equal_compute"]
    run = small(
        name="stops", student__rows=rows, partition__k=2, train__epochs=3, teachers__stop_after=1, student__views=1
    )
    everything(run)
    history = pd.read_csv(run.teacher_folder(0) / "history.csv")
    assert history["epoch"].tolist() == [1] and history["lr"].iloc[-1] > 1e-4  # OneCycle has not come down yet
    # The rows of equal time are made for their own epochs, and go to the end: 2 x 2 teachers, 4/3 of targets, a student.
    assert pd.read_csv(run.teacher_folder(0) / "equal_compute" / "history.csv")["epoch"].max() == 4
    assert pd.read_csv(run.student_folder(0, "baseline_equal_compute") / "history.csv")["epoch"].max() == round(
        4 + 4 / 3 + 3
    )


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
    (tmp_path / "dis.json").write_text((tmp_path / "co.json").read_text())
    with pytest.raises(MissingStage):  # the file holds something else now
        load_partitions(used)


def test_self_loops_are_the_diagonal_of_the_label_graph(outputs):
    there, gone = small(), small(partition__self_loops=False)
    assert (np.diag(label_graph(there, "dis")) == 1).all() and (np.diag(label_graph(gone, "dis")) == 0).all()
    off = ~np.eye(20, dtype=bool)
    assert np.array_equal(label_graph(there, "dis")[off], label_graph(gone, "dis")[off])
