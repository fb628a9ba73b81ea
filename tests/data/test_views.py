import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as reference

from cpsd_lib.data.augment import randaugment, views
from cpsd_lib.data.augment.views import DEFAULT, PLAIN, RELEASE, ViewRecipe

RECIPES = pytest.mark.parametrize(
    "recipe", [PLAIN, DEFAULT, RELEASE, ViewRecipe(True, 0.5, 0.3, 0.3, 0.4, "random", True)]
)
FIRST_DRAWS = [[0.7158888421132122, 0.6617100749513761], [0.586540069130183, 0.569154911166951]]
OPERATIONS = pytest.mark.parametrize("name", list(randaugment.OPERATIONS))


def pictures(count=12, size=32, seed=0):
    """Smooth noise of different contrast, then a black, a grey, a two-level and a one-colour picture."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)).astype(float)
        picture = picture + rng.normal(0, 12, picture.shape)
        low, high = [(0, 255), (60, 140), (-40, 330)][i % 3]
        result.append(np.clip(low + picture / 255 * (high - low), 0, 255).astype(np.uint8))
    flat = [np.full((size, size, 3), level, np.uint8) for level in (0, 128)]
    halves = np.repeat(np.where(np.arange(size) < 5, 10, 200), size).reshape(size, size, 1) * np.ones(3)
    colour = np.ones((size, size, 1)) * [250, 3, 90]
    result += [*flat, halves.astype(np.uint8), colour.astype(np.uint8)]
    return torch.from_numpy(np.stack(result)).permute(0, 3, 1, 2).contiguous()


def in_pillow(name, picture, amount):
    """One operation by Pillow's own functions: the specification. picture: PIL image; amount: as in OPERATIONS."""
    size = picture.width
    affine = {
        "shear_x": (1, amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, 0),
        "translate_x": (1, 0, amount * size, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, amount * size),
    }
    if name in affine:
        grey = (128, 128, 128)
        return picture.transform(
            (size, size), Image.Transform.AFFINE, affine[name], Image.Resampling.NEAREST, fillcolor=grey
        )
    return {
        "rotate": lambda: picture.rotate(amount, Image.Resampling.NEAREST, fillcolor=(128, 128, 128)),
        "color": lambda: ImageEnhance.Color(picture).enhance(1 + amount),
        "contrast": lambda: ImageEnhance.Contrast(picture).enhance(1 + amount),
        "sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(1 + amount),
        "brightness": lambda: ImageEnhance.Brightness(picture).enhance(1 + amount),
        "posterize": lambda: ImageOps.posterize(picture, round(amount)),
        "solarize": lambda: ImageOps.solarize(picture, amount),
        "autocontrast": lambda: ImageOps.autocontrast(picture),
        "equalize": lambda: ImageOps.equalize(picture),
        "invert": lambda: ImageOps.invert(picture),
    }[name]()


def to_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def to_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def amounts_of(name):
    """The 9 amounts an operation can draw, with both signs where it has a sign."""
    low, high, signed = randaugment.OPERATIONS[name][1:]
    result = [low + (high - low) * m / 9 for m in range(1, 10)]
    return result + [-amount for amount in result] if signed else result


# --- draws


def test_draws_are_uniform_and_independent_across_images_epochs_seeds_purposes_and_numbers():
    indices = np.arange(20_000)
    base = views.draws(3, 5, indices, "crop", 4)
    assert base.shape == (20_000, 4) and base.dtype == np.float64
    assert base.min() >= 0 and base.max() < 1 and len(np.unique(base)) == base.size
    # standard errors: mean .29/sqrt(80,000) = .001, variance .0003, a correlation of 20,000 pairs .007
    assert abs(base.mean() - 1 / 2) < 0.005 and abs(base.var() - 1 / 12) < 0.0015
    assert np.all(np.abs(np.histogram(base, 16, (0, 1))[0] - 5000) < 5 * math.sqrt(5000))
    neighbours = [
        (base[:-1, 0], base[1:, 0]),
        (base[:, 0], base[:, 1]),
        (base[:, 0], views.draws(3, 6, indices, "crop", 4)[:, 0]),
        (base[:, 0], views.draws(4, 5, indices, "crop", 4)[:, 0]),
        (base[:, 0], views.draws(5, 3, indices, "crop", 4)[:, 0]),
        (base[:, 0], views.draws(3, 5, indices, "flip", 4)[:, 0]),
    ]
    for one, other in neighbours:
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.035
        assert not np.any(one == other)


