"""What a run costs: counted by hand, by a naive walk over autograd's graph, and by a run that really trains."""

import re
from collections import Counter
from functools import cache

import pytest
import torch
from small_copies import CONCEPTS, labels
from torch import nn

from cpsd_lib import cli, workbench
from cpsd_lib.data.dataset import PUBLISHED
from cpsd_lib.models.classifier import PRESETS, Classifier, build_model
from cpsd_lib.models.meta import activation_bytes
from cpsd_lib.models.trunk import Tail
from cpsd_lib.partition import Partition
from cpsd_lib.workbench import making
from cpsd_lib.workbench.cost import card, estimate, meta_model, own_part, spoken_time, work_of
from cpsd_lib.workbench.loading import resolve
from cpsd_lib.workbench.making import train_student, train_teachers
from cpsd_lib.workbench.preflight import images_of
from cpsd_lib.workbench.rows import branches_of
from cpsd_lib.workbench.run import cut_labels, open_run
from cpsd_lib.workbench.scoring import evaluate
from cpsd_lib.workbench.yaml_files import ParameterError, repo_root, set_dotted

COCO_COUNTS = (80, 82_081, 40_137)
CSV = "file_name,split,labels\na.jpg,train,cat;dog\nb.jpg,train,dog\nc.jpg,val,cat\nd.jpg,test,dog\ne.jpg,test_shifted,dog\n"


def of(model="test_resnet", size=32, **more):
    """Return Params of a small run; more: dotted keys with __ for the dot."""
    raw = {"name": "x", "data": {"kind": "scenes", "size": size}, "model": {"name": model} | more.pop("model_more", {})}
    for key, value in more.items():
        set_dotted(raw, key.replace("__", "."), value)
    return resolve(raw)


def released(model, **more):
    """Return Params of one of the paper's COCO runs."""
    vectors = {"label_vectors": "learned"} if model == "resnet101_tf" else {}
    raw = {"recipe": "release", "partition": {"k": 5}, "data": {"kind": "coco2014", "root": ".", "size": 448}}
    return of(model, model_more=vectors, **raw, **more)


@cache
def paper_cost(model, method="paper"):
    return estimate(released(model, method=method), *COCO_COUNTS)


def of_data(**data):
    return resolve({"name": "x", "data": data, "model": {"name": "test_resnet"}}).data


# ---- one model -----------------------------------------------------------------------------------------------------


