"""Stages 03 and 04: the teachers and students of a run, and their soft targets, made where the store lacks them."""

import shutil
import time

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from cpsd_lib.data import UNLABELLED
from cpsd_lib.models import check_split, fold_teachers, make_tail, make_trunk, preprocessing, start_from
from cpsd_lib.support import counted, derive_seed, need_space, pick_precision
from cpsd_lib.teachers import PartTeachers, TrainModeTeachers
from cpsd_lib.training import Batches, Computed, Learner, Validation, fit, view_logits
from cpsd_lib.workbench.building import build, build_shape
from cpsd_lib.workbench.params import ModelParams
from cpsd_lib.workbench.recipes import (
    pseudo_labels,
    soft_recipe,
    student_task,
    student_training,
    teacher_model,
    teacher_tasks,
)
from cpsd_lib.workbench.rows import ROWS, branches_matched, branches_of, trained_together, views_of
from cpsd_lib.workbench.run import load_partitions, student_indices
from cpsd_lib.workbench.store import key_of

# ---- makers ----------------------------------------------------------------------------------------------------------


def train_teachers(run, seed):
    """Make the teachers of one seed that the store lacks, all that can be side by side; return {branch: PartTeachers}.

    Raises ValueError for a backbone that teachers.frozen_stages cannot cut, before anything is trained.
    """
    branches, frozen_stages = branches_of(run.params.student.rows), run.params.teachers.frozen_stages
    if frozen_stages:
        check_split(build(teacher_model(run), run.dataset.table.names), frozen_stages, run.params.data.size)
    for together in trained_together(branches, run.params.teachers.start):
        tasks = {branch: teacher_tasks(run, seed, branch) for branch in together}
        longer = {"equal_compute": ", longer", "wide": ", wider"}.get(together[0], "")
        what = f"seed {seed}: {counted(sum(map(len, tasks.values())), 'teacher')}{longer}"
        _make_models(run, seed, [task for of_branch in tasks.values() for task in of_branch], what)
        for branch, of_branch in tasks.items():
            run.note(f"seed{seed}/teachers/{branch}", [task.key for task in of_branch])
    return load_teachers(run, seed, branches)


def train_student(run, seed, row):
    """Make the student of one row of the table where the store lacks it; return the model."""
    task, training = student_task(run, seed, row), student_training(run, row)
    precision, in_train_mode = pick_precision(training.precision, run.device), training.teacher_mode == "train"
    soft = StoredTargets(run, seed, ROWS[row].teachers) if ROWS[row].teachers else None
    if soft and (in_train_mode or ROWS[row].uses_embeddings):  # 768 numbers a class and view are too many to keep
        merged = load_teachers(run, seed, ROWS[row].teachers)
        if in_train_mode:
            merged = {branch: TrainModeTeachers(one.experts, one.partition) for branch, one in merged.items()}
        experts = {b: one.to(run.device, memory_format=torch.channels_last) for b, one in merged.items()}
        soft = Computed(experts, run.device, precision)
    pseudo = pseudo_labels(run, seed) if ROWS[row].method == "pseudo" else None
    _make_models(run, seed, [task], f"seed {seed}: {ROWS[row].title}", soft, pseudo)
    for branch, keys in run.store.record("model", task.key)["about"]["soft_targets"].items():
        run.note(f"seed{seed}/soft_targets/{branch}", keys)
    run.note(f"seed{seed}/students/{row}", [task.key])
    return load_student(run, seed, row)


def fill_targets(run, seed):
    """Make the soft targets of every view that the students of a seed will see, and say how many."""
    branches, count = branches_matched(run.params.student.rows), views_of(run.params.student)
    stored = StoredTargets(run, seed, branches)
    for number in range(count):
        stored.open(number)
    for branch, keys in stored.keys().items():
        run.note(f"seed{seed}/soft_targets/{branch}", keys)
    numbers = len(branches) * count * len(stored.indices) * len(run.dataset.table.names)
    print(f"seed {seed}: soft targets of {counted(count, 'view')}, {2 * numbers / 1e6:,.1f} MB, are there", flush=True)


def student_batches(run, seed, soft=None, row="cpsd"):
    """Return the Batches that a row's student of `seed` trains on; soft: their soft targets, as Batches take them."""
    training = run.params.student
    return _batches(run, training, seed, student_indices(run, row, seed), training.views, soft)


def _batches(run, training, seed, indices, stored_views=None, soft=None):
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


