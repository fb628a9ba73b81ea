import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from torch.nn import functional

from cpsd_lib.evaluation.cam import attention_maps, class_activation, share_inside
from cpsd_lib.models.classifier import build_model
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import PartTeachers
from cpsd_lib.workbench import explanation
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.run import MissingStage, Run
from cpsd_lib.workbench.scoring import score_path

SIZE = 64  # test_resnet has 2 x 2 places then


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """100 scenes, 20 of them test images; nothing is trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CPSD_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        opened = Run(load_params("tiny", {"data.images": 100, "data.size": SIZE}))
        assert opened.folder.is_dir() and len(opened.dataset.images) == 100
        yield opened


def with_rows(rows, **overrides):
    return Run(load_params("tiny", {"student.rows": rows} | {k.replace("__", "."): v for k, v in overrides.items()}))


def model(num_classes=20, head="gap", seed=0):
    torch.manual_seed(seed)
    found = build_model("test_resnet", num_classes, head=head, **({} if head == "gap" else {"head_width": 16}))
    with torch.no_grad():
        for value in found.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return found.eval()


def teachers(head="gap"):
    parts = [list(range(0, 20, 2)), list(range(1, 20, 2))]
    return PartTeachers([model(10, head, 1), model(10, head, 2)], Partition(parts, 20))


# ---- who looks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "titles"),
    [
        (
            ["baseline", "sd", "cgpd", "dgpd", "cpsd"],
            ["baseline", "co teachers", "dis teachers", "+ SD", "+ CGPD", "+ DGPD", "+ CPSD"],
        ),
        (["cpsd", "baseline"], ["baseline", "co teachers", "dis teachers", "+ CPSD"]),
        (["baseline", "rand"], ["baseline", "random teachers", "+ random parts"]),
        (["cgpd"], ["co teachers", "+ CGPD"]),
        (["baseline"], ["baseline"]),
    ],
)
def test_the_baseline_comes_first_then_the_merged_teachers_then_the_students(rows, titles):
    assert list(explanation.strategies(with_rows(rows)).values()) == titles


def test_a_teacher_of_another_architecture_is_asked_too():
    found = explanation.strategies(with_rows(["student_only", "sd"], teacher_model__name="test_vit"))
    assert found == {"student_only": "student only", "teachers_whole": "teacher", "sd": "+ SD"}


def test_students_and_teachers_are_loaded_under_their_titles(monkeypatch):
    monkeypatch.setattr(explanation, "load_student", lambda run, seed, row: (model(seed=seed).train(), row))
    monkeypatch.setattr(explanation, "load_teachers", lambda run, seed, branches: {b: teachers() for b in branches})
    found = explanation.load_models(with_rows(["baseline", "cpsd"]), 3)
    assert list(found) == ["baseline", "co teachers", "dis teachers", "+ CPSD"]
    assert isinstance(found["dis teachers"], PartTeachers) and not any(one.training for one in found.values())


def test_a_run_that_was_not_trained_says_which_notebook_comes_first(run):
    with pytest.raises(MissingStage, match="run 0"):
        explanation.load_models(run, 0)


@pytest.mark.parametrize(
    ("head", "kinds"), [("gap", 1), ("label_transformer", 1), ("query2label", 2), ("ml_decoder", 2)]
)
def test_heads_with_class_queries_have_attention_maps_too(head, kinds):
    for one in (model(head=head), teachers(head)):
        assert explanation.kinds_of(one) == ["activation", "attention"][:kinds]
        assert explanation.places_of(one, SIZE) == (2, 2)


def test_a_model_whose_maps_have_one_place_points_nowhere():
    models = {"gap": model(), "teachers": teachers()}
    assert explanation.pointing(models, SIZE) == models
    assert explanation.pointing(models, 32) == {} and explanation.places_of(models["gap"], 32) == (1, 1)


# ---- where -----------------------------------------------------------------------------------------------------------

PAIRS = [(7, 3), (2, 0), (7, 4), (90, 3), (11, 19)]


@pytest.mark.parametrize("make", [model, teachers])
@pytest.mark.parametrize("kind", ["activation", "attention"])
def test_every_pair_gets_the_map_of_its_own_image_and_class(run, make, kind, monkeypatch):
    monkeypatch.setattr(explanation, "BATCH", 1)
    one, images = make(head="query2label"), run.dataset.images
    found = explanation.stack_maps(one, images, PAIRS, kind)
    assert found.shape == (len(PAIRS), SIZE, SIZE) and found.dtype == torch.float32
    for place, (row, c) in enumerate(PAIRS):
        view = torch.from_numpy(np.array(images[row : row + 1])) / 255
        if kind == "activation":
            expected = class_activation(one, view, [c])
        else:
            expected = functional.interpolate(attention_maps(one, view, [c]), (SIZE, SIZE), mode="bilinear")
        torch.testing.assert_close(found[place], expected[0, 0])


def save_scores(run, name, logits):
    path = score_path(run, 0, name, "test")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, logits.astype(np.float32))


def test_the_pictures_are_those_the_two_kinds_of_teachers_are_furthest_apart_about(run):
    rows, targets = run.dataset.table.indices("test"), run.dataset.table.targets
    logits = np.zeros((len(rows), 20))
    with pytest.raises(MissingStage, match="run 05_evaluation first"):
        explanation.disagreements(run, 0, 2)
    for name in ("baseline", "sd", "cgpd", "dgpd", "cpsd", "teachers_co"):
        save_scores(run, name, logits)
    first, second = int(np.flatnonzero(targets[rows[5]])[0]), int(np.flatnonzero(targets[rows[2]])[0])
    logits[5, first], logits[2, second], logits[9, targets[rows[9]] == 0] = -4, 2, 9  # the last: no positives
    save_scores(run, "teachers_dis", logits)
    pairs = explanation.disagreements(run, 0, 2)
    assert pairs == [(rows[5], first), (rows[2], second)]
    said = explanation.probabilities(run, 0, pairs)
    assert list(said) == list(explanation.strategies(run).values())
    assert said["dis teachers"] == pytest.approx(expit([-4.0, 2.0])) and said["co teachers"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize("make", [model, teachers])
def test_a_model_is_asked_about_pairs(run, make):
    one = make()
    with torch.no_grad():
        said = one(torch.from_numpy(np.array(run.dataset.images[[row for row, _ in PAIRS]])) / 255)
    said = said if torch.is_tensor(said) else said.logits
    expected = [said[place, c].sigmoid().item() for place, (_, c) in enumerate(PAIRS)]
    assert explanation.ask(run, one, PAIRS) == pytest.approx(expected, abs=1e-5)


# ---- inside the box? -------------------------------------------------------------------------------------------------


def test_a_sample_is_all_positives_of_some_images_with_the_boxes_of_their_class(run):
    table, sample = run.dataset.table, explanation.sample_positives(run, "test", 20)
    rows = np.unique(sample.pairs[:, 0])
    assert set(rows) < set(table.indices("test")) and 20 <= len(sample.pairs) < 25 and sample.size == SIZE
    assert sorted(map(tuple, sample.pairs)) == [(r, c) for r in rows for c in np.flatnonzero(table.targets[r])]
    for (row, c), boxes in zip(sample.pairs, sample.boxes, strict=True):
        drawn = [sides for of, *sides in run.dataset.source.boxes(row) if of == c]
        assert boxes == [pytest.approx(sides) for sides in drawn]
    again = explanation.sample_positives(run, "test", 20)
    assert np.array_equal(again.pairs, sample.pairs)
    everything = explanation.sample_positives(run, "test", 10_000)
    assert len(everything.pairs) == (table.targets[table.indices("test")] == 1).sum()


def test_things_without_a_box_are_left_out_and_a_data_set_without_boxes_has_no_sample(run, monkeypatch):
    row = int(run.dataset.table.indices("test")[0])
    c = int(np.flatnonzero(run.dataset.table.targets[row])[0])
    known = {row: {c: [(0.25, 0, 1, 0.5)]}}
    monkeypatch.setattr(explanation, "boxes_of", lambda dataset, rows: {r: known.get(r, {}) for r in rows})
    sample = explanation.sample_positives(run, "test", 10_000)
    assert sample.pairs.tolist() == [[row, c]] and sample.boxes == [[(16, 0, 64, 32)]]
    for nothing in (lambda dataset, rows: {r: {} for r in rows}, lambda *_: None):
        monkeypatch.setattr(explanation, "boxes_of", nothing)
        assert explanation.sample_positives(run, "test", 10) is None
    assert explanation.pixel_boxes(run, [(row, c)]) is None


@pytest.mark.parametrize("places", [(1, 1), (2, 2), (3, 4), (9, 9)])
def test_the_best_map_has_one_place_lit_and_no_map_has_more_inside(places):
    boxes, size = [[(1, 2, 5, 7.5)], [(0, 0, 3, 3), (6, 6, 8, 8)], [(0, 0, 8, 8)]], 8
    best, expected = explanation.best_share(boxes, places, size), np.zeros(3)
    for y in range(places[0]):
        for x in range(places[1]):
            lit = torch.zeros(1, 1, *places, dtype=torch.float64)
            lit[0, 0, y, x] = 1
            large = functional.interpolate(lit, (size, size), mode="bilinear", align_corners=False)
            shares = [share_inside(large, [[its]]).item() for its in boxes]
            expected = np.maximum(expected, shares)
    np.testing.assert_allclose(best, expected)
    some = functional.interpolate(torch.rand(50, 1, *places).pow(8), (size, size), mode="bilinear")
    for its, most in zip(boxes, best, strict=True):
        assert share_inside(some, [[its]] * 50).max() <= most + 1e-6
    assert best[2] == pytest.approx(1)


def test_shares_are_those_of_one_positive_at_a_time(run):
    models = {"one": model(head="query2label"), "both": teachers()}
    sample = explanation.sample_positives(run, "test", 6)
    found = explanation.inside_boxes(run, models, sample)
    lines = [("one", "activation"), ("one", "attention"), ("both", "activation")]
    assert list(found.groupby(["strategy", "map"], sort=False).groups) == lines
    assert len(found) == 3 * len(sample.pairs)
    for (strategy, kind), its in found.groupby(["strategy", "map"]):
        for (row, c), boxes, line in zip(sample.pairs, sample.boxes, its.itertuples(), strict=True):
            assert (line.image, line._2) == (row, c)  # "class" is a word of Python's
            one = explanation.stack_maps(models[strategy], run.dataset.images, [(row, c)], kind)
            share = share_inside(one[:, None], [[boxes]]).item()
            assert line.share == pytest.approx(share, abs=1e-6, nan_ok=True)
            area = {(y, x) for left, top, right, bottom in boxes for y in range(64) for x in range(64)
                    if left <= x < round(right) and top <= y < round(bottom)}  # fmt: skip
            assert line.chance == pytest.approx(len(area) / 64**2) and line.chance <= line.best + 1e-9
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
    table = explanation.summarise(shares(columns, images), "a", resamples=300, seed=5)
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
        found = table.loc[(line, "activation"), [name, f"{name}_low", f"{name}_high"]].to_numpy(float)
        np.testing.assert_allclose(found, 100 * np.array([np.nanmean(values), *np.quantile(means, [0.025, 0.975])]))
    assert table["empty"].tolist() == [2, 0] and table["images"].tolist() == [6, 6]
    assert table["chance"].tolist() == pytest.approx([10, 10]) and table["best"].tolist() == [50, 50]
    assert table.loc["a", ["over", "over_low", "over_high"]].isna().all(axis=None)


def test_chance_and_best_leave_out_the_positives_without_a_map():
    table = shares({("a", "activation"): [0.1, np.nan, 0.3]}, [1, 1, 2]).assign(
        chance=[0.1, 0.8, 0.3], best=[0.4, 1, 0.6]
    )
    line = explanation.summarise(table).iloc[0]
    found = line[["share", "above", "chance", "best"]]
    assert found.tolist() == pytest.approx([20, 0, 20, 50]) and line["empty"] == 1
    assert line["share"] - line["above"] == pytest.approx(line["chance"])


def test_the_same_kind_of_map_is_compared_and_nothing_where_it_is_not_there():
    columns = {("a", "activation"): [0.2], ("b", "activation"): [0.3], ("b", "attention"): [np.nan]}
    table = explanation.summarise(shares(columns, [4]), "a")
    assert table["over"].tolist() == pytest.approx([np.nan, 10, np.nan], nan_ok=True)
    assert table.loc[("b", "attention"), ["share", "above_low"]].isna().all()
    assert explanation.summarise(shares(columns, [4]))["over"].isna().all()


def told(columns, images, against=None, seeds=1):
    table = explanation.summarise(shares(columns, images), against)
    return explanation.summary(pd.concat(dict.fromkeys(range(seeds), table), names=["seed"]), against).split("\n")


def test_the_sentences_say_the_share_and_whether_zero_is_in_the_interval():
    columns = {("a", "activation"): [0.2, 0.3], ("b", "activation"): [0.3, 0.4], ("b", "attention"): [np.nan, 0.1]}
    first, second, third = told(columns, [1, 2], "a")
    assert first == "a: 25.0 %, +15.00 points against chance (+10.00 to +20.00)."
    assert second.endswith("; +10.00 points against the a (+10.00 to +10.00).")
    assert third.startswith("b, attention: 10.0 %") and third.endswith("; 1 of 2 maps are all 0, left out.")
    assert told(columns, [1, 2], "a", seeds=3)[1] == (
        "b: 35.0 %, +25.00 points against chance (the interval leaves out zero in 3 of 3 seeds); "
        "+10.00 points against the a (the interval leaves out zero in 3 of 3 seeds)."
    )
    assert told({("a", "activation"): [np.nan, np.nan]}, [1, 2]) == ["a: all 2 maps are 0."]
    assert told({("a", "activation"): [0.09999, 0.09998]}, [1, 2]) == [
        "a: 10.0 %, +0.00 points against chance (+0.00 to +0.00)."
    ]


def test_captions_and_peaks_know_empty_maps_and_pictures_without_boxes():
    maps = torch.zeros(4, 4, 4)
    maps[0, 1, 2], maps[0, 3, 3], maps[1, 0, 0], maps[3] = 1, 0.25, 1, 1
    boxes = [[(0, 0, 1, 1), (2, 1, 3, 2)], [(1, 1, 4, 4)], [(0, 0, 4, 4)], [(0, 0, 2, 2)]]
    assert explanation.captions(maps, [0.5, 0.25, 1, 0], boxes) == [
        "p 0.50, 80 % inside",
        "p 0.25, 0 % inside",
        "p 1.00, map all 0",
        "p 0.00, map flat",
    ]
    assert explanation.captions(maps[:3], [0.5, 0.25, 1]) == ["p 0.50", "p 0.25", "p 1.00, map all 0"]
    assert explanation.peaks_inside(maps, boxes) == 1
