"""What training minimises: pure functions of logits, always computed in float32 (half precision in, float32 out).

Targets are 1 = present, 0 = absent, -1 = unknown; an unknown entry adds neither loss nor gradient.
"""

import torch
import torch.nn.functional as F


def asymmetric_loss(
    logits, targets, gamma_neg=4, gamma_pos=0, clip=0.05, eps=1e-8, detach_weight=True, reduction="sum"
):
    """Asymmetric loss (ASL): easy negatives are focused away, very easy ones (probability below `clip`) dropped (METHOD 1.3).

    logits, targets: [B, C]; p = sigmoid(logits), q = max(p - clip, 0). A positive costs -(1-p)^gamma_pos log p, a negative
    -q^gamma_neg log(1-q); logarithms are of max(., eps), so an entry beyond eps has a finite value and no gradient, as in
    the release. detach_weight: no gradient through the focusing weight. Q2L's form is gamma_neg=2, clip=0, eps=1e-5,
    scaled by the caller. Returns a float32 scalar, or [B, C] for reduction "none"; "mean" is over known entries.
    Raises ValueError for shapes that differ or an unknown reduction.
    """
    _check_shapes(logits, targets)
    known, y = _known(targets)
    p = torch.sigmoid(logits.float())
    not_q = (1 - p + clip).clamp(max=1)  # 1 - q in this order of operations: rounding then equals the release's
    weight_pos, weight_neg = _power(1 - p, gamma_pos), _power(1 - not_q, gamma_neg)
    if detach_weight:
        weight_pos, weight_neg = weight_pos.detach(), weight_neg.detach()
    gain = y * weight_pos * p.clamp(min=eps).log() + (1 - y) * weight_neg * not_q.clamp(min=eps).log()
    return _reduce(-gain * known, known, reduction)


def binary_cross_entropy(logits, targets, reduction="sum"):
    """Binary cross-entropy per class on logits [B, C]; returns a float32 scalar, or [B, C] for reduction "none".

    "mean" is over known entries. Raises ValueError for shapes that differ or an unknown reduction.
    """
    _check_shapes(logits, targets)
    known, y = _known(targets)
    loss = F.binary_cross_entropy_with_logits(logits.float(), y, reduction="none")
    return _reduce(loss * known, known, reduction)


def logit_mse(student, teacher, reduction="sum"):
    """Squared difference of two sets of logits of one shape, CPSD's match (METHOD 1.5).

    Returns a float32 scalar, or one value per entry for reduction "none". There is no mask: a teacher has a logit for
    every class. Raises ValueError for shapes that differ or an unknown reduction.
    """
    _check_shapes(student, teacher)
    loss = (student.float() - teacher.float()).square()
    return _reduce(loss, torch.ones_like(loss), reduction)


def class_kl(student, teacher, temperature=4):
    """KL(teacher || student) over the softmax across classes, times temperature^2, summed: the release's other match.

    student, teacher: logits [B, C] (METHOD 1.5). Returns a float32 scalar. Raises ValueError for shapes that differ or a
    temperature that is not above 0.
    """
    _check_shapes(student, teacher)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 (the release's is 4), got {temperature!r}")
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) * temperature**2


def _check_shapes(a, b):
    # Broadcasting [B, 1] against [B, C] would train on nonsense without a word.
    if a.shape != b.shape:
        raise ValueError(
            f"the two inputs must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}; check the class axis"
        )


def _known(targets):
    """Split targets into a 0/1 mask of known entries and float32 targets with 0 where unknown."""
    known = (targets != -1).float()
    return known, targets.float() * known


def _power(base, gamma):
    # The derivative of 0^gamma is infinite for gamma < 1, and infinity times 0 is NaN: keep off zero itself.
    return base.clamp(min=torch.finfo(torch.float32).tiny) ** gamma


def _reduce(loss, known, reduction):
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / known.sum().clamp(min=1)
    raise ValueError(f'reduction must be "sum", "mean" or "none", got {reduction!r}')
