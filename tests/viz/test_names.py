from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from cpsd_lib.models import build_model
from cpsd_lib.partition import Partition
from cpsd_lib.viz import cams, parts, plots, thresholds
from cpsd_lib.viz.explorer import canvas

LONG = [f"a class whose name of some sixty letters ends in number {n:04d}" for n in range(8)]
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(256, size=(6, 3, 16, 16), dtype=np.uint8)
TWO = Partition([[0, 1, 2, 3], [4, 5, 6, 7]], 8)
AFFINITY = np.ones((8, 8))


def test_a_long_name_keeps_its_ends_and_no_two_are_alike():
    alike = [f"{'x' * 30}{n}{'y' * 30}" for n in range(3)]
    names = ["cat", "two\nlines", "狗", *LONG, *alike, LONG[0]]
    words = plots.short(names)
    assert words[:4] == ["cat", "two lines", "狗", "a class whose nam…r 0000"] and words[-1] == words[3]
    assert max(map(len, words)) <= 24 and len(set(words)) == len(set(names))
    table = plots.shortened(names[:5])
    assert table.to_dict()["class"] == {"two lines": "two\nlines", words[3]: LONG[0], words[4]: LONG[1]}
    assert plots.shortened(["cat", "dog"]).empty


def graph_of_the_explorer():
    figure = canvas("title", "summary")
    parts.draw_graph(figure, AFFINITY, TWO, LONG)
    parts.draw_points(figure, TWO, RANDOM.random((8, 2)), LONG)
    return figure


def classes_of_the_thresholds():
    figure = canvas("title", "summary")
    curves = {name: np.zeros((101, 8)) for name in ("precision", "recall", "F1", "OP", "OR", "OF1")}
    thresholds.draw_curves(figure, curves, 0, 0.5, dict.fromkeys(thresholds.STYLES, 0.5))
    each = {name: np.zeros(8) for name in thresholds.STYLES}
    thresholds.draw_classes(figure, each, np.arange(8), 0, LONG)
    return figure


def matrices():
    distances = {name: 1 - np.eye(8) for name in ("teacher", "+ MLD", "+ LED")}
    return plots.distance_matrices(distances, "classes", "about", LONG)


def looking():
    maps = {name: RANDOM.random((6, 16, 16)) for name in ("baseline", "co teachers")}
    return plots.looking(IMAGES, LONG[:6], maps, dict.fromkeys(maps, ["p 0.12, map flat"] * 6), None, "title")


def browser():
    draw, model, targets = cams.draw_maps, build_model("test_resnet", 8).eval(), np.ones((6, 8), np.int8)
    with patch.object(cams, "draw_maps", side_effect=draw) as drawn:
        cams.cam_browser({"one": model}, IMAGES, [0], targets, LONG)
    return draw(*drawn.call_args.args)


FIGURES = {
    "01 and 05": lambda: plots.class_bars(
        pd.Series(np.arange(8.0), LONG), "gain", "AP of + CPSD minus baseline on test"
    ),
    "01": lambda: plots.pictures(IMAGES, [", ".join(plots.short(LONG[:n])) for n in range(1, 7)], "title"),
    "02": lambda: plots.affinity_by_part(
        [AFFINITY] * 2, [TWO] * 2, LONG, ["CGP: P+, labels that co-occur share a part", "DGP"]
    ),
    "02, explorer": graph_of_the_explorer,
    "06": looking,
    "06, browser": browser,
    "07, explorer": classes_of_the_thresholds,
    "08": matrices,
}


@pytest.mark.parametrize("name", FIGURES)
def test_names_of_sixty_letters_leave_a_figure_its_room_and_lie_over_no_other(name):
    with plt.rc_context():
        plots.use_style()
        figure = FIGURES[name]()
        figure.canvas.draw()
        axes = {axis: axis.get_window_extent() for axis in figure.axes}
        area = sum(box.width * box.height for box in axes.values()) / (figure.bbox.width * figure.bbox.height)
        assert area > 0.12, "names take the room of what is drawn"
        for axis in axes:
            for text in axis.findobj(lambda artist: isinstance(artist, Text) and "a class" in artist.get_text()):
                box = text.get_window_extent()
                assert box.x0 > -2 and box.x1 < figure.bbox.width + 2, f"{text.get_text()!r} leaves the figure"
                for other, ground in axes.items():
                    assert other is axis or not box.overlaps(ground), f"{text.get_text()!r} lies over another picture"
        titles = [title for axis in axes for title in (axis.title, axis._left_title) if title.get_text()]
        titles = [title.get_window_extent() for title in titles]
        assert not any(title.count_overlaps(axes.values()) for title in titles), "a title lies over a picture"
        for number, title in enumerate(titles):
            assert not title.count_overlaps(titles[:number]), "two titles lie over each other"
        plt.close(figure)
