import argparse
import math

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants

from cpsd_lib.models import classifier
from cpsd_lib.models.classifier import build_model, load_backbone, preprocessing

SMALL = {"channels": [8, 16, 24, 32]}
KINDS = [
    ("test_resnet", {}, 32),
    ("resnet10t", SMALL, 32),
    ("mobilenetv3_small_050", {}, 64),
    ("test_convnext", {}, 32),
    ("test_vit", {"img_size": 32}, 32),
    ("deit_tiny_distilled_patch16_224", {"img_size": 32, "depth": 1}, 32),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": [1, 1, 1, 1]}, 64),
]


def save(state, path):
    safetensors.torch.save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize(("name", "options", "size"), KINDS, ids=[name for name, _, _ in KINDS])
def test_any_backbone_gives_logits_and_a_map_of_features(name, options, size):
    model = build_model(name, 5, **options).eval()
    with torch.inference_mode():
        output = model(torch.rand(2, 3, size, size))
    assert output.logits.shape == (2, 5)
    assert output.label_embeddings is None
    assert output.features.ndim == 4
    assert output.features.shape[:2] == (2, model.backbone.num_features)


@pytest.mark.parametrize(("name", "options", "size"), KINDS, ids=[name for name, _, _ in KINDS])
def test_a_place_in_the_features_is_that_place_in_the_image(name, options, size):
    size *= 2
    options = options | ({"img_size": size} if "img_size" in options else {})
    torch.manual_seed(0)
    model = build_model(name, 2, **options).eval()
    plain, lit = torch.zeros(1, 3, size, size), torch.zeros(1, 3, size, size)
    lit[:, :, : size // 8, -size // 8 :] = 1  # the upper right corner
    with torch.inference_mode():
        change = (model(lit).features - model(plain).features).abs().sum((0, 1))
    row, column = divmod(change.argmax().item(), change.shape[1])
    assert change.shape[0] > 1 and row < change.shape[0] / 2 <= column


def test_a_wide_image_gives_a_wide_map_of_tokens():
    model = build_model("test_vit", 2, img_size=(32, 64)).eval()
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 32, 64)).features.shape[2:] == (2, 4)


def test_a_model_without_a_map_says_so():
    model = build_model("coat_lite_tiny", 2, img_size=32).eval()
    with torch.inference_mode(), pytest.raises(ValueError, match="no map of its features; take another backbone"):
        model(torch.rand(1, 3, 32, 32))


# A small model of each family of timm's that has more than a mean between its last map and its classifier, and some that have
# nothing more.
TINY = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}
HIERA = {"img_size": 64, "embed_dim": 8, "stages": (1, 1, 1, 1), "num_heads": 1}
RDNET = {"num_init_features": 8, "growth_rates": (8,) * 7, "num_blocks_list": (1,) * 7}
WIDER = "cpubone_nano efficientvit_b0 fasternet_t0 ghostnet_050 hgnetv2_b0 inception_next_atto lcnet_035 lowformer_b0 "
WIDER += "lcnetv2_small mobilenetv3_small_050 mobilenetv4_conv_small_035 repghostnet_050 test_mambaout"
NORMED = {"test_convnext": {}, "csatv2": {}, "edgenext_xx_small": {}, "test_vit_relpos": {"img_size": 32}}
NORMED |= {"poolformerv2_s12": {}, "beit_base_patch16_224": TINY, "eva02_tiny_patch14_224": TINY | {"img_size": 28}}
NORMED |= {
    "davit_tiny": {"depths": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64), "num_heads": (1, 1, 2, 2)},
    "hiera_tiny_224": HIERA,
    "rdnet_tiny": RDNET,
}
TOKEN = "vit_base_patch16_siglip_224 vit_base_patch16_clip_224 deit_tiny_distilled_patch16_224 cait_xxs24_224 "
TOKEN += "xcit_nano_12_p16_224"
PLAIN = {"test_resnet": {}, "test_efficientnet": {}, "test_byobnet": {}, "test_nfnet": {}, "regnetx_002": {}}
PLAIN |= {"vit_base_patch16_siglip_gap_224": TINY, KINDS[-1][0]: KINDS[-1][1]}
FAMILIES = {name: {} for name in WIDER.split()} | NORMED | dict.fromkeys(TOKEN.split(), TINY) | PLAIN


