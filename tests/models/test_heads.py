import math

import pytest
import torch
from torch.nn import functional

from cpsd_lib.models.classifier import HEADS, PRESETS, FrozenBatchNorm2d, build_model
from cpsd_lib.models.heads import ClassLinear, LabelTransformer, MLDecoder, Query2Label, sine_position
from cpsd_lib.workbench import params

TOKENS = {"label_transformer": 1024, "query2label": 2048, "ml_decoder": 768}
SMALL = {"label_transformer": LabelTransformer, "query2label": Query2Label, "ml_decoder": MLDecoder}


def linear(module, x):
    return functional.linear(x, module.weight, module.bias)


def norm(module, x):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * module.weight + module.bias


def attend(q, k, v, heads):
    """q [B, T, heads * d], k and v [B, S, heads * d], one image and one head at a time."""
    answers = torch.zeros_like(q)
    width = q.shape[-1] // heads
    for image in range(len(q)):
        for head in range(heads):
            at = slice(head * width, (head + 1) * width)
            weights = (q[image, :, at] @ k[image, :, at].T / math.sqrt(width)).softmax(-1)
            answers[image, :, at] = weights @ v[image, :, at]
    return answers


def attention(module, q, k, v):
    wq, wk, wv = module.in_proj_weight.chunk(3)
    bq, bk, bv = module.in_proj_bias.chunk(3)
    answers = attend(q @ wq.T + bq, k @ wk.T + bk, v @ wv.T + bv, module.num_heads)
    return linear(module.out_proj, answers)


def feed_forward(module, x):
    return norm(module.norm, x + linear(module.linear2, linear(module.linear1, x).clamp(min=0)))


def shaken(head):
    """The head with every parameter moved, also those that start as zeros or ones."""
    with torch.no_grad():
        for value in head.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return head.eval()