def flop_by_hand(model, images):
    """Return 2 FLOP for every multiply-add of the convolutions and linear layers of a model without attention."""
    found = []

    def look(module, inputs, output):
        if isinstance(module, nn.Conv2d):
            rows, columns = module.kernel_size
            found.append(2 * output.numel() * rows * columns * module.in_channels // module.groups)
        if isinstance(module, nn.Linear):
            found.append(2 * output.numel() * module.in_features)

    for module in model.modules():
        module.register_forward_hook(look)
    with torch.inference_mode():
        model.eval()(images)
    return sum(found)


@pytest.mark.parametrize("name", ["test_resnet", "resnet10t", "mobilenetv3_small_050"])
def test_flop_and_parameters_are_those_of_the_real_model(name):
    model = build_model(name, 7)
    found = estimate(of(name, 64), 7, 100, 10)
    assert found.student.parameters == sum(p.numel() for p in model.parameters())
    assert found.student.flop == pytest.approx(flop_by_hand(model, torch.rand(1, 3, 64, 64)), rel=1e-12)


def test_resnet18_by_hand():
    # The stem's 7 x 7 filters at 16 x 16 places, pooled to 8 x 8; then four stages of four 3 x 3 convolutions, of which
    # the later three begin with stride 2 and have a 1 x 1 shortcut; then 5 classes.
    adds = 64 * 3 * 7 * 7 * 16**2 + 4 * 64 * 64 * 9 * 8**2 + 512 * 5
    for width, side in ((128, 4), (256, 2), (512, 1)):
        adds += (width // 2 * width * (9 + 1) + 3 * width * width * 9) * side**2
    assert estimate(of("resnet18", 32), 5, 100, 10).student.flop == pytest.approx(2 * adds, rel=1e-12)


def test_resnet101_at_224_has_7_8_billion_multiply_adds():
    # Published: 7.80 GMAC with the classifier of 1,000 classes.
    assert 15.59 < estimate(released("resnet101", data__size=224), *COCO_COUNTS).student.flop / 1e9 < 15.61


def test_the_attention_of_q2l_is_counted():
    d, t, c, f = 2048, 14 * 14, 80, 8192  # width, places, classes, hidden
    encoder = 4 * t * d * d + 2 * t * t * d + 2 * t * d * f  # q k v out, scores and their mean of values, two layers
    decoder = 2 * c * d * d + 2 * t * d * d + 2 * c * t * d + 2 * c * d * f
    head = 2 * (2048 * t * d + encoder + 2 * decoder)
    plain = paper_cost("resnet101").student.flop - 2 * 2048 * c
    assert paper_cost("q2l_resnet101").student.flop == pytest.approx(plain + head)


def test_the_attention_of_the_label_transformer_is_counted():
    d, t, c = 1024, 14 * 14 + 80, 80
    layer = 16 * t * d * d + 2 * 4 * t * t * d + 2 * t * d * d  # 4 heads, each as wide as the tokens
    head = 2 * (2048 * (t - c) * d + 300 * c * d + 3 * layer + c * d)
    plain = paper_cost("resnet101").student.flop - 2 * 2048 * c
    assert paper_cost("resnet101_tf").student.flop == pytest.approx(plain + head)


def test_label_vectors_of_a_file_that_is_not_here_count_as_gloves():
    more = {"name": "test_resnet", "head": "label_transformer", "head_width": 32, "label_vectors": "glove.6B.300d.txt"}
    raw = {"name": "x", "data": {"kind": "scenes", "size": 32}, "model": more}
    fixed, learned = resolve(raw, paths=False), resolve(raw | {"model": more | {"label_vectors": "learned"}})
    assert estimate(learned, 20, 9, 9).student.parameters - estimate(fixed, 20, 9, 9).student.parameters == 20 * 300


def test_no_weight_is_allocated_and_no_number_drawn():
    before = torch.get_rng_state()
    model = meta_model(released("q2l_resnet101").model, 80, 448)
    assert all(tensor.is_meta for tensor in (*model.made.parameters(), *model.made.buffers()))
    assert torch.equal(torch.get_rng_state(), before) and model.parameters == 198_103_184


# ---- memory --------------------------------------------------------------------------------------------------------


def kept_bytes(model, output, of_type=lambda tensor: True):
    """Return the bytes of all storages that a real forward saved for the backward pass, by walking its graph."""
    own = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    found, seen, nodes = {}, set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        for name in [name for name in dir(node) if name.startswith("_saved_")]:
            saved = getattr(node, name)
            if torch.is_tensor(saved) and saved.untyped_storage().data_ptr() not in own and of_type(saved):
                found[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
    return sum(found.values())


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "mobilenetv3_small_050", "test_convnext"])
def test_activations_are_what_a_real_forward_keeps(name):
    images, made = torch.rand(3, 3, 64, 64), meta_model(of(name, 64).model, 5, 64).made
    model = build_model(name, 5).train()
    meta = activation_bytes(made, images.to("meta"), half=False)
    assert meta == kept_bytes(model, model(images).logits) > 1e5
    assert meta == activation_bytes(model, images, half=False)


def test_activations_in_half_precision_are_about_what_autocast_keeps():
    images, made = torch.rand(4, 3, 64, 64), meta_model(of("resnet18", 64).model, 5, 64).made
    model = build_model("resnet18", 5).train()
    weights = sum(2 * p.numel() for p in model.parameters() if p.ndim > 1)
    with torch.autocast("cpu", torch.bfloat16):
        kept = kept_bytes(model, model(images).logits)
    assert activation_bytes(made, images.to("meta"), half=True) + weights == pytest.approx(kept, rel=0.01)


def test_memory_is_that_of_all_teachers_and_the_activations_of_one():
    params = of(size=64, train={"precision": "float32", "batch_size": 8}, partition__k=3)
    model, found = build_model("test_resnet", 20), estimate(params, 20, 100, 10)
    state = sum(tensor.nbytes for tensor in model.state_dict().values())
    weights = sum(4 * p.numel() for p in model.parameters())
    kept = kept_bytes(model, model.train()(torch.rand(8, 3, 64, 64)).logits)
    assert found.teacher_gib * 2**30 == 7 * (2 * state + 2 * weights) + weights + kept
    assert found.student_gib * 2**30 == 2 * state + 2 * weights + weights + kept
    assert found.gpu_gib == found.teacher_gib > found.student_gib


def test_what_needs_more_memory():
    plain = estimate(of(size=64), 20, 100, 10)
    for more in ({"teachers__precision": "float32"}, {"teachers__select": "val"}, {"partition__k": 5}):
        assert estimate(of(size=64, **more), 20, 100, 10).teacher_gib > plain.teacher_gib
    assert estimate(of(size=64), 20, 20, 10).teacher_gib < plain.teacher_gib  # no batch is larger than the data


@pytest.mark.parametrize("rows", [["cpsd", "sd_equal_compute"], ["sd", "sd_equal_compute"]])
def test_the_long_teacher_trains_alone_when_the_others_are_in_the_store(rows):
    found, other = (estimate(of(size=64, student__rows=r), 20, 100, 10) for r in (rows, rows[:1]))
    assert found.teacher_gib == other.teacher_gib


def test_teachers_that_start_from_the_baseline_train_after_it():
    rows = {"student__rows": ["baseline", "cpsd"], "partition__k": 3}
    later = estimate(of(size=64, teachers__start="baseline", **rows), 20, 100, 10)
    assert later.teacher_gib == estimate(of(size=64, student__rows=["cpsd"], partition__k=3), 20, 100, 10).teacher_gib


def test_frozen_layers_have_no_gradients_and_no_activations():
    found = paper_cost("q2l_resnet101")
    frozen = estimate(of("resnet101", 448, recipe="release"), *COCO_COUNTS)
    assert found.student.parameters > 4 * frozen.student.parameters and found.student_gib < 2 * frozen.student_gib


# ---- a whole run ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "k", "teachers", "students"),
    [
        (["baseline"], 5, 1, 0),
        (["baseline", "sd"], 5, 1, 1),
        (["cgpd"], 5, 5, 1),
        (["baseline", "cpsd"], 5, 11, 1),
        (["baseline", "sd", "cgpd", "dgpd", "cpsd"], 4, 9, 4),
        (["cpsd"], 1, 2, 1),
        (["student_only"], 5, 0, 1),
        (["baseline", "rand", "sd_equal_compute", "baseline_equal_compute"], 5, 7, 3),
    ],
)
def test_the_number_of_models_follows_k_and_the_rows(rows, k, teachers, students):
    found = estimate(of(student__rows=rows, partition__k=k), 20, 100, 10)
    assert (found.teachers, found.students) == (teachers, students)
    assert (found.stages["teachers"] > 0, found.teacher_gib > 0) == (teachers > 0,) * 2
    assert (found.stages["students"] > 0, found.student_gib > 0) == (students > 0,) * 2


