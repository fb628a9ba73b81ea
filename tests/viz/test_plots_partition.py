import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cpsd_lib import graph
from cpsd_lib.evaluation import partitions as study
from cpsd_lib.partition import Partition
from cpsd_lib.viz import plots_partition

COUNTS = graph.cooccurrence((np.random.default_rng(0).random((200, 9)) < 0.3).astype(np.int8))


@pytest.fixture
def draw():
    """Lay a figure out as saving it would; a text that does not fit warns, and a warning is an error here."""
    yield lambda figure: (figure.canvas.draw(), figure)[1]
    plt.close("all")


def texts(axis):
    return [text.get_text() for text in axis.texts]


@pytest.mark.parametrize("branches", [["co"], ["co", "dis"], ["co", "dis", "DGP without loops"]])
def test_a_bar_an_exponent_has_the_sizes_as_heights_largest_first(draw, branches):
    table = pd.DataFrame({"exponent": [1 / 3, 0.5], "sizes": [[6, 2, 1], [7, 1, 1]], "ARI to p = 0.5": [0.2, 1.0]})
    figure = draw(plots_partition.exponent_effect(dict.fromkeys(branches, table)))
    bars, lines = figure.axes[0], figure.axes[len(branches)]
    stacked = sorted(bars.patches, key=lambda bar: (bar.get_x(), bar.get_y()))
    assert [(bar.get_y(), bar.get_height()) for bar in stacked] == [
        (0, 6), (6, 2), (8, 1), (0, 7), (7, 1), (8, 1)
    ]  # fmt: skip
    assert texts(bars) == ["6", "7", "2", "1", "1", "1", "1 × 1", "2 × 1"]  # a rank after the other
    assert [label.get_text() for label in lines.get_xticklabels()] == ["0.33", "0.5\n(paper)"]
    assert len(lines.lines) == 1 and list(lines.lines[0].get_ydata()) == [0.2, 1.0]
    titles = {"co": "CGP (cuts P+)", "dis": "DGP (cuts P-)"}
    expected = [f"{titles.get(branch, branch)}, k = 3" for branch in branches]
    assert [axis.get_title(loc="left") for axis in figure.axes[: len(branches)]] == expected


def test_agreement_with_another_partition_is_a_second_line(draw):
    other = Partition([range(4), range(4, 9)], 9)
    table = study.over_exponents(*COUNTS, "dis", 2, [0.3, 0.5, 1], other=other)
    lines = draw(plots_partition.exponent_effect({"dis": table})).axes[1]
    assert [text.get_text() for text in lines.get_legend().get_texts()] == [
        "to the cut at p = 0.5",
        "to the released file",
    ]
    low, high = lines.get_ylim()
    assert low < table["ARI to other"].min() and high > 1


def test_stability_shows_the_mean_and_the_range_of_the_repeats(draw):
    lines = [
        (k, kind, r, ari) for k in (2, 3) for kind, ari in (("seeds", 1.0), ("halves", 0.5 * k - 1)) for r in (0, 1)
    ]
    table = pd.DataFrame(lines, columns=["k", "kind", "repeat", "ari"])
    table.loc[(table["kind"] == "halves") & (table["repeat"] == 1), "ari"] += 0.2
    figure = draw(plots_partition.stability_by_k({"co": table, "dis": table}))
    for axis in figure.axes:
        seeds, halves = axis.lines[:2]
        assert list(seeds.get_ydata()) == [1, 1] and list(halves.get_ydata()) == pytest.approx([0.1, 0.6])
        band = axis.collections[1].get_paths()[0].vertices[:, 1]
        assert (band.min(), band.max()) == pytest.approx((0.0, 0.7))
        assert list(axis.get_xticks()) == [2, 3]
