import math
import re
from functools import partial

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
    for of_logits in (losses.class_kl, losses.mld):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            of_logits(a, a, temperature=0)


def naive_mld(student, teacher, temperature=1):
    total = 0.0
    for s, t in zip(student.double().flatten(), teacher.double().flatten(), strict=True):
        ps, pt = torch.sigmoid(s / temperature), torch.sigmoid(t / temperature)
        total = total + pt * torch.log(pt / ps) + (1 - pt) * torch.log((1 - pt) / (1 - ps))
    return total * temperature**2 / len(student)


def naive_led_of(student, teacher):
    """One group, embeddings [n, Ds] and [n, Dt]: every pair in turn, in both orders."""
    n = len(student)
    if n < 2:
        return 0.0

    def relative(rows):
        table = {(i, j): (rows[i] - rows[j]).square().sum().sqrt() for i in range(n) for j in range(n) if i != j}
        above_zero = [d for d in table.values() if d > 0]
        mean = sum(above_zero) / len(above_zero) if above_zero else 1.0
        return {pair: d / mean for pair, d in table.items()}

    ours, theirs = relative(student), relative(teacher)
    total = 0.0
    for pair in ours:
        gap = (ours[pair] - theirs[pair]).abs()
        total = total + (0.5 * gap**2 if gap < 1 else gap - 0.5)
    return total / n


def naive_led(student, teacher, targets):
    student, teacher = student.double(), teacher.double()
    class_loss = instance_loss = 0 * student[0, 0, 0]  # a zero that still has a gradient
    for c in range(targets.shape[1]):
        images = [b for b in range(targets.shape[0]) if targets[b, c] == 1]
        class_loss = class_loss + naive_led_of(student[images, c], teacher[images, c])
    for b in range(targets.shape[0]):
        classes = [c for c in range(targets.shape[1]) if targets[b, c] == 1]
        instance_loss = instance_loss + naive_led_of(student[b, classes], teacher[b, classes])
    return class_loss, instance_loss


def embeddings(seed=0, b=6, c=5, ds=4, dt=7, share=0.4):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(b, c, ds, generator=generator), torch.randn(b, c, dt, generator=generator)
    # One coordinate far away per entry: without it hardly any gap reaches the linear part of Huber.
    student[..., 0] += 8 * torch.randn(b, c, generator=generator) ** 3
    draw = torch.rand(b, c, generator=generator)
    return student, teacher, torch.where(draw < share, 1, torch.where(draw > 0.9, -1, 0))


def led_grads(function, student, teacher, targets):
    """The two values and the gradient of each with respect to the student."""
    student = student.detach().clone().requires_grad_()
    values = function(student, teacher, targets)
    grads = [torch.autograd.grad(value, student, retain_graph=True)[0] for value in values]
    return [*(value.detach() for value in values), *grads]


def assert_close_to_largest(ours, expected, tolerance=1e-5):
    """Relative to the largest entry: near 0 both sides are rounding (the release's own is 7e-4 off there in float64)."""
    ours, expected = np.asarray(ours, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance * abs(expected).max())


@pytest.mark.parametrize(("b", "c"), [(1, 1), (6, 5), (3, 11)])
def test_mld_equals_the_naive_loop(b, c):
    (student, _), (teacher, _) = batch(0, b, c), batch(1, b, c)
    for ours, naive in zip(both(losses.mld, student, teacher), both(naive_mld, student, teacher), strict=True):
        torch.testing.assert_close(ours.float(), naive.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 3])
def test_mld_at_a_temperature_equals_the_naive_loop(temperature):
    (student, _), (teacher, _) = batch(0, 6, 5), batch(1, 6, 5)
    of = (both(partial(one, temperature=temperature), student, teacher) for one in (losses.mld, naive_mld))
    for ours, naive in zip(*of, strict=True):
        torch.testing.assert_close(ours.float(), naive.float(), rtol=1e-5, atol=1e-7)


def test_mld_and_its_gradient_match_the_release(golden):
    file = np.load(golden / "losses.npz")
    loss, grad = both(losses.mld, torch.tensor(file["logits"]), torch.tensor(file["teacher_logits"]))
    np.testing.assert_allclose(loss, file["mld"], rtol=1e-5)
    assert_close_to_largest(grad, file["mld_grad"])


def test_mld_of_a_hand_made_case():
    # A teacher at 1/2 and a student at 3/4: 1/2 log(2/3) + 1/2 log 2 per class; the mean is over the two images.
    student, teacher = torch.full((2, 3), math.log(3)), torch.zeros(2, 3)
    loss, grad = both(losses.mld, student, teacher)
    assert loss.item() == pytest.approx(3 * 0.5 * math.log(4 / 3), rel=1e-6)
    torch.testing.assert_close(grad, torch.full((2, 3), 0.25 / 2))


