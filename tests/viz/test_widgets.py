import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import display
from IPython.utils.capture import capture_output
from jupyter_client.manager import start_new_kernel
from PIL import Image

from cpsd_lib import graph
from cpsd_lib import viz as widgets
from cpsd_lib.evaluation import cam, metrics
from cpsd_lib.models.classifier import build_model
from cpsd_lib.partition import Partition, adjusted_rand, cut, ncut
from cpsd_lib.teachers import PartTeachers
from cpsd_lib.viz import parts, plots

NAMES = list("abcdefgh")


def labels(seed=0, images=300, unknown=0.0):
    """Labels [N, 8]: an image holds most classes of one of the groups abcd / efg, now and then another; h is rare."""
    random = np.random.default_rng(seed)
    inside = random.integers(2, size=images)[:, None] == np.array([0, 0, 0, 0, 1, 1, 1, 2])
    targets = (random.random((images, 8)) < np.where(inside, 0.7, 0.06)).astype(np.int8)
    return np.where(random.random(targets.shape) < unknown, -1, targets).astype(np.int8)


def parts_explorer(**options):
    return widgets.partition_explorer(*graph.cooccurrence(labels()), NAMES, **options)


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


# ---- partition explorer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", ["co", "dis"])
@pytest.mark.parametrize("refine", [False, True])
def test_the_partition_shown_is_the_one_that_a_run_cuts(branch, refine):
    other = Partition([[0, 1, 2, 7], [3, 4], [5, 6]], 8)
    start = {"branch": branch, "k": 3, "exponent": 0.4, "seed": 5, "refine": {branch: refine}}
    shown = parts_explorer(start=start, compare={branch: other}).numbers
    affinity = graph.affinity(*graph.cooccurrence(labels()), branch, 0.4)
    partition = cut(affinity, 3, 5, refine)
    assert shown["partition"] == partition and shown["Ncut"] == ncut(affinity, partition)
    assert shown["ARI"] == adjusted_rand(partition, other)
    assert shown["singletons"] == sum(len(part) == 1 for part in partition.parts)
    assert shown["sizes"] == sorted(map(len, partition.parts), reverse=True)


def test_a_partition_for_each_branch_is_compared_with_that_branch():
    compare = {"co": Partition([[0, 1, 2, 3], [4, 5, 6, 7]], 8)}
    shown = parts_explorer(compare=compare)
    assert "ARI" in shown.numbers
    shown.set(branch="dis")
    assert "ARI" not in shown.numbers


def test_moving_a_control_changes_the_numbers_and_the_picture():
    shown = parts_explorer()
    before = shown.png
    shown.controls["k"].value = 4
    assert len(shown.numbers["partition"]) == 4 and len(shown.numbers["sizes"]) == 4
    assert not np.array_equal(pixels(shown.png), pixels(before))
    shown.controls["branch"].value = "dis"
    assert shown.settings == {"branch": "dis", "k": 4, "exponent": 0.5, "seed": 0, "refine": False}
    shown.controls["branch"].value, shown.controls["k"].value = "co", 2
    assert np.array_equal(pixels(shown.png), pixels(before))


def test_refine_is_a_toggle_that_follows_the_branch_as_the_run_has_it():
    shown = parts_explorer(start={"branch": "co", "k": 3, "refine": {"co": False, "dis": True}})
    assert not shown.settings["refine"] and not shown.controls["refine"].value
    shown.controls["branch"].value = "dis"
    assert shown.settings["refine"] and shown.controls["refine"].value
    refined = shown.numbers["Ncut"]
    shown.controls["seed"].value = 1
    assert shown.settings["refine"]
    shown.controls["seed"].value, shown.controls["refine"].value = 0, False
    assert not shown.settings["refine"] and shown.numbers["Ncut"] >= refined


def test_what_is_exported_can_be_loaded_and_leaves_the_runs_own_partition_alone(tmp_path):
    shown = parts_explorer(folder=tmp_path)
    shown.controls["exponent"].value = 0.1 + 0.2
    shown.controls["export"].click()
    path = tmp_path / "explored_partitions" / "co-k2-p0.3-seed0.json"
    assert Partition.load(path, 8) == shown.numbers["partition"] and str(path) in shown.message.value
    assert shown.numbers["partition"] == cut(graph.affinity(*graph.cooccurrence(labels()), "co", 0.3), 2)
    assert [p.name for p in tmp_path.iterdir()] == ["explored_partitions"]
    assert "export" not in parts_explorer().controls


