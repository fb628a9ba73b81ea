"""A run: its parameters, its folder, its data (stage 01) and its label graph cut into parts (stage 02)."""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from cpsd_lib import graph, partition
from cpsd_lib.data import UNLABELLED, open_dataset
from cpsd_lib.partition import Partition
from cpsd_lib.support import derive_seed, keep_freed_memory, pick_device, sha256, write_json, write_text
from cpsd_lib.teachers import Copies
from cpsd_lib.workbench.loading import (
    Cut,
    Described,
    Noted,
    check_count,
    check_cut,
    load_params,
    on_disk,
    own_params,
    read_form,
)
from cpsd_lib.workbench.rows import BRANCHES, ROWS, unread_by
from cpsd_lib.workbench.store import Store
from cpsd_lib.workbench.yaml_files import Stopped, flow_text, mapping, outputs_root, parse_overrides, parse_yaml


class MissingStage(Stopped):
    """A notebook needs what an earlier one makes."""


def left_by(stage, path):
    """Return the path of a file that a stage leaves; MissingStage where it has not run."""
    if not path.exists():
        raise MissingStage(f"there is no {path.name} in {path.parent}; run {stage} first")
    return path


def open_run(params="demo", overrides=None):
    """Return the Run of a parameter file (name in params/ or path) with overrides, a dict of dotted keys.

    The first call of every notebook. Raises ParameterError before anything is computed.
    """
    keep_freed_memory()
    return Run(load_params(params, overrides_of(overrides)))


def overrides_of(overrides):
    """Return a notebook's overrides as a dict: papermill -p hands text over, '{...}' or key=value words as on a command line."""
    if isinstance(overrides, str) and re.match(r"[\w.]+=", overrides):
        return parse_overrides(shlex.split(overrides))
    value = parse_yaml(overrides, "overrides") if isinstance(overrides, str) else overrides
    return mapping(value or {}, "overrides")


@dataclass(frozen=True)
class Run:
    """Parameters, and the folder below outputs/ that everything made from them is written to."""

    params: object

    @property
    def folder(self):
        """The run's folder, made on first use."""
        folder = outputs_root() / self.params.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @cached_property
    def dataset(self):
        """The Dataset, decoded on first use into a cache that all runs share."""
        return open_dataset(self.params.data, outputs_root() / ".cache")

    @property
    def described(self):
        """What 01_data wrote down of the data, data.json: all that a reader of results needs; no photo has to be there.

        MissingStage where 01_data has not run.
        """
        path = self.folder / "data.json"
        if self.params.evaluation.released and not path.exists():  # it has no 01_data
            return describe_data(self)
        return read_form(left_by("01_data", path), Described)

    @cached_property
    def device(self):
        """The torch device teachers and students are trained on."""
        return pick_device(self.params.device)

    @property
    def store(self):
        """The Store of all runs' models and soft targets."""
        return Store()

    @property
    def _artifacts(self):
        path = self.folder / "artifacts.json"
        return read_form(path, dict[str, Noted]) if path.exists() else {}

    def note(self, name, keys):
        """Write down in artifacts.json which artifacts `name`, such as seed0/teachers/co, are, and by which parameters."""
        entry = {"keys": keys, "params": self.made_with(*name.split("/")[1:])}
        write_json(self.folder / "artifacts.json", self._artifacts | {name: entry})

    def noted(self, kinds):
        """Return {name: keys} of artifacts.json whose names are of some kinds: teachers, students, soft_targets."""
        return {name: entry["keys"] for name, entry in self._artifacts.items() if name.split("/")[1] in kinds}

    def forget(self, kinds):
        """Take the names of some kinds out of artifacts.json; the artifacts themselves stay in the store."""
        left = {name: entry for name, entry in self._artifacts.items() if name.split("/")[1] not in kinds}
        if left != self._artifacts:
            write_json(self.folder / "artifacts.json", left)

    def keys(self, seed, name):
        """Return the keys of a row's model, or of the experts of teachers_<branch>, as noted; whoever reads computes none.

        MissingStage, naming the notebook that makes them, when they are not noted or were made by other parameters.
        """
        name = "teachers_whole" if name == "baseline" else name  # it is the teacher over all classes itself
        branch = name.removeprefix("teachers_")
        kind, notebook = ("students", "04_student") if branch == name else ("teachers", "03_teachers")
        path = f"seed{seed}/{kind}/{branch}"
        noted = self._artifacts.get(path)
        if noted is None or not _as_noted(noted["params"], self.made_with(kind, branch), self.params):
            raise MissingStage(f"{self.folder} has no {path} for these parameters; run {notebook} first")
        return noted["keys"]

    def made_with(self, kind, row=None):
        """Return the parameters {section: {name: value}} that artifacts of a kind (teachers, students, ...) may depend on."""
        read = {"data", "protocol", "partition", "model", "teacher_model", "wide_model", "teachers"}
        read |= set() if kind == "teachers" else {"student"}
        unread = {"checkpoint_seconds", "rows"} | (unread_by(row) if kind == "students" and row else set())
        exclude = {"teachers": {"checkpoint_seconds"}, "student": unread, "partition": _COMPARED}
        return self.params.model_dump(mode="json", include=read, exclude=exclude)

    def figure(self, name):
        """Return the path of a figure of this run."""
        return self.folder / "figures" / f"{name}.png"