def test_an_image_draws_the_same_numbers_in_any_batch_and_more_draws_extend_fewer():
    indices = np.array([7, 0, 123_456, 7, 41])
    together = views.draws(1, 2, indices, "light", 3)
    alone = np.concatenate([views.draws(1, 2, [index], "light", 3) for index in indices])
    assert np.array_equal(together, alone)
    assert np.array_equal(together, views.draws(1, 2, torch.from_numpy(indices), "light", 9)[:, :3])


def test_draws_do_not_change_from_one_version_to_the_next():
    # Soft targets on disk were computed for these very views.
    first = views.draws(0, 0, [0, 1], "flip", 2)
    assert first == pytest.approx(np.array(FIRST_DRAWS), abs=1e-15)


def test_permutation_is_a_permutation_that_depends_on_seed_and_epoch():
    order = views.permutation(0, 1, 1000)
    assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, views.permutation(0, 1, 1000))
    for other in (views.permutation(0, 2, 1000), views.permutation(1, 1, 1000), np.arange(1000)):
        assert np.sum(order == other) < 10 and abs(np.corrcoef(order, other)[0, 1]) < 0.15
    assert len(views.permutation(0, 0, 0)) == 0


# --- views


@RECIPES
def test_a_view_is_bitwise_the_same_alone_in_a_batch_and_in_another_order(recipe):
    images, indices = pictures(size=33), np.arange(16) * 977 + 5
    together = views.train_view(images, recipe, 1, 4, indices)
    assert together.dtype == torch.float32 and together.shape == images.shape
    assert together.min() >= 0 and together.max() <= 1
    alone = torch.cat([views.train_view(images[i : i + 1], recipe, 1, 4, indices[i : i + 1]) for i in range(16)])
    assert torch.equal(together, alone)
    order = np.random.default_rng(0).permutation(16)
    assert torch.equal(together[order], views.train_view(images[order], recipe, 1, 4, torch.from_numpy(indices[order])))
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    assert torch.equal(together, views.train_view(images, recipe, 1, 4, indices))
    torch.set_num_threads(threads)


@RECIPES
def test_no_step_of_a_view_reads_a_value_back_from_the_device(recipe):
    # Meta tensors have shapes and no values: .item(), nonzero or a size that depends on pixels would raise here, and
    # make the host wait on a GPU.
    view = views.train_view(pictures().to("meta"), recipe, 0, 0, range(16))
    assert view.shape == (16, 3, 32, 32) and view.device.type == "meta" and view.dtype == torch.float32


