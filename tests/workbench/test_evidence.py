"""Intervals, calibration and rules of decision from saved scores, on scores made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit

from cpsd_lib.data.table import LabelTable
from cpsd_lib.evaluation import bootstrap, metrics
from cpsd_lib.support import write_json
from cpsd_lib.viz import plots
from cpsd_lib.workbench import scoring
from cpsd_lib.workbench.params import TrainParams
from cpsd_lib.workbench.run import MissingStage, held_out_indices, open_run, training_indices
from cpsd_lib.workbench.scoring import score_path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of two seeds that never trained: its baseline guesses, its CPSD student knows the targets and adds noise."""
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    run = open_run("tiny", {"data.images": 300, "data.size": 16, "seeds": 2, "train.select": "val"})
    table = run.dataset.table
    for seed in (0, 1):
        draw = np.random.default_rng(seed)
        for split, indices in (("test", table.indices("test")), ("held_out", held_out_indices(run, seed))):
            targets = table.targets[indices]
            logits_of_rows = {
                "targets": targets,
                "baseline": draw.normal(size=targets.shape),
                "cpsd": 2.0 * targets + draw.normal(size=targets.shape),
            }
            for row, logits in logits_of_rows.items():
                path = score_path(run, seed, row, split)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, logits if row == "targets" else logits.astype(np.float32))
    write_json(run.folder / "evaluation" / "metrics.json", [])
    return run


def test_a_gain_is_taken_seed_by_seed_on_the_same_images_and_in_percent(run):
    targets = run.dataset.table.targets[run.dataset.table.indices("test")]
    intervals = scoring.gain_intervals(run, "cpsd", "baseline", resamples=100)
    assert intervals.index.tolist() == [0, 1]
    for seed in (0, 1):
        cpsd, baseline = (np.load(score_path(run, seed, row, "test")) for row in ("cpsd", "baseline"))
        expected = bootstrap.paired_bootstrap(cpsd, baseline, targets, 100, run.params.seed)
        assert intervals.loc[seed].tolist() == pytest.approx(
            [*(100 * value for value in expected[:3]), expected.p_value]
        )
    assert (intervals["low"] > 0).all() and (intervals["gain"] > 20).all()  # a model that knows the answers is better
    none = scoring.gain_intervals(run, "cpsd", "cpsd", resamples=50)
    assert (none[["gain", "low", "high"]] == 0).all(axis=None) and (none["p"] == 1).all()


def test_scores_that_are_not_there_name_05(run):
    with pytest.raises(MissingStage, match="05_evaluation"):
        scoring.gain_intervals(run, "sd", "baseline")


def test_thresholds_are_tuned_on_images_held_out_of_training_and_used_on_test(run):
    table = run.dataset.table
    rules = scoring.decision_rules(run, ["cpsd"])
    assert rules.index.get_level_values("rule").tolist() == ["0.5", "0.8", "top 3", "tuned per class"]
    test, expected = table.targets[table.indices("test")], []
    for seed in (0, 1):
        held_out = held_out_indices(run, seed)
        assert not set(held_out) & set(table.indices("test")) and set(held_out) <= set(table.indices("train"))
        assert not set(held_out) & set(training_indices(run, run.params.student, seed)[0])
        tuning, scores = (expit(np.load(score_path(run, seed, "cpsd", s)).astype(float)) for s in ("held_out", "test"))
        tuned = metrics.best_thresholds(tuning, table.targets[held_out])
        expected.append(100 * metrics.precision_recall_f1(scores, test, tuned)["CF1"])
    assert rules.loc[("+ CPSD", "tuned per class"), "CF1"] == pytest.approx(np.mean(expected))
    assert rules.loc[("+ CPSD", "tuned per class"), "CF1"] > rules.loc[("+ CPSD", "0.5"), "CF1"]


@pytest.mark.parametrize(
    "more", [{"train.select": "last"}, {"protocol": "paper"}, {"teachers.select": "last"}, {"student.val_share": 0.2}]
)
def test_without_held_out_training_images_no_threshold_is_tuned(run, more):
    other = open_run("tiny", {"data.images": 300, "data.size": 16, "seeds": 2, "train.select": "val"} | more)
    assert held_out_indices(other, 0) is None
    assert "tuned per class" not in scoring.decision_rules(other, ["cpsd"]).index.get_level_values("rule")


def test_the_figure_shows_every_class():
    gain = np.array([1.0, np.nan, -2.0, 0.5])
    figure, _ = plots.gain_against(gain, {"images": np.arange(4), "degree": np.arange(4.0)}, "t")
    assert len(figure.axes) == 2 and all(len(axis.lines[1].get_xdata()) == 3 for axis in figure.axes)


def test_a_val_split_of_the_data_selects_and_tunes_and_is_never_trained_on():
    split = ["train"] * 6 + ["val"] * 3 + ["test"] * 2
    table = LabelTable(["a", "b"], np.ones((11, 2), np.int8), list("0123456789x"), np.array(split))

    def run(teachers, student):
        teachers, student = (TrainParams(select=one) for one in (teachers, student))
        params = SimpleNamespace(protocol="honest", teachers=teachers, student=student)
        return SimpleNamespace(dataset=SimpleNamespace(table=table), params=params)

    for seed in (0, 1):
        train, selection = training_indices(run("val", "val"), TrainParams(select="val"), seed)
        assert (train.tolist(), selection.tolist()) == ([0, 1, 2, 3, 4, 5], [6, 7, 8])
        assert held_out_indices(run("last", "val"), seed).tolist() == [6, 7, 8]  # they need not be alike
    assert held_out_indices(run("val", "last"), 0) is None


def test_gains_and_rules_are_of_the_labels_that_were_scored(run):
    before = scoring.gain_intervals(run, "cpsd", "baseline", resamples=20)
    rules = scoring.decision_rules(run, ["cpsd"])
    for seed in (0, 1):
        for split in ("test", "held_out"):
            path = score_path(run, seed, "targets", split)
            np.save(path, 1 - np.load(path))
    assert (scoring.gain_intervals(run, "cpsd", "baseline", resamples=20)["gain"] < 0).all()
    assert (before["gain"] > 0).all() and not rules.equals(scoring.decision_rules(run, ["cpsd"]))
