"""Stage 04: the students of a run, and the soft targets they learn from."""

from dataclasses import asdict

import torch

from cpsd_lib.data import VIEWS
from cpsd_lib.models import fold_teachers, start_from
from cpsd_lib.objectives import MultiLabelDistillation, SelfDistillation, Supervised
from cpsd_lib.support import counted, digest, pick_precision, read_json
from cpsd_lib.teachers import TrainModeTeachers
from cpsd_lib.training import (
    Learner,
    SoftTargets,
    StaleTargets,
    TargetSource,
    WithEmbeddings,
    expected,
    fill,
    load_weights,
    remove_store,
)
from cpsd_lib.workbench.rows import ROWS, branch_weights, branches_matched, views_of
from cpsd_lib.workbench.run import MissingStage, training_indices
from cpsd_lib.workbench.run_training import (
    baseline_record,
    build_run_model,
    fit_learners,
    make_batches,
    trained_baseline,
    training_fingerprint,
)
from cpsd_lib.workbench.teaching import equal_epochs_of, load_teachers, teacher_training, teachers_record


def _targets_fingerprint(run, seed, branch, listing):
    """Return the fingerprint of a store of soft targets; listing: the branch's teachers, as in teachers.json."""
    training, teaching = run.params.student, teacher_training(run, branch)
    trunk = {"trunk": [baseline_record(run, seed)["sha256"], teaching.frozen_stages]} if teaching.frozen_stages else {}
    return trunk | {
        "teachers": [[teacher["sha256"], teacher["class_indices"]] for teacher in listing],
        "classes": run.dataset.table.names,
        "images": run.dataset.key,
        "rows": digest(training_indices(run, training, seed)[0].tolist()),
        "view": asdict(VIEWS[training.view]),
        "view_seed": seed,
        "precision": str(pick_precision(training.precision, run.device)),
        "teacher_mode": training.teacher_mode,
    }


def open_targets(run, seed):
    """Return {branch: SoftTargets} of a seed's teachers, emptied where their fingerprint is another than these parameters'.

    What is not in them yet is computed when a student reads it first. MissingStage as the teachers load.
    """
    training, stores = run.params.student, {}
    indices, _ = training_indices(run, training, seed)
    record = teachers_record(run, seed)
    for branch in branches_matched(training.rows):
        fingerprint = _targets_fingerprint(run, seed, branch, record[branch])
        arguments = (
            run.target_path(seed, branch),
            fingerprint,
            indices,
            len(run.dataset.table.names),
            views_of(training),
        )
        try:
            stores[branch] = SoftTargets(*arguments)
        except StaleTargets as stale:
            print(f"computed again: {stale}")
            remove_store(arguments[0])
            stores[branch] = SoftTargets(*arguments)
    return stores


def target_source(run, seed, stores):
    """Return the TargetSource of some {branch: SoftTargets} of a seed."""

    def load():
        teachers = load_teachers(run, seed, list(stores))
        if run.params.student.teacher_mode == "train":
            return {b: TrainModeTeachers(merged.experts, merged.partition) for b, merged in teachers.items()}
        image = torch.zeros(1, 3, run.params.data.size, run.params.data.size)
        return fold_teachers(teachers, image)

    return TargetSource(stores, load, run.device, pick_precision(run.params.student.precision, run.device))


def fill_targets(run, seed):
    """Compute a seed's soft targets of every view that a student will see; return {branch: SoftTargets}."""
    stores = open_targets(run, seed)
    if stores:
        source, batches = target_source(run, seed, stores), student_batches(run, seed)
        epochs = run.params.student.trained_epochs
        size, seconds = expected(source, batches, epochs)
        what = f"{counted(len(stores), 'store')}, {size / 1e6:,.1f} MB"
        if seconds:
            print(f"seed {seed}: soft targets, {what}; the teachers need about {seconds:,.0f} s", flush=True)
            fill(source, batches, epochs, f"seed {seed}: soft targets")
        else:
            print(f"seed {seed}: soft targets, {what}, are there", flush=True)
    return stores