def test_mld_of_equal_logits_is_exactly_zero_even_at_the_extremes():
    logits = torch.tensor([[0.3, -7.0, 30.0], [1e4, -1e4, 100.0]])
    loss, grad = both(losses.mld, logits, logits.clone())
    assert loss == 0
    torch.testing.assert_close(grad, torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", HALF)
def test_the_gradient_of_mld_is_the_difference_of_probabilities_at_any_logit(dtype):
    values = torch.tensor([-1e4, -100, -30, -1, 0, 1, 30, 100, 1e4], dtype=dtype)
    student, teacher = (x.reshape(-1, 9) for x in torch.meshgrid(values, values, indexing="ij"))
    loss, grad = both(losses.mld, student, teacher)
    assert loss.dtype == torch.float32 and loss.isfinite()
    expected = (torch.sigmoid(student.float()) - torch.sigmoid(teacher.float())) / 9
    torch.testing.assert_close(grad.float(), expected, rtol=torch.finfo(dtype).eps * 4, atol=1e-7)


@pytest.mark.parametrize(
    ("b", "c", "ds", "dt", "share"),
    [(6, 5, 4, 7, 0.4), (6, 5, 7, 4, 1.1), (9, 2, 3, 3, 0.5), (2, 9, 5, 1, 0.5), (1, 4, 3, 3, 1.1), (4, 1, 3, 3, 1.1)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_led_and_its_gradients_equal_the_naive_loops(seed, b, c, ds, dt, share):
    inputs = embeddings(seed, b, c, ds, dt, share)
    for ours, naive in zip(led_grads(losses.led, *inputs), led_grads(naive_led, *inputs), strict=True):
        assert_close_to_largest(ours, naive)


def test_led_and_its_gradients_match_the_release(golden):
    file = np.load(golden / "losses.npz")
    inputs = (torch.tensor(file[name]) for name in ("student_emb", "teacher_emb", "led_targets"))
    for ours, name in zip(led_grads(losses.led, *inputs), ("cd", "id", "cd_grad", "id_grad"), strict=True):
        assert_close_to_largest(ours, file[name])


def test_led_of_a_hand_made_case():
    # Three images of one class on a line. Student 0, 1, 2: distances 1 1 2, mean 4/3, relative .75 .75 1.5. Teacher an
    # equilateral triangle: relative 1 1 1. Each pair twice: 2 (.5 .25^2 + .5 .25^2 + .5 .5^2) / 3 images.
    student = torch.tensor([[[0.0]], [[1.0]], [[2.0]]])
    teacher = torch.tensor([[[5.0, 0.0]], [[-5.0, 0.0]], [[0.0, 75.0**0.5]]])
    class_loss, instance_loss = losses.led(student, teacher, torch.ones(3, 1))
    assert class_loss.item() == pytest.approx(0.125, rel=1e-6)
    assert instance_loss == 0
    # The same three points as three classes of one image: the other loss.
    class_loss, instance_loss = losses.led(student.transpose(0, 1), teacher.transpose(0, 1), torch.ones(1, 3))
    assert class_loss == 0
    assert instance_loss.item() == pytest.approx(0.125, rel=1e-6)


def test_two_members_always_agree_because_only_relative_distances_count():
    student, teacher, _ = embeddings()
    targets = torch.zeros(6, 5)
    targets[[0, 0, 1, 3], [1, 4, 2, 2]] = 1
    values = led_grads(losses.led, student, teacher, targets)
    assert all(torch.allclose(x, torch.zeros(()), atol=1e-6) for x in values)


def test_led_sees_neither_scale_nor_place_nor_rotation_of_the_embeddings():
    student, _, targets = embeddings()
    turned = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    for loss in losses.led(student, 3 * student @ turned + 2, targets):
        assert loss.item() == pytest.approx(0, abs=1e-8)


def test_led_is_the_same_for_a_permuted_batch_and_permuted_classes():
    inputs = embeddings(b=12, c=7)
    expected = led_grads(losses.led, *inputs)
    images = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    labels = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    moved = led_grads(losses.led, *(x[images][:, labels] for x in inputs))
    for ours, before in zip(moved[:2], expected[:2], strict=True):
        assert_close_to_largest(ours, before)
    for ours, before in zip(moved[2:], expected[2:], strict=True):
        assert_close_to_largest(ours, before[images][:, labels])


def test_only_positive_labels_count_in_led():
    student, teacher, targets = embeddings()
    other_student, other_teacher, _ = embeddings(seed=5)
    positive = (targets == 1)[..., None]
    expected = led_grads(losses.led, student, teacher, targets)
    ours = led_grads(
        losses.led,
        torch.where(positive, student, other_student),
        torch.where(positive, teacher, other_teacher),
        targets.clamp(min=0),
    )
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)
    assert not any(grad[targets != 1].any() for grad in ours[2:])


def test_a_zero_embedding_is_still_a_positive():
    student, teacher, _ = embeddings()
    targets = torch.ones(6, 5)
    student[2], teacher[:, 3] = 0, 0
    student[0, 1] = 0
    for ours, naive in zip(losses.led(student, teacher, targets), naive_led(student, teacher, targets), strict=True):
        assert_close_to_largest(ours, naive)


def test_equal_embeddings_have_finite_gradients_and_do_not_count_in_the_mean():
    # Student 0, 0, 1: distances 0 1 1, mean over those above 0 = 1, gaps to the teacher's 1 1 1 are 1 0 0.
    student = torch.tensor([[[0.0], [0.0], [1.0]]])
    class_loss, instance_loss, _, grad = led_grads(losses.led, student, torch.eye(3)[None], torch.ones(1, 3))
    assert class_loss == 0 and instance_loss.item() == pytest.approx(2 * 0.5 / 3, rel=1e-6)
    assert grad.isfinite().all()


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_groups_whose_distances_are_all_zero_are_finite(side):
    student, teacher, _ = embeddings()
    if side != "teacher":
        student = torch.ones_like(student)
    if side != "student":
        teacher = torch.ones_like(teacher)
    values = led_grads(losses.led, student, teacher, torch.ones(6, 5))
    assert all(x.isfinite().all() for x in values)
    assert side != "both" or not any(x.any() for x in values)


@pytest.mark.parametrize("targets", [torch.zeros(4, 3), torch.full((4, 3), -1), torch.eye(4, 3), torch.zeros(0, 3)])
def test_without_a_group_of_two_led_is_zero_and_still_backward(targets):
    student = torch.randn(len(targets), 3, 5, requires_grad=True)
    class_loss, instance_loss = losses.led(student, torch.randn(len(targets), 3, 2), targets)
    (class_loss + instance_loss).backward()
    assert class_loss == 0 and instance_loss == 0
    assert student.grad.shape == student.shape and not student.grad.any()


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("scale", [1e-4, 1, 1e4])
def test_led_is_float32_inside_and_finite_at_any_scale(dtype, scale):
    student, teacher, targets = embeddings()
    student, teacher = ((x.clamp(-5, 5) * scale).to(dtype) for x in (student, teacher))
    class_loss, instance_loss, *grads = led_grads(losses.led, student, teacher, targets)
    assert all(grad.dtype == dtype and grad.isfinite().all() for grad in grads)
    for ours, full in zip(
        (class_loss, instance_loss), losses.led(student.float(), teacher.float(), targets), strict=True
    ):
        assert ours.dtype == torch.float32 and torch.equal(ours, full)


def test_small_distances_between_large_embeddings_are_not_lost():
    # |x|^2 + |y|^2 - 2xy in float32 is wrong by up to 0.035 here, where the median distance is 0.014.
    inputs = embeddings()
    student, teacher = (1e-3 * x + 2**5 for x in inputs[:2])
    for ours, naive in zip(
        losses.led(student, teacher, inputs[2]), naive_led(student, teacher, inputs[2]), strict=True
    ):
        assert_close_to_largest(ours, naive)


def test_the_teacher_gets_no_gradient_from_the_label_distillation_losses():
    student, teacher, targets = embeddings()
    student.requires_grad_(), teacher.requires_grad_()
    (sum(losses.led(student, teacher, targets)) + losses.mld(student[..., 0], teacher[..., 0])).backward()
    assert student.grad.any() and teacher.grad is None


def test_the_label_distillation_losses_are_float32_under_autocast():
    student, teacher, targets = embeddings()
    expected = [losses.mld(student[..., 0], teacher[..., 0]), *losses.led(student, teacher, targets)]
    with torch.autocast("cpu", torch.bfloat16):
        ours = [losses.mld(student[..., 0], teacher[..., 0]), *losses.led(student, teacher, targets)]
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_label_distillation_refuses_shapes_that_do_not_fit_and_names_them():
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 1\)"):
        losses.mld(torch.zeros(2, 3), torch.zeros(2, 1))
    for shape in ((3,), (0, 3), (2, 3, 4)):
        with pytest.raises(ValueError, match=re.escape(f"must be [B, C] with B at least 1, got {shape}")):
            losses.mld(torch.zeros(shape), torch.zeros(shape))
    for shapes in (
        ((2, 3, 4), (2, 3, 4), (2, 1)),
        ((2, 3, 4), (1, 3, 4), (2, 3)),
        ((2, 3), (2, 3), (2, 3)),
        ((2, 3, 4, 5), (2, 3, 4), (2, 3)),
    ):
        with pytest.raises(ValueError, match=re.escape("got {}, {} and {}".format(*shapes))):
            losses.led(*map(torch.zeros, shapes))
