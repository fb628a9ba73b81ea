"""Scores, the component table, its sentence and the report, on hand-made records."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb

from cpsd_lib.support import write_json
from cpsd_lib.viz import plots
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.report import deviation, gain_summary, write_report
from cpsd_lib.workbench.rows import TITLES
from cpsd_lib.workbench.run import MissingStage
from cpsd_lib.workbench.scoring import (
    caveat,
    component_figure,
    component_table,
    load_per_class,
    load_records,
    score,
    table_text,
)


def test_a_score_of_zero_says_why():
    zero = records({"baseline": [50.0], "cpsd": [51.0]}).assign(CF1=[0.0, 3.0], OF1=[0.0, 4.0])
    text = gain_summary(component_table(zero), "test")
    assert text.endswith("CF1 and OF1 are 0 where no score reached evaluation.threshold: baseline.")


def records(maps, split="test"):
    """Return records of {row: [mAP of seed 0, seed 1, ...]}."""
    other = {"split": split, "CF1": 50.0, "OF1": 60.0}
    lines = [
        {"row": row, "seed": seed, "mAP": value, "seconds": 10.0 * (seed + 1)} | other
        for row, values in maps.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(lines)


def a_run(folder, protocol="honest", incomplete="", seeds=2):
    params = SimpleNamespace(
        name="hand",
        protocol=protocol,
        seeds=seeds,
        seed=0,
        model_dump=lambda mode: {"name": "hand"},
        method="paper",
        evaluation=SimpleNamespace(released=None, threshold=0.5),
        teachers=SimpleNamespace(start="model"),
        student=SimpleNamespace(start="model", rows=["baseline", "cpsd"]),
        model=SimpleNamespace(name="test_resnet"),
        data=SimpleNamespace(kind="csv", size=64, labelled=None, limit=None),
    )
    described = {"incomplete": incomplete, "notes": [], "class_names": ["a", "b"]}
    return SimpleNamespace(folder=folder, params=params, described=described, noted=lambda kinds: {})


def test_the_gain_is_paired_seed_by_seed():
    table = component_table(records({"baseline": [50.0, 60.0], "cpsd": [51.0, 61.0]}))
    line = table.loc["+ CPSD"]
    assert line["mAP"] == 56.0 and line["gain"] == 1.0 and line["seeds"] == 2 and line["seconds"] == 15.0
    assert line["gain spread"] == 0.0 and line["spread"] == pytest.approx(np.std([51, 61], ddof=1))


def test_every_row_has_a_colour_in_the_figures():
    assert set(plots.ROW_COLOURS) == set(TITLES.values())
    figure = component_figure(records({row: [50.0, 51.0] for row in TITLES}), "all rows")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(TITLES.values())


def test_both_splits_stand_on_one_axis_and_one_epoch_has_sane_limits():
    both = [records({"baseline": [50.0], "cpsd": [51.0]}, split) for split in ("test", "test_shifted")]
    (axis,) = component_figure(pd.concat(both), "both").axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["test", "test_shifted"]
    assert [text.get_text() for text in axis.texts] == ["50.0", "51.0"] * 2
    history = pd.DataFrame({"epoch": [1], "loss": [2.0]})
    names = ["co-0", "co-1", "dis-0", "dis-1", "whole", "random-0"]
    (axis,) = plots.training_curves(dict.fromkeys(names, history), "loss", "loss", "one epoch").axes
    assert axis.get_xlim() == (0.5, 1.5)
    drawn = {line.get_label(): to_rgb(line.get_color()) for line in axis.lines}
    assert len(set(drawn.values())) == len(names) and drawn["whole"] == (0, 0, 0)
    assert drawn["co-0"] == to_rgb(plots.CO) and drawn["dis-0"] == to_rgb(plots.DIS)
    hue = {name: rgb_to_hsv(colour)[0] for name, colour in drawn.items()}
    assert abs(hue["co-0"] - hue["co-1"]) < 0.05 and abs(hue["dis-0"] - hue["dis-1"]) < 0.05


def test_rows_come_in_the_papers_order_and_merged_teachers_are_no_row():
    table = component_table(records({"cpsd": [3.0], "teachers_co": [9.0], "sd": [2.0], "baseline": [1.0]}))
    assert list(table.index) == ["baseline", "+ SD", "+ CPSD"]


def test_what_leaves_the_papers_method_stands_beside_the_table():
    def text(**overrides):
        return deviation(load_params("demo", {name.replace("__", "."): value for name, value in overrides.items()}))

    assert text() == ""
    assert text(method="shared_trunk") == (
        "Not the paper's method: the teachers of parts start from the trained baseline, share its stages but the last and train "
        "3 epochs; the students start from the baseline and train 3 epochs. The baseline trains 10 epochs."
    )
    assert "share its first 4 stages and train" in text(method="shared_trunk", teachers__frozen_stages=4)
    assert "share its stages but the last 2 and train" in text(method="shared_trunk", teachers__frozen_stages=-2)
    assert text(method="patient") == (  # the demo's own number of views goes before the method's
        "Not the paper's method: the students train 20 epochs on 5 views of an image. The baseline trains 10 epochs."
    )
    teachers = text(teachers__start="baseline")
    assert "start from the trained baseline and train 10 epochs. The" in teachers and "students" not in teachers


def test_one_seed_has_no_spread_and_claims_no_gain():
    table = component_table(records({"baseline": [50.0], "cpsd": [59.0]}))
    assert np.isnan(table.loc["+ CPSD", "spread"])
    assert "no gain is claimed" in gain_summary(table, "test")
    assert re.search(r"\+ CPSD +59.0 +- +\+9.0 +-", table_text(table))


def test_a_gain_that_rounds_to_zero_has_no_minus():
    table = component_table(records({"baseline": [50.0, 50.0], "sd": [50.0, 50.0], "cpsd": [49.98, 49.98]}))
    assert "-0.0" not in table_text(table) and "+0.0" in table_text(table)
    assert "is +0.0 mAP against the baseline and +0.0 against + SD" in gain_summary(table, "test")


def test_a_table_without_a_baseline_states_no_gain():
    table = component_table(records({"sd": [50.0], "cpsd": [59.0]}))
    assert np.isnan(table.loc["+ CPSD", "gain"]) and "no gain to state" in gain_summary(table, "test")


def test_an_even_gain_leaves_out_zero_and_a_wild_one_includes_it():
    even = component_table(records({"baseline": [50.0, 52.0, 54.0], "cpsd": [52.0, 54.1, 55.9]}))
    assert "leaves out zero" in gain_summary(even, "test")
    wild = component_table(records({"baseline": [50.0, 52.0, 54.0], "cpsd": [56.0, 51.0, 55.0]}))
    assert "includes zero" in gain_summary(wild, "test")


def test_one_summary_says_what_seeds_and_what_images_leave_of_a_gain():
    table = component_table(records({"baseline": [50.0, 51.0], "cpsd": [52.0, 52.5]}))
    images = {"+ CPSD": pd.DataFrame({"low": [0.3, -0.2], "high": [3.0, 2.0]}, index=[0, 1])}
    text = gain_summary(table, "test", images)
    assert "includes zero: these seeds alone do not prove it" in text
    assert text.endswith("images, + CPSD gains in 1 of 2 seeds (95 % interval above zero).")


def test_what_does_without_the_cut_is_set_beside_it():
    plain = {"baseline": [50.0, 50.0], "cpsd": [51.0, 52.0]}
    assert "cut" not in gain_summary(component_table(records(plain)), "test")
    table = component_table(records(plain | {"baseline_equal_compute": [60.0, 61.0], "rand": [51.0, 51.0]}))
    text = "+ CPSD is on test: +0.5 against + random parts; -9.0 against baseline, CPSD's compute."
    assert gain_summary(table, "test").endswith(text)


def test_two_seeds_need_more_than_two_standard_errors():
    table = component_table(records({"baseline": [50.0, 50.0], "cpsd": [51.0, 52.0]}))  # mean 1.5, error 0.5, t 12.7
    assert "+-6.4 and includes zero" in gain_summary(table, "test")


def test_a_perfect_ranking_scores_100_and_counts_classes_without_positives():
    targets = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]])
    record, ap = score(np.where(targets == 1, 5.0, -5.0).astype(np.float32), targets, threshold=0.5)
    assert record["mAP"] == 100 and record["classes_without_positives"] == 1 and np.isnan(ap[2])
    assert record["CR"] == pytest.approx(200 / 3) and record["OR"] == 100


def test_figures_carry_a_caveat_when_test_chose_the_epochs_or_images_are_missing(tmp_path):
    assert caveat(a_run(tmp_path)) == ""
    assert "TEST" in caveat(a_run(tmp_path, protocol="paper"))
    assert "INCOMPLETE: 3" in caveat(a_run(tmp_path, incomplete="INCOMPLETE: 3 files"))


def test_scores_that_are_not_there_name_the_notebook_to_run(tmp_path):
    with pytest.raises(MissingStage, match="run 05_evaluation first"):
        load_records(a_run(tmp_path))


def test_the_report_is_one_page_that_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("cpsd_lib.workbench.report.params_text", lambda params: "name: <hand>\n")
    run = a_run(tmp_path, protocol="paper")
    scores = records({"baseline": [50.0, 60.0], "cpsd": [51.0, 61.0]})
    write_json(tmp_path / "evaluation" / "metrics.json", scores.to_dict("records"))
    hardware = {"gpu": None, "cpu": "a processor", "cores": 2, "torch_threads": 2}
    entry = {"seconds": 1.0, "finished": "today", "versions": {"torch": "2"}, "hardware": hardware, "commit": "abc"}
    entry["outputs"] = {"evaluation/components.csv": "1", "figures/07_components.png": "2"}
    write_json(tmp_path / "manifest.json", {"stages": {"07_ablation": entry}})
    skipped = [[f"{number}.jpg", "broken"] for number in range(60)]
    named = f"{'a long name with <script> and more ' * 2}end"
    run.described |= {"notes": ["a note"], "skipped": skipped, "class_names": ["cat", named]}
    for name in ("07_components", "07_of_other_parameters"):
        plots.save(component_figure(scores, "hand-made"), run.folder / "figures" / f"{name}.png")
    lines = pd.MultiIndex.from_product(
        [run.described["class_names"], ["cpsd", "teachers_co"], [0, 1]], names=["class", "row", "seed"]
    ).to_frame(index=False)
    lines = lines.assign(split="test", ap=10.0 * lines["seed"])
    lines.to_csv(tmp_path / "evaluation" / "per_class.csv", index=False)
    page = write_report(run).read_text()
    assert "1 seed from 0" in page or "2 seeds from 0" in page
    assert "chosen on TEST" in page and "a processor" in page and "abc" in page and "&lt;hand&gt;" in page
    assert named.replace("<", "&lt;").replace(">", "&gt;") in page and "a long name with …re end" in page
    assert "10 more files left out" in page and "data:image/png;base64," in page
    assert "a dot a seed, a bar at the mean" in page and "cpsd predict hand photos/" in page  # a caption, a way on
    per_class = page.split("Average precision of each class")[1].partition("</table>")[0]
    assert (
        "<th>+ CPSD</th>" in per_class and "<td>5.0</td>" in per_class and "co" not in per_class.partition("<table")[2]
    )
    assert 'alt="07_components"' in page and "other_parameters" not in page, "only figures that the manifest lists"
    assert not re.search(r"(src|href)=\"(?!data:)", page), "the page must hold all it shows"


def test_every_shared_figure_is_written_as_a_picture(tmp_path):
    plots.use_style()
    rng = np.random.default_rng(0)
    names = [f"class {number}" for number in range(50)]
    history = pd.DataFrame({"epoch": [1, 2], "loss": [2.0, 1.0]})
    figures = {
        "curves": plots.training_curves({"a": history, "b": history}, "loss", "loss per image", "curves"),
        "pictures": plots.pictures(rng.integers(0, 255, (7, 3, 8, 8), dtype=np.uint8), names[:7], "pictures"),
    }
    for name, figure in figures.items():
        assert all(axis.get_xlabel() for axis in figure.axes if name not in ("pictures",))
        plots.save(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


NUMBERS_OR_NOTHING = (
    ["0", "1", "10", "2"],
    ["01", "1"],
    ["True", "False"],
    ["NA", "None", "nan", "null"],
    ["1e5", "#N/A"],
)


@pytest.mark.parametrize("names", NUMBERS_OR_NOTHING)
def test_names_that_look_like_numbers_or_like_nothing_stay_names(tmp_path, names):
    run = a_run(tmp_path)
    run.described["class_names"] = names
    with pytest.raises(MissingStage, match="run 05_evaluation"):
        load_per_class(run)
    (tmp_path / "evaluation").mkdir()
    ap = np.arange(len(names)) * 10.0
    ap[-1] = np.nan  # a class without a positive
    lines = [pd.DataFrame({"row": row, "seed": 0, "split": "test", "class": names, "ap": ap}) for row in ("sd", "cpsd")]
    pd.concat(lines).to_csv(tmp_path / "evaluation" / "per_class.csv", index=False)
    table = load_per_class(run).pivot_table(index="class", columns="row", values="ap").reindex(names)
    assert list(table.index) == names and np.array_equal(table["cpsd"], ap, equal_nan=True)
    run.described["class_names"] = [*names[:-1], "another"]
    with pytest.raises(ValueError, match="other classes than the"):
        load_per_class(run)


@pytest.mark.parametrize(("threshold", "found"), [(0.2, 3), (0.4, 2), (0.6, 1)])
def test_f1_is_counted_at_the_threshold_and_of_the_three_highest(threshold, found):
    logits = np.array([[2.0, 1.0, 0.0, -1.0]], np.float32)  # 0.88 0.73 0.50 0.27
    record, _ = score(logits, np.array([[1, 0, 1, 1]]), threshold)
    assert record["OR"] == pytest.approx(100 * found / 3) and record["OR_top3"] == pytest.approx(200 / 3)
