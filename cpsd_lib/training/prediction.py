"""Probabilities of new images: tensors, arrays, pictures or files, one function for all."""

import os
from pathlib import Path

import numpy as np
import torch

from cpsd_lib.data import decode, decode_image
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


def _as_unit(images, size):
    """Return images as float32 [B, 3, S, S] in [0, 1]."""
    if isinstance(images, (list, tuple)) and not torch.is_tensor(images[0]) and not isinstance(images[0], np.ndarray):
        images = np.stack([_pixels(image, size) for image in images])
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


def _pixels(image, size):
    if size is None:
        raise ValueError("size (pixels) is needed for paths and pictures: this model does not know its input size")
    if isinstance(image, (str, os.PathLike)):
        return decode(Path(image), size)
    return decode_image(image, size)