@pytest.mark.parametrize(("name", "options"), FAMILIES.items())
def test_the_plain_head_is_timms_own_and_no_layer_stays_untrained(name, options):
    images = torch.rand(2, 3, options.get("img_size", 64), options.get("img_size", 64))
    model = build_model(name, 3, **options).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn_like(value))  # also where timm starts with a constant
    own = timm.create_model(name, num_classes=0, **options).eval()
    own.load_state_dict(model.backbone.state_dict())
    output = model(images)
    assert torch.equal(output.logits, model.head.linear(own(images)))
    assert torch.equal(output.features, classifier.feature_map(own, own.forward_features(images), images))
    plain = model.head.linear.in_features == output.features.shape[1]
    plain = plain and torch.allclose(own(images), output.features.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert plain is (name in PLAIN)
    output.logits.sum().backward()
    assert all(value.grad is not None for value in model.parameters())
    tokens = build_model(name, 3, head="ml_decoder", head_width=8, **options).eval()
    tokens.backbone.load_state_dict({key: model.backbone.state_dict()[key] for key in tokens.backbone.state_dict()})
    output = tokens(images)
    assert torch.equal(output.features, model(images).features)
    output.logits.sum().backward()
    assert all(value.grad is not None for value in tokens.parameters())
    fewer = len(list(tokens.backbone.parameters())) < len(list(model.backbone.parameters()))
    assert fewer is (name in [*WIDER.split(), *NORMED, "vit_base_patch16_siglip_224"])


def test_an_encoder_that_timm_gives_no_classifier_takes_a_head_that_reads_its_map():
    with torch.device("meta"):
        with pytest.raises(ValueError, match="no classifier; take a head that reads its map"):
            build_model("mobilenetv5_300m_enc", 2)
        build_model("mobilenetv5_300m_enc", 2, head="ml_decoder", head_width=8)


@pytest.mark.parametrize(("prior", "bias"), [(0.12, -2.0), (0.5, 0.0), (0.01, -4.6)])
def test_a_new_head_has_small_weights_and_the_bias_of_its_prior(prior, bias):
    torch.manual_seed(0)
    model = build_model("test_resnet", 80, prior=prior).eval()
    assert model.head.linear.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.head.linear.weight.mean().abs() < 1e-3
    assert model.head.linear.bias.tolist() == pytest.approx([math.log(prior / (1 - prior))] * 80)
    assert model.head.linear.bias[0].item() == pytest.approx(bias, abs=0.02)
    with torch.inference_mode():
        logits = model(torch.rand(4, 3, 64, 64)).logits
    assert (logits - bias).abs().max() < 0.5


def test_the_same_seed_gives_the_same_model():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(build_model("test_resnet", 3).state_dict())
    assert all(torch.equal(drawn[0][name], drawn[1][name]) for name in drawn[0])
    assert not torch.equal(drawn[0]["head.linear.weight"], drawn[2]["head.linear.weight"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "levit_128s", "inception_next_atto", "mobilenetv3_small_050", "test_convnext"]
)
def test_local_weights_of_the_full_timm_model_give_its_features(tmp_path, name, suffix):
    full = timm.create_model(name).eval()  # with its own 1000 classes
    with torch.no_grad():
        for value in full.state_dict().values():
            if value.is_floating_point():
                value.add_(0.01)  # also where timm's init is a constant
    path = save(full.state_dict(), tmp_path / f"w{suffix}")
    model = build_model(name, 3, weights=str(path)).eval()
    size = full.pretrained_cfg["input_size"][-1]
    images = torch.rand(1, 3, size, size)
    with torch.inference_mode():
        last, found = full.forward_features((images - model.mean) / model.std), model(images)
        torch.testing.assert_close(found.features, classifier.feature_map(full, last, images))
        pooled = full.forward_head(last, pre_logits=True)
        torch.testing.assert_close(found.logits, model.head.linear(pooled))
        tokens = build_model(name, 3, path, "ml_decoder", head_width=8).eval()  # its own layers alone are left unread
        last = tokens.forward_features(images)
        torch.testing.assert_close(classifier.feature_map(tokens.backbone, last, images), found.features)
    assert model.head.linear.out_features == 3


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_a_wrapped_state_dict_is_unwrapped(tmp_path, wrapper):
    state = timm.create_model("test_resnet").state_dict()
    path = save({"epoch": 3, wrapper: state}, tmp_path / "w.pth")
    model = build_model("test_resnet", 3, weights=path)
    own = model.backbone.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own)


