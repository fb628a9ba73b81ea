import numpy as np
import pytest
import torch

from cpsd_lib import losses
from cpsd_lib.viz import plots

TRIANGLE = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])


@pytest.fixture
def draw():
    """Lay a figure out as saving it would; a text that does not fit warns, and a warning is an error here."""
    return lambda figure: (figure.canvas.draw(), figure)[1]


def group(seed, n, width):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def test_relative_distances_of_a_hand_made_triangle():
    expected = np.array([[0, 4, 3], [4, 0, 5], [3, 5, 0]]) / 4
    np.testing.assert_allclose(plots.relative_distances(TRIANGLE), expected)
    np.testing.assert_allclose(plots.relative_distances(7 * TRIANGLE + 1), expected, rtol=1e-6)


def test_the_mean_is_over_distances_above_zero_as_in_led():
    twice = torch.tensor([[0.0], [0.0], [2.0]])
    np.testing.assert_allclose(plots.relative_distances(twice), [[0, 0, 1], [0, 0, 1], [1, 1, 0]])


@pytest.mark.parametrize("n", [1, 4])
def test_a_group_without_distances_has_zeros(n):
    np.testing.assert_array_equal(plots.relative_distances(torch.ones(n, 3)), np.zeros((n, n)))


@pytest.mark.parametrize("n", [2, 3, 9])
@pytest.mark.parametrize("scale", [1, 50])
def test_led_of_one_group_is_the_mean_huber_distance_times_the_other_members(n, scale):
    # One student far from the others: some gaps are above 1, where Huber is no longer a square.
    student, teacher = group(0, n, 5), group(1, n, 3)
    student[0] *= scale
    huber = plots.mean_huber(plots.relative_distances(student), plots.relative_distances(teacher))
    led = losses.led(student[:, None], teacher[:, None], torch.ones(n, 1))[0].item()
    assert (n - 1) * huber == pytest.approx(led, rel=1e-4, abs=1e-6)


def test_one_member_has_no_distance_to_anything():
    assert plots.mean_huber(np.zeros((1, 1)), np.zeros((1, 1))) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_distance_matrices_share_one_scale_and_say_how_far_the_teacher_is(draw, n):
    matrices = {name: plots.relative_distances(group(seed, n, 4)) for seed, name in enumerate(("teacher", "a", "b"))}
    names = [f"class {i}" for i in range(n)]
    *panels, bar = draw(plots.distance_matrices(matrices, "classes", "ID of one image", names)).axes
    assert len({panel.collections[0].get_clim() for panel in panels}) == 1 and bar.get_ylabel() != ""
    assert panels[0].get_title(loc="left") == "teacher\nto be copied"
    for panel, name in zip(panels[1:], "ab", strict=True):
        huber = plots.mean_huber(matrices[name], matrices["teacher"])
        assert panel.get_title(loc="left") == f"{name}\nHuber to the teacher {huber:.4f}"
    assert len(panels[1].texts) == (n * (n - 1) if n <= plots.ANNOTATED else 0)
    assert [label.get_text() for label in panels[2].get_xticklabels()] == names
    assert np.ma.getmaskarray(panels[0].collections[0].get_array()).reshape(n, n).diagonal().all()


def test_distance_matrices_without_names_have_no_ticks(draw):
    matrix = plots.relative_distances(group(0, 5, 4))
    panel = draw(plots.distance_matrices({"teacher": matrix, "student": matrix}, "images", "CD")).axes[1]
    assert len(panel.get_xticks()) == len(panel.get_yticks()) == 0
    assert panel.get_title(loc="left").endswith("0.0000")
