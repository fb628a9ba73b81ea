"""Stages 03 and 04: the teachers and the students of a run."""

from dataclasses import asdict

import torch

from cpsd_lib.batches import VIEWS, Batches
from cpsd_lib.experiment import MissingStage, load_partitions, training_rows
from cpsd_lib.files import digest, read_json, sha256, write_json
from cpsd_lib.fold import fold_teachers
from cpsd_lib.hardware import derive_seed, pick_precision
from cpsd_lib.label_vectors import read_label_vectors
from cpsd_lib.meta_models import own_share
from cpsd_lib.models import build_model, preprocessing
from cpsd_lib.objectives import MultiLabelDistillation, SelfDistillation, Supervised
from cpsd_lib.rows import FROM_MODEL, ROWS, branches_of, equal_epochs, shares, views_of
from cpsd_lib.soft_targets import Asked, SoftTargets, StaleTargets, expected, fill, remove_store
from cpsd_lib.teachers import Teachers, TrainModeTeachers
from cpsd_lib.train import Learner, Validation, fit
from cpsd_lib.trunk import check_split, make_tail, make_trunk, start_from
from cpsd_lib.weights import load_learner, load_weights
from cpsd_lib.words import counted

# What does not change a result is no part of what the result is made of.
NEUTRAL = {"checkpoint_seconds", "rows"}
START = {"start", "share", "more_epochs"}  # of no account where a training starts from its own model
_ARCHITECTURE = {"name", "head", "head_width", "label_vectors", "options"}


# ---- 03: teachers --------------------------------------------------------------------------------------------------


def _teacher_model(run):
    return run.params.teacher_model or run.params.model


def _common(run, training, model, seed):
    settings = {name: value for name, value in training.model_dump(mode="json").items() if name not in NEUTRAL}
    settings["view"] = asdict(VIEWS[training.view])  # what the name stands for, should its numbers change
    if training.start == "model":
        settings = {name: value for name, value in settings.items() if name not in START}
    else:
        settings["baseline"] = _baseline_record(run, seed)["sha256"]
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


def _model(run, settings, columns, seed, name):
    """Build the model of ModelParams `settings` over some classes, its random weights drawn from (seed, name)."""
    torch.manual_seed(derive_seed(seed, "init", name))
    keep = {key: getattr(settings, key) for key in ("weights", "head", "normalize", "prior", "head_width")}
    vectors = read_label_vectors(settings.label_vectors, [run.dataset.table.names[column] for column in columns])
    return build_model(settings.name, len(columns), label_vectors=vectors, **keep, **settings.options)


def _baseline_record(run, seed):
    path = run.teacher_folder(seed) / "whole.json"
    record = read_json(path) if path.exists() else {"made_of": None}
    partitions = load_partitions(run)
    if record["made_of"] != _teachers_made_of(run, seed, partitions, ["whole"])["whole"]:
        raise MissingStage(f"{path.parent} has no baseline for these parameters to start from; run 03_teachers first")
    return record


def _baseline(run, seed):
    """Return the trained baseline of a seed, which is the teacher over all classes."""
    model = _model(run, _teacher_model(run), range(len(run.dataset.table.names)), seed, "whole")
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


def _batches(run, training, seed, rows, **more):
    dataset = run.dataset
    return Batches(
        *(dataset.need_images(), dataset.table.targets, rows),
        **{"batch_size": training.batch_size, "view": training.view, "seed": seed, "device": run.device},
        **more,
    )


def _fit(run, learners, batches, training, folder, settings, seed, selection, desc):
    validation = None
    if selection is not None:
        table = run.dataset.table
        validation = Validation(run.dataset.need_images(), table.targets, selection, run.params.protocol == "paper")
    return fit(
        *(learners, batches, training, folder),
        **{"seed": seed, "about": _about(run, settings, learners[0].model, seed), "validation": validation},
        **{"files": run.dataset.table.files, "desc": desc},
    )


def _teachers_made_of(run, seed, partitions, branches):
    """Return {teacher's name: what it is made of}, branch by branch, part by part."""
    found = {}
    for branch in branches:
        common = _common(run, _teacher_training(run, branch), _teacher_model(run), seed)
        for number, part in enumerate(partitions[branch].parts):
            name = f"{branch}-{number}" if branch in ("co", "dis", "random") else branch
            found[name] = common | {"columns": [int(column) for column in part], "learner": name}
    return found