def test_released_partitions_say_how_many_teachers_there_are(tmp_path):
    for name, parts in (("co", [[0, 1], [2, 3]]), ("dis", [[0], [1], [2, 3]])):
        Partition(parts, 4).save(tmp_path / f"{name}.json")
    files = {f"released_{name}": str(tmp_path / f"{name}.json") for name in ("co", "dis")}
    params = of(partition={"use_released": True, "k": 4} | files)
    assert estimate(params, 4, 100, 10).teachers == 1 + 2 + 3


def test_twice_the_epochs_are_twice_the_teachers():
    once, twice = (estimate(of(teachers__epochs=epochs), 20, 100, 10) for epochs in (3, 6))
    assert twice.stages["teachers"] == 2 * once.stages["teachers"]
    assert twice.stages | {"teachers": 0} == once.stages | {"teachers": 0}
    thrice = estimate(of(teachers__epochs=3, seeds=3), 20, 100, 10)
    assert thrice.stages == pytest.approx({name: 3 * eflop for name, eflop in once.stages.items()})
    assert estimate(of(teachers__epochs=60, teachers__stop_after=3), 20, 100, 10).stages == once.stages


def test_the_paper_s_protocol_looks_at_the_test_images_twice_an_epoch():
    params = of(protocol="paper", train={"epochs": 5, "validate_every": 2}, partition__k=2)
    found = estimate(params, 20, 1000, 100)
    assert found.stages["validation"] * 1e9 == pytest.approx((5 + 4) * 3 * 2 * 100 * found.student.flop / 1e9)


