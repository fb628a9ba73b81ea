"""A run's finished model handed over: its config, with what was tuned on held-out images, its card, and the files."""

import json
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment
from scipy.special import expit

from cpsd_lib import evaluation
from cpsd_lib.data import BadImage, decode, read_source
from cpsd_lib.models import timm_state, write_onnx
from cpsd_lib.support import counted, listed, sha256, write_json
from cpsd_lib.training import calibrate
from cpsd_lib.workbench.explanation import load_named, strategies
from cpsd_lib.workbench.loading import on_disk
from cpsd_lib.workbench.model_folder import WEIGHTS, ModelConfig, new_folder, read_model, state_of, write_tensors
from cpsd_lib.workbench.scoring import SPLITS, caveats, scored_by
from cpsd_lib.workbench.yaml_files import ParameterError


def finished_model(run, row=None, seed=None):
    """Return (a finished model of a Run, or of the Path of a model folder, its ModelConfig).

    row: cpsd by default, seed: the run's first.

    Thresholds and calibration come from 05_evaluation's scores of images that were held out, where there are any. Raises
    ParameterError for a row or seed that the run does not have, MissingStage for a model that is not there.
    """
    if isinstance(run, Path):
        return read_model(run, row, seed)
    row, seed = row or "cpsd", run.params.seed if seed is None else seed
    if run.params.evaluation.released:
        raise ParameterError(f"{run.params.name} scores a released checkpoint; cpsd_lib.load_released loads that")
    if row not in strategies(run):
        raise ParameterError(f"{run.params.name} has no row {row!r}; its rows are {', '.join(strategies(run))}")
    if seed not in run.params.seed_list():
        raise ParameterError(f"{run.params.name} has no seed {seed}, only {listed(run.params.seed_list())}")
    model, keys = load_named(run, seed, row), run.keys(seed, row)
    record, parts = run.store.record("model", keys[0]), getattr(model, "partition", None)
    about, start = record["about"], record["recipe"]["start"]
    # What each model was trained on, in class order; data.json may be of other data by now.
    named = zip(parts.parts, model.experts, strict=True) if parts else [(range(len(model.class_names)), model)]
    classes = dict(pair for part, one in named for pair in zip(part, one.class_names, strict=True))
    settings = about["architecture"] | {"weights": None}
    if settings["label_vectors"] not in (None, "learned"):
        settings["label_vectors"] = "file"  # they are among the weights
    described = {
        "run": run.params.name,
        "row": row,
        "seed": seed,
        "class_names": [classes[c] for c in range(len(classes))],
        "architecture": settings,
        "parts": parts and parts.parts,
        "frozen_stages": start[1] if start else 0,
        "size": about["preprocessing"]["size"],
        "preprocessing": about["preprocessing"],
        "recipe": keys,
        "versions": record["versions"],
    }
    return model, ModelConfig.model_validate(described | _tuned(run, row, seed), context={"paths": False})


def _tuned(run, row, seed):
    held_out = scored_by(run, seed, row, "held_out")
    if held_out is None:
        why = "the run held out no training images (train.select: val does)"
        why = why if scored_by(run, seed, row, "test") else "05_evaluation has not scored this model"
        return {"thresholds": None, "calibration": None, "tuned_on": f"none: {why}"}
    logits, targets = held_out
    return {
        "thresholds": evaluation.best_thresholds(expit(logits.astype(float)), targets).tolist(),
        "calibration": list(evaluation.fit_calibration(logits, targets)),
        "tuned_on": counted(len(targets), "held-out training image"),
    }


