"""Stages 03 and 04: the teachers and students of a run, and their soft targets, made where the store lacks them."""

import platform
import shutil
import time
from functools import partial

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from cpsd_lib.data import UNLABELLED
from cpsd_lib.models import check_split, fold_models, make_tail, make_trunk, preprocessing, start_from
from cpsd_lib.objectives import MultiLabelDistillation, SelfDistillation, Supervised
from cpsd_lib.support import counted, derive_seed, digest, need_space, pick_precision
from cpsd_lib.teachers import Copies, PartTeachers, TrainModeTeachers
from cpsd_lib.training import Batches, Learner, Validation, computed, fit, view_logits
from cpsd_lib.workbench.building import build, build_shape
from cpsd_lib.workbench.cost import teachers_that_fit
from cpsd_lib.workbench.engine import Group, spread
from cpsd_lib.workbench.params import ModelParams
from cpsd_lib.workbench.recipes import VERSIONS, pseudo_labels, soft_recipe, student_task, teacher_model, teacher_tasks
from cpsd_lib.workbench.rows import ROWS, branches_matched, branches_of, trained_together, views_of
from cpsd_lib.workbench.run import MissingStage, load_partitions
from cpsd_lib.workbench.store import code_of, key_of

# ---- makers ----------------------------------------------------------------------------------------------------------


def training_code():
    """Return a hash of the code that models and soft targets are keyed by: of ring 1, and the rooms' versions."""
    return digest([VERSIONS, code_of(Supervised, SelfDistillation, MultiLabelDistillation, PartTeachers, Copies)])


def train_teachers(run, seed):
    """Make the teachers of one seed that the store lacks, under `engine: ray` those of all; return {branch: PartTeachers}.

    Raises ValueError for a backbone that teachers.frozen_stages cannot cut, before anything is trained.
    """
    branches, frozen_stages = branches_of(run.params.student.rows), run.params.teachers.frozen_stages
    if frozen_stages:
        check_split(build(teacher_model(run), run.dataset.table.names), frozen_stages, run.params.data.size)
    groups, seeds = teacher_groups(run, seed), run.params.seed_list()
    if run.params.engine.kind == "ray" and any(group.missing(run.store) for group in groups):
        spread(run, lambda *room: [one for every in seeds for one in teacher_groups(run, every, *room)])
    for group in groups:
        group.obtain(run)
    for branch in branches:
        run.note(f"seed{seed}/teachers/{branch}", [task.key for task in teacher_tasks(run, seed, branch)])
    return load_teachers(run, seed, branches)


def teacher_groups(run, seed, workers=1, gib=None):
    """Return the Groups of a seed's teachers: all that can be side by side, or parts for workers of `gib` GiB each.

    They do not depend on what the store has: after a stop a group goes on from its checkpoint, which lies under all its keys.
    """
    groups, table = [], run.dataset.table
    most = teachers_that_fit(run.params, table, run.device, gib) if gib else float("inf")
    for together in trained_together(branches_of(run.params.student.rows), run.params.teachers.start):
        tasks = list({task.key: task for branch in together for task in teacher_tasks(run, seed, branch)}.values())
        longer = {"equal_compute": ", longer", "wide": ", wider"}.get(together[0], "")
        size = _largest(len(tasks), most, run.params.seeds, workers)
        for first in range(0, len(tasks), size):
            part = tasks[first : first + size]
            of_all = f"{first + 1} to {first + len(part)} of " if size < len(tasks) else ""
            what = f"seed {seed}: {of_all}{counted(len(tasks), 'teacher')}{longer}"
            make = partial(_train_teachers, seed=seed, together=together, group=[task.key for task in part], what=what)
            passes = 3 * len(part) * part[0].training.trained_epochs * len(table.indices("train"))
            needs = [group for group in groups if part[0].recipe["start"][:1] == [key_of(group.recipes[0])]]
            groups.append(Group(what, "model", [task.recipe for task in part], make, passes, needs))
    return groups


def _largest(count, most, seeds, workers):
    """Return how many of `count` models train side by side, at most `most`, so that workers end first with those of all seeds."""

    def rounds(size):
        sizes = [min(size, count - first) for first in range(0, count, size)] * seeds
        return sum(sorted(sizes, reverse=True)[::workers])

    return min(range(min(count, most), 0, -1), key=rounds)  # the largest such: its models share each batch


def _train_teachers(run, keys, *, seed, together, group, what):
    tasks = {task.key: task for branch in together for task in teacher_tasks(run, seed, branch)}
    _train(run, seed, _chosen(run, tasks, group), keys, what)


