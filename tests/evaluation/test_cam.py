import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from cpsd_lib.evaluation.cam import (
    attention_maps,
    class_activation,
    covered_by,
    gradient_map,
    map_kinds,
)
from cpsd_lib.evaluation.cam import share_inside as share
from cpsd_lib.models.classifier import Classifier, build_model
from cpsd_lib.models.heads import LabelTransformer, LinearHead, MLDecoder, Query2Label
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import PartTeachers, TrainModeTeachers

TOKENS = {"label_transformer": LabelTransformer, "query2label": Query2Label, "ml_decoder": MLDecoder}


def gradient_maps(model, images, columns):
    return torch.stack([gradient_map(model, images, column) for column in columns], 1)


class Colours(nn.Module):
    """A backbone whose features are the mean colour of each block of 8 x 8 pixels."""

    num_features = 3

    def forward_features(self, images):
        return functional.avg_pool2d(images, 8)

    def forward_head(self, features, pre_logits):
        return features.mean((2, 3))


class Given(nn.Module):
    """A backbone whose features are the image itself, and which has a layer between their mean and its classifier."""

    num_features = 5

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(5)

    def forward_features(self, images):
        return images

    def forward_head(self, features, pre_logits):
        return self.norm(features.mean((2, 3))).tanh_()


def colour_model(head):
    return Classifier(Colours(), head, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), stride=8).eval()


def gap(weight, bias=0.0):
    head = LinearHead(3, len(weight))
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor(weight))
        head.linear.bias.fill_(bias)
    return head


def shaken(model):
    """The model with every parameter moved: new heads have output weights near 0."""
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model.eval()


def small(head, num_classes=4, name="test_resnet"):
    return shaken(build_model(name, num_classes, head=head, **({} if head == "gap" else {"head_width": 16})))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def naive_cam(features, weight, size):
    """One image, one class, one place at a time; then enlarged, and divided by its maximum."""
    images, channels, rows, columns = features.shape
    small_map = torch.zeros(images, len(weight), rows, columns)
    for b in range(images):
        for c in range(len(weight)):
            for y in range(rows):
                for x in range(columns):
                    total = sum(weight[c, f] * features[b, f, y, x] for f in range(channels))
                    small_map[b, c, y, x] = max(0.0, total)
    large = functional.interpolate(small_map, size, mode="bilinear", align_corners=False)
    for b in range(images):
        for c in range(len(weight)):
            if large[b, c].max() > 0:
                large[b, c] /= large[b, c].max()
    return large


# ---- class_activation ------------------------------------------------------------------------------------------------


def test_the_map_of_a_gap_head_is_the_class_weights_times_the_features():
    model, images = small("gap"), torch.rand(2, 3, 64, 64)
    classes = [3, 0, 2]
    with torch.no_grad():
        features = model(images).features
        expected = naive_cam(features, model.head.linear.weight[classes], (64, 64))
        logits = model(images).logits
    maps = class_activation(model, images, classes)
    assert maps.shape == (2, 3, 64, 64) and maps.dtype == torch.float32
    torch.testing.assert_close(maps, expected)
    # The raw maps add up to what the head says.
    raw = gradient_maps(model, images, [0, 1, 2, 3])
    torch.testing.assert_close(raw.sum((2, 3)) + model.head.linear.bias, logits)


def test_a_red_corner_lights_up_for_the_class_of_red_things_alone():
    images = torch.zeros(1, 3, 32, 32)
    images[0, 0, :8, :8] = 1  # red, top left
    images[0, 2, 24:, 24:] = 0.5  # dark blue, bottom right
    model = colour_model(gap([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]))
    red, green, blue = class_activation(model, images, [0, 1, 2])[0]
    assert red[0, 0] == 1 and red[8:, 8:].max() < 0.2 and red[16:].max() == 0
    assert green.max() == 0 and green.isfinite().all()  # nothing green: all 0, no NaN
    assert blue[31, 31] == 1 and blue[:16].max() == 0


def test_a_map_that_is_nowhere_positive_is_all_zero():
    maps = class_activation(colour_model(gap([[-1.0, -1, -1], [0, 0, 0]])), torch.rand(2, 3, 16, 16), [0, 1])
    assert maps.shape == (2, 2, 16, 16) and (maps == 0).all()


