import numpy as np
import pytest
import torch

from cpsd_lib import losses
from cpsd_lib.objectives import MultiLabelDistillation, SelfDistillation, Supervised
from cpsd_lib.teachers import Output
from cpsd_lib.workbench.rows import branch_weights


def output(logits):
    return Output(logits)


def random_case(seed=0, size=4, classes=5):
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(size, classes, generator=generator) for _ in range(4)]
    return draws[0], (draws[1] > 0).float(), {"co": draws[2], "dis": draws[3], "whole": draws[1]}


def asl_by_hand(logits, targets, gamma_neg=4, gamma_pos=0, clip=0.05):
    total = 0.0
    for z, y in zip(logits.double().flatten().tolist(), targets.flatten().tolist(), strict=True):
        p = 1 / (1 + np.exp(-z))
        q = max(p - clip, 0)
        total += {1: -((1 - p) ** gamma_pos) * np.log(p), 0: -(q**gamma_neg) * np.log(1 - q), -1: 0.0}[int(y)]
    return total


def squares(a, b):
    return ((a.double() - b.double()) ** 2).sum().item()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_cpsd_is_the_releases_sum_by_hand(alpha):
    logits, targets, soft = random_case()
    named = SelfDistillation(branch_weights("cpsd", alpha))(output(logits), targets, soft)
    expected = 0.5 * asl_by_hand(logits, targets) + 0.5 * alpha * squares(logits, soft["co"])
    expected += (0.5 - 0.5 * alpha) * squares(logits, soft["dis"])
    assert set(named) == {"asl", "match_co", "match_dis"}
    assert sum(named.values()).item() == pytest.approx(expected, rel=1e-5)


def test_cpsd_at_alpha_one_half_is_half_of_the_papers_loss():
    logits, targets, soft = random_case(1)
    ours = sum(SelfDistillation(branch_weights("cpsd", 0.5))(output(logits), targets, soft).values())
    paper = asl_by_hand(logits, targets) + 0.5 * (squares(logits, soft["co"]) + squares(logits, soft["dis"]))
    assert ours.item() == pytest.approx(paper / 2, rel=1e-5)


@pytest.mark.parametrize(("row", "branch"), [("sd", "whole"), ("cgpd", "co"), ("dgpd", "dis")])
def test_the_rows_with_one_branch_match_that_branch_alone(row, branch):
    logits, targets, soft = random_case(2)
    # Alpha is CPSD's own; the other branches are not even asked for.
    objective = SelfDistillation(branch_weights(row, 0.123))
    named = objective(output(logits), targets, {branch: soft[branch]})
    assert set(named) == {"asl", f"match_{branch}"}
    assert named["asl"].item() == pytest.approx(0.5 * asl_by_hand(logits, targets), rel=1e-5)
    assert named[f"match_{branch}"].item() == pytest.approx(0.5 * squares(logits, soft[branch]), rel=1e-5)


@pytest.mark.parametrize("row", ["sd", "cgpd", "dgpd", "cpsd"])
def test_the_shares_of_every_row_add_up_to_one(row):
    assert sum(branch_weights(row, 0.3).values()) == pytest.approx(1)


def test_kl_takes_the_place_of_the_squares_and_keeps_its_weight():
    logits, targets, soft = random_case(3)
    named = SelfDistillation({"co": 0.3, "dis": 0.7}, match="kl")(output(logits), targets, soft)
    assert named["match_co"].item() == pytest.approx(0.15 * losses.class_kl(logits, soft["co"]).item())
    assert named["match_dis"].item() == pytest.approx(0.35 * losses.class_kl(logits, soft["dis"]).item())
    p, q = (torch.softmax(x.double() / 4, 1) for x in (soft["co"], logits))
    assert named["match_co"].item() == pytest.approx(0.15 * 16 * (p * (p / q).log()).sum().item(), rel=1e-4)


def test_asl_settings_reach_the_loss():
    logits, targets, soft = random_case(4)
    settings = {"gamma_neg": 2, "gamma_pos": 1, "clip": 0.0}
    named = SelfDistillation({"co": 1.0}, asl=settings)(output(logits), targets, soft)
    assert named["asl"].item() == pytest.approx(0.5 * asl_by_hand(logits, targets, **settings), rel=1e-5)
    supervised = Supervised(torch.arange(5), settings)(output(logits), targets)
    assert supervised["asl"].item() == pytest.approx(asl_by_hand(logits, targets, **settings), rel=1e-5)


def test_a_teacher_like_the_student_leaves_half_the_asymmetric_loss():
    logits, targets, _ = random_case(5)
    named = SelfDistillation({"co": 0.5, "dis": 0.5})(output(logits), targets, {"co": logits, "dis": logits})
    assert named["match_co"] == named["match_dis"] == 0


def test_unknown_targets_give_no_loss_and_no_gradient_of_their_own():
    logits, targets, soft = random_case(6)
    masked = targets.clone()
    masked[:, 2] = -1
    logits.requires_grad_(True)
    named = SelfDistillation({"co": 1.0})(output(logits), masked, soft)
    assert named["asl"].item() == pytest.approx(0.5 * asl_by_hand(logits.detach(), masked), rel=1e-5)
    (asl,) = torch.autograd.grad(named["asl"], logits, retain_graph=True)
    assert (asl[:, 2] == 0).all() and (asl[:, [0, 1, 3, 4]] != 0).any()
    (match,) = torch.autograd.grad(named["match_co"], logits)
    assert (match[:, 2] != 0).all()  # the teachers know these classes all the same


