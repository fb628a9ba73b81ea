"""The tables of RESULTS.md and the findings of README.md are those of the stored scores."""

import re
import runpy
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.rows import TITLES

ROOT = Path(__file__).parents[1]
STARTS = {
    "baseline (": "baseline",
    "class-aware": "cap",
    "+ MLD (": "mld",
    "+ ensemble": "ensemble_mld",
    "+ wide": "wide_mld",
    "+ two draws": "rand2_mld",
    "**+ CPSD by MLD**": "cpsd_mld",
}


def gain(scores, row, other, others=None):
    """Return the mean of the differences of the seeds that have both, and the half of its 95 % interval, as tables have them."""
    gains = (scores[row] - (scores if others is None else others)[other]).dropna().to_numpy()
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return f"{gains.mean():+.1f} ± {half:.1f}"


def by_split(stored):
    """Return {split: mAP, a line a seed, a column a row} of stored scores."""
    return {split: one.pivot(index="seed", columns="row", values="mAP") for split, one in stored.groupby("split")}


@pytest.fixture(scope="module")
def scores():
    return by_split(pd.read_csv(ROOT / "notebooks" / "data" / "scenes_few.csv"))


@pytest.mark.parametrize("start", STARTS)
def test_the_table_of_few_labels_is_that_of_the_stored_scores(scores, start):
    lines = (ROOT / "RESULTS.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"| {start}") and line.count("|") == 12)
    seeds, _, *cells = (cell.strip().strip("*") for cell in line.split("|")[2:-1])
    row = STARTS[start]
    for split, shown in (("test", cells[:4]), ("test_shifted", cells[4:])):
        of_split = scores[split]
        assert int(seeds) == of_split[row].count()
        assert shown[:2] == [f"{of_split[row].mean():.1f}", f"{of_split[row].std():.1f}"], split
        over_baseline = "" if row == "baseline" else gain(of_split, row, "baseline")
        assert shown[2] == over_baseline, split
        if shown[3]:
            assert shown[3] == gain(of_split, row, "mld"), split


EXPERIMENTS = {"scenes_300": 3, "scenes_300_k2": 3, "coco18_few": 3, "coco18_few_20": 2, "scenes_all": 3}
EXPERIMENTS |= {
    "coco18_all": 3,
    "scenes_all_patient": 3,
    "scenes_300_k8": 2,
    "coco18_few_patient": 3,
}  # {experiment: its seeds}
NAMES = TITLES | {"baseline_160": "baseline of 160 epochs", "baseline_equal_compute": "baseline of 747 epochs"}


def stored_scores(experiment):
    stored = pd.read_csv(ROOT / "notebooks" / "data" / "experiments.csv")
    return by_split(stored[stored["experiment"] == experiment])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_table_of_an_experiment_is_that_of_its_stored_scores(experiment):
    stored, marker = stored_scores(experiment), f"<!-- experiment: {experiment} -->\n"
    text = (ROOT / "RESULTS.md").read_text().partition(marker)[2]
    header, _, *lines = text.partition("\n\n")[0].splitlines()
    assert len(lines) >= 2
    columns = [cell.strip() for cell in header.split("|")[1:-1]]
    for line in lines:
        title, *cells = (re.sub(r"[*]|\(.*\)", "", cell).strip() for cell in line.split("|")[1:-1])
        row = next(row for row, words in NAMES.items() if words == title)
        for column, cell in zip(columns[1:], cells, strict=True):
            if column.startswith("mAP on"):
                scores = stored[column.split("`")[1]]
                count = 2 if row == "baseline_equal_compute" else EXPERIMENTS[experiment]
                assert scores[row].count() == count and cell == f"{scores[row].mean():.1f}"
            elif column == "spread":
                assert cell == f"{scores[row].std():.1f}"
            elif column.startswith("over") and cell:
                assert cell == gain(scores, row, {"over baseline": "baseline", "over + MLD": "mld"}[column]), title


@pytest.mark.parametrize("file", ["README.md", "RESULTS.md"])
def test_findings_quote_the_gains_of_the_stored_scores(scores, file):
    text = re.sub(r"[*\s]+", " ", (ROOT / file).read_text())
    few, photos, of_all = map(stored_scores, ("scenes_300", "coco18_few", "scenes_all_patient"))
    quoted = [(of_split[split], "cpsd_mld") for of_split in (scores, few) for split in ("test", "test_shifted")]
    quoted += [(few["test"], "mld"), (of_all["test"], "mld"), (of_all["test"], "cpsd_mld")]
    for longer in ("baseline_160", "baseline_equal_compute"):
        assert gain(of_all["test"], "cpsd_mld", longer) in text
    quoted += [(photos["test"], row) for row in ("ensemble_mld", "cpsd_mld")]
    for of_split, row in quoted:
        assert gain(of_split, row, "baseline") in text


def test_every_interval_is_one_of_stored_scores_or_of_the_earlier_results():
    stored = [by_split(pd.read_csv(ROOT / "notebooks" / "data" / "scenes_few.csv")), *map(stored_scores, EXPERIMENTS)]
    known = {gain(one, *rows) for of in stored for one in of.values() for rows in permutations(one.columns, 2)}
    pairs = [("scenes_300", "scenes_300_k2"), ("scenes_300", "scenes_300_k8"), ("coco18_few", "coco18_few_patient")]
    for one, other in (map(stored_scores, pair) for pair in pairs):
        for split, of_split in other.items():
            known |= {gain(one[split], row, row, of_split) for row in of_split.columns}
            known |= {gain(of_split, row, row, one[split]) for row in of_split.columns}
    earlier = (ROOT / "notebooks" / "earlier_results.md").read_text()
    for file in ("README.md", "RESULTS.md"):
        text, interval = (ROOT / file).read_text(), re.compile(r"[+-]\d+[.]\d ± \d+[.]\d")
        assert len(interval.findall(text)) >= 8
        for line in text.splitlines():
            of_line = known | set(interval.findall(earlier)) if "earlier_results.md" in line else known
            assert set(interval.findall(line)) <= of_line, file


def test_the_figures_are_redrawn_from_the_stored_scores(tmp_path):
    main = runpy.run_path(str(ROOT / "notebooks" / "figures" / "redraw.py"))["main"]
    main(tmp_path)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(drawn) == set(re.findall(r"figures/(\w+[.]svg)", (ROOT / "RESULTS.md").read_text()))
    main(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == drawn


def test_the_table_of_the_plateau_is_that_of_the_stored_scores():
    stored = pd.read_csv(ROOT / "notebooks" / "data" / "plateau.csv")
    text = (ROOT / "RESULTS.md").read_text().partition("<!-- plateau -->\n")[2].partition("\n\n")[0].splitlines()
    lines = [[cell.strip().strip("*") for cell in line.split("|")[1:-1]] for line in text[2:]]
    assert len(lines) == stored["trained_on"].nunique()
    for line, (trained_on, of_line) in zip(lines, stored.groupby("trained_on", sort=False), strict=True):
        first, shown = int(line[3].removesuffix(" epochs")), [cell for cell in line[4:] if cell]
        held_out, seeds = of_line["held_out"].unique().item(), of_line["seeds"].unique().item()
        seeds = "not noted" if np.isnan(seeds) else f"{seeds:.0f}"
        assert line[:3] == [trained_on, str(held_out), seeds]
        assert list(of_line["epochs"]) == [first * 2**n for n in range(len(shown))]
        assert shown == [f"{score:.1f}" for score in of_line["mAP"]]


def test_the_table_of_the_choice_is_that_of_the_stored_scores_and_the_best_became_the_method():
    stored = pd.read_csv(ROOT / "notebooks" / "data" / "patient_choice.csv")
    results = (ROOT / "RESULTS.md").read_text()
    others = stored[stored["row"] != "cpsd_mld"].set_index("row")["mAP"]
    assert f"the baseline is at {others['baseline']:.1f} there" in results
    assert (
        f"There + MLD has {others['mld']:.1f} (80 epochs, weight 160) and + CPSD by squared error {others['cpsd']:.1f}"
        in results
    )
    stored = stored[stored["row"] == "cpsd_mld"].set_index(["weight", "temperature", "epochs"])
    text = results.partition("<!-- choice -->\n")[2].partition("\n\n")[0].splitlines()
    shown = {}
    for line in text[2:]:
        weight, *cells = (cell.strip().strip("*") for cell in line.split("|")[2:-1])
        settings = [(1, 80), (2, 80), (1, 160)]
        shown |= {(int(weight), *one): cell for one, cell in zip(settings, cells, strict=True) if cell}
    assert shown == {key: f"{score:.1f}" for key, score in stored["mAP"].items()}
    student = load_params("scenes_all").student
    assert stored["mAP"].idxmax() == (student.mld, student.temperature, student.epochs)


def test_what_the_six_pairs_of_ensembles_and_baselines_gain_is_that_of_the_stored_scores():
    both = pd.concat([stored_scores(name)["test"] for name in ("coco18_few", "coco18_few_patient")])
    gains = both["ensemble_mld"] - both["baseline"]
    said = f"The six pairs of both tables gain {gains.min():.1f} to {gains.max():.1f}, in the mean {gains.mean():.1f}."
    assert len(gains) == 6 and said in (ROOT / "RESULTS.md").read_text()


def test_the_choice_on_photos_is_that_of_the_stored_scores_and_the_best_was_run():
    stored = pd.read_csv(ROOT / "notebooks" / "data" / "patient_choice_photos.csv")
    text = re.sub(r"\s+", " ", (ROOT / "RESULTS.md").read_text())
    students = stored[stored["row"] == "ensemble_mld"].set_index(["weight", "temperature", "epochs"])["mAP"]
    shown = {key: f"{score:.1f}" for key, score in students.items()}
    assert (
        f"at the end is {shown[40, 1, 60]} (40), {shown[160, 1, 60]} (160), {shown[640, 1, 60]} (640) and "
        f"{shown[160, 2, 60]} (160, temperature 2), and {stored['mAP'][0]:.1f} of the baseline"
    ) in text
    assert f"The old setting has {shown[40, 1, 20]}" in text and stored["row"][0] == "baseline"
    weight, temperature, epochs = students.idxmax()
    run = text.partition("name=coco18_few_patient ")[2].partition("#")[0]
    for setting in (f"mld={weight:g}", f"temperature={temperature:g}", f"epochs={epochs}"):
        assert f"student.{setting} " in run