@pytest.mark.parametrize(
    ("name", "options", "exact"),
    [
        ("test_resnet", {}, True),
        ("test_vit", {"img_size": 64, "class_token": False, "global_pool": "avg", "fc_norm": False}, True),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": [1] * 4}, True),
        ("test_vit", {"img_size": 64}, False),
        ("test_convnext", {}, False),
        ("mobilenetv3_small_050", {}, False),
        ("test_resnet", {"head": "ml_decoder", "head_width": 16}, False),
    ],
)
def test_behind_a_mean_alone_each_place_adds_its_map_to_the_logit_and_a_model_knows_whether_it_is_so(
    name, options, exact
):
    model, images = shaken(build_model(name, 4, **options)), torch.rand(2, 3, 64, 64)
    for one in (model, PartTeachers([model], Partition([[0, 1, 2, 3]], 4))):
        assert map_kinds(one, 64)[0] == ("activation" if exact else "gradient")
    if exact:
        with torch.no_grad():
            output = model(images)
        parts = torch.einsum("kf,bfhw->bkhw", model.head.linear.weight.detach()[[1, 3]], output.features)
        torch.testing.assert_close(gradient_maps(model, images, [1, 3]) * output.features[0, 0].numel(), parts)


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224"])
def test_behind_a_class_token_what_the_last_block_reads_is_weighed(name):
    model = shaken(build_model(name, 4, img_size=64, depth=2))
    backbone, images, read = model.backbone, torch.rand(2, 3, 64, 64), []
    with backbone.blocks[-1].register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].detach())):
        logits = model(images).logits
    tokens = read[0].requires_grad_()
    again = model.head(backbone.forward_head(backbone.norm(backbone.blocks[-1](tokens)), pre_logits=True))[0]
    torch.testing.assert_close(again, logits)
    maps = gradient_maps(model, images, [2, 0])
    for k, c in enumerate([2, 0]):
        slopes = torch.autograd.grad(again[:, c].sum(), tokens, retain_graph=True)[0][:, -16:]
        expected = (slopes.mean(1, keepdim=True) * tokens[:, -16:]).sum(2).unflatten(1, (4, 4))
        torch.testing.assert_close(maps[:, k], expected.detach())
    assert class_activation(model, images, range(4)).amax((2, 3)).eq(1).all()


@pytest.mark.parametrize("head", ["gap", *TOKENS])
def test_the_gradients_map_weighs_each_feature_by_how_much_it_moves_the_logit(head):
    made = LinearHead(5, 3) if head == "gap" else TOKENS[head](5, 3, dim=16)
    whole = shaken(Classifier(Given(), made, (0.0,) * 5, (1.0,) * 5)).double()
    features = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    maps = gradient_maps(whole, features, [2, 0])

    def model(features):
        return whole(features)[0]

    step = 1e-6
    for b in range(2):
        for k, c in enumerate([2, 0]):
            expected = torch.zeros(2, 3, dtype=torch.float64)
            for f in range(5):
                slopes = []
                for y in range(2):
                    for x in range(3):
                        up, down = features.clone(), features.clone()
                        up[b, f, y, x] += step
                        down[b, f, y, x] -= step
                        with torch.no_grad():
                            slopes.append((model(up)[b, c] - model(down)[b, c]).item() / (2 * step))
                expected += sum(slopes) / 6 * features[b, f]
            torch.testing.assert_close(maps[b, k], expected, rtol=1e-5, atol=1e-7)


def red_decoder():
    """An ML-Decoder made by hand: class 0 looks everywhere alike, and the more red, the higher its logit."""
    head = MLDecoder(3, 2, dim=8)
    with torch.no_grad():
        for value in [*head.parameters(), head.queries]:
            value.zero_()
        head.project.weight[0, 0] = 1  # red goes to number 0
        for norm in (head.norm, head.decoder.norm, head.decoder.feed_forward.norm):
            norm.weight.fill_(1)
        head.decoder.attention.in_proj_weight[16:] = torch.eye(8)  # values alone: queries and keys stay 0
        head.decoder.attention.out_proj.weight.copy_(torch.eye(8))
        head.queries[:] = torch.arange(8.0)
        head.linear.weight[0, 0], head.linear.weight[1, 0] = 1, -1
    return colour_model(head)