def _student_training(run, row):
    """Return how a row's student is trained: the baseline of CPSD's compute as the baseline is, which is a teacher."""
    if row != "baseline_equal_compute":
        return run.params.student
    teachers = teacher_training(run, "whole").model_dump(exclude={"frozen_stages", "more_epochs"})
    return run.params.student.model_copy(
        update=teachers | {"epochs": equal_epochs_of(run)[0], "stop_after": None, "views": None}
    )


def student_batches(run, seed, soft=None):
    """Return the Batches every student of `seed` trains on; soft: a TargetSource."""
    training = run.params.student
    return make_batches(run, training, seed, training_indices(run, training, seed)[0], training.views, soft)


def _student_fingerprint(run, seed, row):
    training = _student_training(run, row)
    common, weights = training_fingerprint(run, training, run.params.model, seed), branch_weights(row, training.alpha)
    for name in unread_by(row):
        common["training"].pop(name)
    record = teachers_record(run, seed)
    return common | {"weights": weights, "targets": {b: _targets_fingerprint(run, seed, b, record[b]) for b in weights}}


def unread_by(row):
    """Return the parameters that a row's student does not read: another alpha is another CPSD student, and nothing else."""
    described = ROWS[row]
    read = {"alpha": len(described.teachers) > 1, "match": described.method == "self" and bool(described.teachers)}
    read |= {"mld": "mld" in described.method, "cd": described.uses_embeddings, "id": described.uses_embeddings}
    read["teacher_mode"] = False  # a property of the targets, and named with them
    return [name for name, does in read.items() if not does]


def _objective(run, training, row):
    weights = branch_weights(row, training.alpha)
    if not weights:
        return Supervised(asl=training.asl)
    if ROWS[row].method == "self":
        return SelfDistillation(weights, training.match, training.asl)
    return MultiLabelDistillation(weights, ROWS[row].method, training.mld, training.cd, training.id, training.asl)


def _soft(run, seed, row, stores, precision):
    """Return the soft targets that a row's student is matched to, as Batches take them; None for a row without teachers."""
    used = {branch: stores[branch] for branch in branches_matched([row])}
    source = target_source(run, seed, used) if used else None
    if not ROWS[row].uses_embeddings:
        return source
    experts = load_teachers(run, seed, ROWS[row].teachers)
    for merged in experts.values():
        merged.to(run.device, memory_format=torch.channels_last)
    return WithEmbeddings(source, experts, run.device, precision)


def train_student(run, seed, row, stores):
    """Train (or load) the student of one row of the table; return (model, what is written beside its weights).

    stores: {branch: SoftTargets} of open_targets; what they lack is computed and kept.
    """
    training = _student_training(run, row)
    indices, selection = training_indices(run, training, seed)
    soft = _soft(run, seed, row, stores, pick_precision(training.precision, run.device))
    batches = make_batches(run, training, seed, indices, training.views, soft)
    # Every row starts from the same weights and sees the same views in the same order: rows differ by their loss alone.
    classes = list(range(len(run.dataset.table.names)))
    model = build_run_model(run, run.params.model, classes, seed, "whole")
    if training.start == "baseline":
        start_from(model, trained_baseline(run, seed), classes)
    learner = Learner("student", model, _objective(run, training, row), classes, _student_fingerprint(run, seed, row))
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
        training_fingerprint(run, teacher_training(run, "whole"), run.params.model, seed)
        if baseline
        else _student_fingerprint(run, seed, row)
    )
    if not record.exists() or read_json(record).get("fingerprint", {}) | expected != read_json(record).get(
        "fingerprint"
    ):
        raise MissingStage(f"{folder} has no {row} model for these parameters; run {notebook} first")
    model = build_run_model(run, run.params.model, range(len(run.dataset.table.names)), seed, "whole")
    entry = load_weights(model, record)
    if entry is None:
        raise MissingStage(f"the weights beside {record} are gone or were changed; run {notebook} again")
    return model, entry