def _teacher_learners(run, seed, partitions, branches):
    training, share, learners, baseline, trunk = run.params.teachers, run.params.teachers.share, [], None, None
    if any(_teacher_training(run, branch).start == "baseline" for branch in branches):
        baseline = _baseline(run, seed)
        trunk = make_trunk(baseline, share) if share else None  # one for all: it is run once a batch
    for name, made_of in _teachers_made_of(run, seed, partitions, branches).items():
        part = made_of["columns"]
        model = _model(run, _teacher_model(run), part, seed, name)
        if made_of["training"].get("start") == "baseline":
            start_from(model, baseline, part)
            model = make_tail(model, trunk, share) if share else model
        columns = torch.tensor(part, device=run.device)
        objective = Supervised(columns, training.gamma_neg, training.gamma_pos, training.clip)
        learners.append(Learner(name, model, objective, part, made_of))
    return learners


def _equal_epochs(run):
    teachers, student, k = run.params.teachers, run.params.student, len(load_partitions(run)["co"])
    own = 1.0
    if teachers.share:
        own = own_share(_teacher_model(run), len(run.dataset.table.names), run.params.data.size, teachers.share)
    return equal_epochs(teachers, student, k, own)


def _teacher_training(run, branch):
    """Return how the teachers of a branch are trained; whole, the baseline, and long start as the papers' do."""
    training = run.params.teachers
    if branch in FROM_MODEL:
        epochs = _equal_epochs(run)[1] if branch == "long" else training.epochs
        return training.model_copy(update={"epochs": epochs, "start": "model", "share": 0, "more_epochs": None})
    return training.model_copy(update={"epochs": training.more_epochs or training.epochs, "more_epochs": None})


def _branch_folder(run, seed, branch):
    # What is trained by itself, or after the baseline, has a history and a checkpoint of its own.
    beside = "long" if branch == "long" else "" if _teacher_training(run, branch).start == "model" else "from_baseline"
    return run.teacher_folder(seed) / beside


def train_teachers(run, seed):
    """Train (or load) the teachers of one seed, all that can be side by side, and write teachers.json.

    Returns {branch: Teachers}. Raises ValueError for a backbone that teachers.share cannot cut, before anything is trained.
    """
    partitions, branches = load_partitions(run), branches_of(run.params.student.rows)
    if run.params.teachers.share:
        classes = range(len(run.dataset.table.names))
        check_split(
            _model(run, _teacher_model(run), classes, seed, "whole"), run.params.teachers.share, run.params.data.size
        )
    listing, found, folders = {}, {}, {}
    for branch in branches:
        folders.setdefault(_branch_folder(run, seed, branch), []).append(branch)
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
    training = _teacher_training(run, branch)
    rows, selection = training_rows(run, training, seed)
    desc = f"seed {seed}: {counted(len(learners), 'teacher')}{', longer' if branch == 'long' else ''}"
    folder = _branch_folder(run, seed, branch)
    batches = _batches(run, training, seed, rows)
    return _fit(run, learners, batches, training, folder, _teacher_model(run), seed, selection, desc)


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
        folder, mine = _branch_folder(run, seed, branch), [next(learners) for _ in partitions[branch].parts]
        if not all(load_learner(learner, folder) for learner in mine):
            raise MissingStage(f"{folder} has no {branch} teachers for these parameters; run 03_teachers first")
        found[branch] = Teachers([learner.model for learner in mine], partitions[branch])
    return found


# ---- 04: students --------------------------------------------------------------------------------------------------


def _targets_made_of(run, seed, branch, listing):
    """Return what a store of soft targets is made of; listing: the branch's teachers, as in teachers.json."""
    training, teaching = run.params.student, _teacher_training(run, branch)
    trunk = {"trunk": [_baseline_record(run, seed)["sha256"], teaching.share]} if teaching.share else {}
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