def test_a_token_head_that_counts_red_looks_at_the_red_corner():
    images = torch.zeros(1, 3, 32, 32)
    images[0, 0, :8, :8] = 1
    images[0, 1:, 24:, :] = 1
    more = images.clone()
    more[0, 0, :8, :16] = 1
    model = red_decoder()
    with torch.no_grad():
        assert (model(more).logits - model(images).logits)[0].sign().tolist() == [1, -1]
    red, against = class_activation(model, images, [0, 1])[0]
    torch.testing.assert_close(red, class_activation(colour_model(gap([[1.0, 0, 0]])), images, [0])[0, 0])
    assert against.max() == 0


@pytest.mark.parametrize("head", ["gap", *TOKENS])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_callers_context_is_welcome_and_the_model_is_left_as_it_was(head, frozen, context):
    model = small(head).requires_grad_(not frozen)
    model.backbone.train()  # any mixture of modes comes back
    images = torch.rand(2, 3, 64, 64)
    expected = class_activation(model.eval(), images, [1, 1, 3])
    model.backbone.train()
    model.head.linear.weight.grad = torch.ones_like(model.head.linear.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with context():
        maps = class_activation(model, images.clone().requires_grad_(), [1, 1, 3])
    assert torch.equal(maps, expected) and not maps.requires_grad
    assert maps.min() >= 0 and maps.amax((2, 3)).eq(1).all()
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.requires_grad is not frozen for value in model.parameters())
    grads = {name for name, value in model.named_parameters() if value.grad is not None}
    assert grads == {"head.linear.weight"} and model.head.linear.weight.grad.eq(1).all()


