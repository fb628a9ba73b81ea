"""The tables of RESULTS.md and the findings of README.md are those of the stored scores."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

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


def gain(scores, row, other):
    """Return the mean of the seeds' differences and the half of its 95 % interval, written as the table has them."""
    gains = (scores[row] - scores[other]).to_numpy()
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return f"{gains.mean():+.1f} ± {half:.1f}"


@pytest.fixture(scope="module")
def scores():
    stored = pd.read_csv(ROOT / "notebooks" / "data" / "scenes_few.csv")
    return {
        split: of_split.pivot(index="seed", columns="row", values="mAP") for split, of_split in stored.groupby("split")
    }


@pytest.mark.parametrize("start", STARTS)
def test_the_table_of_few_labels_is_that_of_the_stored_scores(scores, start):
    lines = (ROOT / "RESULTS.md").read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"| {start}") and line.count("|") == 11)
    cells, row = [cell.strip().strip("*") for cell in line.split("|")[3:-1]], STARTS[start]
    for split, shown in (("test", cells[:4]), ("test_shifted", cells[4:])):
        of_split = scores[split]
        assert shown[:2] == [f"{of_split[row].mean():.1f}", f"{of_split[row].std():.1f}"], split
        over_baseline = "" if row == "baseline" else gain(of_split, row, "baseline")
        assert shown[2] == over_baseline, split
        if shown[3]:
            assert shown[3] == gain(of_split, row, "mld"), split


@pytest.mark.parametrize("file", ["README.md", "RESULTS.md"])
def test_findings_quote_the_gains_of_the_stored_scores(scores, file):
    text = re.sub(r"[*\s]+", " ", (ROOT / file).read_text())
    for split in ("test", "test_shifted"):
        assert gain(scores[split], "cpsd_mld", "baseline") in text
