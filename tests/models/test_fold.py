"""Folded models answer the same with fewer norms; what cannot be folded is left as it is."""

import copy

import pytest
import torch
from torch import nn

from cpsd_lib.models import folding
from cpsd_lib.models.classifier import build_model
from cpsd_lib.models.folding import fold_batch_norm, fold_models
from cpsd_lib.models.trunk import make_tail, make_trunk
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import PartTeachers

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def used(model):
    """Give the norms of a model statistics and weights as a training would."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(generator=generator)
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        *[("test_resnet", 0), ("mobilenetv2_100", 0), ("resnet10t", 0), ("densenet121", 62), ("resnetv2_50", 17)],
        *[("mobilenetv4_conv_small_035", 0), ("efficientvit_b0", 0)],  # a norm behind the last map too
    ],
)
def test_the_answers_are_the_same_and_the_norms_behind_a_convolution_are_gone(name, left):
    torch.manual_seed(0)
    model = used(build_model(name, 3))
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model, 64)
    expected, found = model(IMAGES), folded(IMAGES)
    torch.testing.assert_close(
        found.logits, expected.logits, rtol=1e-4, atol=1e-4 * float(expected.logits.detach().abs().max())
    )
    assert norms(folded) == left < norms(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())  # the model itself stays
    assert not any(p.requires_grad for p in folded.parameters())


class Shortcut(nn.Module):
    """A convolution that feeds a norm and, behind its back, a sum."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images):
        x = self.conv(images)
        return x + self.norm(x)


def test_a_convolution_that_a_sum_reads_too_keeps_its_norm():
    model = used(Shortcut())
    folded = fold_batch_norm(model, 64)
    assert norms(folded) == 1 and torch.equal(folded(IMAGES), model(IMAGES))


def test_tails_share_one_folded_trunk():
    whole = used(build_model("test_resnet", 3))
    trunk = make_trunk(whole, 4)
    parts = Partition([[0, 1, 2], [3, 4, 5]], 6)
    merged = {
        b: PartTeachers([make_tail(copy.deepcopy(whole), trunk, 4) for _ in range(2)], parts).eval()
        for b in ("co", "dis")
    }
    folded = fold_models(merged, 64)
    for branch, teachers in merged.items():
        torch.testing.assert_close(folded[branch](IMAGES), teachers(IMAGES), rtol=1e-4, atol=1e-4)
    shared = {expert.shared[0] for branch in folded.values() for expert in branch.experts}
    assert len(shared) == 1 and trunk not in shared  # one for both branches: it is run once a batch
    assert norms(folded["co"]) == norms(shared.pop()) == 0 < norms(trunk)


def scaled(fuse, factor):
    """A fusion whose weights are `factor` times what they should be."""

    def wrong(convolution, norm):
        fused = fuse(convolution, norm)
        fused.weight.data *= factor
        return fused

    return wrong


def test_a_trunk_whose_folding_would_go_wrong_is_copied_as_it_is(monkeypatch):
    trunk = make_trunk(used(build_model("test_resnet", 3)), 4)
    monkeypatch.setattr(folding, "fuse_conv_bn_eval", scaled(folding.fuse_conv_bn_eval, 0))
    folded = fold_batch_norm(trunk, 64)
    assert norms(folded) == norms(trunk) > 0 and torch.equal(folded(IMAGES), trunk(IMAGES))


def test_a_fold_that_is_right_for_black_pixels_alone_is_found_out(monkeypatch):
    model, wrong = used(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))), scaled(folding.fuse_conv_bn_eval, 2)
    monkeypatch.setattr(folding, "fuse_conv_bn_eval", wrong)
    black = torch.zeros(1, 3, 64, 64)
    torch.testing.assert_close(wrong(*model)(black), model(black))
    folded = fold_batch_norm(model, 64)
    assert norms(folded) == 1 and torch.equal(folded(IMAGES), model(IMAGES))