def test_half_precision_weights_and_a_missing_batch_counter_are_accepted(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    state = {name: value.half() for name, value in state.items() if not name.endswith("num_batches_tracked")}
    model = build_model("test_resnet", 3, weights=save(state, tmp_path / "w.safetensors"))
    assert model.backbone.state_dict()["conv1.0.weight"].dtype == torch.float32


def test_weights_that_do_not_fit_are_listed(tmp_path):
    state = timm.create_model("test_resnet").state_dict()
    gone, shaped = [name for name in state if name.endswith("weight") and state[name].ndim == 4][:2]
    del state[gone]
    state[shaped] = torch.zeros(1, 2, 3, 3)
    state["extra.weight"] = torch.zeros(1)
    path = save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError) as caught:
        build_model("test_resnet", 3, weights=path)
    for part in (
        f"1 missing: {gone};",
        "1 unknown: extra.weight;",
        f"1 of another shape: {shaped} [1, 2, 3, 3], expected [",
        "w.pth",
    ):
        assert part in str(caught.value)


def test_weights_that_do_not_fit_change_nothing(tmp_path):
    backbone = timm.create_model("test_resnet", num_classes=0)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = timm.create_model("test_resnet").state_dict() | {"extra": torch.zeros(1)}
    with pytest.raises(ValueError, match="unknown: extra"):
        load_backbone(backbone, save(state, tmp_path / "w.pth"))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_weights_of_another_model_are_refused(tmp_path):
    path = save(timm.create_model("test_vit").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not fit this backbone"):
        build_model("test_resnet", 3, weights=path)


class Hostile:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *[("w.pth", b""), ("w.pth", b"garbage"), ("w.safetensors", b""), ("w.safetensors", b"garbage" * 9)],
        *[("w.pth", [1, 2]), ("w.pth", torch.zeros(3)), ("w.pth", {"state_dict": 5}), ("w.pth", {"conv1.0.weight": 5})],
        ("w.pth", Hostile()),
    ],
    ids=["empty", "garbage", "empty safe", "garbage safe", "list", "tensor", "number", "no tensors", "hostile"],
)
def test_a_file_that_holds_no_weights_is_refused_and_nothing_is_unpickled(tmp_path, capsys, name, content):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=r"w\.(pth|safetensors)"):
        build_model("test_resnet", 3, weights=path)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["nowhere.safetensors", "."])
def test_weights_that_are_not_there_are_named(tmp_path, wrong):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        build_model("test_resnet", 3, weights=tmp_path / wrong)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "state_dict_ema"])
def test_a_trainings_checkpoint_gives_its_weights_without_the_names_of_wrappers(tmp_path, prefix, wrapper):
    full = timm.create_model("test_resnet", num_classes=3)
    state = {f"{prefix}{name}": tensor for name, tensor in full.state_dict().items()}
    path = save({"epoch": 3, wrapper: state}, tmp_path / "checkpoint.pth")
    plain = save(full.state_dict(), tmp_path / "plain.pth")
    one, other = (build_model("test_resnet", 5, weights=str(file)).backbone.state_dict() for file in (path, plain))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_checkpoint_with_foreign_objects_names_their_class_and_how_to_keep_the_weights(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"args": argparse.Namespace(lr=1), "state_dict": {}}, path)
    with pytest.raises(
        ValueError, match=r"checkpoint\.pth .* holds a argparse\.Namespace, .* keep its weights alone: torch"
    ):
        build_model("test_resnet", 5, weights=str(path))


def test_imagenet_weights_without_a_network_say_what_to_do(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("the hub cannot be reached")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(classifier, "_why_unreachable", lambda: None)
    with pytest.raises(ConnectionError) as caught:
        build_model("mobilenetv2_100", 3, weights="imagenet")
    for part in ("mobilenetv2_100", "the hub cannot be reached", "local .safetensors or .pth", "random weights"):
        assert part in str(caught.value)
    build_model("test_resnet", 3)  # random weights need no hub


def test_imagenet_weights_that_nobody_has_and_wrong_options_are_no_network_errors(monkeypatch):
    monkeypatch.setattr(timm.models, "load_pretrained", None)  # the network is never asked
    with pytest.raises(ValueError, match="cannot be built with"):
        build_model("resnet10t", 3, weights="imagenet", foo=1)
    without = next(name for name in timm.list_models("resnet*") if not timm.list_pretrained(f"{name}.*"))
    with pytest.raises(ValueError, match="no ImageNet weights"):
        build_model(without, 3, weights="imagenet")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("mobilenet_v2_100", "mobilenetv2_100"),
        ("ResNet-50", "resnet50"),
        ("resnet51", "resnet50"),
        ("efficientnetb0", "efficientnet_b0"),
        ("tresnetl", "tresnet_l"),
        ("resnet5O.tv_in1k", "resnet50"),
    ],
)
def test_an_unknown_name_is_answered_with_near_names(name, near):
    with pytest.raises(ValueError) as caught:
        build_model(name, 3)
    assert f"timm has no model '{name}'" in str(caught.value)
    names = str(caught.value).split("near names: ")[1].split(", ")
    assert near in names and len(set(names)) == len(names)


