"""The recipes of a run's artifacts: frozen, JSON-able descriptions of all that determines them. Only makers compute them.

What changes no result is not in a recipe: names, paths, the device, threads, and versions of libraries, which stand beside
an artifact; when they differ, tables say so.
"""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cpsd_lib.data import UNLABELLED, VIEWS, VIEWS_VERSION
from cpsd_lib.models import MODELS_VERSION
from cpsd_lib.objectives import MultiLabelDistillation, SelfDistillation, Supervised
from cpsd_lib.support import digest, pick_precision, sha256
from cpsd_lib.teachers import Copies, PartTeachers
from cpsd_lib.training import TRAINING_VERSION, PseudoLabels
from cpsd_lib.workbench.cost import equal_epochs, meta_model, own_part, work_of
from cpsd_lib.workbench.rows import EQUAL, FROM_MODEL, ROWS, branch_weights, unread_by
from cpsd_lib.workbench.run import load_partitions, training_indices
from cpsd_lib.workbench.store import code_of, key_of

VERSIONS = {"augment": VIEWS_VERSION, "models": MODELS_VERSION, "training": TRAINING_VERSION}


@dataclass(frozen=True, eq=False)
class ModelTask:
    """A model of a run that is to be trained, and its recipe."""

    recipe: dict
    settings: object  # ModelParams
    training: object  # TrainParams
    class_indices: list
    objective: object
    images: np.ndarray  # indices of those it trains on
    selection: np.ndarray | None  # indices of those that select its epoch

    @cached_property
    def key(self):
        return key_of(self.recipe)

    @property
    def draws(self):
        """What its random start and its dropout derive from: never its name, never who trains beside it."""
        return self.recipe["seed"], self.recipe["classes"], self.recipe["member"]


def teacher_model(run, branch="whole"):
    """Return the ModelParams of a branch's teachers, which are the student's own unless they are given."""
    if branch == "wide":
        return run.params.wide_model
    return run.params.teacher_model or run.params.model


def equal_epochs_of(run):
    """Return (epochs of a baseline, epochs of one teacher) of the compute of this run's CPSD (cost.equal_epochs)."""
    return equal_epochs(run.params.teachers, run.params.student, *_sizes(run))


def work_in_baselines(run):
    """Return {row: its work from scratch} in trainings of the baseline (cost.work_of), for teachers of the student's model."""
    teachers, wide, size, table = run.params.teachers, 1.0, run.params.data.size, run.dataset.table
    rows = run.params.student.rows
    if run.params.wide_model:
        models = (meta_model(one, len(table.names), size) for one in (run.params.wide_model, teacher_model(run)))
        wide = next(models).flop / next(models).flop
    works = {row: work_of(row, teachers, run.params.student, *_sizes(run), wide) for row in rows}
    return {row: work / teachers.trained_epochs for row, work in works.items()}


def _sizes(run):
    """Return (teachers a branch, part of a forward pass that each has to itself, images of a student to those of a teacher)."""
    frozen_stages, own, table = run.params.teachers.frozen_stages, 1.0, run.dataset.table
    if frozen_stages:
        own = own_part(teacher_model(run), len(table.names), run.params.data.size, frozen_stages)
    labelled, _ = training_indices(run, run.params.teachers, run.params.seed)  # without those that are held out
    images = 1 + len(table.indices(UNLABELLED)) / len(labelled)
    return len(load_partitions(run, run.dataset.key)["co"]), own, images


def teacher_training(run, branch):
    """Return how the teachers of a branch are trained; those of FROM_MODEL start as the papers' do."""
    training = run.params.teachers
    if branch in FROM_MODEL:
        longer = {"epochs": equal_epochs_of(run)[1], "stop_after": None} if branch == "equal_compute" else {}
        return training.model_copy(update={"start": "model", "frozen_stages": 0, "more_epochs": None} | longer)
    if training.more_epochs is None:
        return training
    return training.model_copy(update={"epochs": training.more_epochs, "stop_after": None, "more_epochs": None})


def student_training(run, row):
    """Return how a row's student is trained: the baseline of CPSD's compute as the baseline is, which is a teacher."""
    if ROWS[row].starts_trained:
        return run.params.student.model_copy(update={"start": "baseline"})
    if row != EQUAL:
        return run.params.student
    teachers = teacher_training(run, "whole").model_dump(exclude={"frozen_stages", "more_epochs"})
    longer = {"epochs": equal_epochs_of(run)[0], "stop_after": None, "views": None}
    return run.params.student.model_copy(update=teachers | longer)


