"""What each stage does with a run's parameters: the glue between the notebooks and the library."""

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
import yaml

from cpsd_lib import graph, partition, teachers
from cpsd_lib.batches import VIEWS, Batches
from cpsd_lib.data.dataset import open_dataset
from cpsd_lib.files import digest, read_json, sha256, write_json, write_text
from cpsd_lib.models import build_model, preprocessing
from cpsd_lib.objectives import SelfDistillation, Supervised, student_weights
from cpsd_lib.params import ParameterError, load_params, outputs_root
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import SoftTargets, StaleTargets, Teachers
from cpsd_lib.train import (
    Learner,
    Validation,
    derive_seed,
    fit,
    load_learner,
    load_weights,
    pick_device,
    pick_precision,
)

# Which branches of teachers a row of the component table needs; the baseline is the teacher over all classes itself.
BRANCHES = {"baseline": ["whole"], "sd": ["whole"], "cgpd": ["co"], "dgpd": ["dis"], "cpsd": ["co", "dis"]}
TEST_SPLITS = ("test", "test_shifted")
# What does not change a result is no part of what the result is made of.
_NEUTRAL = {"checkpoint_seconds", "device", "rows"}


class MissingStage(RuntimeError):
    """A notebook needs what an earlier one makes."""


def open_run(params="demo", overrides=None):
    """Return the Run of a parameter file (name in params/ or path) with overrides, a dict of dotted keys.

    The first call of every notebook. Raises ParameterError before anything is computed.
    """
    if isinstance(overrides, str):  # papermill -p overrides '{...}' hands text over
        overrides = yaml.safe_load(overrides)
    return Run(load_params(params, overrides))


@dataclass(frozen=True)
class Run:
    """Parameters, and the folder below outputs/ that everything made from them is written to."""

    params: object

    @property
    def folder(self):
        """The run's folder; it is made when first asked for."""
        folder = outputs_root() / self.params.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def dataset(self):
        """The Dataset, decoded on first use into a cache that all runs share."""
        return open_dataset(self.params.data, outputs_root() / ".cache")

    @cached_property
    def device(self):
        """The torch device teachers and students are trained on."""
        return pick_device(self.params.teachers.device)

    def teacher_folder(self, seed):
        return self.folder / f"seed{seed}" / "teachers"

    def student_folder(self, seed, row):
        return self.folder / f"seed{seed}" / "students" / row

    def target_path(self, seed, branch):
        return self.folder / f"seed{seed}" / "soft_targets" / f"{branch}.f16"

    def figure(self, name):
        """Return the path of a figure of this run."""
        return self.folder / "figures" / f"{name}.png"


def show_params(run):
    """Return the resolved parameters as YAML text, a line or two a section, as they stand in the run's params.yaml."""
    lines = []
    for name, value in run.params.model_dump(mode="json").items():
        text = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=110).removesuffix("...\n")
        lines.append(f"{name}: {text}")
    return "".join(lines)


def save_params(run):
    """Write the resolved parameters to the run's folder."""
    write_text(run.folder / "params.yaml", show_params(run))


def describe_data(run):
    """Write data.json, what a reader of the run should know of its data, and return it."""
    table = run.dataset.table
    found = {
        "key": run.dataset.key,
        "class_names": table.names,
        "notes": run.dataset.notes,
        "skipped": run.dataset.skipped,
    }
    found["positives"] = {
        split: (table.targets[table.rows(split)] == 1).sum(0).tolist() for split in sorted(set(table.split))
    }
    found["images"] = {split: len(table.rows(split)) for split in found["positives"]}
    write_json(run.folder / "data.json", found)
    return found


# ---- 02: partition -------------------------------------------------------------------------------------------------


def training_rows(run, training, seed):
    """Return (rows to train on, rows that select the epoch or None): only 05_evaluation and `protocol: paper` see test."""
    table = run.dataset.table
    train = table.rows("train")
    if run.params.protocol == "paper":
        return train, table.rows("test")
    if training.select == "last":
        return train, None
    if len(table.rows("val")):
        return train, table.rows("val")
    held_out = np.random.default_rng(derive_seed(seed, "held out")).permutation(train)[
        : int(training.val_share * len(train))
    ]
    return np.setdiff1d(train, held_out), np.sort(held_out)


def label_graph(run, branch, exponent=None):
    """Return the affinity [C, C] of a branch ("co", "dis") from the labels of the train split."""
    counts, occurrence = graph.cooccurrence(run.dataset.table.targets[run.dataset.table.rows("train")])
    return graph.affinity(counts, occurrence, branch, run.params.partition.exponent if exponent is None else exponent)