def test_an_export_that_cannot_be_written_is_reported_beside_the_controls(tmp_path):
    (tmp_path / "explored_partitions").write_text("a file where a folder must be")
    shown = parts_explorer(folder=tmp_path)
    shown.controls["export"].click()
    assert "explored_partitions" in shown.message.value and "written to" not in shown.message.value
    shown.controls["k"].value = 3
    assert shown.message.value == ""


def test_a_setting_that_was_there_before_is_not_cut_again(monkeypatch):
    cuts = []
    monkeypatch.setattr(parts, "cut", lambda *settings: cuts.append(settings) or cut(*settings))
    shown = parts_explorer()
    for k in (3, 2, 3):
        shown.set(k=k)
    assert len(cuts) == 2


def test_the_embedding_is_that_of_the_normalised_laplacian():
    affinity = graph.affinity(*graph.cooccurrence(labels()))
    degree = affinity.sum(1)
    laplacian = np.eye(8) - affinity / np.sqrt(np.outer(degree, degree))
    points = parts.embedding(affinity)
    for axis, value in enumerate(np.linalg.eigvalsh(laplacian)[1:3]):
        vector = points[:, axis] * np.sqrt(degree)
        assert np.allclose(laplacian @ vector, value * vector) and np.isclose(np.linalg.norm(vector), 1)
        assert (points[:, axis] ** 3).sum() >= 0


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("present", [0, 1])
def test_few_classes_or_classes_that_never_co_occur_are_drawn(count, present):
    targets = np.zeros((5, count + 1), np.int8)
    targets[:, :count] = present
    for branch in ("co", "dis"):
        start = {"branch": branch, "k": 1}
        shown = widgets.partition_explorer(*graph.cooccurrence(targets), NAMES[: count + 1], start)
        assert shown.numbers["sizes"] == [count + 1] and pixels(shown.png).shape == (540, 1100, 4)
    points = parts.embedding(graph.affinity(*graph.cooccurrence(targets)))
    assert np.isnan(points[-1]).all() and np.isnan(points).all(1).sum() == (1 if present and count > 1 else count + 1)


def test_a_partition_explorer_refuses_what_does_not_fit():
    for options in (
        {"start": {"parts": 3}},
        {"start": {"k": 9}},
        {"start": {"exponent": 0}},
        {"start": {"branch": "+"}},
    ):
        with pytest.raises(ValueError, match=r"parts|k must|exponent|branch"):
            parts_explorer(**options)
    with pytest.raises(ValueError, match="cannot compare"):
        parts_explorer(compare={"co": Partition([[0], [1]], 2)})
    shown = parts_explorer()
    for change in ({"k": 9}, {"colour": "red"}):
        with pytest.raises(ValueError):
            shown.set(**change)
    assert shown.settings["k"] == 2 and len(shown.numbers["partition"]) == 2


# ---- threshold explorer ----------------------------------------------------------------------------------------------


def scores_of(targets, seed=0, dtype=np.float64):
    """Probabilities in steps of 0.05, so that many are equal and many are a threshold."""
    noise = np.random.default_rng(seed).normal(0, 0.25, targets.shape)
    return (np.round(np.clip(0.35 + 0.3 * (targets == 1) + noise, 0, 1) * 20) / 20).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_the_threshold_explorer_counts_what_metrics_counts(dtype, unknown):
    targets = labels(unknown=unknown)
    targets[:, 7] = 0  # a class without a positive
    scores = scores_of(targets, dtype=dtype)
    shown = widgets.threshold_explorer(scores, targets, NAMES)
    for threshold in (0.0, 0.3, 0.55, 0.7, 0.951, 1.0):
        shown.controls["threshold"].value = threshold
        assert shown.numbers == pytest.approx(metrics.precision_recall_f1(scores, targets, threshold), abs=1e-15)