def _make_models(run, seed, tasks, what, soft=None, pseudo=None):
    by_key = {task.key: task for task in tasks}

    def make(keys):
        # The folder of the whole group: killed while its models are put into place, the others need no training either.
        todo, folder = [by_key[key] for key in keys], run.store.work(by_key)
        first, learners, validation, table = todo[0], _learners(run, todo), None, run.dataset.table
        if first.selection is not None:
            paper = run.params.protocol == "paper"
            validation = Validation(run.dataset.need_images(), table.targets, first.selection, raw_too=paper)
        records = fit(
            learners,
            _batches(run, first.training, seed, first.images, first.recipe["batches"]["stored_views"], soft),
            first.training,
            folder,
            seed=seed,
            validation=validation,
            pseudo=pseudo,
            files=table.files,
            desc=what,
        )
        stored = soft if isinstance(soft, StoredTargets) else None
        for task, learner in zip(todo, learners, strict=True):
            record = records[task.key]
            about = {name: record[name] for name in ("weights", "epoch", "val_map", "seconds")}
            about["preprocessing"] = preprocessing(learner.model) | {"size": run.params.data.size}
            about |= {"architecture": task.settings.model_dump(mode="json"), "protocol": run.params.protocol}
            about["soft_targets"] = stored.keys() if stored else {}
            about["soft_target_seconds"] = stored.made_in() if stored else 0.0
            weights, lines = folder / f"{task.key}.safetensors", folder / f"{task.key}.csv"
            save_file({name: tensor.contiguous() for name, tensor in learner.model.state_dict().items()}, weights)
            history = pd.DataFrame(record["history"]).drop(columns="learner")
            history.to_csv(lines, index=False)
            run.store.commit("model", task.recipe, {"model.safetensors": weights, "history.csv": lines}, about)
        shutil.rmtree(folder, ignore_errors=True)

    run.store.obtain("model", {task.key: task.recipe for task in tasks}, make, what)


def _learners(run, tasks):
    learners, trunks = [], {}
    for task in tasks:
        torch.manual_seed(derive_seed("init", *task.draws))
        model = build(task.settings, task.recipe["classes"])
        if task.recipe["start"]:
            key, frozen_stages = task.recipe["start"]
            baseline = load_artifact(run.store, key)
            start_from(model, baseline, task.class_indices)
            if frozen_stages:
                if key not in trunks:  # one for all: it is run once a batch
                    trunks[key] = make_trunk(baseline, frozen_stages)
                model = make_tail(model, trunks[key], frozen_stages)
        learners.append(Learner(task.key, model, task.objective, task.class_indices, {"key": task.key}, task.draws))
    return learners


class StoredTargets:
    """The soft targets of a seed's teachers, as a function for Batches: a view of all training images when first needed.

    seconds: spent making them so far, which is no part of a student's own time.
    """

    def __init__(self, run, seed, branches):
        self._run, self._seed, self.seconds = run, seed, 0.0
        self.indices = np.union1d(run.dataset.table.indices("train"), run.dataset.table.indices(UNLABELLED))
        self._recipes = {branch: soft_recipe(run, seed, branch) for branch in branches}
        self._opened, self._keys, self._teachers = {}, {}, None

    def __call__(self, view, indices, images):
        """Return {branch: logits [B, C] float32} of view `view` of the images `indices` [B]."""
        places = np.searchsorted(self.indices, indices)
        return {b: torch.from_numpy(np.asarray(logits[places], np.float32)) for b, logits in self.open(view).items()}

    def open(self, number):
        """Return {branch: logits float16 [n, C], a memory map} of a view, made first where the store lacks it."""
        if number not in self._opened:
            began = time.perf_counter()
            recipes = {branch: recipe | {"number": int(number)} for branch, recipe in self._recipes.items()}
            what = f"seed {self._seed}: soft targets"
            keys = self._run.store.obtain("soft_targets", recipes, lambda todo: self._make(todo, recipes, what), what)
            folders = {branch: self._run.store.folder("soft_targets", key) for branch, key in keys.items()}
            self._opened[number] = {
                branch: np.load(path / "logits.npy", mmap_mode="r") for branch, path in folders.items()
            }
            self._keys[number] = keys
            self.seconds += time.perf_counter() - began
        return self._opened[number]

    def keys(self):
        """Return {branch: keys of the views opened so far, in order}."""
        return {branch: [self._keys[number][branch] for number in sorted(self._keys)] for branch in self._recipes}

    def made_in(self):
        """Return the seconds that the views opened so far took whoever made them."""
        records = (self._run.store.record("soft_targets", key) for keys in self.keys().values() for key in keys)
        return sum(record["about"]["seconds"] for record in records)

    def _make(self, todo, recipes, what):
        run, training = self._run, self._run.params.student
        branches = [branch for branch, recipe in recipes.items() if key_of(recipe) in todo]
        if self._teachers is None:
            self._teachers = fold_teachers(load_teachers(run, self._seed, list(recipes)), run.params.data.size)
            for merged in self._teachers.values():
                merged.to(run.device, memory_format=torch.channels_last)
        folder = run.store.work(map(key_of, recipes.values()))
        numbers = len(self.indices) * len(run.dataset.table.names)
        need_space(folder, 2 * numbers * len(branches), f"the soft targets of view {recipes[branches[0]]['number']}")
        teachers = {branch: self._teachers[branch] for branch in branches}
        batches = _batches(run, training, self._seed, self.indices)
        precision, began = pick_precision(training.precision, run.device), time.perf_counter()
        number = recipes[branches[0]]["number"]
        logits = view_logits(teachers, batches, number, run.device, precision, what)
        seconds = (time.perf_counter() - began) / len(branches)
        for branch in branches:
            np.save(folder / f"{branch}.npy", logits[branch])
            files = {"logits.npy": folder / f"{branch}.npy"}
            run.store.commit("soft_targets", recipes[branch], files, {"seconds": seconds})
        shutil.rmtree(folder, ignore_errors=True)