def cut_labels(run):
    """Cut the label graph in both branches, write partition/{co,dis}.json and return {branch: Partition}."""
    settings = run.params.partition
    num_classes = len(run.dataset.table.names)
    if settings.k > num_classes:
        raise ParameterError(f"partition.k is {settings.k}, but the data set has only {num_classes} classes")
    found = {}
    for branch, refine in (("co", settings.refine_co), ("dis", settings.refine_dis)):
        found[branch] = partition.cut(label_graph(run, branch), settings.k, settings.seed, refine)
        found[branch].save(run.folder / "partition" / f"{branch}.json")
    write_json(run.folder / "partition" / "made_of.json", _partition_made_of(run))
    return found


def _partition_made_of(run):
    return {"data": run.dataset.key, "partition": run.params.partition.model_dump(mode="json")}


def load_partitions(run):
    """Return {"whole", "co", "dis": Partition}; MissingStage when 02_partition has not run with these parameters."""
    made_of = run.folder / "partition" / "made_of.json"
    if not made_of.exists() or read_json(made_of) != _partition_made_of(run):
        raise MissingStage(f"{run.folder / 'partition'} has no partition for these parameters; run 02_partition first")
    num_classes = len(run.dataset.table.names)
    loaded = {b: Partition.load(run.folder / "partition" / f"{b}.json", num_classes) for b in ("co", "dis")}
    return {"whole": Partition([list(range(num_classes))], num_classes)} | loaded


# ---- 03: teachers --------------------------------------------------------------------------------------------------


def branches_of(rows):
    """Return the branches whose teachers the rows of a table need, in the order whole, co, dis."""
    needed = {branch for row in rows for branch in BRANCHES[row]}
    return [branch for branch in ("whole", "co", "dis") if branch in needed]


def _common(run, training, seed):
    settings = {name: value for name, value in training.model_dump(mode="json").items() if name not in _NEUTRAL}
    settings["view"] = asdict(VIEWS[training.view])  # what the name stands for, should its numbers change
    model = run.params.model.model_dump(mode="json")
    if model["weights"] not in (None, "imagenet"):
        model["weights"] = sha256(model["weights"])  # the same bytes under another name are the same weights
    return {
        "data": run.dataset.key,
        "model": model,
        "training": settings,
        "seed": seed,
        "protocol": run.params.protocol,
    }


def _model(run, num_classes, seed, name):
    torch.manual_seed(derive_seed(seed, "init", name))
    settings = run.params.model
    keep = {name: getattr(settings, name) for name in ("weights", "head", "normalize", "prior")}
    return build_model(settings.name, num_classes, **keep, **settings.options)


