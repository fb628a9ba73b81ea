"""Probabilities of new images: tensors, arrays, pictures or files, one function for all."""

import os

import numpy as np
import torch
from scipy.special import expit, logit

from cpsd_lib.data import decode_batches
from cpsd_lib.support import listed
from cpsd_lib.teachers import in_mode, logits_of


def predict(model, images, batch_size=128, device=None, size=None):
    """Return the probabilities [N, C] float32 (numpy) that a model gives N images, in eval mode; its mode stays as it was.

    model: an nn.Module, images [B, 3, S, S] in [0, 1] -> logits [B, C], a tensor or `.logits`. images: a tensor or array
    [N, 3, S, S], uint8, or float in [0, 1], or a list of such tensors; or a list of paths, PIL images or arrays [H, W, 3],
    resized on both sides to `size` pixels (the model's own `input_size` by default). device: where the model is moved to;
    None: where it is.
    Raises ValueError for images of another form, no size, images that cannot be read (it lists them), or probabilities that
    are not finite.
    """
    if len(images) == 0:
        raise ValueError("there are no images to predict; give at least one")
    first = next(iter(model.parameters()), torch.empty(0))
    device = first.device if device is None else torch.device(device)
    size = getattr(model, "input_size", None) if size is None else size
    probabilities, faults = [], []
    with in_mode(model.to(device), training=False), torch.inference_mode():
        for pixels, bad in _batches(images, batch_size, size):
            faults += [f"{label(images[index], index)}: {reason}" for index, reason in bad.items()]
            if len(pixels) and not faults:
                batch = _as_unit(pixels).to(device).contiguous(memory_format=torch.channels_last)
                probabilities.append(logits_of(model(batch)).float().sigmoid().cpu().numpy())
    if faults:
        lines = listed(faults, join="\n  ")
        raise ValueError(f"{len(faults):,} of {len(images):,} images cannot be read:\n  {lines}")
    found = np.concatenate(probabilities)
    if not np.isfinite(found).all():
        raise ValueError(f"the model's output is not finite for {int((~np.isfinite(found)).any(1).sum())} images")
    return found


def label(image, number):
    """Return what an image is known by: its path as text, or else its number."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else number


def _batches(images, batch_size, size):
    """Yield (images [B, 3, S, S], {number: reason} of those that cannot be read)."""
    if isinstance(images, (list, tuple)) and not torch.is_tensor(images[0]):
        if size is None:
            raise ValueError("size (pixels) is needed for paths and pictures: this model does not know its input size")
        yield from (batch[1:] for batch in decode_batches(images, size, batch_size))
        return
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        yield torch.stack(batch) if isinstance(batch, (list, tuple)) else batch, {}


def calibrate(probabilities, calibration):
    """Return the probabilities of logits / temperature + offset, float32; calibration: these two, None: as they are."""
    if calibration is None:
        return probabilities
    temperature, offset = calibration
    return expit(logit(probabilities.astype(float)) / temperature + offset).astype(np.float32)


def _as_unit(images):
    """Return images as float32 [B, 3, S, S] in [0, 1]."""
    images = torch.as_tensor(images)
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [N, 3, S, S], got {list(images.shape)}")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point() or not ((images >= 0) & (images <= 1)).all():
        raise ValueError("images must be uint8, or floats in [0, 1]: the model's normalisation is part of it")
    return images.float()