def teacher_tasks(run, seed, branch):
    """Return the ModelTasks of a branch's teachers, by part in order; that of "whole" is the baseline."""
    training, parts = teacher_training(run, branch), load_partitions(run, run.dataset.key)[branch].parts
    start = ()
    if training.start == "baseline":
        start = (teacher_tasks(run, seed, "whole")[0].key, training.frozen_stages)
    model = teacher_model(run, branch)
    return [
        _task(run, model, training, part, None, seed, member=parts[:number].count(part), start=start)
        for number, part in enumerate(parts)
    ]


def student_task(run, seed, row):
    """Return the ModelTask of a row's student."""
    training, weights = student_training(run, row), branch_weights(row, run.params.student.alpha)
    if not weights:  # with pseudo-labels too, which stand in for the labels
        objective = Supervised(asl=training.asl)
    elif ROWS[row].method == "self":
        objective = SelfDistillation(weights, training.match, training.asl)
    else:
        read = {name: getattr(training, name) for name in {"mld", "temperature", "cd", "id"} - unread_by(row)}
        objective = MultiLabelDistillation(weights, ROWS[row].method, asl=training.asl, **read)
    soft = {branch: soft_recipe(run, seed, branch) for branch in weights}
    classes = list(range(len(run.dataset.table.names)))
    start = (teacher_tasks(run, seed, "whole")[0].key, 0) if training.start == "baseline" else ()
    pseudo = pseudo_labels(run, seed).described if ROWS[row].method == "pseudo" else None
    model = run.params.model
    return _task(run, model, training, classes, objective, seed, start=start, row=row, soft=soft, pseudo=pseudo)


def pseudo_labels(run, seed):
    """Return the PseudoLabels of the row cap: as many positives of a class as its share of this seed's labelled images."""
    table, training = run.dataset.table, run.params.student
    labelled = table.targets[training_indices(run, training, seed)[0]]
    shares = (labelled == 1).sum(0) / np.maximum(1, (labelled != -1).sum(0))
    return PseudoLabels(table.indices(UNLABELLED), shares)


def soft_recipe(run, seed, branch):
    """Return the recipe of a branch's soft targets of all training images, of any view; that of one has its "number" too."""
    training = run.params.student
    experts = [[task.key, task.recipe["classes"]] for task in teacher_tasks(run, seed, branch)]
    return {
        "kind": "soft_targets",
        "experts": experts,
        "data": run.dataset.key,
        "view": asdict(VIEWS[training.view]),
        "seed": seed,
        "precision": str(pick_precision(training.precision, run.device)),
        "mode": training.teacher_mode,
        "code": [code_of(PartTeachers), code_of(Copies)] if branch == "ensemble" else code_of(PartTeachers),
        "versions": VERSIONS,
    }


def _task(
    run, settings, training, class_indices, objective, seed, *, member=0, start=(), row=None, soft=None, pseudo=None
):
    indices, selection = training_indices(run, training, seed, row)
    if objective is None:
        objective = Supervised(torch.tensor(class_indices, device=run.device), training.asl)
    described = {
        field.name: getattr(objective, field.name) for field in fields(objective) if field.name != "class_indices"
    }
    described_training = asdict(training) | {"precision": str(pick_precision(training.precision, run.device))}
    del described_training["checkpoint_seconds"]  # changes no result
    recipe = {
        "kind": "model",
        "data": run.dataset.key,
        "images": {
            "train": digest(indices.tolist()),
            "selection": None if selection is None else digest(selection.tolist()),
        },
        "raw_too": run.params.protocol == "paper",
        "classes": [run.dataset.table.names[c] for c in class_indices],
        "architecture": architecture(settings),
        "training": described_training,
        "batches": {
            "size": training.batch_size,
            "view": asdict(VIEWS[training.view]),
            "stored_views": training.views if row else None,
        },
        "objective": {"name": type(objective).__name__} | described,
        "soft": soft or None,
        "start": list(start),  # key of the trained baseline, frozen stages; or nothing
        "seed": seed,
        "member": member,  # 0, 1, 2 ... of an ensemble
        "code": code_of(type(objective)),
        "versions": VERSIONS,
    } | ({"pseudo": pseudo} if pseudo else {})  # an entry that is not there changes no key
    return ModelTask(recipe, settings, training, list(class_indices), objective, indices, selection)


def architecture(settings):
    """Return ModelParams as a recipe has them: files of weights and label vectors by their bytes."""
    described = settings.model_dump(mode="json")
    for name, builtin in (("weights", "imagenet"), ("label_vectors", "learned")):
        if described[name] not in (None, builtin):
            described[name] = sha256(Path(described[name]))
    return described
