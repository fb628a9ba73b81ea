"""The benchmark: the straightforward references give what ours gives, and a difference is never called a speed-up."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bench import bench, figures, gpu, parts, reference, reference_training, reference_views, report, whole
from bench.photos import Photos, photos_of
from bench.settings import Settings, from_params, quick
from bench.timing import Pair, Stopwatch, measure, row
from bench.whole import TimedBatches
from bench.workspace import apart, decode_once, distance, open_workspace, weights_of, worst
from cpsd_lib import losses
from cpsd_lib.cli import main
from cpsd_lib.data.augment import randaugment
from cpsd_lib.data.augment.views import VIEWS
from cpsd_lib.evaluation import metrics
from cpsd_lib.teachers import PartTeachers
from cpsd_lib.training.batches import Batches
from cpsd_lib.training.learner import Ema, Learner
from cpsd_lib.workbench.cost import estimate
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.yaml_files import ParameterError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return photos_of(quick(Settings()), tmp_path_factory.mktemp("photos"))


@pytest.fixture
def workspace(tmp_path):
    return open_workspace(quick(Settings()), tmp_path)


# ---- the references give what ours gives -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "by_reference",
    [
        lambda scores, targets: reference.average_precision_walked(torch.tensor(scores), torch.tensor(targets)),
        reference.average_precision_class_by_class,
    ],
)
def test_ap_of_four_images_by_hand_and_of_many_by_ours(by_reference):
    scores, targets = np.array([[0.9], [0.8], [0.7], [0.1]]), np.array([[1], [0], [1], [0]])
    assert by_reference(scores, targets) == pytest.approx([(1 + 2 / 3) / 2])
    scores, targets = parts._scores(300, 7, seed=3)
    assert len(np.unique(scores[:, 0])) == 300  # no ties, whose order would be luck
    assert by_reference(scores, targets) == pytest.approx(metrics.average_precision(scores, targets), abs=1e-12)


def test_a_class_without_a_positive_has_no_ap_and_is_left_out_of_the_mean():
    found = reference.average_precision_class_by_class(np.array([[0.9, 0.1], [0.2, 0.3]]), np.array([[1, 0], [0, 0]]))
    assert found[0] == 1 and np.isnan(found[1]) and reference.mean_of_known(found) == 1
    assert np.isnan(reference.mean_of_known(np.array([np.nan])))


def test_led_of_three_images_by_hand_and_of_a_batch_by_ours():
    # Distances 1, 2, 3 over their mean 2 against 1, 1, 2 over 4/3: differences .25, .25, 0, each pair twice, over 3 members.
    student, teacher = torch.tensor([0.0, 1, 3]).view(3, 1, 1), torch.tensor([0.0, 1, 2]).view(3, 1, 1)
    found = reference.led_group_by_group(student, teacher, torch.ones(3, 1))
    assert found[0].item() == pytest.approx(2 * 2 * 0.5 * 0.25**2 / 3) and found[1].item() == 0
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(9, 5, 4, generator=generator) for _ in range(2))
    targets = (torch.rand(9, 5, generator=generator) < 0.5).float()
    for mine, other in zip(
        losses.led(student, teacher, targets), reference.led_group_by_group(student, teacher, targets), strict=True
    ):
        assert mine.item() == pytest.approx(other.item(), rel=1e-5) and mine > 0


def test_a_moving_average_by_hand_and_by_ours():
    model = nn.BatchNorm1d(2)
    shadow = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ema = Ema(model, 0.75, False)
    with torch.no_grad():
        model.weight += 2
        model.num_batches_tracked += 5
    reference.average_tensor_by_tensor(shadow, model, 0.75)
    ema.update(1)
    assert shadow["weight"].tolist() == [1.5, 1.5] and shadow["num_batches_tracked"] == 5
    for name, tensor in ema.state().items():
        assert torch.allclose(tensor, shadow[name], atol=1e-7)


@pytest.mark.parametrize(("view", "levels"), [("plain", 0), ("flip", 0.1), ("default", 3), ("release", 0)])
@pytest.mark.parametrize("size", [32, 16])  # at 16 the files are four times as large: libjpeg decodes them smaller
def test_views_made_from_files_in_pillow_are_ours(photos, tmp_path, view, levels, size):
    images, recipe = (
        decode_once(photos, size, tmp_path),
        load_params("tiny").teachers.model_copy(update={"batch_size": 8}),
    )
    ours = Batches(images, photos.targets, photos.rows, batch_size=8, view=view, seed=5, device="cpu")
    found = reference_training.epoch_from_files(
        photos, VIEWS[view], recipe, size, 5, 2, torch.device("cpu"), Stopwatch()
    )
    pairs = list(zip(ours.epoch(2), found, strict=True))
    assert len(pairs) == 8
    for mine, other in pairs:
        assert mine.rows.tolist() == other.rows.tolist() and torch.equal(mine.targets, other.targets)
        assert parts.levels_apart(mine.images, other.images) <= levels


def test_every_operation_of_randaugment_is_in_the_reference():
    assert len(reference_views.OPERATIONS) == len(randaugment.OPERATIONS)


def test_a_model_trained_by_the_reference_is_ours_and_teachers_asked_anew_say_the_same(workspace):
    recipe = workspace.recipe(epochs=2)
    batches, classes = workspace.batches(recipe), list(range(workspace.classes))
    ours, other = workspace.model(workspace.classes, "a"), workspace.model(workspace.classes, "a")
    start, seen = weights_of(ours), []
    workspace.fit([Learner("a", ours, workspace.objective(classes, recipe), classes, {})], batches, recipe)
    averages, scores = reference_training.train(
        *(other, workspace.objective(classes, recipe), batches.epoch, batches.steps, recipe, workspace.device),
        *(Stopwatch(), "teach", lambda model: seen.append(model) or len(seen)),
    )
    assert len(averages) == 2 and scores == [2, 4]  # raw, average, raw, average: the average's are kept
    assert seen[0] is other and seen[1] is not other
    assert apart(averages[-1], weights_of(ours), start) < 1e-3
    models = [workspace.model(len(part), name).eval() for name, (_, part) in workspace.teachers(["co"]).items()]
    partition, images = workspace.partitions["co"], torch.rand(3, 3, 32, 32)
    said = reference_training.ask({"co": (models, partition)}, images, None)["co"]
    assert torch.equal(said, PartTeachers(models, partition)(images))


def test_apart_is_a_share_of_the_way():
    start, one, other = ({"w": torch.tensor([value, 0.0])} for value in (0.0, 4.0, 5.0))
    assert apart(one, other, start) == pytest.approx(0.25) and apart(one, copy.deepcopy(one), start) == 0
    assert distance([start, one], [start, other]) == 1


def test_a_student_taught_by_the_targets_of_other_photos_or_classes_differs(workspace, monkeypatch):
    pair, _ = parts.student(workspace)
    right, read = pair.reference()(), parts.SoftTargets.read
    assert pair.difference(right, pair.ours()()) < pair.tolerance
    for wrong in (lambda found: found.flip(0), lambda found: found.roll(1, 1)):
        monkeypatch.setattr(parts.SoftTargets, "read", lambda *asked, wrong=wrong: wrong(read(*asked)))
        assert pair.difference(right, pair.ours()()) > pair.tolerance


def test_a_nan_among_many_is_the_worst_and_runs_leave_no_weights_behind(workspace):
    assert np.isnan(worst([0.1, float("nan"), 0.2])) and worst([0.1, 0.3]) == 0.3
    (workspace.fresh() / "weights").write_text("many")
    workspace.tidy()
    assert not list(workspace.folder.rglob("weights")) and workspace.fresh().is_dir()


def test_the_use_of_a_gpu_is_three_forwards_a_step_over_the_peak(workspace, monkeypatch):
    monkeypatch.setattr(gpu, "_peak", lambda device: 1e12)
    found = gpu.utilisation(workspace, {"our_seconds": 2.0})
    flop = estimate(load_params("tiny"), 20, 240, 160).forward_gflop * 1e9  # the smoke test has tiny's model and size
    assert found["images_per_second"] == 32 and found["utilisation"] == pytest.approx(3 * flop * 32 / 1e12)
    assert found["model_tflops"] == pytest.approx(found["utilisation"])


@pytest.mark.parametrize(("scores", "epoch"), [([1.0, 3.0, 3.0], 1), ([float("nan")] * 2, -1)])
def test_the_reference_keeps_the_epoch_that_ours_keeps(scores, epoch):
    assert whole._best(scores) == epoch


def test_timed_batches_are_the_same_batches_and_time_is_shared_out(workspace):
    recipe, watch = workspace.recipe(), Stopwatch()
    plain = list(workspace.batches(recipe).epoch(0))
    timed = list(workspace.batches(recipe, kind=TimedBatches, watch=watch, stage="training").epoch(0))
    watch.switch(None)
    assert all(torch.equal(a.images, b.images) for a, b in zip(plain, timed, strict=True))
    assert set(watch.seconds) == {reference_training.INPUT, "training", reference_training.CHECK}


# ---- measuring -------------------------------------------------------------------------------------------------------


def made_up(difference=lambda a, b: 0.0, **change):
    order = []

    def way(name):
        return lambda: order.append(f"prepare {name}") or (lambda: order.append(name) or name)

    given = {"tolerance": 1e-9, "compared": "names", "counted": "nothing"} | change
    return Pair("made up", way("reference"), way("ours"), difference, **given), order


def clock(seconds):
    """Return a timer that says the next of `seconds` each time."""
    found = iter(seconds)
    return lambda work: (next(found), work())


def test_runs_alternate_and_preparing_is_not_timed():
    pair, order = made_up()
    measure(pair, 3)
    once = ["prepare reference", "reference", "prepare ours", "ours"]
    assert order == once * 4  # one to warm up
    pair, order = made_up()
    measure(pair, 3, warm_up=False)
    assert order == once * 3


def test_a_row_holds_medians_the_ratio_of_medians_and_the_spread_of_neighbours():
    pair, _ = made_up(goal=3)
    found = measure(pair, 3, warm_up=False, seconds_of=clock([6, 2, 9, 1, 7, 3]))
    assert (found["reference_seconds"], found["our_seconds"]) == (7, 2)
    assert found["ratio"] == 3.5 and found["spread"] == [7 / 3, 9] and found["reached"] and found["same"]
    assert found["runs"] == {"reference": [6, 9, 7], "ours": [2, 1, 3]}
    warmed = measure(pair, 1, seconds_of=clock([100, 1, 8, 4]))
    assert warmed["ratio"] == 2 and not warmed["reached"]


def test_one_run_that_differs_is_enough_even_the_one_that_warms_up():
    worst = iter([1e-3, 0.0, 0.0])
    pair, _ = made_up(lambda a, b: next(worst))
    found = measure(pair, 2)
    assert not found["same"] and found["difference"] == 1e-3


@pytest.mark.parametrize("repeats", [1, 3])
def test_nan_is_no_equal_result_and_ends_the_runs(repeats):
    pair, order = made_up(lambda a, b: float("nan"))
    found = measure(pair, repeats)
    assert not found["same"] and found["difference"] is None and len(order) == 4
    json.dumps(found, allow_nan=False)


# ---- the table, the exit status --------------------------------------------------------------------------------------


def record(*differences):
    pairs = [made_up(goal=goal)[0] for goal in (None, 5, 2)]
    times = {"reference": [4.0, 6.0], "ours": [1.0, 2.0]}
    rows = [row(pair, times, difference) for pair, difference in zip(pairs, differences, strict=False)]
    stages = {side: dict.fromkeys(reference_training.STAGES, 0.5) for side in ("reference", "ours")}
    hardware = {"cpu": "a CPU", "gpu": None, "cores": 2, "torch_threads": 1}
    machine = {"hardware": hardware, "versions": {"torch": "2.9"}, "commit": "abc", "load_before": 1, "load_after": 2}
    return {
        **{"settings": Settings().as_dict(), "device": "cpu", "machine": machine, "rows": rows, "stages": stages},
        **{"store_seconds": 3.0, "gpu": None},
    }


def test_the_table_says_the_ratio_the_goal_and_whether_the_results_are_the_same():
    lines = report.table_text(record(0.0, 1e-12, 0.5)).splitlines()
    assert lines[0].split() == ["part", "reference", "s", "ours", "s", "ratio", "spread", "goal", "same", "result?"]
    assert lines[1].split()[2:6] == ["5", "1.5", "3.33", "3-4"] and lines[1].endswith("same: 0 (at most 1e-09)")
    assert ">= 5 no" in lines[2] and ">= 2 yes" in lines[3] and lines[3].endswith("DIFFERS: 0.5 (at most 1e-09)")
    assert report.frame(record(0.0, 1e-12, 0.5)).loc["made up", "goal"].tolist() == ["", ">= 5 no", ">= 2 yes"]


def test_each_row_has_a_sentence_and_none_calls_another_result_a_speed_up():
    found = report.sentences(record(0.0, 0.0, 0.5))
    assert found[0].startswith("made up: 3.33 times faster") and "goal of 5 is not reached" in found[1]
    assert "DIFFER" in found[2] and "faster" not in found[2]
    assert report.sentences(record(0.0), "mAP") == [] and "took 3 s, once" in report.remarks(record())[0]
    assert "a CPU, 2 cores, 1 threads, load 1 before and 2 after; torch 2.9, commit abc" in report.machine_text(
        record()
    )
    assert report.stages_text(record()).splitlines()[1].split() == [
        "photos",
        "and",
        "views",
        *["0.5", "s", "(20", "%)"] * 2,
    ]


@pytest.mark.parametrize(("differences", "status"), [((0.0, 0.0), 0), ((0.0, 0.5), 1), ((float("nan"),), 1)])
def test_a_difference_makes_the_command_fail_and_a_missed_goal_does_not(
    differences, status, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(bench, "run_bench", lambda settings: record(*differences))
    assert main(["bench", "--out", str(tmp_path / "bench.json")]) == status
    assert ("DIFFERS" in capsys.readouterr().out) == bool(status)
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == len(differences)


def test_the_first_decode_is_shared_out_over_the_epochs_of_a_training():
    found = record()
    times = ({"reference": [6.0], "ours": [1.0]}, {"reference": [6.5], "ours": [4.0]})
    for name, taken in zip(("views of 2 teachers, default", "views of 2 teachers, default, first"), times, strict=True):
        found["rows"].append(row(made_up()[0], taken, 0.0) | {"part": name})
    # 6 epochs of 6 s against 6 of 1 s and 3 s of decoding.
    assert "took 3 s" in report.remarks(found)[1] and " 4 times faster" in report.remarks(found)[1]


def test_forward_passes_of_the_table_by_hand():
    # k = 1: three models train (9), four students (12); online they hear 1 + 1 + 1 + 2 teachers, stored 3 speak once.
    assert report.forwards(1) == (26, 24) and report.forwards(5) == (66, 56)


def test_both_figures_can_be_drawn_from_a_record():
    assert len(figures.ratios(record(0.0, 0.5)).axes[0].patches) == 2
    assert len(figures.stages(record(0.0)).axes[0].patches) == 10


# ---- what is refused, and the whole of it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeats", "4"], "repeats: must be at least 5"),
        (["--images", "20"], "batch: 20 images in batches of 32 give 0 steps"),
        (["--batch", "0"], "batch: must be at least 2, got 0"),
        (["--images", "64", "--epochs", "1"], "give 1 steps"),
        (["--size", "4"], "size: must be at least 16"),
        (["--device", "tpu"], "tpu"),
        (["--model", "mobilenetv2_10"], "timm has no model 'mobilenetv2_10'"),
    ],
)
def test_a_benchmark_that_measures_nothing_is_refused_before_it_starts(words, message, tmp_path, capsys):
    assert main(["bench", *words, "--out", str(tmp_path / "b.json")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "b.json").exists()


def test_photos_of_a_folder_are_read_and_too_few_or_too_many_parts_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    lines = ["file_name,split,labels"]
    for number in range(40):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / "images" / f"{number}.jpg")
        lines.append(f"{number}.jpg,train,{'a;b' if number % 2 else 'c'}")
    (tmp_path / "annotations.csv").write_text("\n".join(lines))
    settings = Settings(images=32, batch=8, k=2, photos=str(tmp_path))
    found = photos_of(settings, tmp_path)
    assert (
        isinstance(found, Photos) and len(found.paths) == 40 and found.targets.shape == (40, 3) and found.training == 32
    )
    assert len(found.part(16).paths) == 20 and found.part(16).paths[16:] == found.paths[32:36]
    with pytest.raises(ParameterError, match="has 40 images, 80 are needed"):
        photos_of(Settings(images=64, batch=8, photos=str(tmp_path)), tmp_path)
    with pytest.raises(ParameterError, match="4 parts, but these photos have 3 classes"):
        photos_of(Settings(images=32, batch=8, k=4, photos=str(tmp_path)), tmp_path)


def test_a_runs_parameters_become_a_smoke_test_of_its_own_model():
    found = from_params(load_params("tiny"))
    assert (found.model, found.size, found.k, found.quick) == ("test_resnet", 32, 4, True)


def test_the_quick_benchmark_runs_from_end_to_end_with_equal_results(tmp_path, capsys, monkeypatch):
    """About 15 s on a free core."""
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    assert main(["bench", "--quick", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "bench" / "quick.json").read_text())
    assert len(found["rows"]) == 13 and all(line["same"] for line in found["rows"])
    assert all(line["part"] in printed for line in found["rows"]) and "SMOKE TEST" in printed
    assert {tuple(stages) for stages in found["stages"].values()} == {reference_training.STAGES}
    assert all(sum(stages.values()) > 0 for stages in found["stages"].values()) and found["gpu"] is None
    assert all(line["goal"] is None for line in found["rows"])  # beside a ratio that means nothing
