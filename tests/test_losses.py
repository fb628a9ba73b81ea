import math
import re

import numpy as np
import pytest
import torch

from cpsd_lib import losses

HALF = [torch.float32, torch.bfloat16, torch.float16]


def naive_asl(z, y, gamma_neg, gamma_pos, clip, eps):
    if y == -1:
        return 0.0
    p = 1 / (1 + math.exp(-z))
    if y == 1:
        return -((1 - p) ** gamma_pos) * math.log(max(p, eps))
    q = max(p - clip, 0.0)
    return -(q**gamma_neg) * math.log(max(1 - q, eps))


def batch(seed=0, b=6, c=5):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, 2, (b, c), generator=generator)
    return torch.randn(b, c, generator=generator) * 3, targets


def both(function, *inputs, **options):
    """Value and gradient with respect to the first input."""
    first = inputs[0].detach().clone().requires_grad_()
    loss = function(first, *inputs[1:], **options)
    loss.backward()
    return loss.detach(), first.grad


@pytest.mark.parametrize(("gn", "gp", "clip"), [(4, 0, 0.05), (2, 1, 0.2), (0, 0, 0), (0.5, 0.5, 0.05)])
def test_asymmetric_loss_equals_the_naive_loop(gn, gp, clip):
    logits, targets = batch()
    ours = losses.asymmetric_loss(logits, targets, gn, gp, clip, reduction="none")
    naive = [
        [naive_asl(z, y, gn, gp, clip, 1e-8) for z, y in zip(*r, strict=True)]
        for r in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    np.testing.assert_allclose(ours.numpy(), naive, rtol=1e-4, atol=1e-6)


def test_without_focus_and_clip_the_asymmetric_loss_is_binary_cross_entropy():
    logits, targets = batch()
    for a, b in zip(
        both(losses.asymmetric_loss, logits, targets, gamma_neg=0, clip=0),
        both(losses.binary_cross_entropy, logits, targets),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_asymmetric_loss_and_gradient_match_the_release(golden):
    file = np.load(golden / "losses.npz")
    logits, targets = torch.tensor(file["logits"]), torch.tensor(file["targets"])
    pattern = re.compile(r"asl_gn([\d.]+)_gp([\d.]+)_clip([\d.]+)_detach([01])")
    cases = [match for name in file if (match := pattern.fullmatch(name))]
    assert len(cases) == 8
    for case in cases:
        gn, gp, clip = map(float, case.groups()[:3])
        detach = case[4] == "1"
        loss, grad = both(losses.asymmetric_loss, logits, targets, gn, gp, clip, detach_weight=detach)
        np.testing.assert_allclose(loss, file[case[0]], rtol=1e-5)
        np.testing.assert_allclose(grad, file[case[0] + "_grad"], rtol=1e-5)


def test_the_query2label_form_matches_the_release(golden):
    file = np.load(golden / "losses.npz")
    logits, targets = torch.tensor(file["logits"]), torch.tensor(file["targets"])
    loss = losses.asymmetric_loss(logits, targets, gamma_neg=2, clip=0, eps=1e-5) / logits.numel() * 1000
    np.testing.assert_allclose(loss, file["asl_q2l"], rtol=1e-5)


def test_logit_mse_and_class_kl_match_the_release(golden):
    file = np.load(golden / "losses.npz")
    student, teacher = torch.tensor(file["logits"]), torch.tensor(file["teacher_logits"])
    np.testing.assert_allclose(losses.logit_mse(student, teacher), file["mse_sum"], rtol=1e-5)
    np.testing.assert_allclose(losses.class_kl(student, teacher), file["kl_T4_sum"], rtol=1e-5)


def test_logit_mse_of_a_hand_made_case():
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])
    assert losses.logit_mse(student, teacher) == 13
    assert losses.logit_mse(student, teacher, "mean") == 6.5
    assert losses.logit_mse(student, teacher, "none").tolist() == [[4, 9]]


def test_class_kl_equals_the_naive_loop():
    (student, _), (teacher, _) = batch(0), batch(1)
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        ps, pt = ([math.exp(v / 4) / sum(math.exp(w / 4) for w in row) for v in row] for row in (s, t))
        total += 16 * sum(b * math.log(b / a) for a, b in zip(ps, pt, strict=True))
    assert losses.class_kl(student, teacher).item() == pytest.approx(total, rel=1e-5)


