import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from cpsd_lib.evaluation import summarise_shares
from cpsd_lib.viz import plots

SPECK = np.random.default_rng(0)


@pytest.fixture
def draw():
    """Lay a figure out as saving it would; a text that does not fit warns, and a warning is an error here."""
    return lambda figure: (figure.canvas.draw(), figure)[1]


def test_an_overlay_is_grey_where_the_map_is_0_and_lit_where_it_is_high():
    image = np.full((3, 2, 2), 255, np.uint8)
    image[0] = 0
    blend = plots.overlay(image, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    np.testing.assert_allclose(blend[0, 0], 170 / 255)
    assert blend.shape == (2, 2, 3) and blend.min() >= 0 and blend.max() <= 1
    np.testing.assert_allclose(blend[1, 1], 0.4 * 170 / 255 + 0.6 * np.array(plots.MAP(1.0)[:3]))


@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("boxes", [True, False])
def test_a_column_is_one_picture_with_its_boxes_in_every_row(draw, count, boxes):
    images = SPECK.integers(256, size=(count, 3, 16, 16), dtype=np.uint8)
    maps = {name: torch.rand(count, 16, 16) for name in ("baseline", "co teachers", "dis teachers", "+ CPSD")}
    captions = {name: [f"{name} {i}" for i in range(count)] for name in maps}
    words = ["a class with a name that is far too long"] * count
    sides = [[(0, 0, 4, 4)] * (i + 1) for i in range(count)] if boxes else None
    *panels, bar = draw(plots.looking(images, words, maps, captions, sides, "a title")).axes
    assert len(panels) == 5 * count and "maximum" in bar.get_ylabel()
    panels = np.array(panels).reshape(5, count)
    for line, name in zip(panels, ["picture", *maps], strict=True):
        assert line[0].get_ylabel() == name
        for number, axis in enumerate(line):
            assert len(axis.patches) == (number + 1 if boxes else 0)
            assert axis.get_title() == (captions[name][number] if name in maps else "a class wit…o long")
    np.testing.assert_array_equal(panels[0, -1].images[0].get_array(), np.moveaxis(images[-1], 0, -1))
    np.testing.assert_allclose(panels[4, 0].images[0].get_array(), plots.overlay(images[0], maps["+ CPSD"][0]))


def table(seeds, empty=False):
    lines = [("baseline", "activation"), ("co teachers", "activation"), ("co teachers", "attention")]
    tables = {}
    for seed in range(seeds):
        about = {"image": range(30), "class": 0, "chance": 0.1, "best": 0.6}
        shares = [pd.DataFrame(about | {"strategy": s, "map": m, "share": SPECK.random(30)}) for s, m in lines]
        if empty:
            shares[2]["share"] = np.nan
        tables[seed] = summarise_shares(pd.concat(shares), "baseline", 50)
    return pd.concat(tables, names=["seed"])


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("splits", [("test",), ("test", "test_shifted")])
def test_every_model_and_seed_has_its_dot_and_interval_beside_chance_and_the_best(draw, seeds, splits):
    tables = {split: table(seeds, empty=split == "test_shifted") for split in splits}
    figure = draw(plots.shares_inside(tables, "a title"))
    assert [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes] == list(splits)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["baseline", "co teachers", "co teachers, attention"]
    axis, lines = figure.axes[0], tables["test"]
    dots = np.concatenate([line.get_xdata() for line in axis.lines if line.get_marker() == "o"])
    assert sorted(dots) == pytest.approx(sorted(lines["share"]))
    ends = [tuple(ends[:, 0]) for lines in axis.collections for ends in lines.get_segments()]
    assert sorted(ends) == sorted(zip(lines["share_low"], lines["share_high"], strict=True))
    assert any(line.get_linestyle() == ":" and line.get_xdata()[0] == pytest.approx(10) for line in axis.lines)
    (best,) = [line for line in axis.lines if line.get_marker() == "|"]
    assert list(best.get_xdata()) == pytest.approx([60] * 3) and best.get_linestyle() == "None"
    assert [len(one.texts) for one in figure.axes] == [3, 2][: len(splits)]
    (legend,) = figure.legends
    assert [text.get_text().split()[0] for text in legend.get_texts()] == ["chance:", "the"]


def test_a_rank_correlation_leaves_out_classes_without_a_score_and_needs_values_that_differ():
    gain = np.array([1.0, 2.0, np.nan, 3.0])
    ranks = plots.gain_against(gain, {"rising": [1, 5, 0, 6], "alike": [2, 2, 9, 2]}, "t")[1]
    assert ranks["rising"].statistic == pytest.approx(1) and ranks["alike"] is None
    assert plots.gain_against(0 * gain, {"rising": [1, 5, 0, 6]}, "t")[1] == {"rising": None}


def test_classes_that_are_all_alike_are_drawn_and_named_so():
    properties = {"images": [1, 5, 0, 6], "degree": [2, 2, 2, 2]}
    figure, _ = plots.gain_against(np.array([1.0, 2.0, np.nan, 0.5]), properties, "t")
    first, second = figure.axes
    assert first.get_title("left").startswith("rank correlation") or first.get_title().startswith("rank correlation")
    assert "all classes alike" in (second.get_title("left"), second.get_title())
    assert first.get_xlabel() == "images" and len(first.lines[1].get_xdata()) == 3


def test_letters_that_no_font_draws_are_named_and_drawing_them_warns_of_nothing(tmp_path):
    plots.use_style()
    assert plots.undrawn(["café", "naïve cat", "Ω $"]) == []
    assert plots.undrawn(["\U000e0041", "cat"]) == ["\U000e0041"]  # a tag, which has no picture in any font
    figure, axis = plt.subplots()
    axis.set_title("\U000e0041")
    plots.save(figure, tmp_path / "a.png")
