"""Models for other programs: every head, merged experts and a shared trunk as ONNX; timm's own state dict."""

import json
import warnings

import numpy as np
import pytest
import timm
import torch

from cpsd_lib.models import build_model, make_tail, make_trunk, timm_state, write_onnx
from cpsd_lib.models import export as module
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import PartTeachers, logits_of

PARTS = Partition([[0, 3], [1, 2, 4]], 5)


def build(classes, head="gap", seed=0):
    torch.manual_seed(seed)
    options = {} if head == "gap" else {"head_width": 16}
    options |= {"label_vectors": torch.randn(classes, 7)} if head == "label_transformer" else {}
    return build_model("test_resnet", classes, head=head, normalize="imagenet", **options)


def merged(frozen_stages=0):
    experts = [build(len(part), seed=n) for n, part in enumerate(PARTS.parts)]
    if frozen_stages:
        trunk = make_trunk(build(5, seed=9), frozen_stages)
        experts = [make_tail(expert, trunk, frozen_stages) for expert in experts]
    return PartTeachers(experts, PARTS)


MODELS = {head: lambda head=head: build(5, head) for head in ("gap", "label_transformer", "query2label", "ml_decoder")}
MODELS |= {"merged": merged, "trunk": lambda: merged(2)}


@pytest.mark.parametrize("kind", MODELS)
def test_a_graph_computes_what_the_model_computes_for_any_batch_without_a_warning(kind, tmp_path, capfd):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model, images = MODELS[kind]().eval(), torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        difference = write_onnx(model, tmp_path / "model.onnx", images, {"class_names": json.dumps(["é", "b"])})
    assert difference < 1e-5 and "arn" not in capfd.readouterr().err
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    with torch.no_grad():
        expected = logits_of(model(images.float() / 255)).numpy()
    for count in (1, 2, 7):
        logits, probabilities = session.run(None, {"images": images[:count].numpy()})
        np.testing.assert_allclose(logits, expected[:count], atol=1e-5)
        np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-expected[:count])), atol=1e-6)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["é", "b"]
    assert [one.name for one in session.get_inputs()] == ["images"] and list(tmp_path.iterdir()) == [
        tmp_path / "model.onnx"
    ]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(tmp_path / "model.onnx").graph.node)
    expected_count = {"merged": 30, "trunk": 25, "query2label": 16}  # a trunk of 5 stands there once
    assert convolutions == expected_count.get(kind, 15)


def test_a_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")

    class Wrong(module.Plain):
        def forward(self, images):
            logits, probabilities = super().forward(images)
            return (logits + 1 if torch.compiler.is_exporting() else logits), probabilities

    monkeypatch.setattr(module, "Plain", Wrong)
    with pytest.raises(ValueError, match=r"other logits than the model, up to 1 apart: not exported"):
        write_onnx(build(3).eval(), tmp_path / "model.onnx", torch.zeros(2, 3, 32, 32, dtype=torch.uint8), {})


def test_without_the_extra_the_message_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'cpsd_lib\[onnx\]'"):
        write_onnx(build(3), tmp_path / "model.onnx", torch.zeros(2, 3, 32, 32, dtype=torch.uint8), {})


@pytest.mark.parametrize(
    ("name", "head", "added"),
    [
        ("test_resnet", "gap", []),
        ("test_resnet", "ml_decoder", []),
        ("test_vit2", "ml_decoder", ["fc_norm.weight", "fc_norm.bias"]),
    ],
)
def test_timm_loads_the_state_strictly_and_computes_the_same_last_features(name, head, added):
    options = {"img_size": 64} if "vit" in name else {}
    model = build_model(name, 3, head=head, **({"head_width": 16} if head != "gap" else {}), **options).eval()
    state, extra = timm_state(model, name, options)
    backbone = timm.create_model(name, num_classes=0, **options).eval()
    backbone.load_state_dict(state, strict=True)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.forward_features(images), model.forward_features(images))
    assert extra == added


def test_many_backbones_are_no_backbone_of_timm():
    with pytest.raises(ValueError, match="one backbone, and this model is many experts"):
        timm_state(merged(), "test_resnet", {})
