import json
import zlib

import numpy as np
import pytest
import torch
import torchvision
from timm.models import clean_state_dict
from torch.nn import functional

from cpsd_lib.models import released
from cpsd_lib.models.classifier import build_model, read_state
from cpsd_lib.models.heads import sine_position
from cpsd_lib.models.released import LAYOUTS, check_class_names, load_released

COCO = ["airplane", "apple", "backpack", "banana"]


def filled(layout):
    """The state dict of the filling rule of the golden numbers."""
    return {key: torch.as_tensor(_fill(key, *entry)) for key, entry in layout["keys"].items()}


def _fill(key, shape, dtype):
    if dtype.startswith("int"):
        return np.zeros(shape, dtype)
    if key.split(".")[-1] == "pe":
        return sine_position(*shape[1:])
    r = np.asarray(np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape, dtype=np.float32))
    if key.endswith("running_var"):
        return 1 + np.float32(0.1) * np.abs(r)
    if key.endswith(("running_mean", "bias")):
        return np.float32(0.05) * r
    if len(shape) < 2:
        return 1 + np.float32(0.05) * r
    if "embed" in key or key.endswith(".W"):
        return np.float32(0.5) * r
    return r * np.float32(np.sqrt(1 / np.prod(shape[1:])))


def golden_images(layout):
    size = layout["image_size"]
    return torch.from_numpy(
        np.random.default_rng(7).standard_normal((layout["batch"], 3, size, size), dtype=np.float32)
    )


@pytest.fixture
def layouts(golden):
    return json.loads((golden / "released_checkpoint_layouts.json").read_text())


@pytest.fixture
def load(tmp_path, monkeypatch):
    """load_released of a state dict that never was a file, which would be 100 MB and more."""

    def loaded(name, state, *args, **options):
        monkeypatch.setattr(released, "read_state", lambda path: clean_state_dict(state))
        path = tmp_path / "F.ckpt"
        path.touch()
        return load_released(name, path, *args, **options)

    return loaded


@pytest.fixture(scope="module")
def small():
    """A released checkpoint of resnext50_swsl for four classes, made from our own names."""
    model = build_model("resnext50_swsl", 4)
    return {_released_name(key): value for key, value in model.state_dict().items() if key not in ("mean", "std")}


def _released_name(key):
    old, new = next((old, new) for old, new in LAYOUTS["resnext50_swsl"].items() if key.startswith(new))
    return old + key[len(new) :]


@pytest.mark.parametrize("name", ["resnet101", "resnet101_tf"])
def test_released_checkpoints_give_the_releases_logits(golden, layouts, load, name):
    vectors = np.random.default_rng(11).standard_normal((80, 300), dtype=np.float32)
    model = load(name, filled(layouts[name]), label_vectors=vectors if name == "resnet101_tf" else None)
    with torch.inference_mode():
        logits = model(golden_images(layouts[name])).logits
    expected = np.load(golden / f"logits_{name}.npy")
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert not model.training and model.class_names[0] == "airplane" and len(model.class_names) == 80
    assert model.mean.flatten().tolist() == [0, 0, 0] and model.std.flatten().tolist() == [1, 1, 1]


def test_resnext_gives_the_logits_of_torchvisions_model(layouts, load):
    state = filled(layouts["resnext50_swsl"])
    model = load("resnext50_swsl", state)
    other = torchvision.models.resnext50_32x4d(num_classes=80).eval()
    names = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    renamed = {}
    for key, value in state.items():
        _, place, *rest = key.split(".")
        renamed[f"fc.{place}" if key.startswith("classify") else ".".join([names[place], *rest])] = value
    other.load_state_dict(renamed, strict=True)
    images = golden_images(layouts["resnext50_swsl"])
    with torch.inference_mode():
        torch.testing.assert_close(model(images).logits, other(images), rtol=1e-4, atol=1e-5)