def pixels(features):
    return torch.stack([features[:, :, y, x] for y in range(features.shape[2]) for x in range(features.shape[3])], 1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_the_label_transformer_is_three_pre_norm_layers_over_image_and_label_tokens():
    vectors, features = torch.randn(5, 7), torch.randn(2, 6, 2, 3)
    head = shaken(LabelTransformer(6, 5, dim=16, label_vectors=vectors))
    labels = linear(head.label_tokens, vectors).clamp(min=0)
    x = torch.cat([linear(head.image_tokens, pixels(features)), labels.expand(2, 5, 16)], 1)
    assert len(head.layers) == 3
    for layer in head.layers:
        q, k, v = (norm(layer.norm1, x) @ layer.qkv.weight.T).chunk(3, -1)  # four heads of 16, no bias
        x = x + linear(layer.out, attend(q, k, v, 4))
        x = x + linear(layer.linear2, functional.gelu(linear(layer.linear1, norm(layer.norm2, x))))
    logits, embeddings = head(features)
    torch.testing.assert_close(embeddings, x[:, -5:])  # no norm after the last layer
    torch.testing.assert_close(logits, linear(head.linear, x[:, -5:])[..., 0])


def test_query2label_is_one_encoder_and_two_decoder_layers_with_places_in_queries_and_keys():
    features = torch.randn(2, 6, 2, 3)
    head = shaken(Query2Label(6, 5, dim=16))
    x = pixels(features) @ head.project.weight[:, :, 0, 0].T + head.project.bias
    places = pixels(sine_position(16, 2, 3))
    encoder = head.encoder
    x = feed_forward(
        encoder.feed_forward, norm(encoder.norm, x + attention(encoder.attention, x + places, x + places, x))
    )
    labels = torch.zeros(2, 5, 16)
    assert len(head.decoder) == 2
    for layer in head.decoder:
        seen = attention(layer.attention, labels + head.queries, x + places, x)
        labels = feed_forward(layer.feed_forward, norm(layer.norm, labels + seen))
    labels = norm(head.norm, labels)
    logits, embeddings = head(features)
    torch.testing.assert_close(embeddings, labels)
    for c in range(5):  # weights and bias of its own for each class
        torch.testing.assert_close(logits[:, c], labels[:, c] @ head.linear.weight[c] + head.linear.bias[c])


def test_ml_decoder_is_one_decoder_layer_from_fixed_queries():
    features = torch.randn(2, 6, 2, 3)
    head = shaken(MLDecoder(6, 5, dim=24))
    image = linear(head.project, pixels(features)).clamp(min=0)
    labels = norm(head.norm, head.queries).expand(2, 5, 24)
    layer = head.decoder
    labels = feed_forward(
        layer.feed_forward, norm(layer.norm, labels + attention(layer.attention, labels, image, image))
    )
    logits, embeddings = head(features)
    torch.testing.assert_close(embeddings, labels)
    torch.testing.assert_close(logits, (labels * head.linear.weight).sum(-1) + head.linear.bias)
    assert "queries" not in dict(head.named_parameters()) and "queries" in head.state_dict()


def test_the_position_code_is_detrs_sine_code_first_rows_then_columns():
    dim, rows, columns = 8, 3, 5
    code = sine_position(dim, rows, columns)
    assert code.shape == (1, dim, rows, columns)
    for channel in range(dim):
        for y in range(rows):
            for x in range(columns):
                place = (y + 1) / rows if channel < dim // 2 else (x + 1) / columns
                i = channel % (dim // 2)
                angle = place * 2 * math.pi / 10_000 ** (i // 2 * 2 / (dim // 2))
                expected = math.cos(angle) if i % 2 else math.sin(angle)
                assert code[0, channel, y, x].item() == pytest.approx(expected, abs=1e-5)


def test_a_position_code_of_a_checkpoints_own_is_used_at_its_size_only():
    head = Query2Label(6, 2, dim=16).eval()
    features = torch.randn(1, 6, 3, 3)
    usual = head(features)[1]
    head.position = sine_position(16, 3, 3)
    torch.testing.assert_close(head(features)[1], usual)
    head.position = head.position + 1
    assert not torch.allclose(head(features)[1], usual)
    with pytest.raises(ValueError, match="for 3x3 places, not 4x3"):
        head(torch.randn(1, 6, 4, 3))


@pytest.mark.parametrize("head", SMALL)
def test_image_tokens_keep_their_places_only_where_the_head_has_a_position_code(head):
    model = shaken(SMALL[head](6, 3, dim=16))
    features = torch.randn(1, 6, 2, 2)
    same = torch.allclose(model(features)[0], model(features.flip(-1))[0], atol=1e-5)
    assert same == (head != "query2label")


@pytest.mark.parametrize("prior", [0.12, 0.5, 0.01])
@pytest.mark.parametrize("head", HEADS)
def test_every_new_head_has_small_output_weights_and_the_bias_of_its_prior(head, prior):
    model = build_model("test_resnet", 40, head=head, prior=prior, **({} if head == "gap" else {"head_width": 64}))
    assert model.head.linear.weight.std().item() == pytest.approx(0.01, rel=0.2)
    bias = math.log(prior / (1 - prior))
    assert model.head.linear.bias.tolist() == pytest.approx([bias] * len(model.head.linear.bias))
    with torch.inference_mode():
        logits = model.eval()(torch.rand(2, 3, 64, 64)).logits
    assert (logits - bias).abs().max() < 0.5


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
@pytest.mark.parametrize("head", TOKENS)
@pytest.mark.parametrize("num_classes", [1, 4])
def test_any_backbone_takes_any_head_and_gives_an_embedding_a_class(name, head, num_classes):
    options = {"img_size": 64} if name == "test_vit" else {}
    model = build_model(name, num_classes, head=head, head_width=32, **options).eval()
    with torch.inference_mode():
        output = model(torch.rand(2, 3, 64, 64))
        torch.testing.assert_close(output.logits, model.head(output.features)[0])
    assert output.logits.shape == (2, num_classes)
    assert output.label_embeddings.shape == (2, num_classes, 32)
    assert output.features.shape[:2] == (2, model.backbone.num_features)
    with torch.inference_mode():  # the embedding is what the last linear layer sees
        seen = model.head.linear(output.label_embeddings)
    torch.testing.assert_close(output.logits, seen if isinstance(model.head.linear, ClassLinear) else seen[..., 0])


@pytest.mark.parametrize(("head", "width"), TOKENS.items())
def test_without_a_width_the_heads_are_the_papers(head, width):
    with torch.device("meta"):
        model = build_model("test_resnet", 3, head=head)
        assert model(torch.empty(2, 3, 32, 32)).label_embeddings.shape == (2, 3, width)
    shapes = {name: tuple(value.shape) for name, value in model.head.state_dict().items()}
    expected = {
        "label_transformer": {"layers.2.qkv.weight": (12288, 1024), "layers.0.linear1.weight": (1024, 1024)},
        "query2label": {"decoder.1.feed_forward.linear1.weight": (8192, 2048), "project.weight": (2048, 96, 1, 1)},
        "ml_decoder": {"decoder.feed_forward.linear1.weight": (2048, 768), "queries": (3, 768)},
    }[head]
    assert expected.items() <= shapes.items()
    heads = {"query2label": 4, "ml_decoder": 8}
    found = {m.num_heads for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)}
    assert found == ({heads[head]} if head in heads else set())
    assert {m.p for m in model.head.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


@pytest.mark.parametrize("name", PRESETS)
def test_every_model_of_the_paper_is_built_and_run_on_the_meta_device(name):
    with torch.device("meta"):
        model = build_model(name, 80).eval()
        output = model(torch.empty(1, 3, 576, 576))
    assert output.logits.shape == (1, 80) and output.features.shape[2:] == (18, 18)
    assert all(value.device.type == "meta" for value in model.state_dict().values())


@pytest.mark.parametrize("name", PRESETS)
def test_every_model_of_the_paper_takes_a_step_of_training(name):
    width = {} if PRESETS[name][1] == "gap" else {"head_width": 64}
    model = build_model(name, 3, **width).train()
    frozen = {key: value.clone() for key, value in model.named_parameters() if not value.requires_grad}
    moving = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=1e-3)
    # 96: the last map has 3x3 places, so that two images are enough for a batch norm.
    loss = functional.binary_cross_entropy_with_logits(model(torch.rand(2, 3, 96, 96)).logits, torch.ones(2, 3))
    loss.backward()
    optimizer.step()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in moving)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[key], value) for key, value in frozen.items())
    assert bool(frozen) == (name == "q2l_resnet101")


