"""Stage 04: the students of a run, and the soft targets they learn from."""

from dataclasses import asdict

import torch

from cpsd_lib.batches import VIEWS
from cpsd_lib.experiment import MissingStage, training_rows
from cpsd_lib.files import digest, read_json
from cpsd_lib.fold import fold_teachers
from cpsd_lib.hardware import pick_precision
from cpsd_lib.learner import Learner
from cpsd_lib.objectives import MultiLabelDistillation, SelfDistillation, Supervised
from cpsd_lib.rows import ROWS, branches_heard, shares, views_of
from cpsd_lib.run_training import (
    baseline_record,
    build_run_model,
    fit_learners,
    made_of_training,
    make_batches,
    trained_baseline,
)
from cpsd_lib.soft_targets import Asked, SoftTargets, StaleTargets, expected, fill, remove_store
from cpsd_lib.teachers import TrainModeTeachers
from cpsd_lib.teaching import equal_epochs_of, load_teachers, teacher_training, teachers_record
from cpsd_lib.trunk import start_from
from cpsd_lib.weights import load_weights
from cpsd_lib.words import counted


def _targets_made_of(run, seed, branch, listing):
    """Return what a store of soft targets is made of; listing: the branch's teachers, as in teachers.json."""
    training, teaching = run.params.student, teacher_training(run, branch)
    trunk = {"trunk": [baseline_record(run, seed)["sha256"], teaching.share]} if teaching.share else {}
    return trunk | {
        "teachers": [[teacher["sha256"], teacher["columns"]] for teacher in listing],
        "classes": run.dataset.table.names,
        "images": run.dataset.key,
        "rows": digest(training_rows(run, training, seed)[0].tolist()),
        "view": asdict(VIEWS[training.view]),
        "view_seed": seed,
        "precision": str(pick_precision(training.precision, run.device)),
        "teacher_mode": training.teacher_mode,
    }


def open_targets(run, seed):
    """Return {branch: SoftTargets} of a seed's teachers, emptied where they were made of something else than asked for now.

    What is not in them yet is asked when a student reads it first. MissingStage as the teachers load.
    """
    training, stores = run.params.student, {}
    rows, _ = training_rows(run, training, seed)
    record = teachers_record(run, seed)
    for branch in branches_heard(training.rows):
        made_of = _targets_made_of(run, seed, branch, record[branch])
        arguments = (run.target_path(seed, branch), made_of, rows, len(run.dataset.table.names), views_of(training))
        try:
            stores[branch] = SoftTargets(*arguments)
        except StaleTargets as stale:
            print(f"asked again: {stale}")
            remove_store(arguments[0])
            stores[branch] = SoftTargets(*arguments)
    return stores


def ask_targets(run, seed, stores):
    """Return the Asked of some {branch: SoftTargets} of a seed."""

    def load():
        speaking = load_teachers(run, seed, list(stores))
        if run.params.student.teacher_mode == "train":
            return {b: TrainModeTeachers(merged.experts, merged.partition) for b, merged in speaking.items()}
        image = torch.zeros(1, 3, run.params.data.size, run.params.data.size)
        return fold_teachers(speaking, image)

    return Asked(stores, load, run.device, pick_precision(run.params.student.precision, run.device))


def fill_targets(run, seed):
    """Ask a seed's teachers ahead about every view a student will see; return {branch: SoftTargets}."""
    stores = open_targets(run, seed)
    if stores:
        asked, batches, training = ask_targets(run, seed, stores), student_batches(run, seed), run.params.student
        epochs = training.trained_epochs
        size, seconds = expected(asked, batches, epochs)
        what = f"{counted(len(stores), 'store')}, {size / 1e6:,.1f} MB"
        if seconds:
            print(f"seed {seed}: soft targets, {what}; the teachers need about {seconds:,.0f} s", flush=True)
            fill(asked, batches, epochs, f"seed {seed}: soft targets")
        else:
            print(f"seed {seed}: soft targets, {what}, are there", flush=True)
    return stores


def _student_training(run, row):
    """Return how a row's student is trained: the baseline of CPSD's time as the baseline is, which is a teacher."""
    if row != "baseline_long":
        return run.params.student
    own = teacher_training(run, "whole").model_dump(exclude={"share", "more_epochs"})
    return run.params.student.model_copy(
        update=own | {"epochs": equal_epochs_of(run)[0], "stop_after": None, "views": None}
    )


