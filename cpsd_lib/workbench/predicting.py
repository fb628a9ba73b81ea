"""Photos -> labels: `cpsd predict`, whose CSV grows block by block and is gone on with after a stop."""

import csv
import os
import sys
import time
from contextlib import nullcontext, suppress
from hashlib import sha1
from pathlib import Path

from cpsd_lib.data import decode_batches, listed
from cpsd_lib.evaluation import decisions
from cpsd_lib.support import bar, cores, counted, digest, read_json, write_json
from cpsd_lib.training import calibrate, predict
from cpsd_lib.workbench.model_folder import state_of
from cpsd_lib.workbench.yaml_files import ParameterError


def label_photos(model, photos, path=None, threshold=None, calibrated=False, batch_size=64, resume=False):
    """Label photos by a model of `load_model`; return {file: reason} of those that could not be read.

    photos: paths as text, each once. path: the CSV, with columns file_name, labels (joined by ;) and p_<class>, and beside
    it <path>.json, what made it; None: a line a photo on the terminal. threshold: a number, "top3", "tuned" on held-out
    images, or None: tuned where the run held some out, else 0.5. resume: go on with a CSV that was begun.
    Raises ValueError before any photo is read for what cannot be done, and where no photo could be read.
    """
    began, (rule, limit) = time.perf_counter(), _rule(model, threshold)
    if calibrated and model.calibration is None:
        raise ParameterError(f"no calibrated probabilities: {model.config.calibration_from}")
    made_by = model.config.model_dump(mode="json", include={"run", "row", "seed", "class_names"})
    made_by |= {"weights": digest([sha1(x.cpu().numpy()).hexdigest() for x in state_of(model).values()])}
    made_by |= {"threshold": list(rule) if rule is model.thresholds else rule, "top_k": limit}
    made_by |= {"calibration": model.calibration if calibrated else None}
    done = _begin(path, made_by, resume) if path else set()
    if done and not done & set(photos):
        raise ParameterError(f"{path} has other photos, such as {min(done)}; write paths as they were written")
    todo, unreadable, read = [photo for photo in photos if photo not in done], {}, 0
    with bar(len(photos), "predicting", "img", len(photos) - len(todo)) if path else nullcontext() as shown:
        for indices, pixels, bad in decode_batches(todo, model.input_size, batch_size, cores()):
            unreadable |= {todo[index]: reason for index, reason in bad.items()}
            if len(indices):
                read += len(indices)
                probabilities = predict(model, pixels, batch_size)
                values = calibrate(probabilities, made_by["calibration"])
                # Tuned thresholds are those of the probabilities as the model gives them, a number is one of what is shown.
                labels = decisions(probabilities if rule is model.thresholds else values, rule, limit)
                (_append if path else _show)(path, [todo[i] for i in indices], labels, values, model.class_names)
            if path:
                shown.update(len(indices) + len(bad))
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


def _rule(model, threshold):
    """Return (threshold, top_k) of `decisions`; a note says where none could be tuned."""
    if threshold == "top3":
        return 0.0, min(3, len(model.class_names))
    if threshold not in (None, "tuned"):
        return threshold, None
    if threshold == "tuned" and model.thresholds is None:
        raise ParameterError(f"no tuned thresholds, but {model.config.thresholds_from}; take --threshold 0.5 or top3")
    if model.thresholds is None:
        print(f"threshold {model.config.thresholds_from}", file=sys.stderr)
    return 0.5 if model.thresholds is None else model.thresholds, None


def _show(_, files, labels, probabilities, names):
    for file, chosen, values in zip(files, labels, probabilities, strict=True):
        shown = [f"{name} {value:.2f}" for name, value, one in zip(names, values, chosen, strict=True) if one]
        print(f"{file}: {', '.join(shown) or f'no label (highest: {names[values.argmax()]} {values.max():.2f})'}")


# ---- the CSV ---------------------------------------------------------------------------------------------------------


def _append(path, files, labels, probabilities, names):
    lines = []
    for file, chosen, values in zip(files, labels, probabilities, strict=True):
        joined = ";".join(name for name, one in zip(names, chosen, strict=True) if one)
        lines.append([file, joined, *(f"{value:.7g}" for value in values)])
    _write(path, lines)


def _write(path, lines):
    # The bytes of a file name need not be UTF-8.
    with open(path, "a", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def _begin(path, made_by, resume):
    """Begin a CSV, or repair one that was begun; return the photos that are in it.

    Raises ParameterError for one that is not to be gone on with, or was made otherwise, ValueError for a damaged one.
    """
    beside, header = Path(f"{path}.json"), ["file_name", "labels", *(f"p_{name}" for name in made_by["class_names"])]
    if any(";" in name for name in made_by["class_names"]):
        print("some class names hold the `;` that joins the labels: read the columns p_<class>", file=sys.stderr)
    rows = []
    if os.path.exists(path):
        if not resume:
            raise ParameterError(f"{path} exists; --resume goes on with it, or give --csv another name")
        before = read_json(beside) if beside.is_file() else {}
        if other := [name for name, value in made_by.items() if before.get(name, beside) != value]:
            what = f"{path} was made by another model or other settings: {beside} has another {', '.join(other)}"
            raise ParameterError(f"{what}; give --csv another name")
        rows, end = _whole_rows(path, header)
        os.truncate(path, end)
    write_json(beside, made_by)
    if not rows:
        _write(path, [header])
    return {row[0] for row in rows[1:]}


def _whole_rows(path, header):
    """Return (the rows of a CSV, header first; the bytes they take), without the last where it was cut off."""
    rows, place, end, line = [], 0, 0, b""

    def lines():
        nonlocal place, line
        for line in file:
            place += len(line)
            yield line.decode("utf-8", "surrogateescape")

    with open(path, "rb") as file:
        reader = csv.reader(lines())
        while end < os.path.getsize(path):
            with suppress(csv.Error):  # a field without end
                row = next(reader)
                if line.endswith(b"\n") and len(row) == len(header) and (rows or row == header):
                    rows.append(row)
                    end = place
                    continue
            if place < os.path.getsize(path):
                raise ValueError(f"{path} is damaged in line {len(rows) + 1:,}, or not this model's; begin another")
            break
    return rows, end
