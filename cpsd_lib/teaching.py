"""Stage 03: the teachers of a run, all that can be side by side."""

import torch

from cpsd_lib.experiment import MissingStage, load_partitions, training_rows
from cpsd_lib.files import read_json, write_json
from cpsd_lib.learner import Learner
from cpsd_lib.meta_models import own_share
from cpsd_lib.objectives import Supervised
from cpsd_lib.rows import FROM_MODEL, branches_of, equal_epochs, work_of
from cpsd_lib.run_training import (
    as_baseline,
    build_run_model,
    fit_learners,
    made_of_training,
    make_batches,
    teacher_model,
    trained_baseline,
)
from cpsd_lib.teachers import Teachers
from cpsd_lib.trunk import check_split, make_tail, make_trunk, start_from
from cpsd_lib.weights import load_learner
from cpsd_lib.words import counted


def equal_epochs_of(run):
    """Return (epochs of a baseline, epochs of one teacher) that take the time of this run's CPSD (rows.equal_epochs)."""
    return equal_epochs(run.params.teachers, run.params.student, *_size_of_teachers(run))


def work_in_baselines(run):
    """Return {row: its work from scratch} in trainings of the baseline (rows.work_of), for teachers of the student's model."""
    teachers, size = run.params.teachers, _size_of_teachers(run)
    rows = run.params.student.rows
    return {row: work_of(row, teachers, run.params.student, *size) / teachers.trained_epochs for row in rows}


def _size_of_teachers(run):
    """Return (teachers a branch, share of a forward pass that each has to itself)."""
    share, own = run.params.teachers.share, 1.0
    if share:
        own = own_share(teacher_model(run), len(run.dataset.table.names), run.params.data.size, share)
    return len(load_partitions(run)["co"]), own


def teacher_training(run, branch):
    """Return how the teachers of a branch are trained; whole, the baseline, and long start as the papers' do."""
    training = run.params.teachers
    if branch in FROM_MODEL:
        longer = {"epochs": equal_epochs_of(run)[1], "stop_after": None} if branch == "long" else {}
        return as_baseline(training).model_copy(update=longer)
    if training.more_epochs is None:
        return training
    return training.model_copy(update={"epochs": training.more_epochs, "stop_after": None, "more_epochs": None})


def teachers_made_of(run, seed, partitions, branches):
    """Return {teacher's name: what it is made of}, branch by branch, part by part."""
    found = {}
    for branch in branches:
        common = made_of_training(run, teacher_training(run, branch), teacher_model(run), seed)
        for number, part in enumerate(partitions[branch].parts):
            name = f"{branch}-{number}" if branch in ("co", "dis", "random") else branch
            found[name] = common | {"columns": [int(column) for column in part], "learner": name}
    return found


def _teacher_learners(run, seed, partitions, branches):
    training, share, learners, baseline, trunk = run.params.teachers, run.params.teachers.share, [], None, None
    if any(teacher_training(run, branch).start == "baseline" for branch in branches):
        baseline = trained_baseline(run, seed)
        trunk = make_trunk(baseline, share) if share else None  # one for all: it is run once a batch
    for name, made_of in teachers_made_of(run, seed, partitions, branches).items():
        part = made_of["columns"]
        model = build_run_model(run, teacher_model(run), part, seed, name)
        if made_of["training"].get("start") == "baseline":
            start_from(model, baseline, part)
            model = make_tail(model, trunk, share) if share else model
        columns = torch.tensor(part, device=run.device)
        objective = Supervised(columns, training.gamma_neg, training.gamma_pos, training.clip)
        learners.append(Learner(name, model, objective, part, made_of))
    return learners


def branch_folder(run, seed, branch):
    """Return the folder of a branch's teachers: what is trained by itself has a history and a checkpoint of its own."""
    beside = "long" if branch == "long" else "" if teacher_training(run, branch).start == "model" else "from_baseline"
    return run.teacher_folder(seed) / beside


def train_teachers(run, seed):
    """Train (or load) the teachers of one seed, all that can be side by side, and write teachers.json.

    Returns {branch: Teachers}. Raises ValueError for a backbone that teachers.share cannot cut, before anything is trained.
    """
    partitions, branches = load_partitions(run), branches_of(run.params.student.rows)
    if run.params.teachers.share:
        classes = range(len(run.dataset.table.names))
        check_split(
            build_run_model(run, teacher_model(run), classes, seed, "whole"),
            run.params.teachers.share,
            run.params.data.size,
        )
    listing, found, folders = {}, {}, {}
    for branch in branches:
        folders.setdefault(branch_folder(run, seed, branch), []).append(branch)
    for together in folders.values():
        learners = _teacher_learners(run, seed, partitions, together)
        entries = _fit_teachers(run, seed, learners, together[0])
        start = 0
        for branch in together:
            mine = learners[start : (start := start + len(partitions[branch].parts))]
            found[branch] = Teachers([learner.model for learner in mine], partitions[branch])
            # By part, in order: the release found its teachers by file name and mixed them up from the 11th part on.
            listing[branch] = [{"part": p, **_short(entries[x.name])} for p, x in enumerate(mine)]
    write_json(run.teacher_folder(seed) / "teachers.json", listing)
    return found


def _fit_teachers(run, seed, learners, branch):
    training = teacher_training(run, branch)
    rows, selection = training_rows(run, training, seed)
    desc = f"seed {seed}: {counted(len(learners), 'teacher')}{', longer' if branch == 'long' else ''}"
    folder = branch_folder(run, seed, branch)
    batches = make_batches(run, training, seed, rows)
    return fit_learners(run, learners, batches, training, folder, teacher_model(run), seed, selection, desc)


def _short(entry):
    return {name: entry[name] for name in ("file", "sha256", "columns", "weights", "epoch", "val_map", "seconds")}


def load_teachers(run, seed, branches=None):
    """Return {branch: Teachers} of some branches (None: all the rows need) as 03_teachers left them.

    MissingStage when they are not there or are made of other things.
    """
    partitions, found = load_partitions(run), {}
    branches = branches_of(run.params.student.rows) if branches is None else branches
    learners = iter(_teacher_learners(run, seed, partitions, branches))
    for branch in branches:
        folder, mine = branch_folder(run, seed, branch), [next(learners) for _ in partitions[branch].parts]
        if not all(load_learner(learner, folder) for learner in mine):
            raise MissingStage(f"{folder} has no {branch} teachers for these parameters; run 03_teachers first")
        found[branch] = Teachers([learner.model for learner in mine], partitions[branch])
    return found


def teachers_record(run, seed):
    """Return teachers.json; MissingStage when it is not there, or lists teachers made of other things than asked for now."""
    path = run.teacher_folder(seed) / "teachers.json"
    if not path.exists():
        raise MissingStage(f"no teachers in {path.parent}; run 03_teachers first")
    listing = read_json(path)
    listed = {teacher["file"]: teacher["sha256"] for branch in listing.values() for teacher in branch}
    partitions = load_partitions(run)
    for branch in branches_of(run.params.student.rows):
        for name, made_of in teachers_made_of(run, seed, partitions, [branch]).items():
            record = branch_folder(run, seed, branch) / f"{name}.json"
            entry = read_json(record) if record.exists() else {"made_of": None}
            if entry["made_of"] != made_of or listed.get(entry["file"]) != entry["sha256"]:
                raise MissingStage(f"{path.parent} has no teacher {name} for these parameters; run 03_teachers first")
    return listing
