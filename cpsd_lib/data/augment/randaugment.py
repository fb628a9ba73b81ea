"""RandAugment on a batch of uint8 images: two random operations each, drawn from 14, no Python loop over images.

Every operation reproduces Pillow's, in integers or in float32 in Pillow's own order of arithmetic (tests/data/test_views.py
compares them level by level), so an image's result depends neither on the batch it is in nor on the device.
"""

import numpy as np
import torch

GREY = 128  # what geometric operations uncover
DRAWS = 8  # random numbers an image needs: (operation, whether, magnitude, sign) for each of the two


def rand_augment(images, draws):
    """Return images uint8 [B, 3, S, S] after two random operations each, every one applied with probability 0.5.

    draws: numpy [B, 8] uniform in [0, 1), see `plan`. The second operation works on the first one's result.
    """
    place = np.arange(len(images))  # images are kept sorted by operation; place is where each one came from
    for step in (draws[:, :4], draws[:, 4:]):
        kind, amount = plan(step[place])
        # Each operation's images are one slice, known on the host: a GPU never waits for an index.
        order = np.argsort(kind, kind="stable")
        place, bounds = place[order], np.searchsorted(kind[order], np.arange(len(OPERATIONS) + 1))
        images, amount = images[move(order, images)], move(amount[order], images)
        for i, (operation, *_) in enumerate(OPERATIONS.values()):
            part = slice(bounds[i], bounds[i + 1])
            if part.start < part.stop:
                images[part] = operation(images[part], amount[part])
    return images[move(np.argsort(place), images)]


def plan(draws):
    """Turn draws [B, 4] uniform in [0, 1) into (kind int64 [B], amount float64 [B]) of one operation per image.

    kind: place in OPERATIONS, or their number for "leave as is" (half of the images). The magnitude is uniform in 1..9 on
    ten points of the operation's range (as in CPSD's release; AutoAugment's ranges, arXiv 1805.09501).
    """
    which, whether, magnitude, sign = draws.T
    kind = np.floor(which * len(OPERATIONS)).astype(np.int64)
    low, high, signed = np.array([ranges for _, *ranges in OPERATIONS.values()])[kind].T
    amount = low + (high - low) * (1 + np.floor(magnitude * 9)) / 9
    amount = np.where((signed > 0) & (sign < 0.5), -amount, amount)
    return np.where(whether < 0.5, kind, len(OPERATIONS)), amount


def move(array, images, dtype=None):
    """Return a numpy array as a tensor on the images' device, without waiting for a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    tensor = tensor.pin_memory() if images.is_cuda else tensor  # else the copy is not asynchronous
    return tensor.to(images.device, dtype, non_blocking=True)


# Operations: images uint8 [b, 3, S, S], amount float64 [b] -> uint8 [b, 3, S, S].


def rotate(images, amount):
    """Turn counter-clockwise by `amount` degrees about the centre."""
    cos, sin, half = torch.cos(torch.deg2rad(amount)), torch.sin(torch.deg2rad(amount)), images.shape[-1] / 2
    return _warp(images, cos, -sin, half * (1 - cos + sin), sin, cos, half * (1 - cos - sin))


def contrast(images, amount):
    """Contrast about the mean grey times 1 + amount."""
    grey = _grey(images)
    mean = grey.sum((1, 2, 3), keepdim=True).double() / grey[0].numel()  # integers: exact in any order of summing
    return _blend((mean + 0.5).floor(), images, amount)


def sharpness(images, amount):
    """Sharpness times 1 + amount; 0 would be a 3x3 blur (centre weight 5 of 13), the outermost pixels stay."""
    wide = images.short()
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    blurred = images.float()
    blurred[:, :, 1:-1, 1:-1] = ((around + 4 * wide[:, :, 1:-1, 1:-1]) / 13 + 0.5).floor()
    return _blend(blurred, images, amount)


def posterize(images, amount):
    """Keep the upper round(amount) bits of every level."""
    lower = 2 ** (8 - amount.round()) - 1
    return images & (255 - lower).to(torch.uint8)[:, None, None, None]


def solarize(images, amount):
    """Invert the levels from `amount` on."""
    return torch.where(images < amount[:, None, None, None], images, 255 - images)


def autocontrast(images, _):
    """Stretch each channel's levels to 0..255."""
    low, high = images.amin((2, 3)).double()[..., None], images.amax((2, 3)).double()[..., None]
    # A true division: 255 / tensor would be 255 times a rounded reciprocal, a level off for some ranges.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    levels = torch.arange(256, device=images.device)
    table = (levels * scale - low * scale).clamp(0, 255)
    return _look_up(images, torch.where(high > low, table, levels))