def export(source, row, seed, to, form="cpsd"):
    """Write a finished model of `source`, a Run or the Path of a model folder, into the new folder `to`; return what was written.

    form: "cpsd", a model folder for load_model; "onnx", model.onnx; "timm", the backbone's own weights. Beside them
    config.json and the model card. Raises ValueError where something is in the way, and what load_model raises.
    """
    with new_folder(to) as folder:
        model, config = finished_model(source, row, seed)
        notes = [f"{config.run}, row {config.row}, seed {config.seed}: {to}"]
        if form == "cpsd":
            write_tensors(folder / WEIGHTS, state_of(model))
        elif form == "onnx":
            (images, which), values = _trial_images(source, config.size), config.model_dump(mode="json")
            metadata = {name: json.dumps(values[name]) for name in ("class_names", "size", "thresholds", "calibration")}
            difference = write_onnx(model.eval(), folder / "model.onnx", images, metadata)
            notes.append(f"onnxruntime on {which}: logits differ by {difference:.1e} at most")
        else:
            state, added = timm_state(model, config.architecture.name, config.architecture.options)
            write_tensors(folder / "backbone.safetensors", state)
            notes += [f"not used by this head, with timm's first values: {', '.join(added)}"] if added else []
        checksums = {path.name: sha256(path) for path in folder.iterdir()}
        write_json(folder / "config.json", config.model_dump(mode="json") | {"sha256": checksums})
        (folder / "README.md").write_text(model_card(source, model, config, Path(to).name, form), encoding="utf-8")
    return notes


def _trial_images(source, size, count=8):
    """Return (uint8 tensor [n, 3, size, size], what they are): test images of a run, or random pixels."""
    why = "a model folder holds no photos"
    if not isinstance(source, Path):
        why = "the run's test images are not here"
        with suppress(BadImage, ValueError, OSError):
            data = on_disk("data", source.params.data)
            read = read_source(data)
            indices = read.table.indices("test")[:count].tolist()
            load = read.load if data.kind == "scenes" else lambda i: decode(read.paths[i], size, data.max_pixels)
            return torch.from_numpy(np.stack([load(i) for i in indices])), counted(len(indices), "test image")
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), np.uint8)
    return torch.from_numpy(pixels), f"random pixels, because {why}"


def model_card(source, model, config, folder, form="cpsd"):
    """Return the README.md of a finished model of `source` in a form of `export`; folder: the name it will be loaded by."""
    page = Path(__file__).with_name("model_card.md.j2").read_text(encoding="utf-8")
    template = Environment(trim_blocks=True).from_string(page)
    pretrained = next(one for one in model.modules() if hasattr(one, "pretrained_cfg")).pretrained_cfg
    about = {"config": config, "folder": folder, "form": form, "pretrained": pretrained}
    if isinstance(source, Path):  # its own card says all but how another form of it is used
        use = "".join(template.blocks["use"](template.new_context(about)))
        card = (source / "README.md").read_text(encoding="utf-8")
        return re.sub(r"```python\n.*?(?=\n## )", lambda _: use, card, count=1, flags=re.DOTALL)
    scores, errors = [], []
    for split in SPLITS:
        logits, targets = scored_by(source, config.seed, config.row, split) or (None, np.empty(0))
        if not (targets == 1).any():
            continue
        probabilities = expit(logits.astype(float))
        scores.append((split, len(targets), "mAP", evaluation.bootstrap_interval(logits, targets)))
        for name, threshold in (("0.5", 0.5), ("the thresholds above", config.thresholds)):
            f1 = {} if threshold is None else evaluation.bootstrap_f1(probabilities, targets, threshold)
            scores += [(split, len(targets), f"{score} at {name}", interval) for score, interval in f1.items()]
        both = (probabilities, calibrate(probabilities, config.calibration))
        errors.append([split, *(evaluation.expected_calibration_error(one, targets) for one in both)])
    records = [source.store.record("model", key) for key in config.recipe]
    return template.render(
        about,
        title=strategies(source)[config.row],
        kind=source.params.data.kind,
        described=source.described,
        record=records[0],
        seconds=sum(record["about"]["seconds"] for record in records),
        scores=scores,
        errors=errors,
        caveats=caveats(source),
    )
