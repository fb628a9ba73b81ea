"""RandAugment on uint8 images, one after the other: two random operations each, drawn from 14.

Every operation reproduces Pillow's, in integers or in float32 in Pillow's own order of arithmetic (tests/data/test_views.py
compares them level by level): torchvision's where they do, which knows no batch and no device. Amounts are numbers of the
host, so a GPU never waits.
"""

import math

import numpy as np
import torch
from torch.nn import functional

GREY = 128  # what geometric operations uncover
DRAWS = 8  # random numbers an image needs: (operation, whether, magnitude, sign) for each of the two


def rand_augment(images, draws):
    """Return images uint8 [B, 3, S, S] after two random operations each, every one applied with probability 0.5.

    draws: numpy [B, 8] uniform in [0, 1), see `plan`. The second operation works on the first one's result.
    """
    images, operations = images.clone(), [operation for operation, *_ in OPERATIONS.values()]
    for step in (draws[:, :4], draws[:, 4:]):
        for image, kind, amount in zip(images, *(part.tolist() for part in plan(step)), strict=True):
            if kind < len(operations):
                image.copy_(operations[kind](image, amount))
    return images


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


# Operations: an image uint8 [3, S, S], amount -> uint8 [3, S, S].


def warp(image, a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0):
    """Nearest pixel of (a x + b y + c, d x + e y + f) in pixels, corner 0; grey outside. In 16.16 fixed point, as in Pillow."""
    size = image.shape[-1]
    x = torch.arange(size, device=image.device)

    def source(across, down, shift):
        middle = shift + across / 2 + down / 2  # where the first pixel's middle comes from
        across, down, middle = (math.floor(65536 * value + 0.5) for value in (across, down, middle))
        return (across * x + middle + down * x[:, None]) >> 16

    u, v = source(a, b, c), source(d, e, f)
    outside = (u < 0) | (u >= size) | (v < 0) | (v >= size)
    return image[:, v.clamp(0, size - 1), u.clamp(0, size - 1)].masked_fill_(outside, GREY)


def rotate(image, amount):
    """Turn counter-clockwise by `amount` degrees about the centre."""
    cos, sin, half = math.cos(math.radians(amount)), math.sin(math.radians(amount)), image.shape[-1] / 2
    return warp(image, cos, -sin, half * (1 - cos + sin), sin, cos, half * (1 - cos - sin))


def contrast(image, amount):
    """Contrast about the mean grey times 1 + amount."""
    mean = grey(image).sum().double() / image[0].numel()  # integers: exact in any order of summing
    return blend((mean + 0.5).floor(), image, amount)


def sharpness(image, amount):
    """Sharpness times 1 + amount; 0 would be a 3x3 blur (centre weight 5 of 13), the outermost pixels stay."""
    blurred = image.float()
    around = functional.avg_pool2d(blurred, 3, 1, divisor_override=1)  # whole numbers: exact in any order of summing
    blurred[:, 1:-1, 1:-1] = ((around + 4 * blurred[:, 1:-1, 1:-1]) / 13 + 0.5).floor()
    return blend(blurred, image, amount)


def autocontrast(image, _):
    """Stretch each channel's levels to 0..255."""
    low, high = image.amin((1, 2), True).double(), image.amax((1, 2), True).double()
    # A true division: 255 / tensor would be 255 times a rounded reciprocal, a level off for some ranges.
    scale = torch.full_like(low, 255) / (high - low)
    return torch.where(high > low, image * scale - low * scale, image).clamp_(0, 255).to(torch.uint8)


def grey(image):
    """Return ITU-R 601 luma in 16-bit fixed point, Pillow's convert("L"); [S, S] int32."""
    red, green, blue = image.int()
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


def blend(degenerate, image, amount):
    """Return Pillow's Image.blend: away from the degenerate image by 1 + amount, in float32, cut off to whole levels."""
    degenerate = degenerate.float()
    return (image - degenerate).mul_(1 + amount).add_(degenerate).clamp_(0, 255).to(torch.uint8)


def vision(name, image, *amounts):
    """Return what an operation of torchvision makes of an image."""
    from torchvision.transforms.v2 import functional  # 1.6 s, and most notebooks augment nothing

    return getattr(functional, name)(image, *amounts)


# name: operation, its amount at magnitude 0 and at 9, and whether the sign is random. A shear moves each row (column) on by
# `amount` pixels and leaves the first where it is; a translation is a share of the side, to the left and up.
OPERATIONS = {
    "shear_x": (lambda image, amount: warp(image, b=amount), 0, 0.3, True),
    "shear_y": (lambda image, amount: warp(image, d=amount), 0, 0.3, True),
    "translate_x": (lambda image, amount: warp(image, c=amount * image.shape[-1]), 0, 150 / 331, True),
    "translate_y": (lambda image, amount: warp(image, f=amount * image.shape[-1]), 0, 150 / 331, True),
    "rotate": (rotate, 0, 30, True),
    "color": (lambda image, amount: blend(grey(image), image, amount), 0, 0.9, True),  # saturation
    "contrast": (contrast, 0, 0.9, True),
    "sharpness": (sharpness, 0, 0.9, True),
    "brightness": (lambda image, amount: blend(torch.zeros_like(image), image, amount), 0, 0.9, True),
    "posterize": (lambda image, amount: vision("posterize", image, round(amount)), 8, 4, False),  # bits that stay
    "solarize": (lambda image, amount: vision("solarize", image, amount), 256, 0, False),  # inverted from there on
    "autocontrast": (autocontrast, 0, 0, False),
    "equalize": (lambda image, _: vision("equalize", image), 0, 0, False),
    "invert": (lambda image, _: vision("invert", image), 0, 0, False),
}