def _as_noted(noted, now, settings):
    """Return whether noted values are today's of some `settings`; a parameter that was added since had its default then."""
    if not (isinstance(noted, dict) and isinstance(now, dict) and isinstance(settings, BaseModel)):
        return noted == now
    fields = type(settings).model_fields.items()
    noted = {name: field.get_default() for name, field in fields if name in now.keys() - noted.keys()} | noted
    return noted.keys() == now.keys() and all(
        _as_noted(noted[name], now[name], getattr(settings, name, None)) for name in now
    )


def params_text(params):
    """Return resolved parameters as YAML text, a line or two a section, as they stand in a run's params.yaml."""
    return "".join(f"{name}: {flow_text(value)}" for name, value in params.model_dump(mode="json").items())


def show_params(run):
    """Show in a notebook what a run's parameters have beside the defaults, and all of them folded."""
    from IPython.display import display  # 0.2 s that the command line does not wait for

    own = "".join(f"{name}: {flow_text(value)}" for name, value in own_params(run.params).items())
    folded = f"<details><summary>all parameters</summary><pre>{escape(params_text(run.params))}</pre></details>"
    text = f"{own}(all else by default: cpsd params)"
    display({"text/plain": text, "text/html": f"<pre>{escape(own)}</pre>{folded}"}, raw=True)


def save_params(run):
    """Write the resolved parameters to the run's folder."""
    write_text(run.folder / "params.yaml", params_text(run.params))


def describe_data(run):
    """Write data.json, what a reader of the run should know of its data, and return it."""
    dataset, table = run.dataset, run.dataset.table
    indices = {split: table.indices(split) for split in sorted(set(table.split))}
    described = {
        "key": dataset.key,
        "class_names": table.names,
        "notes": dataset.notes,
        "skipped": dataset.skipped,
        "incomplete": dataset.incomplete,
        "positives": {split: (table.targets[places] == 1).sum(0).tolist() for split, places in indices.items()},
        "images": {split: len(places) for split, places in indices.items()},
    }
    write_json(run.folder / "data.json", described)
    return described


# ---- 02: partition -------------------------------------------------------------------------------------------------


def training_indices(run, training, seed, row=None):
    """Return (images to train on, images that select the epoch or None): only 05_evaluation and `protocol: paper` see test.

    row: whose student this is; those that use images without labels train on these too.
    """
    table, selection = run.dataset.table, None
    train = table.indices("train")
    if run.params.protocol == "paper":
        selection = table.indices("test")
    elif training.select == "val":
        selection = table.indices("val")
        if not len(selection):
            check_count(run.params, table)  # again, without the images that could not be read
            drawn = np.random.default_rng(derive_seed(seed, "held out")).permutation(train)
            selection = np.sort(drawn[: training.held_out(len(train))])
            train = np.setdiff1d(train, selection)
    if row and ROWS[row].uses_unlabelled:
        train = np.union1d(train, table.indices(UNLABELLED))
    return train, selection