@pytest.mark.parametrize("head", ["gap", *TOKENS])
def test_bfloat16_of_the_caller_changes_little(head):
    model, images = small(head), torch.rand(2, 3, 64, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(images)
        maps = class_activation(model, images, [0, 1])
    assert maps.dtype == torch.float32
    assert (maps - class_activation(model, images, [0, 1])).abs().mean() < 0.1


def test_an_image_has_the_same_map_alone_and_in_company():
    model, images = small("ml_decoder"), torch.rand(3, 3, 64, 64)
    alone = torch.cat([class_activation(model, image[None], [2]) for image in images])
    torch.testing.assert_close(class_activation(model, images, [0, 2])[:, 1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("look", [class_activation, attention_maps])
def test_classes_and_images_that_are_not_there_are_named(look):
    model, images = small("ml_decoder"), torch.rand(1, 3, 32, 32)
    teachers = PartTeachers([small("ml_decoder", 3), small("ml_decoder", 1)], Partition([[0, 1, 3], [2]], 4))
    for one in (model, teachers):
        for wrong in ([4], [0, -1], []):
            with pytest.raises(ValueError, match=r"classes .* are not there; give some of 0\.\.3"):
                look(one, images, wrong)
    for shape in ((3, 32, 32), (1, 1, 32, 32), (1, 3, 32, 64), (0, 3, 32, 32)):
        with pytest.raises(ValueError, match=r"must be \[B, 3, S, S\], not \["):
            look(model, torch.rand(shape), [0])
    with pytest.raises(ValueError, match="float tensor"):
        look(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [0])
    for classes in (torch.tensor([1, 2]), np.array([1, 2]), range(1, 3)):
        assert torch.equal(look(model, images, classes), look(model, images, [1, 2]))


# ---- Teachers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [class_activation, attention_maps])
def test_each_class_is_answered_by_its_own_expert(look):
    experts = [small("ml_decoder", size) for size in (2, 1, 3)]
    teachers, images = PartTeachers(experts, Partition([[1, 4], [0], [2, 3, 5]], 6)), torch.rand(2, 3, 64, 64)
    maps = look(teachers, images, [5, 0, 4, 5])
    expert_and_column = [(2, 2), (1, 0), (0, 1), (2, 2)]
    for place, (expert, column) in enumerate(expert_and_column):
        alone = look(experts[expert], images, range(column + 1))[:, column]
        torch.testing.assert_close(maps[:, place], alone)


def test_experts_that_are_not_asked_do_not_run(monkeypatch):
    experts = [colour_model(gap([[1.0, 0, 0]])), colour_model(gap([[0, 1.0, 0]]))]
    teachers = PartTeachers(experts, Partition([[0], [1]], 2))
    monkeypatch.setattr(experts[1].backbone, "forward_features", None)
    assert class_activation(teachers, torch.rand(1, 3, 16, 16), [0]).max() == 1


def test_train_mode_teachers_look_in_eval_mode_and_go_back():
    experts = [small("ml_decoder", 2), small("ml_decoder", 2)]
    teachers, images = TrainModeTeachers(experts, Partition([[0, 1], [2, 3]], 4)).train(), torch.rand(2, 3, 64, 64)
    statistics = [value.clone() for value in teachers.buffers()]
    first = class_activation(teachers, images, [0, 3])
    assert torch.equal(class_activation(teachers, images, [0, 3]), first)
    assert all(module.training for module in teachers.modules())
    assert all(torch.equal(value, old) for value, old in zip(teachers.buffers(), statistics, strict=True))


@pytest.mark.parametrize("head", ["gap", *TOKENS])
def test_teachers_that_were_moved_in_inference_mode_still_have_maps(head):
    teachers, images = PartTeachers([small(head, 3)], Partition([[0, 1, 2]], 3)), torch.rand(2, 3, 64, 64)
    expected = class_activation(teachers, images, [0, 2])
    with torch.inference_mode():  # as soft targets are computed
        for value in teachers.parameters():
            value.data = value.data.clone()  # moving to a GPU does the same
        teachers.soft_targets(images)
        teachers.to(torch.float64).to(torch.float32)
    assert all(value.is_inference() for value in teachers.parameters())
    torch.testing.assert_close(class_activation(teachers, images, [0, 2]), expected, atol=1e-4, rtol=1e-4)


# ---- attention_maps --------------------------------------------------------------------------------------------------


def linear(weight, bias, x):
    return x @ weight.T + bias


def softmax_by_hand(module, q, k):
    """The mean over the heads of softmax(q k^T / sqrt(d)), from the module's weights: q [B, C, D], k [B, P, D]."""
    wq, wk, _ = module.in_proj_weight.chunk(3)
    bq, bk, _ = module.in_proj_bias.chunk(3)
    q, k, width = linear(wq, bq, q), linear(wk, bk, k), q.shape[-1] // module.num_heads
    total = 0
    for head in range(module.num_heads):
        at = slice(head * width, (head + 1) * width)
        scores = (q[..., at] @ k[..., at].transpose(1, 2) / math.sqrt(width)).exp()
        total = total + scores / scores.sum(-1, keepdim=True)
    return total / module.num_heads


class Corner(Colours):
    """A backbone whose features are the first two rows and three columns of the image."""

    def forward_features(self, images):
        return images[:, :, :2, :3]


@pytest.mark.parametrize("head", [Query2Label, MLDecoder])
def test_the_attention_of_the_class_queries_comes_in_rows_and_columns_and_sums_to_one(head):
    model = shaken(Classifier(Corner(), head(3, 5, dim=16), (0.0,) * 3, (1.0,) * 3))
    images = torch.randn(2, 3, 4, 4)
    found, flipped = attention_maps(model, images, range(5)), images.clone()
    assert found.shape == (2, 5, 2, 3)
    torch.testing.assert_close(found.sum((2, 3)), torch.ones(2, 5))
    if head is MLDecoder:  # without a position code, places that change seats take their attention along
        flipped[:, :, :2, :3] = images[:, :, :2, :3].flip(-1, -2)
        torch.testing.assert_close(attention_maps(model, flipped, range(5)), found.flip(-1, -2))


def test_ml_decoders_attention_is_the_softmax_of_its_weights():
    model, images = small("ml_decoder"), torch.rand(2, 3, 64, 96)[..., :64]
    maps = attention_maps(model, images, [3, 1])
    with torch.no_grad():
        features = model(images).features
        image = linear(model.head.project.weight, model.head.project.bias, features.flatten(2).transpose(1, 2)).relu()
        labels = model.head.norm(model.head.queries)[[3, 1]].expand(2, 2, 16)
        expected = softmax_by_hand(model.head.decoder.attention, labels, image)
    assert maps.shape == (2, 2, *features.shape[2:])
    torch.testing.assert_close(maps, expected.view_as(maps))
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 2))


def test_query2labels_attention_is_the_softmax_of_its_last_layer():
    model = small("query2label", name="test_convnext")
    images, head = torch.rand(2, 3, 96, 96), model.head
    maps = attention_maps(model, images, [0, 2])
    seen = []
    handle = head.decoder[0].register_forward_hook(lambda module, given, answer: seen.append((given[2], answer)))
    with torch.no_grad():
        features = model(images).features
    handle.remove()
    keys, labels = seen[0]  # what the second layer gets
    with torch.no_grad():
        expected = softmax_by_hand(head.decoder[1].attention, (labels + head.queries)[:, [0, 2]], keys)
    assert maps.shape == (2, 2, *features.shape[2:]) and maps.shape[2] > 1
    torch.testing.assert_close(maps, expected.view_as(maps))
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 2))