def _teachers_record(run, seed):
    """Return teachers.json; MissingStage when it is not there, or lists teachers made of other things than asked for now."""
    path = run.teacher_folder(seed) / "teachers.json"
    if not path.exists():
        raise MissingStage(f"no teachers in {path.parent}; run 03_teachers first")
    listing = read_json(path)
    listed = {teacher["file"]: teacher["sha256"] for branch in listing.values() for teacher in branch}
    partitions = load_partitions(run)
    for branch in branches_of(run.params.student.rows):
        for name, made_of in _teachers_made_of(run, seed, partitions, [branch]).items():
            record = _branch_folder(run, seed, branch) / f"{name}.json"
            entry = read_json(record) if record.exists() else {"made_of": None}
            if entry["made_of"] != made_of or listed.get(entry["file"]) != entry["sha256"]:
                raise MissingStage(f"{path.parent} has no teacher {name} for these parameters; run 03_teachers first")
    return listing


def open_targets(run, seed):
    """Return {branch: SoftTargets} of a seed's teachers, emptied where they were made of something else than asked for now.

    What is not in them yet is asked when a student reads it first. MissingStage as the teachers load.
    """
    training, stores = run.params.student, {}
    rows, _ = training_rows(run, training, seed)
    record = _teachers_record(run, seed)
    for branch in branches_of([row for row in training.rows if row != "baseline"]):
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
        return {branch: fold_teachers(merged, image) for branch, merged in speaking.items()}

    return Asked(stores, load, run.device, pick_precision(run.params.student.precision, run.device))


def fill_targets(run, seed):
    """Ask a seed's teachers ahead about every view a student will see; return {branch: SoftTargets}."""
    stores = open_targets(run, seed)
    if stores:
        asked, batches, training = ask_targets(run, seed, stores), student_batches(run, seed), run.params.student
        epochs = min(training.epochs, training.stop_after or training.epochs)
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
    own = _teacher_training(run, "whole").model_dump(exclude={"share", "more_epochs"})
    return run.params.student.model_copy(update=own | {"epochs": _equal_epochs(run)[0], "views": None})


def student_batches(run, seed, soft=None):
    """Return the Batches every student of `seed` trains on; soft: an Asked, what the teachers say of each batch."""
    training = run.params.student
    return _batches(run, training, seed, training_rows(run, training, seed)[0], stored_views=training.views, soft=soft)


def _student_made_of(run, seed, row):
    training = _student_training(run, row)
    common, weights = _common(run, training, run.params.model, seed), shares(row, training.alpha)
    for name in no_say(row):
        common["training"].pop(name)
    record = _teachers_record(run, seed)
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
    used = {branch: stores[branch] for branch in ROWS[row].teachers}
    asked = ask_targets(run, seed, used) if used else None
    experts = load_teachers(run, seed, ROWS[row].teachers) if ROWS[row].embeds else {}
    for merged in experts.values():
        merged.to(run.device, memory_format=torch.channels_last)
    said = {"soft": asked, "experts": experts, "precision": pick_precision(training.precision, run.device)}
    batches = _batches(run, training, seed, rows, stored_views=training.views, **said)
    made_of = _student_made_of(run, seed, row)
    # Every row starts from the same weights and sees the same views in the same order: rows differ by their loss alone.
    classes = list(range(len(run.dataset.table.names)))
    model = _model(run, run.params.model, classes, seed, "whole")
    if training.start == "baseline":
        start_from(model, _baseline(run, seed), classes)
    learner = Learner("student", model, _objective(run, training, row), classes, made_of)
    folder, desc = run.student_folder(seed, row), f"seed {seed}: student {row}"
    entries = _fit(run, [learner], batches, training, folder, run.params.model, seed, selection, desc)
    return learner.model, entries["student"]


def load_student(run, seed, row):
    """Return (model, record) of a row's finished student; the baseline's is the teacher over all classes itself.

    MissingStage when it is not there, or was made with other parameters than the run has now.
    """
    baseline = row == "baseline"
    folder = run.teacher_folder(seed) if baseline else run.student_folder(seed, row)
    record, notebook = (folder / "whole.json", "03_teachers") if baseline else (folder / "student.json", "04_student")
    expected = (
        _common(run, _teacher_training(run, "whole"), run.params.model, seed)
        if baseline
        else _student_made_of(run, seed, row)
    )
    if not record.exists() or read_json(record)["made_of"] | expected != read_json(record)["made_of"]:
        raise MissingStage(f"{folder} has no {row} model for these parameters; run {notebook} first")
    model = _model(run, run.params.model, range(len(run.dataset.table.names)), seed, "whole")
    entry = load_weights(model, record)
    if entry is None:
        raise MissingStage(f"the weights beside {record} are gone or were changed; run {notebook} again")
    return model, entry
