"""A model folder: a finished model that loads wherever this library is, without its run, its data or a network.

model.safetensors (no pickle), config.json (all that is needed to build and to use it) and README.md, the model card.
"""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from PIL import Image
from pydantic import Field, ValidationError, model_validator

from cpsd_lib.models import make_tail, make_trunk, read_state, state_faults
from cpsd_lib.partition import Partition
from cpsd_lib.support import read_json, sha256
from cpsd_lib.teachers import Copies, PartTeachers
from cpsd_lib.training import calibrate, label, predict
from cpsd_lib.workbench.building import build_shape
from cpsd_lib.workbench.loading import format_error
from cpsd_lib.workbench.params import ModelParams, Section
from cpsd_lib.workbench.yaml_files import ParameterError

WEIGHTS = "model.safetensors"


class ModelConfig(Section):
    """config.json."""

    format: Literal[1] = 1
    run: str
    row: str
    seed: int
    class_names: list[str] = Field(min_length=1)
    architecture: ModelParams
    parts: list[list[int]] | None  # the classes of each expert; None: one model of all classes
    frozen_stages: int  # that the experts have in common, as one trunk; 0: none
    size: int = Field(ge=1)  # pixels, both sides of what it takes
    preprocessing: dict[str, Any]  # range and resize before the model; mean and std, which are a part of it
    thresholds: list[float] | None  # a class each, for its best F1; None: 0.5
    calibration: Annotated[list[float], Field(min_length=2, max_length=2)] | None  # of `training.calibrate`
    tuned_on: str  # these two: which images, or why none
    recipe: list[str]  # keys of the artifacts it was made as
    versions: dict[str, str]
    sha256: dict[str, str] = Field(default_factory=dict)  # of the files beside it

    @model_validator(mode="after")
    def _one_a_class(self):
        names = self.class_names
        if len(set(names)) < len(names) or len(self.thresholds or names) != len(names):
            raise ValueError("expected class names that are unique, and one threshold a class")
        return self


@contextmanager
def new_folder(path):
    """Yield a folder beside `path` that becomes `path` when the block ends without error; ValueError where that is in use."""
    path = Path(path).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder; name a new one")
    half = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    half.mkdir(parents=True)
    try:
        yield half
        os.replace(half, path)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def write_tensors(path, state):
    """Write a state dict {name: tensor} as safetensors."""
    path.write_bytes(safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in state.items()}))


def read_model(folder, row=None, seed=None):
    """Return (model, ModelConfig) of a model folder; ValueError for what is missing, changed, or of another row or seed."""
    described, path = Path(folder) / "config.json", Path(folder) / WEIGHTS
    try:
        config = ModelConfig.model_validate(read_json(described), context={"paths": False})
    except ValidationError as error:
        faults = "\n".join(format_error(fault, fault["loc"]) for fault in error.errors())
        raise ValueError(f"{described} does not describe a model of this version:\n{faults}") from None
    if row not in (None, config.row) or seed not in (None, config.seed):
        raise ParameterError(f"{folder} holds row {config.row} of seed {config.seed} alone; leave out row and seed")
    if not path.is_file():
        there = ", ".join(sorted(os.listdir(folder)))
        raise ValueError(f"there is no {path}, and nothing else is read as weights; the folder holds {there}")
    if sha256(path) != config.sha256.get(WEIGHTS):
        raise ValueError(f"{path} is not the file that config.json was written for (its sha256): copy the folder again")
    state = read_state(path)
    model = _assembled(config, state)
    own = state_of(model)
    if faults := state_faults(own, state):
        raise ValueError(f"{path} does not fit its config.json; {faults}")
    for name, tensor in own.items():
        tensor.copy_(state[name])
    return model, config


def _assembled(config, state):
    def build(classes, prefix=""):
        return build_shape(config.architecture, classes, state.get(f"{prefix}head.label_vectors"))

    if config.parts is None:
        return build(len(config.class_names))
    experts = [build(len(part), f"experts.{number}.") for number, part in enumerate(config.parts)]
    if config.frozen_stages:
        trunk = make_trunk(build(1), config.frozen_stages)
        experts = [make_tail(expert, trunk, config.frozen_stages) for expert in experts]
    count, each = len(config.class_names), len(config.parts[0])
    ensemble = each == count and len(experts) > 1
    return PartTeachers(experts, Copies(len(experts), count) if ensemble else Partition(config.parts, count))


def state_of(model):
    """Return {name: tensor} of a Classifier or PartTeachers, with the trunk its experts have in common, if they have one."""
    trunks = [expert.shared[0] for expert in getattr(model, "experts", ()) if hasattr(expert, "shared")]
    return model.state_dict() | {f"trunk.{name}": x for trunk in trunks[:1] for name, x in trunk.state_dict().items()}


def ready(model, config):
    """Return a model in eval mode that knows its classes, size, thresholds and calibration, and has `.predict`."""
    model.config, model.class_names, model.input_size = config, list(config.class_names), config.size
    model.thresholds = None if config.thresholds is None else np.array(config.thresholds)
    model.calibration, model.predict = config.calibration, MethodType(predict_images, model)
    return model.eval()


def calibration_of(model, calibrated):
    """Return what `training.calibrate` takes: the model's where `calibrated` (ParameterError where it has none), or None."""
    if calibrated and model.calibration is None:
        raise ParameterError(f"no calibrated probabilities: {model.config.tuned_on}")
    return model.calibration if calibrated else None


def predict_images(model, images, batch_size=64, calibrated=False):
    """Return the probabilities that a `ready` model gives images, as a DataFrame: a line an image, a column a class.

    images: a path, a PIL image, an array [H, W, 3] or [H, W], or a list of these, each decoded and resized as in training; or
    [N, 3, S, S] as `training.predict` takes them, of the model's size. A line is named by the path or else the number.
    calibrated: as they were fitted to held-out images, where the run held some out. Raises ValueError where it did not, and
    for images that cannot be read.
    """
    calibration, size = calibration_of(model, calibrated), model.input_size
    if isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) < 4:
        images = [images]
    images = images if hasattr(images, "ndim") else list(images)
    for given in [images] if hasattr(images, "ndim") else filter(torch.is_tensor, images):  # taken as they are
        if tuple(given.shape[-2:]) != (size, size):
            raise ValueError(f"images of {list(given.shape)}, but the model takes {size} x {size} pixels; give a list")
    values = calibrate(predict(model, images, batch_size), calibration)
    names = pd.Index([label(one, number) for number, one in enumerate(images)], name="file")
    return pd.DataFrame(values, names, model.class_names)
