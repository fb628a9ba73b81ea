"""Where do the models of a run look? Its models, its test pictures and its boxes."""

import numpy as np
import pandas as pd

from cpsd_lib.data import boxes_of
from cpsd_lib.support import derive_seed
from cpsd_lib.workbench.making import load_student, load_teachers
from cpsd_lib.workbench.rows import BRANCHES, TITLES, baseline_of, branches_of
from cpsd_lib.workbench.scoring import probabilities_of


def strategies(run):
    """Return {name of its saved scores: title} of all models of a run: the baseline, merged teachers, students."""
    rows = run.params.student.rows
    branches = [b for b in branches_of(rows) if b != "whole" or run.params.teacher_model]
    against, students = baseline_of(rows), {row: title for row, title in TITLES.items() if row in rows}
    first = {against: students.pop(against)} if against else {}  # else a teacher of all classes is the baseline itself
    return first | {f"teachers_{b}": BRANCHES[b] for b in branches} | students


def load_named(run, seed, name):
    """Return the model of a row, or of teachers_<branch> the merged experts; MissingStage where it is not there."""
    branch = name.removeprefix("teachers_")
    return load_student(run, seed, name) if branch == name else load_teachers(run, seed, [branch])[branch]


def load_models(run, seed):
    """Return {title: Classifier or PartTeachers} of `strategies`, in eval mode on the run's device.

    Raises MissingStage where one is not there.
    """
    return {title: load_named(run, seed, name).to(run.device).eval() for name, title in strategies(run).items()}


# ---- pairs of (image index, class) -----------------------------------------------------------------------------------


def probabilities(run, seed, pairs):
    """Return {title: probabilities [n]} for `pairs` [n] of (image index of test, class), as 05_evaluation scored them."""
    indices, classes = np.array(pairs).T
    places = np.searchsorted(run.dataset.table.indices("test"), indices)
    names = strategies(run).items()
    return {title: probabilities_of(run, seed, name, "test")[places, classes] for name, title in names}


def pixel_boxes(run, pairs):
    """Return [(left, top, right, bottom) in pixels, ...] of each of `pairs` [n] of (image index, class); None without boxes."""
    boxes, size = boxes_of(run.dataset, dict.fromkeys(int(i) for i, _ in pairs)), run.params.data.size
    return boxes and [[tuple(size * side for side in box) for box in boxes[int(i)].get(int(c), [])] for i, c in pairs]


def sample_positives(run, split, count):
    """Return about `count` positives of the images that come first when the split is shuffled by the run's seed.

    A DataFrame as evaluation.inside_boxes takes it; None where no box is known. Whole images, so that the bootstrap can draw
    images.
    """
    table, seed = run.dataset.table, derive_seed(run.params.seed, "explained", split)
    shuffled = np.random.default_rng(seed).permutation(table.indices(split))
    positives = (table.targets[shuffled] == 1).sum(1).cumsum()
    indices = np.sort(shuffled[: np.searchsorted(positives, count) + 1])
    places, classes = np.nonzero(table.targets[indices] == 1)
    sample = pd.DataFrame({"image": indices[places], "class": classes})
    sample["boxes"] = pixel_boxes(run, sample[["image", "class"]].to_numpy())
    sample = sample[sample["boxes"].astype(bool)]
    return None if sample.empty else sample
