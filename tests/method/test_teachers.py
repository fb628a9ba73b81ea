import pytest
import torch
from torch import nn

from cpsd_lib.losses import asymmetric_loss
from cpsd_lib.models.classifier import build_model
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import Output, PartTeachers, TrainModeTeachers, logits_of


class Says(nn.Module):
    """A model that answers its columns' class numbers, whatever it sees."""

    def __init__(self, columns):
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(columns, dtype=torch.float32))

    def forward(self, images):
        return Output(self.answer.expand(len(images), -1))


# ---- teachers ------------------------------------------------------------------------------------------------------


def three_classes(kind=PartTeachers, **options):
    torch.manual_seed(0)
    models = [build_model("test_resnet", 2, **options), build_model("test_resnet", 1, **options)]
    return kind(models, Partition([[0, 2], [1]], 3))


def test_soft_targets_are_computed_in_eval_mode_without_a_gradient_and_every_mode_stays_as_it_was():
    teachers, images = three_classes(), torch.rand(4, 3, 32, 32)
    teachers.train()
    teachers.experts[1].backbone.bn1.eval()
    modes = [module.training for module in teachers.modules()]
    before = {name: value.clone() for name, value in teachers.state_dict().items()}
    soft = teachers.soft_targets(images)
    assert soft.shape == (4, 3) and not soft.requires_grad and torch.equal(soft, teachers.soft_targets(images))
    assert [module.training for module in teachers.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in teachers.state_dict().items())
    assert torch.equal(soft, teachers.eval()(images))


def test_the_releases_fault_is_a_class_of_its_own():
    teachers, images = three_classes(TrainModeTeachers), torch.rand(4, 3, 32, 32)
    teachers.eval()
    assert not torch.equal(teachers.soft_targets(images), teachers(images))
    assert not any(module.training for module in teachers.modules())


def test_their_loss_is_the_sum_of_each_experts_own_over_its_own_classes_in_train_mode():
    teachers, images = three_classes().eval(), torch.rand(4, 3, 32, 32)
    targets = torch.tensor([[1.0, 0, -1], [0, 1, 1], [0, 0, 1], [1, 1, 0]])
    loss = teachers.loss(images, targets, gamma_neg=2)
    assert all(module.training for module in teachers.modules())
    by_hand = three_classes()  # the same weights, in train mode
    for expert, classes in zip(by_hand.experts, ([0, 2], [1]), strict=True):
        asymmetric_loss(expert(images).logits, targets[:, classes], gamma_neg=2).backward()
    loss.backward()
    ours, theirs = (list(one.parameters()) for one in (teachers, by_hand))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))


def test_label_embeddings_come_merged_beside_the_logits_from_one_pass():
    teachers, images = three_classes(head="ml_decoder", head_width=16), torch.rand(2, 3, 32, 32)
    soft = teachers.soft_targets(images)
    assert soft.logits.shape == (2, 3) and soft.label_embeddings.shape == (2, 3, 16)
    alone = teachers.experts[1].eval()(images)
    assert torch.equal(soft.label_embeddings[:, 1], alone.label_embeddings[:, 0])


def test_plain_modules_that_return_a_tensor_are_merged_too():
    merged = PartTeachers([torch.nn.Linear(3, 2), Says([7.0])], Partition([[0, 2], [1]], 3))
    soft = merged.soft_targets(torch.rand(5, 3))
    assert torch.is_tensor(soft) and (soft[:, 1] == 7).all() and logits_of(soft) is soft


def test_twelve_parts_are_merged_by_number_and_not_by_the_spelling_of_the_number():
    parts = [[c, 23 - c] for c in (5, 0, 11, 3, 8, 1, 10, 2, 9, 4, 7, 6)]
    experts = PartTeachers([Says(sorted(part)) for part in parts], Partition(parts, 24))
    assert experts(torch.rand(2, 3, 2, 2)).tolist() == [list(range(24))] * 2


def test_half_precision_experts_are_merged_in_float32():
    experts = PartTeachers([Says([0.0]).bfloat16(), Says([1.0]).bfloat16()], Partition([[0], [1]], 2))
    assert experts(torch.rand(1, 3, 2, 2)).dtype == torch.float32


@pytest.mark.parametrize("number", [0, 1, 3])
def test_another_number_of_models_than_parts_is_refused(number):
    with pytest.raises(ValueError, match=f"{number} teachers for 2 parts"):
        PartTeachers([Says([0.0]) for _ in range(number)], Partition([[0], [1]], 2))


def test_a_model_of_another_width_than_its_part_is_refused():
    with pytest.raises(ValueError, match="classes on axis 1"):
        PartTeachers([Says([0.0, 1.0]), Says([1.0])], Partition([[0], [1, 2]], 3))(torch.rand(1, 3, 2, 2))