def attend(state, prefix, q, k, v, heads=4):
    """Attention of one image, q [T, D], k and v [S, D], one head at a time."""
    weights, biases = state[f"{prefix}.in_proj_weight"].chunk(3), state[f"{prefix}.in_proj_bias"].chunk(3)
    q, k, v = (x @ w.T + b for x, w, b in zip((q, k, v), weights, biases, strict=True))
    answers = [
        (qh @ kh.T / kh.shape[1] ** 0.5).softmax(-1) @ vh
        for qh, kh, vh in zip(*(x.chunk(heads, 1) for x in (q, k, v)), strict=True)
    ]
    return torch.cat(answers, 1) @ state[f"{prefix}.out_proj.weight"].T + state[f"{prefix}.out_proj.bias"]


def test_q2l_gives_the_logits_of_plain_steps_over_the_releases_own_names(layouts, load):
    layouts["q2l_resnet101"]["keys"]["backbone.1.pe"][0] = [1, 2048, 3, 3]  # trained at 96 pixels
    state = filled(layouts["q2l_resnet101"])
    model = load("q2l_resnet101", {f"module.{key}": value for key, value in state.items()})
    body = torchvision.models.resnet101(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    body.fc = torch.nn.Identity()
    prefix = "backbone.0.body."
    body.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, strict=True)
    body.eval().avgpool = torch.nn.Identity()  # now it gives its last map, flat

    def norm(name, x):
        return functional.layer_norm(x, (2048,), state[f"{name}.weight"], state[f"{name}.bias"])

    def feed_forward(layer, last, x):
        hidden = (x @ state[f"{layer}.linear1.weight"].T + state[f"{layer}.linear1.bias"]).relu()
        return norm(f"{layer}.{last}", x + hidden @ state[f"{layer}.linear2.weight"].T + state[f"{layer}.linear2.bias"])

    image = torch.randn(1, 3, 96, 96)
    with torch.inference_mode():
        features = body(image).view(1, 2048, 3, 3)
        x = functional.conv2d(features, state["input_proj.weight"], state["input_proj.bias"])[0].flatten(1).T
        places = state["backbone.1.pe"][0].flatten(1).T
        layer = "transformer.encoder.layers.0"
        x = norm(f"{layer}.norm1", x + attend(state, f"{layer}.self_attn", x + places, x + places, x))
        x = feed_forward(layer, "norm2", x)
        queries, labels = state["query_embed.weight"], torch.zeros(80, 2048)
        for layer in ("transformer.decoder.layers.0", "transformer.decoder.layers.1"):
            seen = attend(state, f"{layer}.multihead_attn", labels + queries, x + places, x)
            labels = feed_forward(layer, "norm3", norm(f"{layer}.norm2", labels + seen))
        labels = norm("transformer.decoder.norm", labels)
        expected = (state["fc.W"][0] * labels).sum(1) + state["fc.b"][0]
        output = model(image)
    torch.testing.assert_close(output.logits[0], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.label_embeddings[0], labels, rtol=1e-3, atol=1e-3)
    assert model.head.position is None  # the usual code: any size will do
    state["backbone.1.pe"] = state["backbone.1.pe"].flip(1)
    model = load("q2l_resnet101", state)
    with torch.inference_mode(), pytest.raises(ValueError, match="position code of their own for 3x3 places"):
        model(torch.randn(1, 3, 128, 128))


