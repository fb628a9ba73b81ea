import numpy as np
import pytest
from small_copies import coco

from cpsd_lib import __main__ as command
from cpsd_lib.data.coco2014 import CLASSES
from cpsd_lib.param_files import ParameterError
from cpsd_lib.params import load_params
from cpsd_lib.preflight import check_models, class_names


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
        ({"teacher_model": {"name": "nothing"}, "student__rows": ["alone", "sd"]}, "teacher_model: timm has no model"),
    ],
)
def test_a_model_that_cannot_train_is_answered_before_anything_is_decoded(
    tmp_path, monkeypatch, capsys, wrong, message
):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path))
    with pytest.raises(ParameterError, match=message):
        check_models(tiny(**wrong))
    words = [f"{key.replace('__', '.')}={value}" for key, value in wrong.items() if isinstance(value, str | int)]
    if len(words) == len(wrong):
        assert command.main(["run", "tiny", *words]) == 2
        assert "nothing was started" in capsys.readouterr().err
        assert not (tmp_path / ".cache").exists() and not list(tmp_path.glob("tiny/*.ipynb"))


def test_what_can_train_passes(tmp_path):
    check_models(tiny())
    check_models(tiny(model__head="ml_decoder", model__head_width=16, data__size=64))


def test_class_names_are_read_without_an_image(tmp_path):
    root = coco(tmp_path / "coco", images=False)
    params = load_params("coco_resnet101", {"data.root": str(root)})
    assert class_names(params.data) == list(CLASSES)
    assert class_names(tiny().data)[0] == "car"


def test_vectors_that_lack_a_class_of_the_data_are_refused(tmp_path):
    np.savez(tmp_path / "v.npz", class_names=np.array(["dog"]), vectors=np.zeros((1, 300), np.float32))
    with pytest.raises(ParameterError, match=r"model: .*car"):
        check_models(tiny(model__head="label_transformer", model__label_vectors=str(tmp_path / "v.npz")))
