import pytest
import torch
from torch import nn

from cpsd_lib.models import Output, build_model
from cpsd_lib.partition import Partition
from cpsd_lib.teachers import Teachers


class Says(nn.Module):
    """A model that answers its columns' class numbers, whatever it sees."""

    def __init__(self, columns):
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(columns, dtype=torch.float32))

    def forward(self, images):
        return Output(self.answer.expand(len(images), -1), None, None)


# ---- teachers ------------------------------------------------------------------------------------------------------


def test_teachers_cannot_leave_eval_mode():
    experts = Teachers([build_model("test_resnet", 2), build_model("test_resnet", 1)], Partition([[0, 2], [1]], 3))
    parent = nn.Sequential(experts)
    for attempt in (experts.train, lambda: experts.train(True), parent.train, parent.eval, lambda: parent.train(True)):
        attempt()
        assert not any(module.training for module in experts.modules())
    before = {name: value.clone() for name, value in experts.state_dict().items()}
    first = experts(torch.rand(4, 3, 32, 32))
    assert first.shape == (4, 3)
    assert all(torch.equal(value, before[name]) for name, value in experts.state_dict().items())


def test_teachers_have_no_gradient():
    models = [Says([0.0]), Says([1.0])]
    experts = Teachers(models, Partition([[0], [1]], 2))
    assert not any(parameter.requires_grad for parameter in experts.parameters())
    assert not experts(torch.rand(1, 3, 2, 2)).requires_grad


def test_twelve_parts_are_merged_by_number_and_not_by_the_spelling_of_the_number():
    parts = [[c, 23 - c] for c in (5, 0, 11, 3, 8, 1, 10, 2, 9, 4, 7, 6)]
    experts = Teachers([Says(sorted(part)) for part in parts], Partition(parts, 24))
    assert experts(torch.rand(2, 3, 2, 2)).tolist() == [list(range(24))] * 2


def test_half_precision_experts_are_merged_in_float32():
    experts = Teachers([Says([0.0]).bfloat16(), Says([1.0])], Partition([[0], [1]], 2))
    assert experts(torch.rand(1, 3, 2, 2)).dtype == torch.float32


@pytest.mark.parametrize("number", [0, 1, 3])
def test_another_number_of_models_than_parts_is_refused(number):
    with pytest.raises(ValueError, match=f"{number} teachers for 2 parts"):
        Teachers([Says([0.0]) for _ in range(number)], Partition([[0], [1]], 2))


def test_a_model_of_another_width_than_its_part_is_refused():
    with pytest.raises(ValueError, match="classes on axis 1"):
        Teachers([Says([0.0, 1.0]), Says([1.0])], Partition([[0], [1, 2]], 3))(torch.rand(1, 3, 2, 2))