def test_tresnet_is_read_from_the_layout_that_timm_converts(load):
    torch.manual_seed(0)
    model = build_model("tresnet_l", 4).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.add_(0.1 * torch.rand_like(value))
    state = {}
    for key, value in model.state_dict().items():
        if key in ("mean", "std") or key.endswith("num_batches_tracked"):
            continue
        *path, kind, leaf = key.removeprefix("backbone.").removeprefix("head.").split(".")
        unit = model.get_submodule("backbone." + ".".join(path)) if kind in ("conv", "bn") else None
        if unit is not None:
            filtered = not isinstance(getattr(unit, "aa", None), (type(None), torch.nn.Identity))
            path += [*(["0"] if filtered else []), {"conv": "0", "bn": "1"}[kind]]
            name = ".".join([*path, leaf])
        else:
            name = f"head.fc.{leaf}" if kind == "linear" else key.removeprefix("backbone.")
        # Their in-place norms use |weight| + 1e-5.
        state[f"module.{name}"] = -(value - 1e-5) if (kind, leaf) == ("bn", "weight") else value
    assert {f"module.body.layer{at}.0.0.weight" for at in ("2.0.conv1", "3.0.conv2")} <= state.keys()
    assert "module.body.conv1.1.running_var" in state
    found = load("tresnet_l", state, 4)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(found(images).logits, model(images).logits, rtol=1e-3, atol=1e-4)
    assert found.class_names is None
    del state["module.body.conv1.1.running_var"]
    with pytest.raises(ValueError, match=r"1 missing: body\.conv1\.bn\.running_var"):
        load("tresnet_l", state, 4)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_prefix_and_wrapper_make_no_difference(tmp_path, small, prefix, wrapper):
    state = {prefix + key: value for key, value in small.items()}
    path = tmp_path / "F.ckpt"
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    model = load_released("resnext50_swsl", path, num_classes=4)
    path.unlink()
    own = model.state_dict()
    assert torch.equal(own["backbone.layer3.0.conv1.weight"], small["features.6.0.conv1.weight"])
    assert torch.equal(own["head.linear.bias"], small["classify.bias"])


def test_every_key_is_used_and_none_is_missing_or_they_are_listed(load, small):
    state = dict(small)
    state["extra.weight"] = state.pop("classify.weight")
    state["features.0.weight"] = torch.zeros(64, 3, 5, 5)
    del state["features.1.num_batches_tracked"]
    state["backbone.conv1.weight"] = small["features.0.weight"]  # our own name is not theirs
    with pytest.raises(ValueError) as caught:
        load("resnext50_swsl", state, 4)
    for part in (
        *("2 missing: ", "features.1.num_batches_tracked", "classify.weight", "F.ckpt", "resnext50_swsl"),
        "2 unknown: extra.weight, backbone.conv1.weight",
        "1 of another shape: features.0.weight [64, 3, 5, 5], expected [64, 3, 7, 7]",
    ):
        assert part in str(caught.value)


def test_a_long_list_is_cut_at_twenty_and_counted(load, small):
    state = {key: value for key, value in small.items() if not key.startswith("features.7.")}
    gone = len(small) - len(state)
    with pytest.raises(ValueError) as caught:
        load("resnext50_swsl", state | {f"x{i}": torch.zeros(1) for i in range(30)}, 4)
    assert f"{gone} missing: " in str(caught.value) and f"... and {gone - 20} more" in str(caught.value)
    assert "30 unknown: x0, " in str(caught.value) and "... and 10 more" in str(caught.value)
    assert str(caught.value).count("features.7.") == 20


def test_another_number_of_classes_or_another_model_is_refused(load, small, tmp_path):
    with pytest.raises(ValueError, match=r"2 of another shape: classify.weight \[4, 2048\], expected \[80, 2048\]"):
        load("resnext50_swsl", small)
    with pytest.raises(
        ValueError, match=r"^this looks like resnext50_swsl, not resnet101 \(give --released res.*missing"
    ):
        load("resnet101", small, 4)
    with pytest.raises(ValueError, match=r"^this is a resnext50_swsl for another number of classes.*another shape"):
        load("resnext50_swsl", small, 5)
    with pytest.raises(ValueError, match=r"F\.ckpt does not fit the released resnet101 .*1 unknown: x") as caught:
        load("resnet101", {"x": torch.zeros(1)}, 4)
    assert "looks like" not in str(caught.value)
    torch.save({"module.classify.bias": torch.zeros(4), "classify.bias": torch.zeros(4)}, tmp_path / "both.ckpt")
    with pytest.raises(ValueError, match="with and without the prefix"):
        read_state(tmp_path / "both.ckpt")