def train_student(run, seed, row):
    """Make the student of one row of the table where the store lacks it, under `engine: ray` all of them; return the model."""
    group, rows = student_group(run, seed, row), [row for row in run.params.student.rows if row != "baseline"]
    if run.params.engine.kind == "ray" and group.missing(run.store):
        targets = {every: target_groups(run, every) for every in run.params.seed_list()}
        students = [student_group(run, every, one, needs) for every, needs in targets.items() for one in rows]
        spread(run, lambda *_: [target for of_seed in targets.values() for target in of_seed] + students)
    group.obtain(run)
    key = key_of(group.recipes[0])
    for branch, keys in run.store.record("model", key)["about"]["soft_targets"].items():
        run.note(f"seed{seed}/soft_targets/{branch}", keys)
    run.note(f"seed{seed}/students/{row}", [key])
    return load_student(run, seed, row)


def student_group(run, seed, row, needs=()):
    """Return the Group of one student; needs: those of the soft targets that it reads."""
    task, what = student_task(run, seed, row), f"seed {seed}: {ROWS[row].title}"
    make = partial(_train_student, seed=seed, row=row, what=what)
    passes = 3 * task.training.trained_epochs * len(task.images)
    return Group(what, "model", [task.recipe], make, passes, needs if ROWS[row].reads_stored else [])


def _train_student(run, keys, *, seed, row, what):
    task = student_task(run, seed, row)
    training = task.training
    precision, in_train_mode = pick_precision(training.precision, run.device), training.teacher_mode == "train"
    soft = StoredTargets(run, seed, ROWS[row].teachers) if ROWS[row].teachers else None
    if soft and (in_train_mode or ROWS[row].uses_embeddings):  # 768 numbers a class and view are too many to keep
        merged = _teachers_of(run, seed, soft.recipes(0))
        if in_train_mode:
            merged = {branch: TrainModeTeachers(one.experts, one.partition) for branch, one in merged.items()}
        experts = {b: one.to(run.device, memory_format=torch.channels_last) for b, one in merged.items()}
        soft = computed(experts, precision)
    pseudo = pseudo_labels(run, seed) if ROWS[row].method == "pseudo" else None
    _train(run, seed, _chosen(run, {task.key: task}, keys), keys, what, soft, pseudo)


def target_groups(run, seed):
    """Return the Groups of a seed's soft targets, one a view that its students will see; none where they are not stored."""
    branches, student = branches_matched(run.params.student.rows), run.params.student
    if not branches or student.teacher_mode == "train":
        return []
    stored, groups = StoredTargets(run, seed, branches), []
    for number in range(views_of(student)):
        what, recipes = f"seed {seed}: soft targets, view {number}", list(stored.recipes(number).values())
        passes = len(stored.indices) * sum(len(recipe["experts"]) for recipe in recipes)
        make = partial(_make_targets, seed=seed, branches=branches, number=number)
        groups.append(Group(what, "soft_targets", recipes, make, passes))
    return groups


def _make_targets(run, keys, *, seed, branches, number):
    StoredTargets(run, seed, branches).make(keys, number)


def student_batches(run, seed, soft=None, row="cpsd"):
    """Return the Batches that a row's student of `seed` trains on; soft: their soft targets, as Batches take them."""
    task = student_task(run, seed, row)
    return _batches(run, task.training, seed, task.images, task.training.views, soft)


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


def _train(run, seed, tasks, keys, what, soft=None, pseudo=None):
    """Train those of `tasks`, a group, that `keys` name, side by side, and put them into the store."""
    # The folder of the whole group: killed while its models are put into place, the others need no training either.
    todo, folder = [task for task in tasks if task.key in keys], run.store.work(task.key for task in tasks)
    first, learners, validation, table = todo[0], _learners(run, todo), None, run.dataset.table
    if first.selection is not None:
        paper = run.params.protocol == "paper"
        validation = Validation(run.dataset.need_images(), table.targets, first.selection, raw_too=paper)
    records = fit(
        learners,
        _batches(run, first.training, seed, first.images, first.recipe["batches"]["stored_views"], soft),
        first.training,
        folder,
        validation=validation,
        pseudo=pseudo,
        files=table.files,
        desc=what,
    )
    stored = soft if isinstance(soft, StoredTargets) else None
    if stored:  # a training that went on has read some before it was stopped
        for number in range(views_of(first.training)):
            stored.open(number)
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


def _chosen(run, by_key, keys):
    """Return the entries of {key: anything} that are to be made; ValueError on a worker that computes other keys."""
    if not by_key.keys() >= set(keys):
        alike = "code, data, versions and train.precision must be as where the run was started"
        raise ValueError(f"{platform.node()} computes other keys on {run.device}: {alike}")
    return [by_key[key] for key in keys]


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
        learners.append(Learner(task.key, model, task.objective, task.class_indices, task.draws))
    return learners