def held_out_indices(run, seed):
    """Return the images [n] of train or val that no weight was fitted to; None where the run holds none out.

    Under `protocol: paper` the images that select the epoch are test images, and thresholds are not tuned on those. Where
    the data has no val split, teachers and students must have held out the same images.
    """
    teachers, student = run.params.teachers, run.params.student
    alike = (teachers.select, teachers.val_share) == (student.select, student.val_share)
    if run.params.protocol == "paper" or not (alike or len(run.dataset.table.indices("val"))):
        return None
    return training_indices(run, student, seed)[1]


def label_graph(run, branch, self_loops=None):
    """Return the affinity [C, C] of a branch ("co", "dis") of the train split's labels; None: as the parameters have it."""
    table, settings = run.dataset.table, run.params.partition
    counts, occurrence = graph.cooccurrence(table.targets[table.indices("train")])
    self_loops = settings.self_loops if self_loops is None else self_loops
    return graph.affinity(counts, occurrence, branch, settings.exponent, self_loops)


def cut_labels(run):
    """Cut the label graph in both branches, write partition/{co,dis}.json and return {branch: Partition}.

    With partition.use_released the parts are those of the two files, whatever k is.
    """
    settings = run.params.partition
    check_cut(run.params, run.dataset.table)
    describe_data(run)  # of the data that is cut, also where 01_data was left out
    if settings.use_released:
        partitions = released_partitions(settings, len(run.dataset.table.names))
    else:
        refine = {"co": settings.refine_co, "dis": settings.refine_dis}
        k, seed, balance = settings.k, settings.seed, settings.balance
        partitions = {b: partition.cut(label_graph(run, b), k, seed, refine[b], balance) for b in refine}
    for branch, cut in partitions.items():
        cut.save(run.folder / "partition" / f"{branch}.json")
    write_json(run.folder / "partition" / "fingerprint.json", _partition_fingerprint(run, run.dataset.key))
    return partitions


CUT_BY = (graph.cooccurrence, graph.affinity, partition.cut)
_COMPARED = {"study_k", "study_repeats"}  # parameters of what a cut is compared with; all others determine it


def released_partitions(settings, num_classes):
    """Return {branch: Partition} of the files PartitionParams name, ours or the paper's form; {} when they name none."""
    settings = on_disk("partition", settings)
    named = {"co": settings.released_co, "dis": settings.released_dis}
    return {branch: Partition.load(file, num_classes) for branch, file in named.items() if file}


def _partition_fingerprint(run, data_key):
    settings = run.params.partition
    if settings.use_released:
        files = {"co": settings.released_co, "dis": settings.released_dis}
        fingerprint = {branch: sha256(file) for branch, file in files.items() if Path(file).is_file()}
    else:
        fingerprint = settings.model_dump(mode="json", exclude=_COMPARED)
    return {"data": data_key, "partition": fingerprint}


def load_partitions(run, data_key=None):
    """Return {branch: Partition} of rows.BRANCHES; MissingStage when 02_partition has not run with these parameters.

    data_key: of the data that a maker is about to train on; None: what 01_data saw, for whoever reads results.
    """
    folder = run.folder / "partition"
    path = folder / "fingerprint.json"
    missing = MissingStage(f"{folder} has no partition for these parameters; run 02_partition first")
    if not path.exists():
        raise missing
    noted, now = read_form(path, Cut), _partition_fingerprint(run, data_key or run.described["key"])
    if run.params.partition.use_released:  # whose files need not be where a finished run is opened
        now["partition"] = noted["partition"] | now["partition"]
    if not _as_noted(noted, now, run.params):
        raise missing
    num_classes = len(run.described["class_names"])
    loaded = {b: Partition.load(folder / f"{b}.json", num_classes) for b in ("co", "dis")}
    whole = Partition([list(range(num_classes))], num_classes)
    seed = run.params.partition.seed
    for branch, draw in (("random", seed), ("random_2", derive_seed(seed, "draw", 2))):
        loaded[branch] = partition.random_partition(num_classes, len(loaded["co"]), seed=draw)
    loaded["ensemble"] = Copies(len(loaded["co"]) + len(loaded["dis"]), num_classes)
    return {branch: loaded.get(branch, whole) for branch in BRANCHES}
