"""Stage 03: the teachers of a run, all that can be side by side."""

import torch

from cpsd_lib.models import check_split, make_tail, make_trunk, start_from
from cpsd_lib.objectives import Supervised
from cpsd_lib.support import counted, read_json, write_json
from cpsd_lib.teachers import PartTeachers
from cpsd_lib.training import Learner, load_learner
from cpsd_lib.workbench.cost import equal_epochs, own_part, work_of
from cpsd_lib.workbench.rows import FROM_MODEL, branches_of
from cpsd_lib.workbench.run import MissingStage, load_partitions, training_indices
from cpsd_lib.workbench.run_training import (
    as_baseline,
    build_run_model,
    fit_learners,
    make_batches,
    teacher_model,
    trained_baseline,
    training_fingerprint,
)


def equal_epochs_of(run):
    """Return (epochs of a baseline, epochs of one teacher) that take the time of this run's CPSD (cost.equal_epochs)."""
    return equal_epochs(run.params.teachers, run.params.student, *_size_of_teachers(run))


def work_in_baselines(run):
    """Return {row: its work from scratch} in trainings of the baseline (cost.work_of), for teachers of the student's model."""
    teachers, size = run.params.teachers, _size_of_teachers(run)
    rows = run.params.student.rows
    return {row: work_of(row, teachers, run.params.student, *size) / teachers.trained_epochs for row in rows}


def _size_of_teachers(run):
    """Return (teachers a branch, part of a forward pass that each has to itself)."""
    frozen_stages, own = run.params.teachers.frozen_stages, 1.0
    if frozen_stages:
        own = own_part(teacher_model(run), len(run.dataset.table.names), run.params.data.size, frozen_stages)
    return len(load_partitions(run)["co"]), own


def teacher_training(run, branch):
    """Return how the teachers of a branch are trained; whole, the baseline, and equal_compute start as the papers' do."""
    training = run.params.teachers
    if branch in FROM_MODEL:
        longer = {"epochs": equal_epochs_of(run)[1], "stop_after": None} if branch == "equal_compute" else {}
        return as_baseline(training).model_copy(update=longer)
    if training.more_epochs is None:
        return training
    return training.model_copy(update={"epochs": training.more_epochs, "stop_after": None, "more_epochs": None})


def teacher_fingerprints(run, seed, partitions, branches):
    """Return {teacher's name: its fingerprint}, branch by branch, part by part."""
    found = {}
    for branch in branches:
        common = training_fingerprint(run, teacher_training(run, branch), teacher_model(run), seed)
        for number, part in enumerate(partitions[branch].parts):
            name = f"{branch}-{number}" if branch in ("co", "dis", "random") else branch
            found[name] = common | {"class_indices": [int(c) for c in part], "learner": name}
    return found


def _teacher_learners(run, seed, partitions, branches):
    training, learners, baseline, trunk = run.params.teachers, [], None, None
    frozen_stages = training.frozen_stages
    if any(teacher_training(run, branch).start == "baseline" for branch in branches):
        baseline = trained_baseline(run, seed)
        trunk = make_trunk(baseline, frozen_stages) if frozen_stages else None  # one for all: it is run once a batch
    for name, fingerprint in teacher_fingerprints(run, seed, partitions, branches).items():
        part = fingerprint["class_indices"]
        model = build_run_model(run, teacher_model(run), part, seed, name)
        if fingerprint["training"].get("start") == "baseline":
            start_from(model, baseline, part)
            model = make_tail(model, trunk, frozen_stages) if frozen_stages else model
        objective = Supervised(torch.tensor(part, device=run.device), training.asl)
        learners.append(Learner(name, model, objective, part, fingerprint))
    return learners


def branch_folder(run, seed, branch):
    """Return the folder of a branch's teachers: what is trained by itself has a history and a checkpoint of its own."""
    beside = (
        "equal_compute"
        if branch == "equal_compute"
        else ""
        if teacher_training(run, branch).start == "model"
        else "from_baseline"
    )
    return run.teacher_folder(seed) / beside


def train_teachers(run, seed):
    """Train (or load) the teachers of one seed, all that can be side by side, and write teachers.json.

    Returns {branch: PartTeachers}. Raises ValueError for a backbone that teachers.frozen_stages cannot cut, before any
    training.
    """
    partitions, branches = load_partitions(run), branches_of(run.params.student.rows)
    if run.params.teachers.frozen_stages:
        classes = range(len(run.dataset.table.names))
        check_split(
            build_run_model(run, teacher_model(run), classes, seed, "whole"),
            run.params.teachers.frozen_stages,
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
            found[branch] = _merged(mine, partitions[branch])
            # By part, in order: the release found its teachers by file name and mixed them up from the 11th part on.
            listing[branch] = [{"part": p, **_short(entries[x.name])} for p, x in enumerate(mine)]
    write_json(run.teacher_folder(seed) / "teachers.json", listing)
    return found


def _fit_teachers(run, seed, learners, branch):
    training = teacher_training(run, branch)
    indices, selection = training_indices(run, training, seed)
    desc = f"seed {seed}: {counted(len(learners), 'teacher')}{', longer' if branch == 'equal_compute' else ''}"
    folder = branch_folder(run, seed, branch)
    batches = make_batches(run, training, seed, indices)
    return fit_learners(run, learners, batches, training, folder, teacher_model(run), seed, selection, desc)


def _short(entry):
    return {name: entry[name] for name in ("file", "sha256", "class_indices", "weights", "epoch", "val_map", "seconds")}


def _merged(learners, partition):
    """Return the trained experts as one frozen teacher, in eval mode."""
    return PartTeachers([learner.model for learner in learners], partition).requires_grad_(False).eval()


def load_teachers(run, seed, branches=None):
    """Return {branch: Teachers} of some branches (None: all the rows need) as 03_teachers left them.

    MissingStage when they are not there or are made by other parameters.
    """
    partitions, found = load_partitions(run), {}
    branches = branches_of(run.params.student.rows) if branches is None else branches
    learners = iter(_teacher_learners(run, seed, partitions, branches))
    for branch in branches:
        folder, mine = branch_folder(run, seed, branch), [next(learners) for _ in partitions[branch].parts]
        if not all(load_learner(learner, folder) for learner in mine):
            raise MissingStage(f"{folder} has no {branch} teachers for these parameters; run 03_teachers first")
        found[branch] = _merged(mine, partitions[branch])
    return found


def teachers_record(run, seed):
    """Return teachers.json; MissingStage when it is not there, or lists teachers made by other parameters."""
    path = run.teacher_folder(seed) / "teachers.json"
    if not path.exists():
        raise MissingStage(f"no teachers in {path.parent}; run 03_teachers first")
    listing = read_json(path)
    listed = {teacher["file"]: teacher["sha256"] for branch in listing.values() for teacher in branch}
    partitions = load_partitions(run)
    for branch in branches_of(run.params.student.rows):
        for name, fingerprint in teacher_fingerprints(run, seed, partitions, [branch]).items():
            record = branch_folder(run, seed, branch) / f"{name}.json"
            entry = read_json(record) if record.exists() else {}
            if entry.get("fingerprint") != fingerprint or listed.get(entry["file"]) != entry["sha256"]:
                raise MissingStage(f"{path.parent} has no teacher {name} for these parameters; run 03_teachers first")
    return listing