def test_a_class_is_counted_by_itself():
    targets = labels(unknown=0.2)
    scores = scores_of(targets)
    shown = widgets.threshold_explorer(scores, targets, NAMES, {"threshold": 0.6})
    for c, name in enumerate(NAMES):
        shown.controls["shown"].value = name
        predicted = (scores[:, c] >= 0.6) & (targets[:, c] != -1)
        right, positive = (predicted & (targets[:, c] == 1)).sum(), (targets[:, c] == 1).sum()
        precision, recall = right / max(predicted.sum(), 1), right / max(positive, 1)
        f1 = 2 * right / (predicted.sum() + positive)
        numbers = [shown.numbers[key] for key in ("precision", "recall", "F1")]
        assert numbers == pytest.approx([precision, recall, f1])


def test_a_menu_of_classes_begins_with_an_entry_and_not_empty():
    targets = labels()
    menus = [
        widgets.threshold_explorer(scores_of(targets), targets, NAMES).controls["shown"],
        browser().controls["shown"],
    ]
    assert [menu.label for menu in menus] == ["all classes", "labels of the image"]


def test_a_threshold_explorer_refuses_what_does_not_fit():
    targets = labels()
    scores = scores_of(targets)
    for start in ({"threshold": 1.5}, {"shown": "z"}, {"class": "a"}):
        with pytest.raises(ValueError, match=r"0\.\.1|'z' is not in list|settings are"):
            widgets.threshold_explorer(scores, targets, NAMES, start)
    with pytest.raises(ValueError, match="probabilities"):
        widgets.threshold_explorer(scores * 3, targets, NAMES)


# ---- CAM browser -----------------------------------------------------------------------------------------------------


def small_model(num_classes=8):
    return build_model("resnet18", num_classes).eval()


def pictures(count=4):
    return np.random.default_rng(0).integers(256, size=(count, 3, 64, 64), dtype=np.uint8)


TARGETS = np.zeros((4, 8), np.int8)
TARGETS[0, [1, 4]] = 1
TARGETS[2, :5] = 1
TARGETS[3, 0] = -1


def browser(models=None, **options):
    return widgets.cam_browser(models or {"one": small_model()}, pictures(), [3, 0, 2], TARGETS, NAMES, **options)


def test_a_cam_browser_shows_the_labels_of_the_image_or_the_most_probable_class():
    model = small_model()
    shown = browser({"one": model})
    probabilities = torch.sigmoid(model(torch.from_numpy(pictures()) / 255).logits).detach().numpy()
    assert shown.numbers["labels"] == [] and shown.numbers["classes"] == [NAMES[probabilities[3].argmax()]]
    shown.controls["image"].value = 1
    assert shown.numbers["classes"] == shown.numbers["labels"] == ["b", "e"]
    assert shown.numbers["probabilities"] == pytest.approx(probabilities[0, [1, 4]], abs=1e-5)
    shown.controls["image"].value = 2
    assert shown.numbers["classes"] == shown.numbers["labels"] == list("abcde")
    assert pixels(shown.png).shape[0] <= 560  # low enough for the controls above it
    shown.controls["shown"].value = "h"
    assert shown.numbers["classes"] == ["h"]


def test_another_model_or_image_shows_another_map_and_teachers_answer_as_one_model():
    teachers = PartTeachers([small_model(4), small_model(4)], Partition([[0, 2, 4, 6], [1, 3, 5, 7]], 8))
    shown = browser({"one": small_model(), "teachers": teachers}, start={"shown": "c"})
    seen = [shown.png]
    shown.controls["model"].value = "teachers"
    probability = torch.sigmoid(teachers(torch.from_numpy(pictures()[3:]) / 255)[0, 2]).item()
    assert shown.numbers["probabilities"] == pytest.approx([probability], abs=1e-5)
    seen.append(shown.png)
    shown.controls["image"].value = 1
    assert len({*seen, shown.png}) == 3


def test_the_maps_drawn_are_those_of_class_activation(monkeypatch):
    model, drawn = small_model(), []
    monkeypatch.setattr("cpsd_lib.viz.cams.draw_maps", lambda *all: drawn.append(all) or plt.figure())
    browser({"one": model}, start={"image": 1})
    expected = cam.class_activation(model, torch.from_numpy(pictures()[:1]) / 255, [1, 4])[0]
    image, maps, captions, headline = drawn[0]
    assert "its maps of activation" in headline  # exact; a layer more and they are the gradient's
    browser({"one": build_model("mobilenetv3_small_050", 8).eval()}, start={"image": 1})
    assert "its maps of gradient" in drawn[1][3]
    assert np.array_equal(image, pictures()[0]) and np.allclose(maps, expected, atol=1e-5)
    assert [caption.split("\n")[0] for caption in captions] == ["b", "e"]