def test_a_released_checkpoint_is_scored_and_labels_alone_cost_nothing(tmp_path):
    scored = {"released": "resnet101", "checkpoint": str(tmp_path / "some.ckpt")}
    (tmp_path / "some.ckpt").touch()
    found = estimate(released("resnet101", evaluation=scored, seeds=3), *COCO_COUNTS)
    assert found.eflop * 1e9 == pytest.approx(40_137 * found.student.flop / 1e9)
    assert found.trained_images == found.gpu_gib == found.teachers == 0 and "nothing is trained" in card(found)
    alone = of(data={"kind": "labels", "root": str(labels(tmp_path / "labels"))})
    assert estimate(alone, 3, 2, 0).eflop == 0


def test_what_cannot_train_is_refused():
    with pytest.raises(ParameterError, match=r"partition\.k is 21, but the data set has only 20 classes"):
        estimate(of(partition__k=21), 20, 100, 10)
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        estimate(of(), 20, 1, 10)


CPSD = {"teachers__select": "val", "train": {"epochs": 3, "validate_every": 2, "batch_size": 16}, "seeds": 2}
L2D = {
    "model": {"name": "test_resnet", "head": "ml_decoder", "head_width": 16},
    "teacher_model": {"name": "test_resnet", "head": "ml_decoder", "head_width": 32},
    "train": {"epochs": 3, "batch_size": 20},
    "teachers__stop_after": 1,
    "student": {"views": 2, "rows": ["student_only", "sd", "mld", "mld_led", "cpsd_mld_led"]},
}


EQUAL = {
    "train": {"epochs": 1},
    "student__rows": ["baseline", "rand", "cpsd", "baseline_equal_compute", "sd_equal_compute"],
}
EQUAL |= {"teachers__batch_size": 16, "student__batch_size": 8}


# The baseline is one of the ensemble: trained once, scored twice.
ENSEMBLE = {"train": {"epochs": 1}, "student__rows": ["baseline", "ensemble_mld"]}


@pytest.mark.parametrize("more", [CPSD, L2D, EQUAL, ENSEMBLE], ids=["cpsd", "l2d", "equal time", "ensemble"])
def test_a_real_run_does_what_was_counted(tmp_path, monkeypatch, more):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    small = {"data.images": 100, "data.size": 32, "partition.k": 2}
    run = open_run("tiny", small | {key.replace("__", "."): value for key, value in more.items()})
    expected = estimate(run.params, *[images_of(run.params.data)[n] for n in (2, 0, 1)])
    seen, forward = Counter(), Classifier.forward

    def counting(self, images):
        seen[getattr(self.head, "project", self.head.linear).out_features == 32, self.training] += len(images)
        return forward(self, images)

    monkeypatch.setattr(Classifier, "forward", counting)
    monkeypatch.setattr(making, "fold_models", lambda merged, size: merged)  # it looks at two images
    cut_labels(run)
    for seed in run.params.seed_list():
        train_teachers(run, seed)
        for row in run.params.student.rows:
            if row != "baseline":
                train_student(run, seed, row)
    evaluate(run)
    student, teacher = expected.student.flop / 1e9, expected.teacher.flop / 1e9
    flop = {(big, training): (teacher if big else student) * count for (big, training), count in seen.items()}
    assert seen[True, True] + seen[False, True] == expected.trained_images
    learned = 3e-9 * (flop.get((True, True), 0) + flop[False, True])
    assert expected.stages["teachers"] + expected.stages["students"] == pytest.approx(learned)
    looked = 1e-9 * (flop.get((True, False), 0) + flop[False, False])
    without_training = [expected.stages[stage] for stage in ("soft targets", "validation", "evaluation")]
    assert sum(without_training) == pytest.approx(looked)


@pytest.mark.parametrize("share", [0, 4])
def test_a_real_run_with_a_shared_trunk_does_what_was_counted(tmp_path, monkeypatch, share):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    shared = {
        "teachers.start": "baseline",
        "teachers.frozen_stages": share,
        "teachers.more_epochs": 1,
        "train.epochs": 2,
    }
    rows = ["baseline", "sd", "cpsd", "sd_continued", "baseline_equal_compute"]
    small = {"data.images": 100, "data.size": 32, "partition.k": 2, "student.rows": rows}
    run = open_run("tiny", small | shared)
    expected = estimate(run.params, *[images_of(run.params.data)[n] for n in (2, 0, 1)])
    seen, forward, make_trunk = Counter(), Classifier.forward, making.make_trunk

    def counting(self, images):
        if not images.is_meta:  # a look at the shapes
            seen["tail" if isinstance(self, Tail) else "whole", self.training] += len(images)
        return forward(self, images)

    def counted(model, stages):
        trunk = make_trunk(model, stages)
        through = trunk.backbone.forward_features
        monkeypatch.setattr(trunk.backbone, "forward_features", lambda x: seen.update(trunk=len(x)) or through(x))
        return trunk

    monkeypatch.setattr(Classifier, "forward", counting)
    monkeypatch.setattr(making, "fold_models", lambda merged, size: merged)  # it looks at two images
    monkeypatch.setattr(making, "make_trunk", counted)
    monkeypatch.setattr(making, "check_split", lambda *_: None)  # two images, before the run
    cut_labels(run)
    train_teachers(run, 0)
    for row in rows[1:]:
        train_student(run, 0, row)
    evaluate(run)
    own = own_part(run.params.model, 20, 32, share) if share else 1
    forwards = 3 * seen["whole", True] + seen["whole", False] + own * (3 * seen["tail", True] + seen["tail", False])
    assert (seen["trunk"] > 0) == (share > 0)
    assert expected.eflop == pytest.approx(1e-9 * expected.student.flop / 1e9 * (forwards + (1 - own) * seen["trunk"]))
    assert expected.trained_images == seen["whole", True] + seen["tail", True]


def test_what_comes_after_the_shared_stages_is_counted_by_hand():
    model = build_model("resnet18", 5)
    after = flop_by_hand(model.backbone.layer4, torch.zeros(1, 256, 4, 4)) + 2 * 512 * 5
    settings = of("resnet18", 64).model
    assert own_part(settings, 5, 64, 4) == pytest.approx(after / flop_by_hand(model, torch.zeros(1, 3, 64, 64)))
    assert own_part(settings, 5, 64, 5) == pytest.approx(5120 / flop_by_hand(model, torch.zeros(1, 3, 64, 64)))


# ---- card and counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_every_model_of_the_paper_gives_a_card(name):
    found = paper_cost(name)
    lines = card(found).splitlines()
    assert 11 <= len(lines) <= 13 and all(len(line) <= 120 for line in lines)
    starts = {re.match(r"\S+(?: \S+)* {2,}", line).end() for line in lines[:4]}
    assert len(starts) == 1  # aligned
    assert f"{found.eflop:.3f} EFLOP" in lines[-2] and spoken_time(found.eflop * 1e4) in lines[-1]
    assert "arithmetic, not a measurement" in lines[-1] and f"{name}, 80 classes, 448 px" in lines[0]


def test_a_card_says_how_many_baselines_cpsd_costs():
    assert paper_cost("resnet101").cpsd_baselines == pytest.approx((80 * 10 + 80 * 10 / 3 + 80) / 80)  # about 14
    shared = paper_cost("resnet101", method="shared_trunk")
    own = own_part(released("resnet101").model, 80, 448, 4)
    # Baseline, then a third as long 10 tails and their trunk, a word about each view, and a student.
    third = 27 / 80
    expected = 1 + third * (10 * own + (1 - own) / 3) + third * (10 * own + (1 - own)) / 3 + third
    assert shared.cpsd_baselines == pytest.approx(expected)
    assert "2.01 baselines' training" in card(shared)
    assert estimate(of(student__rows=["baseline", "sd"]), 20, 100, 10).cpsd_baselines is None


@pytest.mark.parametrize("method", ["paper", "shared_trunk"])
@pytest.mark.parametrize("row", ["sd", "cgpd", "rand", "cpsd", "sd_equal_compute"])
def test_the_work_of_a_row_is_the_compute_of_a_run_of_it_alone(row, method):
    params = of("resnet18", 64, method=method, train__epochs=6, partition__k=3, student__rows=["baseline", row])
    run = estimate(params, 20, 320, 10)
    baseline = 3 * 6 * 320 * run.student.flop / 1e18
    own = own_part(params.model, 20, 64, -1) if method == "shared_trunk" else 1.0
    work = work_of(row, params.teachers, params.student, 3, own) / 6
    # The run trains a baseline in any case; a row that neither learns from it nor starts from it is cheaper by one.
    beside = 0 if "whole" in branches_of([row]) or method == "shared_trunk" else 1
    spent = run.stages["teachers"] + run.stages["soft targets"] + run.stages["students"]
    assert spent / baseline == pytest.approx(work + beside, rel=1e-6)