class StoredTargets:
    """The soft targets of a seed's teachers, as a function for Batches: a view of all training images when first needed.

    seconds: spent making them so far, which is no part of a student's own time.
    """

    def __init__(self, run, seed, branches):
        self._run, self._seed, self.seconds = run, seed, 0.0
        self.indices = np.union1d(run.dataset.table.indices("train"), run.dataset.table.indices(UNLABELLED))
        self._recipes = {branch: soft_recipe(run, seed, branch) for branch in branches}
        self._opened, self._keys, self._teachers, self._what = {}, {}, None, f"seed {seed}: soft targets"

    def __call__(self, view, indices, images):
        """Return {branch: logits [B, C] float32} of view `view` of the images `indices` [B]."""
        places = np.searchsorted(self.indices, indices)
        return {b: torch.from_numpy(np.asarray(logits[places], np.float32)) for b, logits in self.open(view).items()}

    def open(self, number):
        """Return {branch: logits float16 [n, C], a memory map} of a view, made first where the store lacks it."""
        if number not in self._opened:
            began, make = time.perf_counter(), partial(self.make, number=int(number))
            keys = self._run.store.obtain("soft_targets", self.recipes(int(number)), make, self._what)
            files = {b: self._run.store.folder("soft_targets", key) / "logits.npy" for b, key in keys.items()}
            self._opened[number] = {branch: np.load(file, mmap_mode="r") for branch, file in files.items()}
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

    def recipes(self, number):
        """Return {branch: recipe} of a view."""
        return {branch: recipe | {"number": number} for branch, recipe in self._recipes.items()}

    def make(self, keys, number):
        """Make those soft targets of a view that `keys` name."""
        run, training, recipes = self._run, self._run.params.student, self.recipes(number)
        branches = _chosen(run, {key_of(recipe): branch for branch, recipe in recipes.items()}, keys)
        if self._teachers is None:
            self._teachers = fold_models(_teachers_of(run, self._seed, recipes), run.params.data.size)
            for merged in self._teachers.values():
                merged.to(run.device, memory_format=torch.channels_last)
        folder = run.store.work(map(key_of, recipes.values()))
        numbers = len(self.indices) * len(run.dataset.table.names)
        need_space(folder, 2 * numbers * len(branches), f"the soft targets of view {number}")
        teachers = {branch: self._teachers[branch] for branch in branches}
        batches = _batches(run, training, self._seed, self.indices)
        precision, began = pick_precision(training.precision, run.device), time.perf_counter()
        logits = view_logits(teachers, batches, number, precision, self._what)
        seconds = (time.perf_counter() - began) / len(branches)
        for branch in branches:
            np.save(folder / f"{branch}.npy", logits[branch])
            files = {"logits.npy": folder / f"{branch}.npy"}
            run.store.commit("soft_targets", recipes[branch], files, {"seconds": seconds})
        shutil.rmtree(folder, ignore_errors=True)


# ---- readers: they follow the run's artifacts.json -------------------------------------------------------------------


def load_artifact(store, key):
    """Return the trained model of an artifact, in eval mode, with `.class_names`; MissingStage where it is not there.

    Neither the data set, nor a network, nor the file of weights it started from is needed.
    """
    record = store.record("model", key)
    if record is None:
        raise MissingStage(f"the model {key} is not in {store.root}; run the stage that makes it again")
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
        for key in run.keys(seed, f"teachers_{branch}"):
            model = load_artifact(run.store, key)
            if hasattr(model, "shared"):  # one trunk for all, so that a batch runs through it once
                start = tuple(run.store.record("model", key)["recipe"]["start"])
                model.shared = trunks.setdefault(start, model.shared)
            experts.append(model)
        found[branch] = PartTeachers(experts, partitions[branch]).requires_grad_(False).eval()
    return found


def _teachers_of(run, seed, recipes):
    """Return load_teachers of {branch: recipe of its soft targets}, for a maker; MissingStage where the run has other experts."""
    for branch, recipe in recipes.items():
        if run.keys(seed, f"teachers_{branch}") != [key for key, _ in recipe["experts"]]:
            what = f"the teachers of {branch} that {run.folder} has are of other data or code than there is now"
            raise MissingStage(f"{what}; run 03_teachers first")
    return load_teachers(run, seed, list(recipes))


def load_student(run, seed, row):
    """Return a row's finished student; the baseline's is the teacher over all classes itself.

    MissingStage when it is not there, or was made with other parameters than the run has now.
    """
    return load_artifact(run.store, run.keys(seed, row)[0])


def history(run, key):
    """Return the path of the history.csv of a model's training."""
    return run.store.folder("model", key) / "history.csv"
