"""A network cut in two says what it said whole; tails train, the trunk never does."""

import copy

import pytest
import torch

from cpsd_lib.models.classifier import build_model
from cpsd_lib.models.trunk import check_split, make_tail, make_trunk, stages_of, start_from

SIZES = {"test_resnet": 64, "mobilenetv2_100": 64, "tresnet_m": 128, "convnext_atto": 64, "densenet121": 64}
SIZES |= {"mobilenetv3_small_050": 64, "efficientvit_b0": 64}  # a wide layer before the classifier


def model(name="test_resnet", classes=5, **more):
    torch.manual_seed(0)
    return build_model(name, classes, **more).eval()


def images(count=2, size=64):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SIZES)
def test_trunk_and_tail_are_the_network_bit_for_bit_wherever_it_is_cut(name):
    whole, pixels = model(name, normalize="imagenet"), images(size=SIZES[name])
    expected = whole(pixels)
    own = []
    for share in range(2, len(stages_of(whole.backbone)) + 1):
        trunk = make_trunk(whole, share)
        tail = make_tail(copy.deepcopy(whole), trunk, share).eval()
        found = tail(pixels)
        assert torch.equal(found.logits, expected.logits) and torch.equal(found.features, expected.features)
        own.append(sum(p.numel() for p in tail.parameters()))
        assert own[-1] + sum(p.numel() for p in trunk.parameters()) == sum(p.numel() for p in whole.parameters())
    assert own == sorted(own, reverse=True) and own[-1] < own[0]  # the more is shared, the less is one's own


def test_a_network_that_is_no_sequence_or_has_no_such_stage_is_refused():
    with pytest.raises(
        ValueError, match=r"VisionTransformer cannot be cut at teachers.frozen_stages=2.*teachers.frozen_stages=0"
    ):
        check_split(model("test_vit"), 2, 160)
    with pytest.raises(ValueError, match=r"has 5 stages .*layer4.*freeze 1 to 5"):
        check_split(model(), 6, 64)
    for nothing in (0, -5):  # no stage is left to share
        with pytest.raises(ValueError, match=f"-1 for all but the last, got {nothing}"):
            check_split(model(), nothing, 64)
    check_split(model(), 4, 64)


@pytest.mark.parametrize(("name", "stages"), [("test_resnet", 5), ("convnext_atto", 4)])
def test_a_negative_share_counts_stages_from_the_end(name, stages):
    whole = model(name)
    for left in (1, 2):
        own, same = (set(make_trunk(whole, share).state_dict()) for share in (-left, stages - left))
        assert own == same
        check_split(whole, -left, 64)


def test_the_trunk_is_run_once_for_all_tails_that_see_a_batch():
    whole, runs = model(), []
    trunk = make_trunk(whole, 4)
    trunk.backbone.conv1.register_forward_hook(lambda *_: runs.append(1))
    tails = [make_tail(copy.deepcopy(whole), trunk, 4) for _ in range(3)]
    pixels = images()
    for tail in tails:
        tail(pixels)
    assert len(runs) == 1
    tails[0](pixels.clone())  # another batch, whatever it holds
    assert len(runs) == 2
    with torch.inference_mode():  # what it made there has no place in a training
        tails[0](pixels)
    tails[1](pixels).logits.sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert tails[2](pixels).features.dtype != torch.float64
    assert len(runs) == 5


def test_compiled_tails_run_the_trunk_once_a_batch_and_outside_their_graphs():
    whole, runs = model(), []
    trunk = make_trunk(whole, 4)
    trunk.backbone.conv1.register_forward_hook(lambda *_: runs.append(torch.compiler.is_compiling()))
    tails = [make_tail(copy.deepcopy(whole), trunk, 4).eval() for _ in range(2)]
    compiled = [torch.compile(tail, backend="eager", dynamic=False) for tail in tails]
    for count in range(1, 4):
        pixels = images() / count
        with torch.no_grad():
            for tail, one in zip(tails, compiled, strict=True):
                assert torch.equal(one(pixels).logits, tail(pixels).logits)
        assert runs == [False] * count  # one pass for two tails, compiled or not


def test_a_tail_trains_saves_and_averages_its_own_part_alone():
    whole = model()
    trunk = make_trunk(whole, 4)
    before = copy.deepcopy(trunk.state_dict())
    tail = make_tail(copy.deepcopy(whole), trunk, 4).train()
    assert not any(name.startswith(("backbone.layer3", "shared")) for name in tail.state_dict())
    assert any(name.startswith("backbone.layer4") for name in tail.state_dict())
    optimizer = torch.optim.SGD(tail.parameters(), 0.1)
    tail(images(4)).logits.square().sum().backward()
    assert all(p.grad is not None for p in tail.parameters()) and all(p.grad is None for p in trunk.parameters())
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())
    assert not trunk.training and not trunk.train().training
    tail.to(torch.float64)
    assert trunk.backbone.layer1[0].conv1.weight.dtype == torch.float64  # it goes where its tails go


@pytest.mark.parametrize(
    ("name", "head", "more"),
    [
        ("test_resnet", "gap", {}),
        ("test_resnet", "ml_decoder", {"head_width": 16}),
        ("mobilenetv3_small_050", "gap", {}),
        ("mobilenetv3_small_050", "ml_decoder", {"head_width": 16}),
        ("test_resnet", "query2label", {"head_width": 16}),
    ],
)
def test_a_teacher_of_some_classes_starts_by_saying_what_the_baseline_says_of_them(name, head, more):
    more = more | {"name": name}
    whole, columns = model(classes=7, head=head, **more), [5, 0, 3]
    part = model(classes=3, head=head, **more)
    start_from(part, whole, columns)
    torch.testing.assert_close(part(images()).logits, whole(images()).logits[:, columns])
    one = model(classes=1, head=head, **more)
    start_from(one, whole, [6])
    torch.testing.assert_close(one(images()).logits, whole(images()).logits[:, [6]])


def test_another_architecture_cannot_be_started_from():
    with pytest.raises(KeyError):
        start_from(model("test_resnet"), model("resnet18"), range(5))