def test_without_a_network_there_is_one_attempt_and_what_is_in_the_cache_is_taken(monkeypatch):
    """The hub by itself tries five times a file, for 72 s."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    offline = []
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **_: offline.append(constants.HF_HUB_OFFLINE))
    classifier._backbone("resnet18", True, {})
    assert offline == [False, True] and not constants.HF_HUB_OFFLINE

    def not_cached(name, pretrained, **_):
        if pretrained:
            raise OSError("offline mode is enabled")

    monkeypatch.setattr(timm, "create_model", not_cached)
    with pytest.raises(ConnectionError, match="Connection refused") as caught:
        classifier._backbone("resnet18", True, {})
    assert "offline mode" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "zzzzzzzzzz", "../x", "hf-hub:someone/model", "local-dir:/x", "resnet50\n"])
def test_a_name_that_is_no_timm_model_is_refused_without_looking_elsewhere(name):
    with pytest.raises(ValueError, match="timm has no model"):
        build_model(name, 3)


def test_an_unknown_tag_of_a_known_model_is_answered_with_its_tags():
    with pytest.raises(ValueError, match=r"no weights 'nonsense' of resnet18; it has: .*resnet18\.tv_in1k"):
        build_model("resnet18.nonsense", 3)
    build_model("resnet18.tv_in1k", 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_resnet", {"foo": 1}),
        ("resnet10t", {"channels": "wide"}),
        ("test_vit", {"img_size": 33, "patch_size": 0}),
        ("test_resnet", {"pretrained": True}),
        ("test_resnet", {"act_layer": "no such activation"}),
    ],
)
def test_options_that_do_not_fit_are_a_value_error_that_shows_them(name, options):
    with pytest.raises(ValueError, match=f"{name} cannot be built with model.options .*{next(iter(options))}"):
        build_model(name, 3, **options)


@pytest.mark.parametrize(
    "wrong", [{"num_classes": 0}, {"head": "mlp"}, {"normalize": "zca"}, {"prior": 0}, {"prior": 1}]
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises((ValueError, ZeroDivisionError)):
        build_model("test_resnet", **{"num_classes": 3} | wrong)


def test_normalisation_is_part_of_the_model():
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for normalize, expected in (("none", images), ("imagenet", (images - mean) / std), ("auto", images)):
        model = build_model("test_resnet", 3, normalize=normalize).eval()
        with torch.inference_mode():
            torch.testing.assert_close(model(images).features, model.backbone.forward_features(expected))
        assert {"mean", "std"} <= set(model.state_dict())  # it travels with the weights


@pytest.mark.parametrize("name", ["test_resnet", "vit_tiny_patch16_224"])
def test_auto_is_what_the_weights_were_trained_with(tmp_path, name):
    path = save(timm.create_model(name).state_dict(), tmp_path / "w.pth")
    expected = timm.create_model(name).pretrained_cfg["mean"]
    found = preprocessing(build_model(name, 3, weights=path))
    assert found["mean"] == pytest.approx(list(expected)) and found["range"] == [0, 1]
    assert preprocessing(build_model(name, 3, weights=path, normalize="none"))["std"] == [1, 1, 1]
    assert preprocessing(build_model(name, 3))["mean"] == [0, 0, 0]


def test_real_pretrained_weights_load_strictly(shared_data):
    path = shared_data.parent / "weights" / "mobilenetv2_100.safetensors"
    if not path.exists():
        pytest.skip("no weights/mobilenetv2_100.safetensors beside the real data")
    timm.create_model("mobilenetv2_100").load_state_dict(safetensors.torch.load_file(path), strict=True)
    model = build_model("mobilenetv2_100", 18, weights=path)
    stored, own = safetensors.torch.load_file(path), model.backbone.state_dict()
    assert all(torch.equal(own[name], stored[name]) for name in own if name in stored)
    assert preprocessing(model)["mean"] == pytest.approx([0.485, 0.456, 0.406])
