"""Photos -> labels: `cpsd predict`, whose CSV grows block by block and is gone on with after a stop."""

import csv
import os
import sys
import time
from contextlib import ExitStack, suppress
from hashlib import sha1
from itertools import compress
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cpsd_lib.data import decode_batches
from cpsd_lib.evaluation import decisions
from cpsd_lib.models import fold_models
from cpsd_lib.support import bar, cores, counted, digest, listed, read_json, write_json
from cpsd_lib.training import calibrate, predict
from cpsd_lib.workbench.model_folder import calibration_of, state_of
from cpsd_lib.workbench.yaml_files import ParameterError


def label_photos(model, photos, path=None, threshold=None, calibrated=False, batch_size=64, resume=False):
    """Label photos by a model of `load_model`; return {file: reason} of those that could not be read.

    photos: paths as text, each once. path: the CSV, with columns file_name, labels (joined by ;) and p_<class>, and beside
    it <path>.json, what made it; None: a line a photo on the terminal. threshold: a number, "top3", "tuned" on held-out
    images, or None: tuned where the run held some out, else 0.5. resume: go on with a CSV that was begun.
    Raises ValueError before any photo is read for what cannot be done, and where no photo could be read.
    """
    began, calibration = time.perf_counter(), calibration_of(model, calibrated)
    rule, limit = _rule(model, threshold, calibration)
    of_model = {"run", "row", "seed", "class_names", "thresholds", "calibration"}
    made_by = model.config.model_dump(mode="json", include=of_model)
    made_by |= {"threshold": threshold, "calibrated": calibrated}
    made_by["weights"] = digest([sha1(x.cpu().numpy()).hexdigest() for x in state_of(model).values()])
    done = _begin(path, made_by, resume) if path else set()
    if done and not done & set(photos):
        raise ParameterError(f"{path} has other photos, such as {min(done)}; write paths as they were written")
    todo, unreadable, read = [photo for photo in photos if photo not in done], {}, 0
    folded = fold_models({"": model}, model.input_size)[""]
    threads, ended = torch.get_num_threads(), time.perf_counter()
    with ExitStack() as end:
        end.callback(torch.set_num_threads, threads)
        shown = end.enter_context(bar(len(photos), "predicting", "img", len(photos) - len(todo))) if path else None
        for number, (indices, pixels, bad) in enumerate(decode_batches(todo, model.input_size, batch_size, cores())):
            unreadable |= {todo[index]: reason for index, reason in bad.items()}
            before, decoded = ended, time.perf_counter()
            if len(indices):
                read += len(indices)
                values = calibrate(predict(folded, pixels, batch_size), calibration)
                labels = [list(compress(model.class_names, one)) for one in decisions(values, rule, limit)]
                table = pd.DataFrame(values, pd.Index([todo[i] for i in indices], dtype=object), model.class_names)
                _append(path, table, labels) if path else _show(table, labels)
            if path:
                shown.update(len(indices) + len(bad))
            ended = time.perf_counter()
            if number == 1:  # still decoded here; beside worker processes the model takes its share of the cores
                seconds = threads * (ended - decoded)
                torch.set_num_threads(max(1, min(threads, round(cores() * seconds / (seconds + decoded - before)))))
    reasons = listed((f"{file}: {reason}" for file, reason in unreadable.items()), join="\n  ")
    if not read and len(todo) == len(photos):
        raise ValueError(f"none of {counted(len(todo), 'photo')} could be read:\n  {reasons}")
    if unreadable:
        print(f"{counted(len(unreadable), 'photo')} could not be read:\n  {reasons}", file=sys.stderr)
    if path:
        write_json(f"{path}.json", made_by | {"unreadable": unreadable})
        seconds, before = time.perf_counter() - began, len(photos) - len(todo)
        print(f"{path}: {counted(read, 'photo')} in {seconds:.1f} s; {before:,} were there already")
    return unreadable


def _rule(model, threshold, calibration):
    """Return (threshold, top_k) of `decisions`; a note says where none could be tuned."""
    if threshold == "top3":
        return 0.0, min(3, len(model.class_names))
    if threshold not in (None, "tuned"):
        return threshold, None
    if model.thresholds is not None:  # tuned for the probabilities as the model gives them
        return calibrate(model.thresholds.astype(np.float32), calibration), None
    if threshold == "tuned":
        raise ParameterError(f"no tuned thresholds, tuned on: {model.config.tuned_on}; take --threshold 0.5 or top3")
    print(f"threshold 0.5 for every class, tuned on: {model.config.tuned_on}", file=sys.stderr)
    return 0.5, None


def _show(table, labels):
    for (file, values), chosen in zip(table.iterrows(), labels, strict=True):
        shown = ", ".join(f"{name} {values[name]:.2f}" for name in chosen)
        print(f"{file}: {shown or f'no label (highest: {values.idxmax()} {values.max():.2f})'}")


def _append(path, table, labels):
    """Append a line a photo to a CSV; one that is empty gets its header first."""
    table = table.add_prefix("p_")
    table.insert(0, "labels", [";".join(chosen) for chosen in labels])
    form = {"index_label": "file_name", "float_format": "%.7g", "header": not os.path.getsize(path)}
    table.to_csv(path, mode="a", errors="surrogateescape", **form)  # the bytes of a file name need not be UTF-8


def _begin(path, made_by, resume):
    """Begin a CSV, or repair one that was begun; return the photos that are in it.

    Raises ParameterError for one that is not to be gone on with, or was made otherwise, ValueError for a damaged one.
    """
    beside = Path(f"{path}.json")
    if any(";" in name for name in made_by["class_names"]):
        print("some class names hold the `;` that joins the labels: read the columns p_<class>", file=sys.stderr)
    if not os.path.exists(path):
        write_json(beside, made_by)
        Path(path).touch()
        return set()
    if not resume:
        raise ParameterError(f"{path} exists; --resume goes on with it, or give --csv another name")
    before = read_json(beside) if beside.is_file() else {}
    if other := [name for name, value in made_by.items() if before.get(name, beside) != value]:
        what = f"{path} was made by another model or other settings: {beside} has another {', '.join(other)}"
        raise ParameterError(f"{what}; give --csv another name")
    with open(path, "r+b") as file:
        file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))  # a stop may have cut off the last
    columns = ["file_name", "labels", *(f"p_{name}" for name in made_by["class_names"])]
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines, done = csv.reader(file), {None}
        with suppress(csv.Error):  # a quotation mark too many makes a field of the whole rest
            if next(lines, columns) == columns:
                done = {line[0] if len(line) == len(columns) and line[-1] else None for line in lines}
    if None in done:
        raise ValueError(f"{path} is damaged, or not this model's; begin another")
    return done
