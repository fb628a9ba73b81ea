"""Augmentation on the batch; every random draw is a function of (seed, epoch, image index, purpose) and of nothing else.

A view is therefore the same whatever batch, order, device or number of workers it is made with, and a teacher's logits
for it can be stored once and read by every student.
"""

import operator
import zlib
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cpsd_lib.data.augment.randaugment import DRAWS, GREY, rand_augment

VIEWS_VERSION = 1  # of this folder: raised when a change of its code changes a pixel of a view


def draws(seed, epoch, indices, purpose, count):
    """Return float64 [B, count] (numpy) uniform in [0, 1) for image indices [B]: an index always gets the same numbers.

    A counter-based hash: splitmix64's finaliser (Steele, Lea, Flood 2014) chained over seed, epoch, purpose (any text),
    index and the number of the draw. Raises ValueError for indices that are not a list of integers.
    """
    indices = _as_indices(indices)
    key = np.zeros(1, np.uint64)
    for part in (operator.index(seed), operator.index(epoch), zlib.crc32(purpose.encode())):
        key = _mix(key ^ np.array([part % 2**64], np.uint64))
    key = _mix(key ^ indices.astype(np.uint64))[:, None]
    bits = _mix(key ^ np.arange(count, dtype=np.uint64))
    return (bits >> np.uint64(11)) * 2.0**-53  # the upper 53 bits are all that a float64 below 1 holds


def permutation(seed, epoch, count):
    """Return int64 [count]: the order in which an epoch visits `count` images, from the same kind of key as `draws`."""
    return np.argsort(draws(seed, epoch, np.arange(count), "order", 1)[:, 0], kind="stable")


@dataclass(frozen=True)
class ViewRecipe:
    """What a train view is made of, in the order it is applied; the defaults change nothing.

    Plain numbers and words only: `dataclasses.asdict` of it is JSON and part of the soft-target store's key.
    Raises ValueError for a value out of range.
    """

    flip: bool = False  # left-right, every second view
    crop_area: float = 1.0  # a square crop of uniform area in [crop_area, 1] of the image, resized back; 1: none
    brightness: float = 0.0  # factor uniform in 1 +- brightness
    contrast: float = 0.0  # factor uniform in 1 +- contrast, about the image's mean
    cutout: float = 0.0  # side of one square, share of the image's; its centre is any pixel, the border clips it
    cutout_fill: str = "grey"  # "grey" (128) or "random" (one colour per view)
    rand_augment: bool = False  # two random operations, see randaugment.py

    def __post_init__(self):
        if not 0 < self.crop_area <= 1:
            raise ValueError(f"crop_area is a share of the image's area in (0, 1], got {self.crop_area!r}")
        for name in ("brightness", "contrast", "cutout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")
        if self.cutout_fill not in ("grey", "random"):
            raise ValueError(f'cutout_fill must be "grey" or "random", got {self.cutout_fill!r}')


PLAIN = ViewRecipe()
FLIP = ViewRecipe(flip=True)  # small models from random weights: stronger views cost them more than they give
DEFAULT = ViewRecipe(flip=True, crop_area=0.6, brightness=0.2, contrast=0.2, cutout=0.4)  # fine-tuning small data
RELEASE = ViewRecipe(cutout=0.5, cutout_fill="random", rand_augment=True)  # CPSD's and L2D's released recipe
VIEWS = {"default": DEFAULT, "release": RELEASE, "flip": FLIP, "plain": PLAIN}  # the names in parameter files


def train_view(images, recipe, seed, epoch, indices):
    """Return the view float32 [B, 3, S, S] in [0, 1] that (seed, epoch, index) has of each image, on the images' device.

    images: uint8 [B, 3, S, S]. indices [B]: the images' numbers in the data set. On the CPU an image's view is bitwise
    the same alone and in any batch. Raises ValueError for other types and shapes.
    """
    _check(images)
    indices = _as_indices(indices)
    if len(indices) != len(images):
        raise ValueError(f"indices must name each of the {len(images)} images once, got {len(indices)} indices")

    def drawn(purpose, count):
        return draws(seed, epoch, indices, purpose, count)

    view = images
    if recipe.flip or recipe.crop_area < 1:
        view = _flip_crop(view, recipe, drawn("flip", 1), drawn("crop", 3))
    if recipe.brightness or recipe.contrast:
        view = _relight(view, images, recipe, drawn("light", 2))
    if recipe.cutout:
        view = _cutout(view, recipe, drawn("cutout", 2), drawn("cutout colour", 3))
    if recipe.rand_augment:
        view = view if view.dtype == torch.uint8 else view.round().to(torch.uint8)
        view = rand_augment(view, drawn("rand_augment", DRAWS))
    return view.float() / 255