# ---- readers: they follow the run's artifacts.json -------------------------------------------------------------------


def load_artifact(store, key):
    """Return the trained model of an artifact, in eval mode, with `.class_names`; FileNotFoundError where it is not there.

    Neither the data set, nor a network, nor the file of weights it started from is needed.
    """
    record = store.record("model", key)
    if record is None:
        raise FileNotFoundError(f"the model {key} is not in {store.root}; run the stage that makes it again")
    recipe, state = record["recipe"], load_file(store.folder("model", key) / "model.safetensors")
    settings = ModelParams.model_construct(**record["about"]["architecture"])
    model = build_shape(settings, len(recipe["classes"]), state.get("head.label_vectors"))
    if len(recipe["start"]) == 2 and recipe["start"][1]:
        baseline, frozen_stages = recipe["start"]
        model = make_tail(model, make_trunk(load_artifact(store, baseline), frozen_stages), frozen_stages)
    model.load_state_dict(state)
    model.class_names = recipe["classes"]
    return model.eval()


def load_teachers(run, seed, branches=None):
    """Return {branch: PartTeachers} of some branches (None: all the rows need), frozen, as 03_teachers left them.

    MissingStage when they are not there or are made by other parameters.
    """
    branches = branches_of(run.params.student.rows) if branches is None else branches
    partitions, trunks, found = load_partitions(run), {}, {}
    for branch in branches:
        experts = []
        for key in run.keys(f"seed{seed}/teachers/{branch}", "03_teachers"):
            model = load_artifact(run.store, key)
            if hasattr(model, "shared"):  # one trunk for all, so that a batch runs through it once
                start = tuple(run.store.record("model", key)["recipe"]["start"])
                model.shared = trunks.setdefault(start, model.shared)
            experts.append(model)
        found[branch] = PartTeachers(experts, partitions[branch]).requires_grad_(False).eval()
    return found


def load_student(run, seed, row):
    """Return a row's finished student; the baseline's is the teacher over all classes itself.

    MissingStage when it is not there, or was made with other parameters than the run has now.
    """
    return load_artifact(run.store, row_key(run, seed, row))


def keys_of(run, seed, name):
    """Return the keys of the models of a row, or of the experts of teachers_<branch>."""
    branch = name.removeprefix("teachers_")
    return [row_key(run, seed, name)] if branch == name else run.keys(f"seed{seed}/teachers/{branch}", "03_teachers")


def row_key(run, seed, row):
    """Return the key of a row's model."""
    name, notebook = ("teachers/whole", "03_teachers") if row == "baseline" else (f"students/{row}", "04_student")
    return run.keys(f"seed{seed}/{name}", notebook)[0]


def history(run, key):
    """Return the path of the history.csv of a model's training."""
    return run.store.folder("model", key) / "history.csv"