def test_a_cam_browser_refuses_what_does_not_fit():
    for start in ({"image": 3}, {"image": -1}, {"shown": "z"}, {"model": "two"}, {"row": 0}):
        with pytest.raises(ValueError, match=r"there is no|settings are"):
            browser(start=start)


# ---- with and without a front end ------------------------------------------------------------------------------------


def test_without_a_front_end_an_explorer_shows_its_picture_and_makes_no_widget():
    shown = parts_explorer()
    InteractiveShell.instance()
    with capture_output() as outputs:
        display(shown)
    (output,) = outputs.outputs
    assert set(output.data) == {"image/png", "text/plain"} and "Ncut" in output.data["text/plain"]
    assert "widget" not in vars(shown) and "controls" not in vars(shown)
    assert not plt.get_fignums()


def test_papermill_gets_the_picture_alone_and_a_notebook_the_controls_beside_it():
    """About 10 s: a kernel. papermill, nbconvert and nbclient set allow_stdin to False: nobody is there to answer."""
    manager, client = start_new_kernel(startup_timeout=300)
    try:
        code = "import numpy as np\nfrom cpsd_lib import viz as widgets\n"
        code += "shown = widgets.threshold_explorer(np.array([[0.2], [0.7]]), np.array([[0], [1]]), ['a'])\nshown"
        sent_to = {}
        for somebody, cell in ((False, code), (True, code), ("moved", "shown.controls['threshold'].value = 0.9")):
            sent = sent_to[somebody] = []
            reply = client.execute_interactive(cell, allow_stdin=bool(somebody), output_hook=sent.append, timeout=120)
            assert reply["content"]["status"] == "ok", reply["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    view = "application/vnd.jupyter.widget-view+json"
    outputs = {s: [m["content"] for m in sent if "display_data" in m["msg_type"]] for s, sent in sent_to.items()}
    (alone,), (controls, picture), (moved,) = outputs.values()
    assert not any("comm" in message["msg_type"] for message in sent_to[False])
    # What a restarted kernel cannot show is an output by itself, and the picture stays; a control redraws it where it is.
    assert view in controls["data"] and "image/png" not in controls["data"]
    assert alone["data"]["image/png"] == picture["data"]["image/png"] != moved["data"]["image/png"]
    assert view not in picture["data"] and picture["transient"] == moved["transient"]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_names_placed_where_there_is_room_cover_no_point_and_no_name():
    random = np.random.default_rng(0)
    figure = plt.figure(figsize=(4, 4), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1))
    points, names = random.random((60, 2)), ["n" * length for length in random.integers(2, 9, 60)]
    parts.name_points(axis, points, names, fontsize=9)
    boxes = [text.get_window_extent() for text in axis.texts]
    low, high = np.array([box.min for box in boxes]), np.array([box.max for box in boxes])
    plt.close(figure)
    assert 20 < len(low) < 60 and (low >= 0).all() and (high <= 400).all()
    for number in range(len(low)):
        assert not ((400 * points > low[number]) & (400 * points < high[number])).all(1).any()
        assert not ((low[:number] < high[number]) & (low[number] < high[:number])).all(1).any()


@pytest.mark.parametrize("name", ["US$ $, or", "a_$x^", "$\\frac$"])
def test_a_name_with_dollars_is_no_formula(name):
    names = [name, *NAMES[1:]]
    assert widgets.partition_explorer(*graph.cooccurrence(labels()), names).png
    assert widgets.threshold_explorer(scores_of(labels()), labels(), names, {"shown": name}).png
    targets = np.ones_like(TARGETS)
    assert widgets.cam_browser({name: small_model()}, pictures(), [0], targets, names, {"shown": name}).png
    plots.use_style()
    figure = plots.pictures(pictures(1), [name], name)
    figure.canvas.draw()
    plt.close(figure)
