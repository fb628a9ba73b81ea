"""A training of a run: its model, its batches, its fingerprint, and the baseline that others start from."""

from dataclasses import asdict

import torch

from cpsd_lib.data import VIEWS
from cpsd_lib.models import preprocessing
from cpsd_lib.support import derive_seed, read_json, sha256
from cpsd_lib.training import Batches, Validation, fit, load_weights
from cpsd_lib.workbench.building import build
from cpsd_lib.workbench.run import MissingStage

# What does not change a result is no part of its fingerprint.
NEUTRAL = {"checkpoint_seconds", "rows"}
START = {"start", "frozen_stages", "more_epochs"}  # of no account where a training starts from its own model
_ARCHITECTURE = {"name", "head", "head_width", "label_vectors", "options"}


def teacher_model(run):
    """Return the ModelParams of a run's teachers, which are the student's own unless they are given."""
    return run.params.teacher_model or run.params.model


def training_fingerprint(run, training, model, seed):
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


def build_run_model(run, settings, class_indices, seed, name):
    """Build the model of ModelParams `settings` over some classes, its random weights drawn from (seed, name)."""
    torch.manual_seed(derive_seed(seed, "init", name))
    return build(settings, [run.dataset.table.names[c] for c in class_indices])


def as_baseline(training):
    """Return how the baseline is trained, by the TeacherParams of the teachers: from its own model."""
    return training.model_copy(update={"start": "model", "frozen_stages": 0, "more_epochs": None})


def baseline_record(run, seed):
    """Return what is written beside the trained baseline of a seed; MissingStage where it is another's or not there."""
    path = run.teacher_folder(seed) / "whole.json"
    record = read_json(path) if path.exists() else {}
    common = training_fingerprint(run, as_baseline(run.params.teachers), teacher_model(run), seed)
    classes = list(range(len(run.dataset.table.names)))
    if record.get("fingerprint") != common | {"class_indices": classes, "learner": "whole"}:
        raise MissingStage(f"{path.parent} has no baseline for these parameters to start from; run 03_teachers first")
    return record


def trained_baseline(run, seed):
    """Return the trained baseline of a seed, which is the teacher over all classes."""
    model = build_run_model(run, teacher_model(run), range(len(run.dataset.table.names)), seed, "whole")
    if load_weights(model, run.teacher_folder(seed) / "whole.json") is None:
        raise MissingStage(f"the baseline's weights in {run.teacher_folder(seed)} are gone; run 03_teachers again")
    return model


def make_batches(run, training, seed, indices, stored_views=None, soft=None):
    """Return the Batches of some of a run's images, as TrainParams `training` describe them."""
    return Batches(
        run.dataset.need_images(),
        run.dataset.table.targets,
        indices,
        batch_size=training.batch_size,
        view=training.view,
        seed=seed,
        device=run.device,
        stored_views=stored_views,
        soft=soft,
    )


def fit_learners(run, learners, batches, training, folder, settings, seed, selection, desc):
    """Fit learners of ModelParams `settings` to a run's images; selection: images that choose the epoch, or None."""
    table, validation = run.dataset.table, None
    if selection is not None:
        paper = run.params.protocol == "paper"
        validation = Validation(run.dataset.need_images(), table.targets, selection, raw_too=paper)
    about = {
        "class_names": table.names,
        "architecture": settings.model_dump(mode="json", include=_ARCHITECTURE),
        "preprocessing": preprocessing(learners[0].model) | {"size": run.params.data.size},
        "seed": seed,
        "protocol": run.params.protocol,
    }
    return fit(
        learners,
        batches,
        training.training(),
        folder,
        seed=seed,
        about=about,
        validation=validation,
        files=table.files,
        desc=desc,
    )
