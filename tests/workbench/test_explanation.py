import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit

from cpsd_lib.evaluation import summarise_shares
from cpsd_lib.models.classifier import build_model
from cpsd_lib.partition import Partition
from cpsd_lib.support import write_json
from cpsd_lib.teachers import PartTeachers
from cpsd_lib.workbench import explanation, report
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.run import MissingStage, Run
from cpsd_lib.workbench.scoring import score_path

SIZE = 64


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """100 scenes, 20 of them test images; nothing is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPSD_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        opened = Run(load_params("tiny", {"data.images": 100, "data.size": SIZE}))
        assert opened.folder.is_dir() and len(opened.dataset.images) == 100
        yield opened


def with_rows(rows, **overrides):
    return Run(load_params("tiny", {"student.rows": rows} | {k.replace("__", "."): v for k, v in overrides.items()}))


def model(num_classes=20, seed=0):
    torch.manual_seed(seed)
    classifier = build_model("test_resnet", num_classes)
    with torch.no_grad():
        for value in classifier.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return classifier.eval()


def teachers():
    parts = [list(range(0, 20, 2)), list(range(1, 20, 2))]
    return PartTeachers([model(10, 1), model(10, 2)], Partition(parts, 20))


# ---- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "titles"),
    [
        (
            ["baseline", "sd", "cgpd", "dgpd", "cpsd"],
            ["baseline", "co teachers", "dis teachers", "+ SD", "+ CGPD", "+ DGPD", "+ CPSD"],
        ),
        (["cpsd", "baseline"], ["baseline", "co teachers", "dis teachers", "+ CPSD"]),
        (["baseline", "rand"], ["baseline", "random teachers", "+ random parts"]),
        (["cgpd"], ["co teachers", "+ CGPD"]),
        (["baseline"], ["baseline"]),
    ],
)
def test_the_baseline_comes_first_then_the_merged_teachers_then_the_students(rows, titles):
    assert list(explanation.strategies(with_rows(rows)).values()) == titles


def test_a_teacher_of_another_architecture_is_a_strategy_too():
    titles = explanation.strategies(with_rows(["student_only", "sd"], teacher_model__name="test_vit"))
    assert titles == {"student_only": "student only", "teachers_whole": "teacher", "sd": "+ SD"}


def test_students_and_teachers_are_loaded_under_their_titles(monkeypatch):
    monkeypatch.setattr(explanation, "load_student", lambda run, seed, row: model(seed=seed).train())
    monkeypatch.setattr(explanation, "load_teachers", lambda run, seed, branches: {b: teachers() for b in branches})
    models = explanation.load_models(with_rows(["baseline", "cpsd"]), 3)
    assert list(models) == ["baseline", "co teachers", "dis teachers", "+ CPSD"]
    assert isinstance(models["dis teachers"], PartTeachers) and not any(one.training for one in models.values())


def test_a_run_that_was_not_trained_names_which_notebook_comes_first(run):
    with pytest.raises(MissingStage, match="run 0"):
        explanation.load_models(run, 0)


# ---- pairs of (image index, class) -----------------------------------------------------------------------------------


def save_scores(run, name, logits):
    path = score_path(run, 0, name, "test")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, logits.astype(np.float32))
    write_json(run.folder / "evaluation" / "metrics.json", [])  # whose the scores are


def test_the_probabilities_of_pairs_are_those_that_were_scored(run):
    indices, targets = run.dataset.table.indices("test"), run.dataset.table.targets
    logits = np.zeros((len(indices), 20))
    with pytest.raises(MissingStage, match="run 05_evaluation first"):
        explanation.probabilities(run, 0, [(indices[5], 0)])
    for name in ("baseline", "sd", "cgpd", "dgpd", "cpsd", "teachers_co"):
        save_scores(run, name, logits)
    first, second = int(np.flatnonzero(targets[indices[5]])[0]), int(np.flatnonzero(targets[indices[2]])[0])
    logits[5, first], logits[2, second] = -4, 2
    save_scores(run, "teachers_dis", logits)
    pairs = [(indices[5], first), (indices[2], second)]
    probabilities = explanation.probabilities(run, 0, pairs)
    assert list(probabilities) == list(explanation.strategies(run).values())
    assert probabilities["dis teachers"] == pytest.approx(expit([-4.0, 2.0]))
    assert probabilities["co teachers"].tolist() == [0.5, 0.5]


# ---- boxes --------------------------------------------------------------------------------------------------------------


def test_a_sample_is_all_positives_of_some_images_with_the_boxes_of_their_class(run):
    table, sample = run.dataset.table, explanation.sample_positives(run, "test", 20)
    indices, pairs = np.unique(sample["image"]), list(zip(sample["image"], sample["class"], strict=True))
    assert set(indices) < set(table.indices("test")) and 20 <= len(sample) < 25
    assert sorted(pairs) == [(i, c) for i in indices for c in np.flatnonzero(table.targets[i])]
    for (index, c), boxes in zip(pairs, sample["boxes"], strict=True):
        drawn = [sides for of, *sides in run.dataset.source.boxes(index) if of == c]
        assert boxes == [pytest.approx(sides) for sides in drawn]
    again = explanation.sample_positives(run, "test", 20)
    assert again.equals(sample)
    everything = explanation.sample_positives(run, "test", 10_000)
    assert len(everything) == (table.targets[table.indices("test")] == 1).sum()


def test_things_without_a_box_are_left_out_and_a_data_set_without_boxes_has_no_sample(run, monkeypatch):
    index = int(run.dataset.table.indices("test")[0])
    c = int(np.flatnonzero(run.dataset.table.targets[index])[0])
    known = {index: {c: [(0.25, 0, 1, 0.5)]}}
    monkeypatch.setattr(explanation, "boxes_of", lambda dataset, indices: {i: known.get(i, {}) for i in indices})
    sample = explanation.sample_positives(run, "test", 10_000)
    assert sample.values.tolist() == [[index, c, [(16, 0, 64, 32)]]]
    for nothing in (lambda dataset, indices: {i: {} for i in indices}, lambda *_: None):
        monkeypatch.setattr(explanation, "boxes_of", nothing)
        assert explanation.sample_positives(run, "test", 10) is None
    assert explanation.pixel_boxes(run, [(index, c)]) is None


# ---- sentences -------------------------------------------------------------------------------------------------------


def sentences(columns, images, against=None, seeds=1):
    """The lines of the summary of columns {(strategy, map): shares [P]} of images [P], the same for each seed."""
    about = {"image": images, "class": range(len(images)), "chance": 0.1, "best": 0.5}
    shares = [pd.DataFrame(about | {"strategy": s, "map": m, "share": v}) for (s, m), v in columns.items()]
    table = summarise_shares(pd.concat(shares), against)
    return report.maps_summary(pd.concat(dict.fromkeys(range(seeds), table), names=["seed"]), against).split("\n")


def test_the_sentences_say_the_share_and_whether_zero_is_in_the_interval():
    columns = {("a", "activation"): [0.2, 0.3], ("b", "activation"): [0.3, 0.4], ("b", "attention"): [np.nan, 0.1]}
    first, second, third = sentences(columns, [1, 2], "a")
    assert first == "a: 25.0 %, +15.00 points against chance (+10.00 to +20.00)."
    assert second.endswith("; +10.00 points against the a (+10.00 to +10.00).")
    assert third.startswith("b, attention: 10.0 %") and third.endswith("; 1 of 2 maps are all 0, left out.")
    assert sentences(columns, [1, 2], "a", seeds=3)[1] == (
        "b: 35.0 %, +25.00 points against chance (the interval leaves out zero in 3 of 3 seeds); "
        "+10.00 points against the a (the interval leaves out zero in 3 of 3 seeds)."
    )
    assert sentences({("a", "activation"): [np.nan, np.nan]}, [1, 2]) == ["a: all 2 maps are 0."]
    assert sentences({("a", "activation"): [0.09999, 0.09998]}, [1, 2]) == [
        "a: 10.0 %, +0.00 points against chance (+0.00 to +0.00)."
    ]
