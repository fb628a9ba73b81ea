"""A small run by `cpsd run`, in a forked process that can be killed: stages as the notebooks have them, without kernels."""

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import traceback
from pathlib import Path
from unittest.mock import patch

import papermill
from papermill.exceptions import PapermillExecutionError

from cpsd_lib import cli
from cpsd_lib.support import read_json, sha256
from cpsd_lib.workbench import open_run
from cpsd_lib.workbench.making import train_student, train_teachers
from cpsd_lib.workbench.run import cut_labels, describe_data
from cpsd_lib.workbench.scoring import evaluate

# Every step is a checkpoint. Six models: a baseline, four experts, a student.
WORDS = ["run", "tiny", "data.images=100", "partition.k=2", "train.epochs=2", "train.batch_size=16"]
WORDS += ["train.checkpoint_seconds=0", "student.rows=[baseline, cpsd]"]
fork = multiprocessing.get_context("fork")


def _stage(notebook, out, parameters, **_):
    """Do what a stage's notebook does, instead of papermill; what it raises is raised as papermill raises it."""
    name, run = Path(notebook).stem, open_run(parameters["params"])
    (run.folder / "stage").write_text(name)
    try:
        if name == "01_data":
            describe_data(run)
        elif name == "02_partition":
            cut_labels(run)
        elif name == "03_teachers":
            train_teachers(run, 0)
        elif name == "04_student":
            train_student(run, 0, "cpsd")
        elif name == "05_evaluation":
            evaluate(run)
        shutil.copy(notebook, out)
    except Exception as error:
        raise PapermillExecutionError(0, 0, "", type(error).__name__, str(error), []) from error


def _work(outputs, before, words):
    os.setsid()  # a group of its own, that is killed as a whole
    os.environ["CPSD_OUTPUTS"] = str(outputs)
    with (
        open(outputs / "said", "w", buffering=1) as said,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        status = 3
        try:
            if before:
                before()
            with patch.object(papermill, "execute_notebook", _stage):
                status = cli.main([*WORDS, *words])
        except BaseException:
            traceback.print_exc()
        said.flush()
        os._exit(status)


def start(outputs, before=None, words=()):
    """Start the run in a process of its own, after before(); it ends with the status of `cpsd run`, 3 for a traceback."""
    outputs.mkdir(parents=True, exist_ok=True)
    process = fork.Process(target=_work, args=(outputs, before, words))
    sys.stdout.flush()
    process.start()
    return process


def finish(outputs, before=None, words=()):
    """Run to the end; return (status, all that was said)."""
    process = start(outputs, before, words)
    process.join()
    return process.exitcode, (outputs / "said").read_text()


def result(outputs, name="tiny"):
    """Return what a run ends with: the bytes of its parts, of each model by its name, and its scores without seconds."""
    folder = outputs / name
    keys = {name: entry["keys"] for name, entry in read_json(folder / "artifacts.json").items()}
    # Which soft targets are listed depends on where a training was resumed; what a student learnt from them does not.
    models = {name: some for name, some in keys.items() if "/soft_targets/" not in name}
    store = outputs / ".store" / "model"
    bytes_of = {name: [sha256(store / key / "model.safetensors") for key in some] for name, some in models.items()}
    paths = [*folder.glob("partition/*.json"), *folder.glob("evaluation/scores/*.npy")]
    scores = [{k: v for k, v in r.items() if k != "seconds"} for r in read_json(folder / "evaluation" / "metrics.json")]
    return json.dumps([bytes_of, {path.name: sha256(path) for path in sorted(paths)}, scores], sort_keys=True)