class Hostile:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_is_unpickled_and_wrong_names_are_answered(tmp_path, capsys):
    path = tmp_path / "F.ckpt"
    torch.save({"state_dict": Hostile()}, path)
    with pytest.raises(ValueError, match=r"F\.ckpt is no readable file of weights"):
        load_released("resnext50_swsl", path)
    assert "unpickled" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="no released model 'resnet50'; there are: resnet101, "):
        load_released("resnet50", path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_released("resnet101", tmp_path / "nowhere.ckpt")


def test_the_label_transformer_needs_the_vectors_it_was_trained_with(tmp_path):
    path = tmp_path / "F.ckpt"
    path.touch()
    for given in (None, "learned"):
        with pytest.raises(ValueError, match="needs label_vectors"):
            load_released("resnet101_tf", path, label_vectors=given)
    with pytest.raises(ValueError, match="class_names are needed to look vectors up"):
        load_released("resnet101_tf", path, 81, label_vectors=tmp_path / "glove.txt")


def test_class_names_come_from_the_argument_or_the_json_beside_the_file(tmp_path, load, small):
    assert load("resnext50_swsl", small, 4, class_names=COCO).class_names == COCO
    (tmp_path / "F.json").write_text(json.dumps({"class_names": COCO[::-1]}))
    assert load("resnext50_swsl", small, 4).class_names == COCO[::-1]
    with pytest.raises(ValueError, match="in another order"):
        load("resnext50_swsl", small, 4, class_names=COCO)
    for wrong in (COCO[:3], [*COCO, "x"], ["a", "a", "b", "c"], "abcd"):
        (tmp_path / "F.json").write_text(json.dumps({"class_names": wrong}))
        with pytest.raises(ValueError, match="as many different names"):
            load("resnext50_swsl", small, 4)


@pytest.mark.parametrize("text", ["{", "[]", '"resnet101"', b"\xff"])
def test_a_broken_json_beside_the_file_is_the_users_own_and_may_be_taken_away(tmp_path, load, small, text):
    beside = tmp_path / "F.json"
    beside.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"F\.json .*your own .*class_names .*preprocessing .*take it away") as caught:
        load("resnext50_swsl", small, 4)
    assert "stage" not in str(caught.value)
    beside.unlink()
    assert load("resnext50_swsl", small, 4).class_names is None


def test_preprocessing_comes_from_the_json_beside_the_file(tmp_path, load, small):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    images = torch.rand(1, 3, 64, 64)
    plain = load("resnext50_swsl", small, 4)
    (tmp_path / "F.json").write_text(json.dumps({"preprocessing": {"mean": mean, "std": std, "range": [0, 1]}}))
    model = load("resnext50_swsl", small, 4)
    with torch.inference_mode():
        normalised = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
        torch.testing.assert_close(model(images).logits, plain(normalised).logits)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"range": [0, 255]}, r"range is \[0, 255\]"),
        ({"resize": "shorter side, centre crop"}, "resize is 'shorter side"),
        ({"mean": [0, 0]}, "three numbers each"),
        ({"std": [1, 0, 1]}, "std > 0"),
        ({"std": ["1", "1", "1"]}, "three numbers each"),
        ([], "three numbers each"),
        ("none", "three numbers each"),
    ],
)
def test_preprocessing_that_this_library_does_not_do_is_refused(tmp_path, load, small, wrong, said):
    usual = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    wrong = usual | wrong if isinstance(wrong, dict) else wrong
    (tmp_path / "F.json").write_text(json.dumps({"preprocessing": wrong}))
    with pytest.raises(ValueError, match=said):
        load("resnext50_swsl", small, 4)


@pytest.mark.parametrize(
    ("model_names", "data_names", "said"),
    [
        (["a", "b"], ["b", "a"], "in another order: number 0 is 'a' for the model and 'b' in the data"),
        (["a", "b"], ["a", "c"], "not the same: number 1 is 'b' for the model and 'c' in the data"),
        (["a", "b"], ["a"], r"\(2\) .* \(1\) are not the same: number 1 is 'b' .* no class in the data"),
        (["a"], ["a", "b"], "number 1 is no class for the model and 'b' in the data"),
        (None, ["a"], "nobody said which classes"),
    ],
)
def test_other_classes_or_another_order_are_refused_with_the_first_difference(model_names, data_names, said):
    with pytest.raises(ValueError, match=said):
        check_class_names(model_names, data_names)


def test_the_same_classes_pass_whatever_holds_them():
    check_class_names(COCO, tuple(COCO))
    check_class_names(np.array(COCO), COCO)
