"""A training of a run: its model, its batches, what its weights are made of, and the baseline that others start from."""

from dataclasses import asdict

import torch

from cpsd_lib.batches import VIEWS, Batches
from cpsd_lib.experiment import MissingStage
from cpsd_lib.files import read_json, sha256
from cpsd_lib.hardware import derive_seed
from cpsd_lib.label_vectors import read_label_vectors
from cpsd_lib.models import build_model, preprocessing
from cpsd_lib.train import Validation, fit
from cpsd_lib.weights import load_weights

# What does not change a result is no part of what the result is made of.
NEUTRAL = {"checkpoint_seconds", "rows"}
START = {"start", "share", "more_epochs"}  # of no account where a training starts from its own model
_ARCHITECTURE = {"name", "head", "head_width", "label_vectors", "options"}


def teacher_model(run):
    """Return the ModelParams of a run's teachers, which are the student's own unless they are given."""
    return run.params.teacher_model or run.params.model


def made_of_training(run, training, model, seed):
    """Return all that determines the weights of a training of ModelParams `model` by TrainParams `training`, JSON-able."""
    settings = {name: value for name, value in training.model_dump(mode="json").items() if name not in NEUTRAL}
    settings["view"] = asdict(VIEWS[training.view])  # what the name stands for, should its numbers change
    if training.start == "model":
        settings = {name: value for name, value in settings.items() if name not in START}
    else:
        settings["baseline"] = baseline_record(run, seed)["sha256"]
    model = model.model_dump(mode="json")
    for name, builtin in (("weights", "imagenet"), ("label_vectors", "learned")):
        if model[name] not in (None, builtin):
            model[name] = sha256(model[name])  # the same bytes under another name are the same
    return {
        "data": run.dataset.key,
        "model": model,
        "training": settings,
        "seed": seed,
        "protocol": run.params.protocol,
    }


def build_run_model(run, settings, columns, seed, name):
    """Build the model of ModelParams `settings` over some classes, its random weights drawn from (seed, name)."""
    torch.manual_seed(derive_seed(seed, "init", name))
    keep = {key: getattr(settings, key) for key in ("weights", "head", "normalize", "prior", "head_width")}
    vectors = read_label_vectors(settings.label_vectors, [run.dataset.table.names[column] for column in columns])
    return build_model(settings.name, len(columns), label_vectors=vectors, **keep, **settings.options)


def as_baseline(training):
    """Return how the baseline is trained, by the TeacherParams of the teachers: from its own model."""
    return training.model_copy(update={"start": "model", "share": 0, "more_epochs": None})


def baseline_record(run, seed):
    """Return what is written beside the trained baseline of a seed; MissingStage where it is another's or not there."""
    path = run.teacher_folder(seed) / "whole.json"
    record = read_json(path) if path.exists() else {"made_of": None}
    common = made_of_training(run, as_baseline(run.params.teachers), teacher_model(run), seed)
    columns = list(range(len(run.dataset.table.names)))
    if record["made_of"] != common | {"columns": columns, "learner": "whole"}:
        raise MissingStage(f"{path.parent} has no baseline for these parameters to start from; run 03_teachers first")
    return record


def trained_baseline(run, seed):
    """Return the trained baseline of a seed, which is the teacher over all classes."""
    model = build_run_model(run, teacher_model(run), range(len(run.dataset.table.names)), seed, "whole")
    if load_weights(model, run.teacher_folder(seed) / "whole.json") is None:
        raise MissingStage(f"the baseline's weights in {run.teacher_folder(seed)} are gone; run 03_teachers again")
    return model


def _about(run, settings, model, seed):
    return {
        "class_names": run.dataset.table.names,
        "architecture": settings.model_dump(mode="json", include=_ARCHITECTURE),
        "preprocessing": preprocessing(model) | {"size": run.params.data.size},
        "seed": seed,
        "protocol": run.params.protocol,
    }


def make_batches(run, training, seed, rows, **more):
    """Return the Batches of some rows of a run's images, as TrainParams `training` say; more: further arguments of Batches."""
    dataset = run.dataset
    return Batches(
        *(dataset.need_images(), dataset.table.targets, rows),
        **{"batch_size": training.batch_size, "view": training.view, "seed": seed, "device": run.device},
        **more,
    )


def fit_learners(run, learners, batches, training, folder, settings, seed, selection, desc):
    """Fit learners of ModelParams `settings` to a run's images (train.fit); selection: rows that choose the epoch, or None."""
    validation = None
    if selection is not None:
        table = run.dataset.table
        validation = Validation(run.dataset.need_images(), table.targets, selection, run.params.protocol == "paper")
    return fit(
        *(learners, batches, training, folder),
        **{"seed": seed, "about": _about(run, settings, learners[0].model, seed), "validation": validation},
        **{"files": run.dataset.table.files, "desc": desc},
    )