def equalize(images, _):
    """Make each channel's histogram flat, as far as moving whole levels can."""
    index = images.flatten(2).long()
    counts = torch.zeros(*images.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, index, torch.ones(1, dtype=torch.int64, device=images.device).expand_as(index))
    highest = counts.gather(2, images.amax((2, 3)).long()[..., None])
    step = (index.shape[2] - highest) // 255  # pixels that share a level afterwards; the highest level does not count
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _look_up(images, torch.where(step > 0, table, torch.arange(256, device=images.device)))


# name: operation, its amount at magnitude 0 and at 9, and whether the sign is random. A shear moves each row (column) on by
# `amount` pixels and leaves the first where it is; a translation is a share of the side, to the left and up.
OPERATIONS = {
    "shear_x": (lambda images, amount: _warp(images, b=amount), 0, 0.3, True),
    "shear_y": (lambda images, amount: _warp(images, d=amount), 0, 0.3, True),
    "translate_x": (lambda images, amount: _warp(images, c=amount * images.shape[-1]), 0, 150 / 331, True),
    "translate_y": (lambda images, amount: _warp(images, f=amount * images.shape[-1]), 0, 150 / 331, True),
    "rotate": (rotate, 0, 30, True),
    "color": (lambda images, amount: _blend(_grey(images), images, amount), 0, 0.9, True),  # saturation
    "contrast": (contrast, 0, 0.9, True),
    "sharpness": (sharpness, 0, 0.9, True),
    "brightness": (lambda images, amount: _blend(torch.zeros_like(images), images, amount), 0, 0.9, True),
    "posterize": (posterize, 8, 4, False),
    "solarize": (solarize, 256, 0, False),
    "autocontrast": (autocontrast, 0, 0, False),
    "equalize": (equalize, 0, 0, False),
    "invert": (lambda images, _: 255 - images, 0, 0, False),
}


def _warp(images, a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0):
    """Nearest pixel of (a x + b y + c, d x + e y + f) in pixels, corner 0; one number or one per image; grey outside.

    In 16.16 fixed point, as Pillow does it: no rounding depends on the device or the batch.
    """
    size = images.shape[-1]
    pixel = torch.arange(size, dtype=torch.int32, device=images.device)
    zeros = torch.zeros(len(images), 1, 1, dtype=torch.float64, device=images.device)

    def fixed(value):
        value = value[:, None, None] if isinstance(value, torch.Tensor) else value
        return ((zeros + value) * 65536 + 0.5).floor().int()

    def source(across, down, shift):
        middle = shift + across / 2 + down / 2  # where the first pixel's middle comes from
        return (fixed(across) * pixel + fixed(middle) + fixed(down) * pixel[:, None]) >> 16

    u, v = source(a, b, c), source(d, e, f)
    inside = (u >= 0) & (u < size) & (v >= 0) & (v < size)
    index = (v * size + u).masked_fill_(~inside, 0).long().flatten(1)[:, None].expand(-1, 3, -1)
    return images.flatten(2).gather(2, index).view_as(images).masked_fill_(~inside[:, None], GREY)


def _grey(images):
    # ITU-R 601 luma in 16-bit fixed point, Pillow's convert("L"); [b, 1, S, S] int32
    red, green, blue = images.int().split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


def _blend(degenerate, images, amount):
    # Image.blend: away from the degenerate image by 1 + amount, in float32, cut off to whole levels
    degenerate, factor = degenerate.float(), (1 + amount).float()[:, None, None, None]
    return (images - degenerate).mul_(factor).add_(degenerate).clamp_(0, 255).to(torch.uint8)


def _look_up(images, table):
    # table: [b, 3, 256], cut off to whole levels
    return table.to(torch.uint8).gather(2, images.flatten(2).long()).view_as(images)