def test_a_query_that_asks_for_red_attends_to_the_red_corner():
    head = MLDecoder(3, 2, dim=8)  # eight heads of one number each
    with torch.no_grad():
        head.project.weight.zero_()
        head.project.bias.zero_()
        head.project.weight[:, 0] = 1  # all see red
        head.queries.copy_(torch.tensor([[3.0, -1] * 4, [0.0] * 8]))
        head.norm.weight.fill_(20)
        head.decoder.attention.in_proj_weight.copy_(torch.cat([torch.eye(8).abs()] * 3))
        head.decoder.attention.in_proj_bias.zero_()
    images = torch.zeros(1, 3, 32, 32)
    images[0, 0, :8, 24:] = 1
    red, nothing = attention_maps(colour_model(head), images, [0, 1])[0]
    # Four heads ask for red (e^20 to 1), four for its absence: the corner has half of the attention.
    assert red[0, 3].item() == pytest.approx(0.5, abs=1e-4)
    assert nothing.flatten().tolist() == pytest.approx([1 / 16] * 16)


@pytest.mark.parametrize("head", ["query2label", "ml_decoder"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_attention_needs_no_eval_mode_of_the_caller_and_gives_it_back(head, context):
    model, images = small(head), torch.rand(2, 3, 64, 64)
    expected = attention_maps(model, images, [0, 1])
    model.train()
    with context():
        maps = attention_maps(model, images, [0, 1])
    assert torch.equal(maps, expected) and not maps.requires_grad
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("head", ["gap", "label_transformer"])
def test_a_head_without_queries_has_no_attention_to_show(head):
    name = {"gap": "LinearHead", "label_transformer": "LabelTransformer"}[head]
    model = small(head).train()
    with pytest.raises(ValueError, match=f"{name} has no class queries .* class_activation for every head"):
        attention_maps(model, torch.rand(1, 3, 32, 32), [0])
    assert all(module.training for module in model.modules())


# ---- boxes -----------------------------------------------------------------------------------------------------------


def test_the_share_inside_is_what_lies_in_the_boxes():
    maps = torch.zeros(4, 4, 5)
    maps[0, 1, 2], maps[0, 3, 4] = 3, 1
    maps[1] = 1
    maps[2, 0, 0] = 1
    boxes = [[(2, 1, 3, 2)], [(0, 0, 2, 2), (1, 1, 3, 3)], [], [(0, 0, 1, 1)]]
    shares, chance = share(maps, boxes), share(torch.ones(4, 4, 5), boxes)
    assert shares[:2].tolist() == [0.75, 7 / 20]  # the overlap of two boxes counts once
    assert shares[2:].isnan().all()  # no box; a map of zeros
    assert chance[[0, 1, 3]].tolist() == [1 / 20, 7 / 20, 1 / 20] and chance[2].isnan()
    assert share(maps.numpy(), boxes)[0] == 0.75


def test_a_map_that_looks_everywhere_alike_has_the_share_of_the_area():
    rng, boxes = np.random.default_rng(0), []
    for _ in range(20):
        left, top = rng.uniform(-1, 6, 2)
        boxes.append([(left, top, left + rng.uniform(0.1, 9), top + rng.uniform(0.1, 9))])
    area = torch.stack([covered_by(sides, 6, 7).mean() for sides in boxes])
    torch.testing.assert_close(share(torch.full((20, 6, 7), 0.3), boxes), area)


def test_a_box_counts_a_pixel_by_the_part_it_covers():
    boxes = [[(0.5, 0.25, 1.0, 0.75)], [(-3, -3, 9, 9)], [(2.25, 0, 2.5, 9)]]
    assert share(torch.ones(3, 2, 4), boxes).tolist() == [0.25 / 8, 1, 2 * 0.25 / 8]
    maps = torch.zeros(3, 2, 4)
    maps[:, 0, 0] = 1
    assert share(maps, boxes).tolist() == [0.25, 1, 0]
