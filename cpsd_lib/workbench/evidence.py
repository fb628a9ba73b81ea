"""Is a gain real, are the probabilities calibrated, and how much do F1 scores depend on the decision rule? From 05's scores."""

import numpy as np
import pandas as pd
from scipy.special import expit

from cpsd_lib.evaluation import best_thresholds, expected_calibration_error, paired_bootstrap, precision_recall_f1
from cpsd_lib.support import digest
from cpsd_lib.workbench.making import keys_of
from cpsd_lib.workbench.rows import TITLES
from cpsd_lib.workbench.run import held_out_indices, left_by
from cpsd_lib.workbench.scoring import load_records, score_path


def scores_of(run, seed, row, split):
    """Return the logits [n, C] that 05_evaluation saved of a row on a split; MissingStage when they are not there."""
    return np.load(left_by("05_evaluation", score_path(run, seed, row, split)))


def probabilities_of(run, seed, row, split):
    """Return the probabilities [n, C] float64 of what `scores_of` returns."""
    return expit(scores_of(run, seed, row, split).astype(float))


def scored_by(run, seed, row, split):
    """Return (logits, targets), both [n, C], that 05_evaluation saved of this very model; None where it has not scored it.

    Scores stay in the folder when a model is trained again; metrics.json says whose they are. No data set is opened.
    """
    paths = [score_path(run, seed, name, split) for name in (row, "targets")]
    if not all(path.exists() for path in (run.folder / "evaluation" / "metrics.json", *paths)):
        return None
    records = load_records(run)
    models = records[(records["row"] == row) & (records["seed"] == seed)].get("model", [])
    return tuple(map(np.load, paths)) if digest(keys_of(run, seed, row)) in set(models) else None


def gain_intervals(run, row, against, split="test", resamples=1000):
    """Return mAP of `row` minus mAP of `against` with its bootstrap interval over images, a line a seed, in percent.

    It measures the luck of the test images; the spread between the lines measures the luck of training. A gain needs both.
    The draw of images is that of the run's seed, the same for every line.
    """
    targets, lines = run.dataset.table.targets[run.dataset.table.indices(split)], {}
    for seed in run.params.seed_list():
        first, second = (scores_of(run, seed, name, split) for name in (row, against))
        paired = paired_bootstrap(first, second, targets, resamples, run.params.seed)
        percent = {"gain": 100 * paired.difference, "low": 100 * paired.low, "high": 100 * paired.high}
        lines[seed] = percent | {"p": paired.p_value}
    return pd.DataFrame(lines).T.rename_axis("seed")


def calibration_errors(run, rows, split="test"):
    """Return the expected calibration error of rows (mean and standard deviation over seeds), in percent."""
    targets = run.dataset.table.targets[run.dataset.table.indices(split)]

    def error(row, seed):
        return 100 * expected_calibration_error(probabilities_of(run, seed, row, split), targets)

    errors = pd.DataFrame({TITLES[row]: [error(row, seed) for seed in run.params.seed_list()] for row in rows})
    return pd.DataFrame({"ECE": errors.mean(), "spread": errors.std()}).rename_axis("row")


def decision_rules(run, rows, split="test"):
    """Return CF1 and OF1 of rows under each decision rule, mean over seeds, in percent.

    Rules: one threshold for all classes, 0.5 and 0.8 (what the paper's table presumably used); the three highest scores of
    an image; a threshold a class, tuned on held-out training images (only where the run holds some out).
    """
    table = run.dataset.table
    targets, lines = table.targets[table.indices(split)], []
    for row in rows:
        for seed in run.params.seed_list():
            scores, held_out = probabilities_of(run, seed, row, split), held_out_indices(run, seed)
            rules = {"0.5": (0.5, None), "0.8": (0.8, None), "top 3": (0.0, min(3, targets.shape[1]))}
            if held_out is not None:
                tuning = probabilities_of(run, seed, row, "held_out")
                rules["tuned per class"] = (best_thresholds(tuning, table.targets[held_out]), None)
            for rule, (threshold, top_k) in rules.items():
                f1 = precision_recall_f1(scores, targets, threshold, top_k)
                lines.append({"row": TITLES[row], "rule": rule} | {name: 100 * f1[name] for name in ("CF1", "OF1")})
    return pd.DataFrame(lines).groupby(["row", "rule"], sort=False).mean()
