"""Probabilities of new images: tensors, arrays, pictures or files, one function for all."""

import os

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.special import expit, logit

from cpsd_lib.data import decode_batches, decode_picture, listed
from cpsd_lib.teachers import in_mode, logits_of


def predict(model, images, batch_size=128, device=None, size=None):
    """Return the probabilities [N, C] float32 (numpy) that a model gives N images, in eval mode; its mode stays as it was.

    model: an nn.Module, images [B, 3, S, S] in [0, 1] -> logits [B, C], a tensor or `.logits`. images: a tensor or array
    [N, 3, S, S], uint8, or float in [0, 1]; or a list of paths or PIL images, resized on both sides to `size` pixels (the
    model's own `input_size` by default). device: where the model is moved to; None: where it is.
    Raises ValueError for images of another form, no size, or probabilities that are not finite; BadImage for a file that
    cannot be decoded.
    """
    first = next(iter(model.parameters()), torch.empty(0))
    device = first.device if device is None else torch.device(device)
    size = getattr(model, "input_size", None) if size is None else size
    probabilities = []
    with in_mode(model.to(device), training=False), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = _as_unit(images[start : start + batch_size], size).to(device)
            logits = logits_of(model(batch.contiguous(memory_format=torch.channels_last)))
            probabilities.append(logits.float().sigmoid().cpu().numpy())
    if not probabilities:
        raise ValueError("there are no images to predict; give at least one")
    found = np.concatenate(probabilities)
    if not np.isfinite(found).all():
        raise ValueError(f"the model's output is not finite for {int((~np.isfinite(found)).any(1).sum())} images")
    return found


def predict_table(model, images, batch_size=64, calibration=None):
    """Return the probabilities that a model with `.class_names` and `.input_size` gives images, as a DataFrame.

    A line an image, named by its path or else its number; a column a class. images: a path, a PIL image, an array [H, W, 3]
    or [H, W], or a list of these, each decoded and resized as in training; or [N, 3, S, S] as `predict` takes them, of the
    model's size. calibration: as `calibrate` takes it.
    Raises ValueError that lists the images that cannot be read.
    """
    size = model.input_size
    if isinstance(images, (str, os.PathLike, Image.Image)) or getattr(images, "ndim", 4) < 4:
        images = [images]
    if getattr(images, "ndim", 0) == 4:
        if tuple(images.shape[2:]) != (size, size):
            raise ValueError(f"images of {list(images.shape)}, but the model takes {size} x {size} pixels; give a list")
        names, values = range(len(images)), [predict(model, images, batch_size)]
    else:
        images, values, faults = list(images), [], []
        names = [os.fspath(one) if isinstance(one, (str, os.PathLike)) else n for n, one in enumerate(images)]
        for _, pixels, bad in decode_batches(images, size, batch_size):
            faults += [f"{names[index]}: {reason}" for index, reason in bad.items()]
            values += [predict(model, pixels, batch_size)] if len(pixels) and not faults else []
        if faults:
            lines = listed(faults, join="\n  ")
            raise ValueError(f"{len(faults):,} of {len(images):,} images cannot be read:\n  {lines}")
    values = np.concatenate(values or [predict(model, images)])  # which says that there are none
    return pd.DataFrame(calibrate(values, calibration), pd.Index(names, name="file"), model.class_names)


def calibrate(probabilities, calibration):
    """Return the probabilities of logits / temperature + offset, float32; calibration: these two, None: as they are."""
    if calibration is None:
        return probabilities
    temperature, offset = calibration
    return expit(logit(probabilities.astype(float)) / temperature + offset).astype(np.float32)


def _as_unit(images, size):
    """Return images as float32 [B, 3, S, S] in [0, 1]."""
    if isinstance(images, (list, tuple)) and not torch.is_tensor(images[0]) and not isinstance(images[0], np.ndarray):
        if size is None:
            raise ValueError("size (pixels) is needed for paths and pictures: this model does not know its input size")
        images = np.stack([decode_picture(image, size) for image in images])
    elif isinstance(images, (list, tuple)):
        images = torch.stack([torch.as_tensor(image) for image in images])
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [N, 3, S, S], got {list(images.shape)}")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point() or not ((images >= 0) & (images <= 1)).all():
        raise ValueError(
            "images must be uint8, or floats in [0, 1]: the model's own normalisation is part of the model"
        )
    return images.float()