def test_q2l_freezes_every_batch_norm_the_stem_and_the_first_layer():
    with torch.device("meta"):
        model = build_model("q2l_resnet101", 2).train()
        other = build_model("resnet101_tf", 2).train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 104 and all(isinstance(m, FrozenBatchNorm2d) and not m.training for m in norms)
    for name, value in model.named_parameters():
        fixed = name.startswith(("backbone.conv1", "backbone.layer1")) or "bn" in name or "downsample.1" in name
        assert value.requires_grad == (not fixed), name
    assert all(value.requires_grad for value in other.parameters())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in other.modules())


def test_frozen_norms_keep_their_statistics_in_training():
    model = FrozenBatchNorm2d(3).train()
    model(torch.rand(4, 3, 5, 5) + 5)
    assert model.running_mean.tolist() == [0, 0, 0] and not model.weight.requires_grad


def test_label_vectors_are_fixed_or_learned():
    vectors = torch.randn(4, 50)
    fixed = build_model("test_resnet", 4, head="label_transformer", head_width=16, label_vectors=vectors.numpy())
    torch.testing.assert_close(fixed.head.state_dict()["label_vectors"], vectors)
    assert "label_vectors" not in dict(fixed.head.named_parameters())
    with torch.device("meta"):
        there = build_model("test_resnet", 4, head="label_transformer", label_vectors=vectors.numpy())
    assert there.head.label_vectors.device.type == "meta"
    for given in (None, "learned"):
        learned = build_model("test_resnet", 4, head="label_transformer", head_width=16, label_vectors=given)
        assert dict(learned.head.named_parameters())["label_vectors"].shape == (4, 300)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"head": "mlp"}, "expected one of gap, label_transformer, query2label, ml_decoder"),
        ({"label_vectors": torch.zeros(3, 4)}, "gap takes no label vectors"),
        ({"head": "ml_decoder", "label_vectors": "learned"}, "ml_decoder takes no label vectors"),
        ({"head": "label_transformer", "label_vectors": torch.zeros(4, 4)}, r"must be finite \[3, V\], not \[4, 4\]"),
        ({"head": "label_transformer", "label_vectors": torch.full((3, 4), float("nan"))}, "must be finite"),
        ({"head": "label_transformer", "label_vectors": "glove.txt"}, "read 'glove.txt' with read_label_vectors"),
        ({"head_width": 64}, "not 64 for gap"),
        ({"head": "query2label", "head_width": 12}, "multiple of 8"),
        ({"head": "query2label", "head_width": 0}, "multiple of 8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        build_model("test_resnet", 3, **wrong)


def test_a_model_of_the_paper_keeps_its_own_head():
    with pytest.raises(ValueError, match=r"has the head query2label; name its backbone, resnet101\.tv_in1k"):
        build_model("q2l_resnet101", 3, head="ml_decoder")
    with torch.device("meta"):
        assert isinstance(build_model("q2l_resnet101", 3, head="query2label").head, Query2Label)
        assert isinstance(build_model("resnet101", 3, head="ml_decoder").head, MLDecoder)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("size", [(450, 450), (448, 440), (16, 16)])
def test_a_size_the_model_does_not_take_is_named_with_its_stride(name, size):
    with torch.device("meta"):
        model = build_model(name, 2).eval()
        with pytest.raises(ValueError, match=f"images of {size[0]}x{size[1]} pixels .* multiple of 32"):
            model(torch.empty(1, 3, *size))


def test_the_stride_is_the_backbones_and_a_plain_backbone_takes_any_size():
    assert build_model("test_vit", 2, head="ml_decoder", head_width=16).stride == 16
    assert build_model("test_resnet", 2, head="ml_decoder", head_width=16).stride == 32
    with torch.device("meta"):
        assert build_model("tresnet_m", 2).stride == 32
    plain = build_model("test_resnet", 2).eval()
    assert plain.stride == 1 and plain(torch.rand(1, 3, 50, 50)).logits.shape == (1, 2)


@pytest.mark.parametrize("head", TOKENS)
def test_the_heads_run_in_bfloat16(head):
    model = build_model("test_resnet", 3, head=head, head_width=16).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.rand(2, 3, 64, 64))
    output.logits.float().sum().backward()
    assert all(value.grad.isfinite().all() for value in model.parameters())