@RECIPES
def test_images_handed_in_stay_as_they_were(recipe):
    images = pictures()
    before = images.clone()
    views.train_view(images, recipe, 0, 0, range(16))
    views.test_view(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("recipe", [DEFAULT, RELEASE])
def test_views_differ_between_epochs_seeds_and_images(recipe):
    same = pictures(1)[:1].expand(64, -1, -1, -1).contiguous()
    one = views.train_view(same, recipe, 0, 0, range(64))
    assert len(torch.unique(one.flatten(1), dim=0)) == 64
    for seed, epoch in ((0, 1), (1, 0)):
        other = views.train_view(same, recipe, seed, epoch, range(64))
        assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_plain_recipe_and_the_test_view_are_the_image_over_255():
    images = pictures()
    assert torch.equal(views.train_view(images, PLAIN, 0, 0, range(16)), images.float() / 255)
    assert torch.equal(views.test_view(images), images.float() / 255)
    assert torch.equal(views.test_view(images[:0]), images[:0].float())
    for recipe in (PLAIN, DEFAULT, RELEASE):
        assert views.train_view(images[:0], recipe, 0, 0, []).shape == (0, 3, 32, 32)


def test_the_default_view_is_what_a_naive_loop_over_images_and_pixels_makes():
    images, indices, size = pictures(4, size=16), [3, 1, 4, 15, 9, 2, 6, 5], 16

    def drawn(purpose, count):
        return views.draws(2, 7, indices, purpose, count)

    flip, crop, light, centre = drawn("flip", 1), drawn("crop", 3), drawn("light", 2), drawn("cutout", 2)
    expected = np.zeros((8, 3, size, size))
    for b, image in enumerate(images.numpy().astype(float)):
        side = math.sqrt(0.6 + 0.4 * crop[b, 0]) * size
        left, top = (size - side) * crop[b, 1], (size - side) * crop[b, 2]
        bright, contrast = 0.8 + 0.4 * light[b, 0], 0.8 + 0.4 * light[b, 1]
        x0, y0 = (math.floor(centre[b, k] * size) - 6 // 2 for k in (0, 1))  # a square of round(0.4 * 16) = 6 pixels
        for y in range(size):
            for x in range(size):
                if x0 <= x < x0 + 6 and y0 <= y < y0 + 6:
                    expected[b, :, y, x] = 128
                    continue
                across = size - 1 - x if flip[b, 0] < 0.5 else x
                u, v = (
                    min(max(c, 0), size - 1)
                    for c in (left + (across + 0.5) * side / size - 0.5, top + (y + 0.5) * side / size - 0.5)
                )
                i, j = min(int(u), size - 2), min(int(v), size - 2)
                upper = image[:, j, i] * (i + 1 - u) + image[:, j, i + 1] * (u - i)
                lower = image[:, j + 1, i] * (i + 1 - u) + image[:, j + 1, i + 1] * (u - i)
                level = upper * (j + 1 - v) + lower * (v - j)
                expected[b, :, y, x] = np.clip(bright * (image.mean() + contrast * (level - image.mean())), 0, 255)
    result = views.train_view(images, DEFAULT, 2, 7, indices)
    assert np.abs(result.numpy() * 255 - expected).max() < 1e-2
    assert (flip < 0.5).any() and not (flip < 0.5).all()


def test_the_release_view_is_what_pillow_makes_image_by_image_from_the_same_draws():
    images, size = pictures(60, size=40), 40
    indices = range(100, 164)
    centre, colour, chosen = (
        views.draws(0, 3, indices, purpose, count)
        for purpose, count in (("cutout", 2), ("cutout colour", 3), ("rand_augment", 8))
    )
    used = set()
    expected = torch.zeros_like(images)
    for b in range(len(images)):
        picture = to_pillow(images[b])
        left, top = (math.floor(centre[b, k] * size) - 10 for k in (0, 1))
        picture.paste(tuple(int(256 * c) for c in colour[b]), (left, top, left + 20, top + 20))
        for which, whether, magnitude, sign in chosen[b].reshape(2, 4):
            name = list(randaugment.OPERATIONS)[int(which * 14)]
            _, low, high, signed = randaugment.OPERATIONS[name]
            amount = low + (high - low) * (1 + int(magnitude * 9)) / 9
            if whether < 0.5:
                used.add(name)
                picture = in_pillow(name, picture, -amount if signed and sign < 0.5 else amount)
        expected[b] = to_tensor(picture)
    assert len(used) == 14
    assert torch.equal(views.train_view(images, RELEASE, 0, 3, indices), expected.float() / 255)


def test_flip_and_cutout_alone_move_and_hide_the_pixels_they_say():
    images = pictures()
    flipped = views.train_view(images, ViewRecipe(flip=True), 0, 0, range(16))
    mirrored = views.draws(0, 0, range(16), "flip", 1)[:, 0] < 0.5
    expected = torch.where(torch.from_numpy(mirrored)[:, None, None, None], images.flip(3), images)
    assert torch.allclose(flipped * 255, expected.float(), atol=1e-2)
    covered = views.train_view(images + 1, ViewRecipe(cutout=1.0, cutout_fill="random"), 0, 0, range(16))
    assert len(torch.unique(covered.flatten(2)[:, 0].unique())) > 8  # a colour per view, not one for all
    assert torch.equal(views.train_view(images, ViewRecipe(cutout=1e-9), 0, 0, range(16)), views.test_view(images))


# --- RandAugment


def apply(name, images, amount):
    return torch.stack([randaugment.OPERATIONS[name][0](image, amount) for image in images])


@OPERATIONS
def test_each_operation_equals_pillows_image_by_image(name):
    images = pictures(size=31)
    for amount in amounts_of(name):
        result = apply(name, images, amount)
        expected = torch.stack([to_tensor(in_pillow(name, to_pillow(image), amount)) for image in images])
        assert result.dtype == torch.uint8 and torch.equal(result, expected), f"amount {amount}"


def test_autocontrast_and_equalize_equal_pillows_for_every_width_of_range():
    rng = np.random.default_rng(0)
    ranges = [(low, high) for low in range(0, 255, 17) for high in range(low + 1, 256, 3)]
    images = np.stack([rng.integers(low, high, (3, 24, 24), endpoint=True, dtype=np.uint8) for low, high in ranges])
    images = torch.from_numpy(images)
    for name in ("autocontrast", "equalize"):
        result = apply(name, images, 0)
        expected = torch.stack([to_tensor(in_pillow(name, to_pillow(image), 0)) for image in images])
        assert torch.equal(result, expected), name


@pytest.mark.parametrize(
    "name",
    ["color", "contrast", "sharpness", "brightness", "posterize", "solarize", "autocontrast", "equalize", "invert"],
)
def test_operations_on_levels_agree_with_torchvision(name):
    images = pictures()
    by_torchvision = {
        "color": lambda x, amount: reference.adjust_saturation(x, 1 + amount),
        "contrast": lambda x, amount: reference.adjust_contrast(x, 1 + amount),
        "sharpness": lambda x, amount: reference.adjust_sharpness(x, 1 + amount),
        "brightness": lambda x, amount: reference.adjust_brightness(x, 1 + amount),
        "posterize": lambda x, amount: reference.posterize(x, round(amount)),
        "solarize": lambda x, amount: reference.solarize(x, amount),
        "autocontrast": lambda x, amount: reference.autocontrast(x),
        "equalize": lambda x, amount: reference.equalize(x),
        "invert": lambda x, amount: reference.invert(x),
    }[name]
    for amount in amounts_of(name):
        result = apply(name, images, amount)
        expected = torch.stack([by_torchvision(image, amount) for image in images])
        assert (result.int() - expected.int()).abs().max() <= 2, f"amount {amount}"


def test_operations_magnitudes_and_signs_are_drawn_evenly_and_half_are_left_out():
    kind, amount = randaugment.plan(views.draws(0, 0, range(100_000), "rand_augment", 8)[:, :4])
    counts = np.bincount(kind, minlength=15) / len(kind)
    assert counts[:14] == pytest.approx(1 / 28, abs=0.004) and counts[14] == pytest.approx(0.5, abs=0.01)
    for i, name in enumerate(randaugment.OPERATIONS):
        result, times = np.unique(np.round(amount[kind == i], 9), return_counts=True)
        assert result == pytest.approx(np.unique(np.round(amounts_of(name), 9)))
        assert times / times.sum() == pytest.approx(1 / len(result), rel=0.35)


# --- bad input and recipes


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
     torch.zeros(2, 3, 8, 9, dtype=torch.uint8), np.zeros((2, 3, 8, 8), np.uint8), None],
)  # fmt: skip
def test_images_of_another_type_or_shape_are_refused(images):
    with pytest.raises(ValueError, match=r"uint8 tensor \[B, 3, S, S\]"):
        views.train_view(images, DEFAULT, 0, 0, [0, 1])
    with pytest.raises(ValueError, match=r"uint8 tensor \[B, 3, S, S\]"):
        views.test_view(images)


def test_indices_that_do_not_fit_are_refused():
    images = pictures()
    with pytest.raises(ValueError, match="each of the 16 images"):
        views.train_view(images, DEFAULT, 0, 0, range(15))
    for indices in ([0.5] * 16, [[0] * 16], 3, [True] * 16):
        with pytest.raises(ValueError, match="list of integers"):
            views.train_view(images, DEFAULT, 0, 0, indices)


@pytest.mark.parametrize(
    "field",
    [
        {"crop_area": 0},
        {"crop_area": 1.2},
        {"brightness": -0.1},
        {"contrast": 2},
        {"cutout": math.nan},
        {"cutout_fill": "red"},
    ],
)
def test_a_recipe_out_of_range_names_its_field(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        ViewRecipe(**field)


@RECIPES
def test_a_recipe_survives_json(recipe):
    assert ViewRecipe(**json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe
