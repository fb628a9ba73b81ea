import numpy as np
import psutil
import pytest
import torch
from small_copies import coco, labels

from cpsd_lib import cli
from cpsd_lib.data.dataset import read_source
from cpsd_lib.data.readers.coco2014 import COCO_CLASSES
from cpsd_lib.support import memory_gib
from cpsd_lib.workbench import pipeline, preflight
from cpsd_lib.workbench.cost import estimate
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.preflight import check_run, remarks
from cpsd_lib.workbench.yaml_files import ParameterError


def tiny(**overrides):
    return load_params(
        "tiny", {"data.images": 100} | {key.replace("__", "."): value for key, value in overrides.items()}
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"partition__k": 21}, "partition.k is 21, but the data set has only 20 classes"),
        ({"model__name": "resnet19"}, "model: timm has no model 'resnet19'; near names: .*resnet18"),
        ({"model__weights": "README.md"}, "model: .*README.md is no readable file of weights"),
        ({"model__options": {"nonsense": 1}}, "model: test_resnet cannot be built"),
        (
            {"model__head": "query2label", "model__head_width": 16, "data__size": 40},
            "model: images of 40x40 .*multiple of 32",
        ),
        ({"model__name": "test_vit", "data__size": 100}, "model: .*height"),
        (
            {"model__head": "label_transformer", "model__label_vectors": "README.md"},
            "model: .*no vector for 20 words: 'car'",
        ),
        (
            {"teacher_model": {"name": "nothing"}, "student__rows": ["student_only", "sd"]},
            "teacher_model: timm has no model",
        ),
        (
            {"wide_model": {"name": "nothing"}, "student__rows": ["baseline", "wide_mld"]},
            "wide_model: timm has no model",
        ),
    ],
)
def test_a_model_that_cannot_train_is_answered_before_anything_is_decoded(
    tmp_path, monkeypatch, capsys, wrong, message
):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    with pytest.raises(ParameterError, match=message):
        check_run(tiny(**wrong))
    words = [f"{key.replace('__', '.')}={value}" for key, value in wrong.items() if isinstance(value, str | int)]
    if len(words) == len(wrong):
        assert cli.main(["run", "tiny", *words]) == 2
        assert "nothing was started" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_what_can_train_passes(tmp_path):
    check_run(tiny())
    check_run(tiny(model__head="ml_decoder", model__head_width=16, data__size=64))


def test_class_names_are_read_without_an_image(tmp_path):
    root = coco(tmp_path / "coco", images=False)
    params = load_params("coco_resnet101", {"data.root": str(root)})
    assert read_source(params.data).table.names == list(COCO_CLASSES)
    assert read_source(tiny().data).table.names[0] == "car"


def test_vectors_that_lack_a_class_of_the_data_are_refused(tmp_path):
    np.savez(tmp_path / "v.npz", class_names=np.array(["dog"]), vectors=np.zeros((1, 300), np.float32))
    with pytest.raises(ParameterError, match=r"model: .*car"):
        check_run(tiny(model__head="label_transformer", model__label_vectors=str(tmp_path / "v.npz")))


def test_labels_alone_need_no_model_but_as_many_classes_as_parts(tmp_path):
    params = tiny(data__kind="labels", data__root=str(labels(tmp_path)), partition__k=3, model__name="no_such_model")
    check_run(params)
    assert remarks(params.model_copy(update={"device": "cuda:99"}), "01_data")[0].endswith(
        "partition.study_k: k = 3, 5, 8 left out of the study"
    )
    with pytest.raises(ParameterError, match=r"partition\.k is 4, but the data set has only 3 classes"):
        check_run(params.model_copy(update={"partition": params.partition.model_copy(update={"k": 4})}))


# ---- remarks -----------------------------------------------------------------------------------------------------------


def test_a_run_that_fits_is_told_nothing():
    assert remarks(tiny(), "01_data") == []


def test_a_training_that_needs_more_than_nine_tenths_of_the_memory_is_told_what_to_lower(monkeypatch):
    params = tiny()
    needed = estimate(params, 20, 60, 40, torch.device("cpu")).gpu_gib
    monkeypatch.setattr(preflight, "memory_gib", lambda device: needed / 0.91)
    (line,) = remarks(params, "01_data")
    assert line.startswith("WARNING: training 9 teachers takes about ") and "this machine has " in line
    assert "teachers.batch_size (32), data.size (32) or partition.k" in line
    assert remarks(params, "04_student") and remarks(params, "05_evaluation") == []  # nothing is trained any more
    monkeypatch.setattr(preflight, "memory_gib", lambda device: needed / 0.89)
    assert remarks(params, "01_data") == []


def test_soft_targets_and_embeddings_that_do_not_fit_are_refused_with_a_way_out(monkeypatch):
    plain = tiny(student__rows=["baseline", "cpsd"])
    led = tiny(student__rows=["baseline", "mld_led"], model__head="ml_decoder", model__head_width=64)
    check_run(plain), check_run(led)
    table = read_source(plain.data).table
    monkeypatch.setattr(preflight, "memory_gib", lambda device: 2 * 60 * 20 * 2 / 2**30)  # two branches' float16
    check_run(plain)
    monkeypatch.setattr(preflight, "memory_gib", lambda device: 2 * 60 * 20 * 2 / 2**30 - 1e-9)
    with pytest.raises(
        ParameterError, match=r"soft targets of a view, of 20 classes, need .*: lower data.limit, or leave"
    ):
        check_run(plain)
    present = table.targets[table.indices("train")] == 1
    pairs = sum(count * (count - 1) / 2 for count in present.sum(1)) * 32 / len(present)
    pairs += ((32 * present.mean(0)) ** 2).sum() / 2
    needed = 4 * (32 * 20 * 3 * 64 + 3 * pairs * 128) / 2**30
    monkeypatch.setattr(preflight, "memory_gib", lambda device: 1.001 * needed)
    check_run(led)
    monkeypatch.setattr(preflight, "memory_gib", lambda device: 0.999 * needed)
    with pytest.raises(
        ParameterError, match=r"embeddings of a batch, of 20 classes, .*: lower student.batch_size, or leave"
    ):
        check_run(led)


def test_the_memory_of_this_machine_is_what_the_system_says():
    assert memory_gib(torch.device("cpu")) == pytest.approx(psutil.virtual_memory().total / 2**30, rel=0.01)


def test_numbers_of_parts_beyond_the_classes_are_said_to_be_left_out_of_the_study(tmp_path):
    assert remarks(tiny(partition__study_k=[2, 19]), "01_data") == []
    (line,) = remarks(tiny(partition__study_k=[2, 20, 30]), "02_partition")
    assert "partition.study_k: k = 20, 30 left out" in line and "20 classes" in line
    assert remarks(tiny(partition__study_k=[20]), "03_teachers") == []  # the study is done


def test_many_classes_are_told_how_long_their_cuts_take_and_get_fewer_repeats():
    coco, many, most = (tiny().partition.study(classes) for classes in (80, 700, 9_000))
    assert coco[:2] == ([2, 3, 5, 8], 3) and coco[2] == "02_partition cuts the graph of 80 classes for about 19 s"
    assert many[1] == 3 and "700 classes for about 49 s" in many[2]
    assert most[1] == 1 and "9,000 classes for about 46 minutes" in most[2]
    assert "with 1 instead of 3 repeats; partition.study_k=[] leaves the study out" in most[2]
    ks, repeats, text = tiny(partition__study_k=[]).partition.study(9_000)
    assert (ks, repeats) == ([], 3) and "repeats" not in text
    assert tiny(partition__study_repeats=100).partition.study(2_000)[1] == 13


def test_the_run_prints_its_remarks_before_it_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    monkeypatch.setattr(pipeline, "_execute", lambda *_: (_ for _ in ()).throw(pipeline.Stopped("stopped here")))
    assert cli.main(["run", "tiny", "data.images=100", "partition.study_k=[25]"]) == 1
    assert "k = 25 left out" in capsys.readouterr().out
