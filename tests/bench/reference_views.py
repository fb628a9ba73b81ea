"""Photos the straightforward way: open, resize and augment one file at a time in Pillow, again for every model.

The numbers of a view are drawn as ours are (`views.draws`), so that both make the same views.
"""

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from bench.workspace import SEED
from cpsd_lib.data.augment import randaugment, views


def decoded(path, size):
    """Return the (upright) photo in `path` as an RGB Pillow picture of size x size, both sides resized."""
    with Image.open(path) as image:
        # Ours has libjpeg decode very large photos smaller, too; other pixels could not be compared.
        image.draft(image.mode, (2 * size, 2 * size))
        return image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)


def tensor_of(w, indices, view=None):
    """Return photos opened now, as views of the first epoch or as they are: float32 [B, 3, S, S] in [0, 1]."""
    pictures = [decoded(w.paths[i], w.settings.size) for i in indices]
    if view is not None:
        pictures = augmented(pictures, views.VIEWS[view], indices)
    images = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 for picture in pictures])
    return images.to(w.device).contiguous(memory_format=torch.channels_last)


def augmented(pictures, recipe, indices):
    """Return the views of pictures in the first epoch, by our draws; recipe: ViewRecipe."""

    def numbers(purpose, count):
        return views.draws(SEED, 0, indices, purpose, count)

    flip, crop, light = numbers("flip", 1), numbers("crop", 3), numbers("light", 2)
    centre, colour = numbers("cutout", 2), numbers("cutout colour", 3)
    chosen = numbers("rand_augment", randaugment.DRAWS)
    steps = [randaugment.plan(chosen[:, :4]), randaugment.plan(chosen[:, 4:])]

    def view_of(b, picture):
        mean = np.asarray(picture).mean() if recipe.contrast else 0.0  # of the whole picture
        if recipe.flip or recipe.crop_area < 1:
            picture = _flip_crop(picture, recipe, flip[b, 0], *crop[b])
        if recipe.brightness or recipe.contrast:
            picture = _relit(picture, recipe, mean, *light[b])
        if recipe.cutout:
            picture = _cut_out(picture, recipe, centre[b], colour[b])
        for kind, amount in steps if recipe.rand_augment else ():
            if kind[b] < len(OPERATIONS):
                picture = OPERATIONS[kind[b]](picture, float(amount[b]))
        return picture

    return [view_of(b, picture) for b, picture in enumerate(pictures)]


def _relit(picture, recipe, mean, bright, contrast):
    # One table for both: two enhancements after each other would clip and round twice, and take longer.
    bright, contrast = 1 + recipe.brightness * (2 * bright - 1), 1 + recipe.contrast * (2 * contrast - 1)
    offset = bright * (1 - contrast) * mean
    table = np.clip(bright * contrast * np.arange(256) + offset + 0.5, 0, 255).astype(int).tolist()
    return picture.point(table * 3)


def _flip_crop(picture, recipe, flip, area, left, top):
    size = picture.width
    side = math.sqrt(recipe.crop_area + (1 - recipe.crop_area) * area) * size
    left, top = left * (size - side), top * (size - side)
    picture = picture.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if recipe.flip and flip < 0.5 else picture


def _cut_out(picture, recipe, centre, colour):
    size = picture.width
    side = round(recipe.cutout * size)
    left, top = (math.floor(place * size) - side // 2 for place in centre)
    grey = (randaugment.GREY,) * 3
    fill = grey if recipe.cutout_fill == "grey" else tuple(int(256 * part) for part in colour)
    picture = picture.copy()
    picture.paste(fill, (left, top, left + side, top + side))
    return picture


def _moved(picture, matrix):
    grey = (randaugment.GREY,) * 3
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=grey)


# Pillow's own operations, in the order of randaugment.OPERATIONS.
OPERATIONS = [
    lambda picture, amount: _moved(picture, (1, amount, 0, 0, 1, 0)),
    lambda picture, amount: _moved(picture, (1, 0, 0, amount, 1, 0)),
    lambda picture, amount: _moved(picture, (1, 0, amount * picture.width, 0, 1, 0)),
    lambda picture, amount: _moved(picture, (1, 0, 0, 0, 1, amount * picture.width)),
    lambda picture, amount: picture.rotate(amount, Image.Resampling.NEAREST, fillcolor=(randaugment.GREY,) * 3),
    lambda picture, amount: ImageEnhance.Color(picture).enhance(1 + amount),
    lambda picture, amount: ImageEnhance.Contrast(picture).enhance(1 + amount),
    lambda picture, amount: ImageEnhance.Sharpness(picture).enhance(1 + amount),
    lambda picture, amount: ImageEnhance.Brightness(picture).enhance(1 + amount),
    lambda picture, amount: ImageOps.posterize(picture, round(amount)),
    lambda picture, amount: ImageOps.solarize(picture, amount),
    lambda picture, amount: ImageOps.autocontrast(picture),
    lambda picture, amount: ImageOps.equalize(picture),
    lambda picture, amount: ImageOps.invert(picture),
]