def student_batches(run, seed, soft=None):
    """Return the Batches every student of `seed` trains on; soft: an Asked, what the teachers say of each batch."""
    training = run.params.student
    return make_batches(
        run, training, seed, training_rows(run, training, seed)[0], stored_views=training.views, soft=soft
    )


def _student_made_of(run, seed, row):
    training = _student_training(run, row)
    common, weights = made_of_training(run, training, run.params.model, seed), shares(row, training.alpha)
    for name in no_say(row):
        common["training"].pop(name)
    record = teachers_record(run, seed)
    return common | {"weights": weights, "targets": {b: _targets_made_of(run, seed, b, record[b]) for b in weights}}


def no_say(row):
    """Return the parameters that a row's student does not read: another alpha is another CPSD student, and nothing else."""
    taught = ROWS[row]
    read = {"alpha": len(taught.teachers) > 1, "match": taught.method == "self" and bool(taught.teachers)}
    read |= {"mld": "mld" in taught.method, "cd": taught.embeds, "id": taught.embeds}
    read["teacher_mode"] = False  # a property of the targets, and named with them
    return [name for name, does in read.items() if not does]


def _objective(run, training, row):
    taught = ROWS[row]
    weights = shares(row, training.alpha)
    labels = {"gamma_neg": training.gamma_neg, "gamma_pos": training.gamma_pos, "clip": training.clip}
    if not weights:
        columns = torch.arange(len(run.dataset.table.names), device=run.device)
        return Supervised(columns, **labels)
    if taught.method == "self":
        return SelfDistillation(weights, training.match, **labels)
    return MultiLabelDistillation(weights, taught.method, training.mld, training.cd, training.id, **labels)


def train_student(run, seed, row, stores):
    """Train (or load) the student of one row of the table; return (model, what is written beside its weights).

    stores: {branch: SoftTargets} of open_targets; what they lack is asked for and kept.
    """
    training = _student_training(run, row)
    rows, selection = training_rows(run, training, seed)
    used = {branch: stores[branch] for branch in branches_heard([row])}
    asked = ask_targets(run, seed, used) if used else None
    experts = load_teachers(run, seed, ROWS[row].teachers) if ROWS[row].embeds else {}
    for merged in experts.values():
        merged.to(run.device, memory_format=torch.channels_last)
    said = {"soft": asked, "experts": experts, "precision": pick_precision(training.precision, run.device)}
    batches = make_batches(run, training, seed, rows, stored_views=training.views, **said)
    made_of = _student_made_of(run, seed, row)
    # Every row starts from the same weights and sees the same views in the same order: rows differ by their loss alone.
    classes = list(range(len(run.dataset.table.names)))
    model = build_run_model(run, run.params.model, classes, seed, "whole")
    if training.start == "baseline":
        start_from(model, trained_baseline(run, seed), classes)
    learner = Learner("student", model, _objective(run, training, row), classes, made_of)
    folder, desc = run.student_folder(seed, row), f"seed {seed}: student {row}"
    entries = fit_learners(run, [learner], batches, training, folder, run.params.model, seed, selection, desc)
    return learner.model, entries["student"]


def load_student(run, seed, row):
    """Return (model, record) of a row's finished student; the baseline's is the teacher over all classes itself.

    MissingStage when it is not there, or was made with other parameters than the run has now.
    """
    baseline = row == "baseline"
    folder = run.teacher_folder(seed) if baseline else run.student_folder(seed, row)
    record, notebook = (folder / "whole.json", "03_teachers") if baseline else (folder / "student.json", "04_student")
    expected = (
        made_of_training(run, teacher_training(run, "whole"), run.params.model, seed)
        if baseline
        else _student_made_of(run, seed, row)
    )
    if not record.exists() or read_json(record)["made_of"] | expected != read_json(record)["made_of"]:
        raise MissingStage(f"{folder} has no {row} model for these parameters; run {notebook} first")
    model = build_run_model(run, run.params.model, range(len(run.dataset.table.names)), seed, "whole")
    entry = load_weights(model, record)
    if entry is None:
        raise MissingStage(f"the weights beside {record} are gone or were changed; run {notebook} again")
    return model, entry