def test_parameters_know_the_heads_of_the_papers_models(tmp_path):
    assert {name: head for name, (_, head, _) in PRESETS.items() if head != "gap"} == params._OWN_HEADS
    made = params.ModelParams(name="q2l_resnet101")
    assert made.head == "query2label" and params.ModelParams(**made.model_dump()) == made
    assert params.ModelParams(name="resnet101_tf", label_vectors="learned").head == "label_transformer"
    vectors = tmp_path / "glove.txt"
    vectors.write_text("a 1\n")
    assert params.ModelParams(name="resnet101_tf", label_vectors=str(vectors)).label_vectors == str(vectors)
    assert params.ModelParams(name="resnet101", head="ml_decoder", head_width=64).head_width == 64
    for wrong, said in (
        ({"name": "resnet101_tf"}, "needs model.label_vectors"),
        ({"name": "test_resnet", "head": "label_transformer"}, "needs model.label_vectors"),
        ({"name": "q2l_resnet101", "head": "gap"}, "has the head query2label"),
        ({"name": "resnet101", "label_vectors": "learned"}, "takes no label_vectors"),
        ({"name": "resnet101_tf", "label_vectors": str(tmp_path / "nowhere.txt")}, "there is no file"),
        ({"name": "resnet101", "head_width": 64}, "gap has no head_width"),
        ({"name": "resnet101", "head": "ml_decoder", "head_width": 12}, "multiple of 8"),
        ({"name": "resnet101", "options": {"norm_layer": "x"}}, "cannot be set here"),
    ):
        with pytest.raises(ValueError, match=said):
            params.ModelParams(**wrong)
