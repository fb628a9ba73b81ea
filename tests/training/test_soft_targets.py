"""The logits of a whole view, and what is computed anew for each batch."""

import numpy as np
import pytest
import torch
from torch import nn

from cpsd_lib.models.classifier import build_model
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import Output, PartTeachers, TrainModeTeachers, logits_of
from cpsd_lib.training.batches import Batches
from cpsd_lib.training.soft_targets import computed, view_logits

PARTS = Partition([[0, 2], [1]], 3)


def batches(count=70, **more):
    images = np.random.default_rng(0).integers(0, 255, (count + 5, 3, 16, 16), np.uint8)
    return Batches(images, np.zeros((count + 5, 3), np.int8), np.arange(3, count + 3), **more)


def teachers(seed=0, kind=PartTeachers, **options):
    torch.manual_seed(seed)
    return kind([build_model("test_resnet", n, **options) for n in (2, 1)], PARTS)


def test_a_views_logits_are_those_of_each_image_alone_in_index_order_up_to_half_precision():
    made, merged = batches(), teachers().train()
    found = view_logits({"co": merged}, made, 4)["co"]
    assert found.dtype == np.float16 and found.shape == (70, 3) and merged.training
    for place in (0, 41, 69):
        alone = merged.soft_targets(made.view_of(4, made.indices[[place]]))[0]
        torch.testing.assert_close(torch.from_numpy(found[place]).float(), alone, atol=2e-3, rtol=2e-3)


def test_they_depend_neither_on_the_batch_size_nor_on_the_branches_beside_them():
    co, dis = teachers(1), teachers(2)
    one = view_logits({"co": co}, batches(batch_size=7), 0)["co"]
    other = view_logits({"dis": dis, "co": co}, batches(batch_size=32), 0)
    assert np.array_equal(one, other["co"]) and not np.array_equal(one, other["dis"])


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.full((3,), value))

    def forward(self, images):
        return self.value.expand(len(images), -1)


def test_logits_beyond_half_precision_end_at_its_edge_and_nan_stops():
    whole = Partition([[0, 1, 2]], 3)
    found = view_logits({"whole": PartTeachers([Constant(1e30)], whole)}, batches(3), 0)["whole"]
    assert np.isfinite(found).all() and (found == np.float16(6e4)).all()
    with pytest.raises(FloatingPointError, match="the teachers of whole compute NaN"):
        view_logits({"whole": PartTeachers([Constant(float("nan"))], whole)}, batches(3), 0)


def test_teachers_in_train_mode_depend_on_the_batch_and_not_on_what_was_drawn_before():
    soft = computed({"co": teachers(0, TrainModeTeachers, drop_rate=0.5)})
    images, found = torch.rand(8, 3, 32, 32), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(soft(0, np.arange(8), images)["co"])
    assert torch.equal(*found)
    half = soft(0, np.arange(4), images[:4])["co"]
    assert not torch.allclose(half, found[0][:4], atol=1e-3)


def test_embeddings_and_logits_come_from_one_forward_pass():
    experts, images, passes = teachers(head="ml_decoder", head_width=16), torch.rand(4, 3, 32, 32), []
    experts.experts[0].register_forward_hook(lambda *_: passes.append(1))
    found = computed({"co": experts})(0, np.arange(4), images)["co"]
    assert len(passes) == 1 and isinstance(found, Output) and found.label_embeddings.shape[:2] == (4, 3)
    assert torch.equal(found.logits, logits_of(experts.soft_targets(images)))