def _about(run, model, seed):
    return {
        "class_names": run.dataset.table.names,
        "architecture": {
            "name": run.params.model.name,
            "head": run.params.model.head,
            "options": run.params.model.options,
        },
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


def _fit(run, learners, batches, training, folder, seed, selection, desc):
    validation = None
    if selection is not None:
        table = run.dataset.table
        validation = Validation(run.dataset.need_images(), table.targets, selection, run.params.protocol == "paper")
    return fit(
        *(learners, batches, training, folder),
        **{"seed": seed, "about": _about(run, learners[0].model, seed), "validation": validation},
        **{"files": run.dataset.table.files, "desc": desc},
    )


def _teacher_learners(run, seed, partitions, branches):
    training = run.params.teachers
    common = _common(run, training, seed)
    learners = []
    for branch in branches:
        for number, part in enumerate(partitions[branch].parts):
            name = "whole" if branch == "whole" else f"{branch}-{number}"
            columns = torch.tensor(part, device=run.device)
            objective = Supervised(columns, training.gamma_neg, training.gamma_pos, training.clip)
            made_of = common | {"columns": [int(column) for column in part], "learner": name}
            learners.append(Learner(name, _model(run, len(part), seed, name), objective, list(part), made_of))
    return learners


def train_teachers(run, seed):
    """Train (or load) every teacher of one seed side by side and write teachers.json; return {branch: Teachers}."""
    training, partitions = run.params.teachers, load_partitions(run)
    rows, selection = training_rows(run, training, seed)
    branches = branches_of(run.params.student.rows)
    learners = _teacher_learners(run, seed, partitions, branches)
    folder = run.teacher_folder(seed)
    desc = f"seed {seed}: {len(learners)} teachers"
    entries = _fit(run, learners, _batches(run, training, seed, rows), training, folder, seed, selection, desc)
    listing, start, found = {}, 0, {}
    for branch in branches:
        mine = learners[start : (start := start + len(partitions[branch].parts))]
        found[branch] = Teachers([learner.model for learner in mine], partitions[branch])
        # By part, in order: the release found its teachers by file name and mixed them up from the 11th part on.
        listing[branch] = [{"part": p, **_short(entries[x.name])} for p, x in enumerate(mine)]
    write_json(folder / "teachers.json", listing)
    return found


def _short(entry):
    return {name: entry[name] for name in ("file", "sha256", "columns", "weights", "epoch", "val_map", "seconds")}


def load_teachers(run, seed):
    """Return {branch: Teachers} as 03_teachers left them; MissingStage when they are not there or are made of other things."""
    folder, partitions = run.teacher_folder(seed), load_partitions(run)
    branches = branches_of(run.params.student.rows)
    found = {}
    for branch in branches:
        learners = _teacher_learners(run, seed, partitions, [branch])
        if not all(load_learner(learner, folder) for learner in learners):
            raise MissingStage(f"{folder} has no {branch} teachers for these parameters; run 03_teachers first")
        found[branch] = Teachers([learner.model for learner in learners], partitions[branch])
    return found


# ---- 04: students --------------------------------------------------------------------------------------------------


def open_targets(run, seed, teachers_record):
    """Return {branch: SoftTargets} of one seed, emptied where they were made of something else than asked for now."""
    training = run.params.student
    rows, _ = training_rows(run, training, seed)
    stored_views = min(training.views or training.epochs, training.epochs)
    stores = {}
    for branch, listing in teachers_record.items():
        made_of = {
            "teachers": [[teacher["sha256"], teacher["columns"]] for teacher in listing],
            "classes": run.dataset.table.names,
            "images": run.dataset.key,
            "rows": digest(rows.tolist()),
            "view": asdict(VIEWS[training.view]),
            "view_seed": seed,
            "precision": str(pick_precision(training.precision, run.device)),
        }
        arguments = (run.target_path(seed, branch), made_of, rows, len(run.dataset.table.names), stored_views)
        try:
            stores[branch] = SoftTargets(*arguments)
        except StaleTargets as stale:
            print(f"filled again: {stale}")
            teachers.remove_store(arguments[0])
            stores[branch] = SoftTargets(*arguments)
    return stores


def _teachers_record(run, seed):
    path = run.teacher_folder(seed) / "teachers.json"
    if not path.exists():
        raise MissingStage(f"no teachers in {path.parent}; run 03_teachers first")
    return read_json(path)


def fill_targets(run, seed):
    """Let every branch's teachers speak once about every view a student will see; return {branch: SoftTargets}."""
    training = run.params.student
    distilled = (
        branches_of([row for row in training.rows if row != "baseline"]) if set(training.rows) - {"baseline"} else []
    )
    record = {branch: listing for branch, listing in _teachers_record(run, seed).items() if branch in distilled}
    stores = open_targets(run, seed, record)
    if any(store.missing() for store in stores.values()):
        precision = pick_precision(training.precision, run.device)
        teachers.fill(
            stores,
            load_teachers(run, seed),
            student_batches(run, seed).view,
            run.device,
            f"seed {seed}: soft targets",
            precision=precision,
        )
    return stores


def student_batches(run, seed, soft=None):
    """Return the Batches every student of `seed` trains on; soft: {branch: SoftTargets} to read beside the targets."""
    training = run.params.student
    return _batches(run, training, seed, training_rows(run, training, seed)[0], stored_views=training.views, soft=soft)


def train_student(run, seed, row, stores):
    """Train (or load) the student of one row of the table; return (model, what is written beside its weights)."""
    training = run.params.student
    weights = student_weights(row, training.alpha)
    selection = training_rows(run, training, seed)[1]
    used = {branch: stores[branch] for branch in weights}
    batches = student_batches(run, seed, used)
    num_classes = len(run.dataset.table.names)
    settings = {
        "match": training.match,
        "gamma_neg": training.gamma_neg,
        "gamma_pos": training.gamma_pos,
        "clip": training.clip,
    }
    objective = SelfDistillation(weights, **settings)
    common = _common(run, training, seed)
    if row != "cpsd":
        common["training"].pop("alpha")  # another alpha is another CPSD student, and nothing else
    made_of = common | {"weights": weights, "targets": {branch: store.made_of for branch, store in used.items()}}
    # Every row starts from the same weights and sees the same views in the same order: rows differ by their loss alone.
    learner = Learner("student", _model(run, num_classes, seed, "whole"), objective, list(range(num_classes)), made_of)
    desc = f"seed {seed}: student {row}"
    entry = _fit(run, [learner], batches, training, run.student_folder(seed, row), seed, selection, desc)["student"]
    return learner.model, entry


def load_student(run, seed, row):
    """Return (model, record) of a row's finished student; the baseline's is the teacher over all classes itself.

    MissingStage when it is not there, or was made with other parameters than the run has now.
    """
    baseline = row == "baseline"
    folder = run.teacher_folder(seed) if baseline else run.student_folder(seed, row)
    record, notebook = (folder / "whole.json", "03_teachers") if baseline else (folder / "student.json", "04_student")
    expected = _common(run, run.params.teachers if baseline else run.params.student, seed)
    if row not in ("baseline", "cpsd"):
        expected["training"].pop("alpha")
    if not record.exists() or read_json(record)["made_of"] | expected != read_json(record)["made_of"]:
        raise MissingStage(f"{folder} has no {row} model for these parameters; run {notebook} first")
    model = _model(run, len(run.dataset.table.names), seed, "whole")
    entry = load_weights(model, record)
    if entry is None:
        raise MissingStage(f"the weights beside {record} are gone or were changed; run {notebook} again")
    return model, entry