def test_a_student_that_equals_its_teacher_has_no_loss():
    logits, _ = batch()
    assert losses.logit_mse(logits, logits) == 0
    assert losses.class_kl(logits, logits).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("function", [losses.asymmetric_loss, losses.binary_cross_entropy])
def test_an_unknown_entry_adds_neither_loss_nor_gradient(function):
    logits, targets = batch()
    loss, grad = both(function, logits, targets)
    assert not grad[targets == -1].any()
    assert loss.item() == pytest.approx(function(logits[targets != -1], targets[targets != -1]).item(), rel=1e-6)


@pytest.mark.parametrize("function", [losses.asymmetric_loss, losses.binary_cross_entropy])
def test_reductions_agree_and_the_mean_is_over_known_entries(function):
    logits, targets = batch()
    each = function(logits, targets, reduction="none")
    assert each.shape == logits.shape
    torch.testing.assert_close(function(logits, targets), each.sum())
    torch.testing.assert_close(function(logits, targets, reduction="mean"), each.sum() / (targets != -1).sum())


@pytest.mark.parametrize("function", [losses.asymmetric_loss, losses.binary_cross_entropy])
def test_a_batch_of_unknown_entries_has_mean_zero(function):
    loss, grad = both(function, torch.randn(2, 3), torch.full((2, 3), -1), reduction="mean")
    assert loss == 0 and not grad.any()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("gammas", [(4, 0), (4, 1), (0, 0), (0.5, 0.5), (1, 2)])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("clip", [0.05, 0])
def test_asymmetric_loss_stays_finite_at_extreme_logits(dtype, gammas, detach, clip):
    logits = torch.tensor([[1e4], [-1e4], [0.0], [50.0], [-50.0], [17.0]], dtype=dtype).expand(-1, 3)
    targets = torch.tensor([1, 0, -1]).expand(6, 3)
    loss, grad = both(losses.asymmetric_loss, logits, targets, *gammas, clip=clip, detach_weight=detach)
    assert loss.dtype == torch.float32 and loss.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("dtype", HALF)
def test_the_other_losses_stay_finite_at_extreme_logits(dtype):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, -1e4]], dtype=dtype)
    targets = torch.tensor([[0, 1, -1], [1, 0, 0]])
    for function, other in (
        (losses.logit_mse, -student),
        (losses.class_kl, -student),
        (losses.binary_cross_entropy, targets),
    ):
        loss, grad = both(function, student, other)
        assert loss.dtype == torch.float32 and loss.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize("shape", [(4, 3), (1, 1), (4, 1)])
def test_all_negative_batches_and_single_classes_are_finite(shape):
    logits, targets = torch.randn(shape), torch.zeros(shape)
    for function, other in (
        (losses.asymmetric_loss, targets),
        (losses.binary_cross_entropy, targets),
        (losses.logit_mse, torch.randn(shape)),
        (losses.class_kl, torch.randn(shape)),
    ):
        loss, grad = both(function, logits, other)
        assert loss.isfinite() and grad.isfinite().all()


def test_losses_are_float32_under_autocast():
    (logits, targets), (teacher, _) = batch(0), batch(1)
    cases = (
        (losses.asymmetric_loss, targets),
        (losses.binary_cross_entropy, targets),
        (losses.logit_mse, teacher),
        (losses.class_kl, teacher),
    )
    for function, other in cases:
        expected = function(logits, other)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(function(logits, other), expected)


def test_half_precision_inputs_are_computed_in_float32():
    logits, targets = batch()
    half = logits.to(torch.bfloat16)
    assert torch.equal(losses.asymmetric_loss(half, targets), losses.asymmetric_loss(half.float(), targets))


def test_shapes_that_differ_are_refused():
    a, b = torch.zeros(2, 3), torch.zeros(2, 1)
    for function in (losses.asymmetric_loss, losses.binary_cross_entropy, losses.logit_mse, losses.class_kl):
        with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 1\)"):
            function(a, b)


def test_an_unknown_reduction_or_temperature_is_refused():
    a = torch.zeros(2, 3)
    for function in (losses.asymmetric_loss, losses.binary_cross_entropy, losses.logit_mse):
        with pytest.raises(ValueError, match='"sum", "mean" or "none"'):
            function(a, a, reduction="average")
    with pytest.raises(ValueError, match="temperature must be above 0"):
        losses.class_kl(a, a, temperature=0)