def test_a_teachers_sub_task_uses_its_columns_in_their_order_and_no_others():
    logits = torch.tensor([[3.0, -2.0], [0.5, 1.0]])
    targets = torch.tensor([[0.0, 1, 0, 1], [1, 0, -1, 0]])
    loss = Supervised(torch.tensor([3, 0]))(output(logits), targets)["asl"]
    assert loss.item() == pytest.approx(asl_by_hand(logits, torch.tensor([[1.0, 0], [0, 1]])), rel=1e-5)
    changed = targets.clone()
    changed[:, [1, 2]] = 1 - changed[:, [1, 2]].abs()
    assert Supervised(torch.tensor([3, 0]))(output(logits), changed)["asl"] == loss


def test_a_sub_task_of_another_width_than_the_model_is_refused():
    with pytest.raises(ValueError, match="shape"):
        Supervised(torch.tensor([0, 1]))(output(torch.zeros(2, 3)), torch.zeros(2, 4))


def test_soft_targets_of_another_width_than_the_model_are_refused():
    with pytest.raises(ValueError, match="shape"):
        SelfDistillation({"co": 1.0})(output(torch.zeros(2, 3)), torch.zeros(2, 3), {"co": torch.zeros(2, 1)})


def test_half_precision_logits_are_matched_in_float32():
    logits, targets, soft = random_case(7)
    half = SelfDistillation({"co": 1.0})(output((logits * 100).bfloat16()), targets, soft)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in half.values())


# ---- L2D -------------------------------------------------------------------------------------------------------------


def embedded(logits, seed=0):
    """An Output with label embeddings [B, C, 4], and those of a teacher with 6 numbers each."""
    draw = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.randn(*logits.shape, size, generator=draw) for size in (4, 6))
    return Output(logits, ours, None), theirs


def test_l2d_is_bce_and_ten_mld_and_a_hundred_cd_and_a_thousand_id():
    logits, targets, soft = random_case(8)
    student, theirs = embedded(logits)
    named = MultiLabelDistillation({"whole": 1.0}, "mld+led")(student, targets, {"whole": Output(soft["co"], theirs)})
    cd, id_ = losses.led(student.label_embeddings, theirs, targets)
    assert set(named) == {"asl", "mld_whole", "cd_whole", "id_whole"}
    assert named["asl"].item() == pytest.approx(losses.binary_cross_entropy(logits, targets).item(), rel=1e-5)
    assert named["mld_whole"].item() == pytest.approx(10 * losses.mld(logits, soft["co"]).item())
    assert named["cd_whole"].item() == pytest.approx(100 * cd.item())
    assert named["id_whole"].item() == pytest.approx(1000 * id_.item())


@pytest.mark.parametrize(
    ("method", "names"), [("mld", {"asl", "mld_co", "mld_dis"}), ("led", {"asl", "cd_co", "id_co", "cd_dis", "id_dis"})]
)
def test_both_papers_at_once_share_each_loss_between_the_branches(method, names):
    logits, targets, soft = random_case(9)
    student, theirs = embedded(logits)
    teachers = {"co": Output(soft["co"], theirs), "dis": Output(soft["dis"], theirs + 1)}
    named = MultiLabelDistillation({"co": 0.3, "dis": 0.7}, method)(student, targets, teachers)
    assert set(named) == names
    if method == "mld":
        cool = MultiLabelDistillation({"co": 0.3, "dis": 0.7}, method, temperature=2)(student, targets, teachers)
        assert cool["mld_co"].item() == pytest.approx(3 * losses.mld(logits, soft["co"], 2).item())
        assert named["mld_co"].item() == pytest.approx(3 * losses.mld(logits, soft["co"]).item())
        assert named["mld_dis"].item() == pytest.approx(7 * losses.mld(logits, soft["dis"]).item())
    else:  # distances are between embeddings: moving them all changes nothing
        assert named["id_dis"].item() == pytest.approx(7 / 3 * named["id_co"].item(), rel=1e-4)


def test_led_needs_label_embeddings_of_student_and_teacher():
    logits, targets, soft = random_case(10)
    student, theirs = embedded(logits)
    objective = MultiLabelDistillation({"co": 1.0}, "led")
    with pytest.raises(ValueError, match="this student has no label embeddings"):
        objective(output(logits), targets, {"co": Output(soft["co"], theirs)})
    with pytest.raises(ValueError, match="this teacher of branch 'co' has no label embeddings"):
        objective(student, targets, {"co": soft["co"]})


@pytest.mark.parametrize("objective", [SelfDistillation({"co": 1.0}), MultiLabelDistillation({"co": 1.0}, "mld")])
def test_a_plain_tensor_of_logits_is_as_good_as_an_output_and_a_missing_branch_is_named(objective):
    logits, targets, soft = random_case(12)
    plain, wrapped = (
        objective(x, targets, {"co": y}) for x, y in ((logits, soft["co"]), (output(logits), output(soft["co"])))
    )
    assert plain == wrapped
    with pytest.raises(ValueError, match=r"no soft targets of branch 'co'.*got \['dis'\]"):
        objective(logits, targets, {"dis": soft["dis"]})


def test_asl_settings_reach_l2ds_loss_on_labels():
    logits, targets, soft = random_case(11)
    settings = {"gamma_neg": 2, "gamma_pos": 1, "clip": 0.1}
    named = MultiLabelDistillation({"co": 1.0}, "mld", asl=settings)(output(logits), targets, soft)
    assert named["asl"].item() == pytest.approx(asl_by_hand(logits, targets, **settings), rel=1e-5)