def test_a_small_run_has_a_card_in_smaller_units_and_a_teacher_of_its_own_stands_in_it():
    text = card(estimate(of(model_more=L2D["model"], **{k: v for k, v in L2D.items() if k != "model"}), 20, 100, 10))
    assert "GFLOP" in text and "MiB" in text and "about 1 s:" in text and text.count("a teacher's") == 2


def test_published_data_sets_need_not_be_there():
    found = {kind: images_of(of_data(kind=kind, root="."))[:3] for kind in PUBLISHED}
    assert found["coco2014"] == (82_081, 40_137, 80)
    assert found["nuswide"] == (125_449, 83_898, 81) and len(CONCEPTS) == 81
    assert found["voc2007"] == (5_011, 4_952, 20)
    assert "published" in images_of(of_data(kind="coco2014", root="."))[3]


def test_scenes_and_labels_are_counted(tmp_path):
    assert images_of(of_data(kind="scenes", images=1000))[:3] == (600, 400, 20)
    train, test, classes, source, unlabelled = images_of(of_data(kind="labels", root=str(labels(tmp_path))))
    assert (train, test, classes, unlabelled) == (2, 0, 3, 0) and str(tmp_path) in source


def test_a_csv_is_counted_and_no_image_is_opened(tmp_path):
    (tmp_path / "annotations.csv").write_text(CSV)
    (tmp_path / "images").mkdir()  # empty
    assert images_of(of_data(kind="csv", root=str(tmp_path)))[:3] == (2, 2, 2)


def test_a_root_as_it_is_written_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_PHOTOS", str(tmp_path))
    (tmp_path / "annotations.csv").write_text(CSV)
    (tmp_path / "images").mkdir()
    raw = {"name": "x", "data": {"kind": "csv", "root": "$MY_PHOTOS"}, "model": {"name": "test_resnet"}}
    assert images_of(resolve(raw, paths=False).data)[0] == 2
    raw["data"]["root"] = "$MY_PHOTOS/gone"
    with pytest.raises(ValueError, match=r"data\.root: there is no folder .*gone"):
        images_of(resolve(raw, paths=False).data)


def test_a_limit_keeps_the_share_that_the_data_set_would_keep():
    train, test, _, source, _ = images_of(of_data(kind="coco2014", root=".", limit=1000))
    assert (train, test) == (round(1000 * 82_081 / 122_218), round(1000 * 40_137 / 122_218)) and "1,000" in source


@pytest.mark.parametrize("name", sorted(path.stem for path in (repo_root() / "params").glob("*.yaml")))
def test_the_card_of_every_committed_file_prints(tmp_path, monkeypatch, capsys, name):
    for variable in ("COCO2014", "NUSWIDE", "VOC2007", "GLOVE"):
        monkeypatch.delenv(variable, raising=False)  # a card needs none of the papers' data
    (tmp_path / "coco18" / "images").mkdir(parents=True)
    (tmp_path / "coco18" / "annotations.csv").write_text(CSV)
    (tmp_path / "coco_val2014_labels").mkdir()
    labels(tmp_path / "coco_val2014_labels")
    monkeypatch.setenv("CPSD_DATA", str(tmp_path))
    monkeypatch.setattr(workbench, "measured_speed", lambda *_: 1e12, raising=False)  # seconds a file
    of_two_photos = [f"data.root={tmp_path / 'coco18'}", "partition.k=2", "data.labelled=null"]
    words = of_two_photos if "mobilenetv2" in name or "coco18" in name else []
    assert cli.main(["cost", name, *words]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.startswith(f"{name}: ") and "GFLOP an image" in printed and "arithmetic, not a measurement" in printed
    )
    if name == "coco_resnet50_few":
        assert "4,104 training, 77,977 unlabelled and 40,137 test images, 80 classes" in printed
    elif name.startswith("coco_") and "labels" not in name:
        assert "82,081 training and 40,137 test images, 80 classes" in printed and " 11 models" in printed