def test_view(images):
    """Return images uint8 [B, 3, S, S] as float32 in [0, 1], unchanged otherwise; ValueError for other types and shapes."""
    _check(images)
    return images.float() / 255


test_view.__test__ = False  # its name would make pytest collect it


def _flip_crop(images, recipe, flip, crop):
    size = images.shape[-1]
    side = np.sqrt(recipe.crop_area + (1 - recipe.crop_area) * crop[:, :1])
    corner = (1 - side) * crop[:, 1:]  # left and top, shares of the side
    # grid_sample counts from -1 to 1 across the image; a negative step reads the crop from right to left.
    step = np.repeat(side, 2, axis=1)
    if recipe.flip:
        step[:, 0] *= np.where(flip[:, 0] < 0.5, -1, 1)
    window = move(np.stack([step, 2 * corner + side - 1], axis=1), images, torch.float32)  # [B, step or centre, x or y]
    middles = (torch.arange(size, device=images.device) * 2 + 1) / size - 1
    # Both axes by hand and not by affine_grid: its matrix product may round differently for another batch size.
    axes = middles[None, :, None] * window[:, :1] + window[:, 1:]  # [B, S, x or y]
    grid = torch.empty(len(images), size, size, 2, device=images.device)
    grid[..., 0], grid[..., 1] = axes[:, None, :, 0], axes[:, :, None, 1]
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _relight(view, images, recipe, light):
    brightness, contrast = (1 + np.array([recipe.brightness, recipe.contrast]) * (2 * light - 1)).T
    # The mean is the whole image's, in integers: a float sum would depend on how the batch is cut into threads.
    mean = images.sum((1, 2, 3), dtype=torch.int64).double() / images.shape[1:].numel()
    gain = move(brightness * contrast, images)
    offset = move(brightness * (1 - contrast), images) * mean
    gain, offset = gain.float()[:, None, None, None], offset.float()[:, None, None, None]
    return (view * gain).add_(offset).clamp_(0, 255)


def _cutout(view, recipe, centre, colour):
    size = view.shape[-1]
    side = round(recipe.cutout * size)
    start = np.floor(centre * size).astype(np.int64) - side // 2  # left and top; both may lie outside
    offset = torch.arange(size, device=view.device) - move(start, view)[:, :, None]  # [B, x or y, S]
    inside = (offset >= 0) & (offset < side)
    mask = inside[:, 0, None, None, :] & inside[:, 1, None, :, None]
    if recipe.cutout_fill == "grey":
        return view.masked_fill(mask, GREY)
    fill = move(np.floor(colour * 256), view, view.dtype)[:, :, None, None]
    return torch.where(mask, fill, view)


def move(array, images, dtype=None):
    """Return a numpy array as a tensor on the images' device, without waiting for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    tensor = tensor.pin_memory() if images.is_cuda else tensor  # else the copy is not asynchronous
    return tensor.to(images.device, dtype, non_blocking=True)


def _mix(bits):
    """splitmix64's finaliser on uint64 arrays (whose arithmetic wraps): each input bit flips each output bit half the time."""
    bits = bits + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _as_indices(indices):
    indices = indices.cpu().numpy() if isinstance(indices, torch.Tensor) else np.asarray(indices)
    if indices.ndim != 1 or not (np.issubdtype(indices.dtype, np.integer) or indices.size == 0):
        raise ValueError(f"indices must be a list of integers [B], got {indices.dtype} {list(indices.shape)}")
    return indices


def _check(images):
    shape, dtype = list(getattr(images, "shape", ())), getattr(images, "dtype", type(images).__name__)
    if dtype != torch.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise ValueError(f"images must be a torch.uint8 tensor [B, 3, S, S], got {dtype} {shape}")
