"""Maps of positives against their boxes, on models with random weights and images of noise."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from cpsd_lib.evaluation import cam
from cpsd_lib.evaluation.cam import attention_maps, class_activation, share_inside
from cpsd_lib.models.classifier import build_model
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import PartTeachers

SIZE = 64  # test_resnet has 2 x 2 places then
IMAGES = np.random.default_rng(0).integers(256, size=(12, 3, SIZE, SIZE), dtype=np.uint8)
PAIRS = [(7, 3), (2, 0), (7, 4), (9, 3), (11, 19)]


def model(num_classes=20, head="gap", seed=0):
    torch.manual_seed(seed)
    options = {} if head == "gap" else {"head_width": 16}
    classifier = build_model("test_resnet", num_classes, head=head, **options)
    with torch.no_grad():
        for value in classifier.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return classifier.eval()


def teachers(head="gap"):
    parts = [list(range(0, 20, 2)), list(range(1, 20, 2))]
    return PartTeachers([model(10, head, 1), model(10, head, 2)], Partition(parts, 20))


@pytest.mark.parametrize(
    ("head", "kinds"),
    [
        ("gap", ["activation"]),
        ("label_transformer", ["gradient"]),
        ("query2label", ["gradient", "attention"]),
        ("ml_decoder", ["gradient", "attention"]),
    ],
)
def test_a_map_is_exact_or_the_gradients_and_heads_with_class_queries_have_attention_maps_too(head, kinds):
    for one in (model(head=head), teachers(head)):
        assert cam.map_kinds(one, SIZE) == kinds
        assert cam.map_places(one, SIZE) == (2, 2) and cam.map_places(one, 32) == (1, 1)


# ---- maps of many positives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [model, teachers])
@pytest.mark.parametrize("kind", ["activation", "gradient", "attention"])
def test_every_pair_gets_the_map_of_its_own_image_and_class(make, kind, monkeypatch):
    # In float64, for an image alone and one beside others are rounded otherwise, in float32 by 1.1e-5 on some machines.
    monkeypatch.setattr(cam, "test_view", lambda images: images.double() / 255)
    monkeypatch.setattr(cam, "class_activation", lambda *arguments: class_activation(*arguments).float())
    one = make(head="query2label").double()
    maps = cam.stack_maps(one, IMAGES, PAIRS, kind)
    assert maps.shape == (len(PAIRS), SIZE, SIZE) and maps.dtype == torch.float32
    for place, (image, c) in enumerate(PAIRS):
        view = torch.from_numpy(IMAGES[image : image + 1]).double() / 255
        if kind != "attention":
            expected = class_activation(one, view, [c])
        else:
            expected = functional.interpolate(attention_maps(one, view, [c]), (SIZE, SIZE), mode="bilinear")
        torch.testing.assert_close(maps[place], expected[0, 0].float())


# ---- inside the box? -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("places", [(1, 1), (2, 2), (3, 4), (9, 9)])
def test_the_best_map_has_one_place_lit_and_no_map_has_more_inside(places):
    boxes, size = [[(1, 2, 5, 7.5)], [(0, 0, 3, 3), (6, 6, 8, 8)], [(0, 0, 8, 8)]], 8
    best, expected = cam.best_share(boxes, places, size), np.zeros(3)
    for y in range(places[0]):
        for x in range(places[1]):
            lit = torch.zeros(1, 1, *places, dtype=torch.float64)
            lit[0, 0, y, x] = 1
            large = functional.interpolate(lit, (size, size), mode="bilinear", align_corners=False)
            shares = [share_inside(large[0], [positive]).item() for positive in boxes]
            expected = np.maximum(expected, shares)
    np.testing.assert_allclose(best, expected)
    some = functional.interpolate(torch.rand(50, 1, *places).pow(8), (size, size), mode="bilinear")
    for positive, most in zip(boxes, best, strict=True):
        assert share_inside(some[:, 0], [positive] * 50).max() <= most + 1e-6
    assert best[2] == pytest.approx(1)


def test_shares_are_those_of_one_positive_at_a_time(monkeypatch):
    monkeypatch.setattr(cam, "test_view", lambda images: images.double() / 255)  # as above
    monkeypatch.setattr(cam, "class_activation", lambda *arguments: class_activation(*arguments).float())
    models = {"one": model(head="query2label").double(), "both": teachers().double()}
    boxes = [[(0, 0, 20, 30)], [(5, 7, 64, 64)], [(0, 0, 9, 9), (4, 4, 33, 50)], [(60, 1, 63, 5)], [(0, 0, 64, 64)]]
    sample = pd.DataFrame(PAIRS, columns=["image", "class"]).assign(boxes=boxes)
    table = cam.inside_boxes(models, IMAGES, sample)
    kinds = [("one", "gradient"), ("one", "attention"), ("both", "activation")]
    assert list(table.groupby(["strategy", "map"], sort=False).groups) == kinds
    assert len(table) == 3 * len(PAIRS)
    for (strategy, kind), lines in table.groupby(["strategy", "map"]):
        for (image, c), sides, line in zip(PAIRS, boxes, lines.itertuples(), strict=True):
            assert (line.image, line._2) == (image, c)  # "class" is a word of Python's
            one = cam.stack_maps(models[strategy], IMAGES, [(image, c)], kind)
            share = share_inside(one, [sides]).item()
            assert line.share == pytest.approx(share, abs=1e-6, nan_ok=True)
            area = {
                (y, x) for left, top, right, bottom in sides for y in range(top, bottom) for x in range(left, right)
            }
            assert line.chance == pytest.approx(len(area) / SIZE**2) and line.chance <= line.best + 1e-9
            assert np.isnan(line.share) or line.share <= line.best + 1e-5


# ---- in a table, with intervals --------------------------------------------------------------------------------------


def shares(columns, images, chance=0.1):
    """A table as of inside_boxes: columns {(strategy, map): shares [P]}, images [P]."""
    about = {"image": images, "class": range(len(images)), "chance": chance, "best": 0.5}
    return pd.concat([pd.DataFrame(about | {"strategy": s, "map": m, "share": v}) for (s, m), v in columns.items()])


def test_intervals_are_those_of_images_drawn_again_one_by_one():
    rng = np.random.default_rng(1)
    images = rng.integers(6, size=40)
    columns = {(s, "activation"): rng.random(40) for s in "ab"}
    columns["a", "activation"][[0, 7]] = np.nan
    table = cam.summarise_shares(shares(columns, images), "a", resamples=300, seed=5)
    first, second = (columns[s, "activation"] for s in "ab")
    draws = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), 300)
    for values, line, name in (
        (first, "a", "share"),
        (second, "b", "share"),
        (second - 0.1, "b", "above"),
        (second - first, "b", "over"),
    ):
        means = []
        for counts in draws:
            drawn = [
                values[p] for image in range(6) for _ in range(counts[image]) for p in np.flatnonzero(images == image)
            ]
            means.append(np.nanmean(drawn))
        interval = table.loc[(line, "activation"), [name, f"{name}_low", f"{name}_high"]].to_numpy(float)
        np.testing.assert_allclose(interval, 100 * np.array([np.nanmean(values), *np.quantile(means, [0.025, 0.975])]))
    assert table["empty"].tolist() == [2, 0] and table["images"].tolist() == [6, 6]
    assert table["chance"].tolist() == pytest.approx([10, 10]) and table["best"].tolist() == [50, 50]
    assert table.loc["a", ["over", "over_low", "over_high"]].isna().all(axis=None)


def test_chance_and_best_leave_out_the_positives_without_a_map():
    table = shares({("a", "activation"): [0.1, np.nan, 0.3]}, [1, 1, 2]).assign(
        chance=[0.1, 0.8, 0.3], best=[0.4, 1, 0.6]
    )
    line = cam.summarise_shares(table).iloc[0]
    assert line[["share", "above", "chance", "best"]].tolist() == pytest.approx([20, 0, 20, 50]) and line["empty"] == 1
    assert line["share"] - line["above"] == pytest.approx(line["chance"])


def test_class_activation_is_compared_whether_exact_or_not_and_attention_with_attention():
    columns = {
        ("a", "gradient"): [0.2],
        ("a", "attention"): [0.1],
        ("b", "activation"): [0.3],
        ("b", "attention"): [0.5],
    }
    table = cam.summarise_shares(shares(columns, [4]), "a")
    assert table["over"].tolist() == pytest.approx([np.nan, np.nan, 10, 40], nan_ok=True)


def test_the_same_kind_of_map_is_compared_and_nothing_where_it_is_not_there():
    columns = {("a", "activation"): [0.2], ("b", "activation"): [0.3], ("b", "attention"): [np.nan]}
    table = cam.summarise_shares(shares(columns, [4]), "a")
    assert table["over"].tolist() == pytest.approx([np.nan, 10, np.nan], nan_ok=True)
    assert table.loc[("b", "attention"), ["share", "above_low"]].isna().all()
    assert cam.summarise_shares(shares(columns, [4]))["over"].isna().all()


# ---- captions and peaks ----------------------------------------------------------------------------------------------


def test_captions_and_peaks_know_empty_maps_and_pictures_without_boxes():
    maps = torch.zeros(4, 4, 4)
    maps[0, 1, 2], maps[0, 3, 3], maps[1, 0, 0], maps[3] = 1, 0.25, 1, 1
    boxes = [[(0, 0, 1, 1), (2, 1, 3, 2)], [(1, 1, 4, 4)], [(0, 0, 4, 4)], [(0, 0, 2, 2)]]
    assert cam.map_captions(maps, [0.5, 0.25, 1, 0], boxes) == [
        "p 0.50, 80 % inside",
        "p 0.25, 0 % inside",
        "p 1.00, map all 0",
        "p 0.00, map flat",
    ]
    assert cam.map_captions(maps[:3], [0.5, 0.25, 1]) == ["p 0.50", "p 0.25", "p 1.00, map all 0"]
    assert cam.peaks_inside(maps, boxes) == 1


def test_a_map_of_one_place_is_flat_whatever_enlarging_rounds():
    images = IMAGES[:, :, :32, :32].copy()
    maps = cam.stack_maps(teachers(), images, PAIRS)
    maps = torch.cat([maps, torch.full((1, 32, 32), 1.0)])
    maps[-1, 3, 3] = 1 - 1e-7
    notes = {text.split(", ")[1] for text in cam.map_captions(maps, [0.5] * 6, [[(0, 0, 8, 8)]] * 6)}
    assert notes <= {"map flat", "map all 0"} and cam.peaks_inside(maps, [[(0, 0, 32, 32)]] * 6) == 0
