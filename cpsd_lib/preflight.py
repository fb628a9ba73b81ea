"""The last look before a run starts: can these models be built for these images and classes, are their weights there?"""

import torch

from cpsd_lib.data.dataset import READERS
from cpsd_lib.data.scenes import Scenes
from cpsd_lib.evaluation import load_checkpoint
from cpsd_lib.hardware import pick_device
from cpsd_lib.label_vectors import read_label_vectors
from cpsd_lib.models import build_model
from cpsd_lib.param_files import ParameterError
from cpsd_lib.partition import Partition
from cpsd_lib.trunk import check_split


def check_models(params):
    """Raise ParameterError for a model that cannot be built, has no weights or vectors, or does not take such images.

    It costs seconds, and decoding a data set, which comes first in a run, costs up to an hour. No image is read.
    """
    names, cut = class_names(params.data), params.partition
    _told("device", lambda: pick_device(params.device))
    if params.evaluation.released:
        _told("evaluation", lambda: _look(load_checkpoint(params, names), params.data.size))
        return
    if cut.k > len(names) and not cut.use_released:
        raise ParameterError(f"partition.k is {cut.k}, but the data set has only {len(names)} classes")
    for path in (cut.released_co, cut.released_dis):
        if path is not None:
            _told("partition", lambda path=path: Partition.load(path, len(names)))
    _told("model", lambda: _build(params.model, names, params.data.size))
    if params.teacher_model:
        _told("teacher_model", lambda: _build(params.teacher_model, names, params.data.size))
    if params.teachers.share:
        teacher = params.teacher_model or params.model
        whole = lambda: _build(teacher, names, params.data.size)  # noqa: E731
        _told("teachers.share", lambda: check_split(whole(), params.teachers.share, params.data.size))


def class_names(data):
    """Return the class names of DataParams `data` from its label files alone; raises what the reader raises."""
    if data.kind == "scenes":
        return Scenes(images=data.images, size=data.size, seed=data.seed, groups=data.groups).table.names
    return READERS[data.kind](data).table.names


def _build(settings, names, size):
    keep = {key: getattr(settings, key) for key in ("weights", "head", "normalize", "prior", "head_width")}
    vectors = read_label_vectors(settings.label_vectors, names)
    return _look(build_model(settings.name, len(names), label_vectors=vectors, **keep, **settings.options).eval(), size)


def _look(model, size):
    with torch.inference_mode():
        model(torch.zeros(1, 3, size, size))
    return model


def _told(section, attempt):
    try:
        attempt()
    except (ValueError, TypeError, AssertionError, RuntimeError, OSError) as error:  # timm asserts
        raise ParameterError(f"{section}: {error}") from error
