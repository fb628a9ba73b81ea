"""What training minimises: pure functions of logits, always computed in float32 (half precision in, float32 out).

Targets are 1 = present, 0 = absent, -1 = unknown; an unknown entry adds neither loss nor gradient.
"""

import torch
import torch.nn.functional as F


def asymmetric_loss(
    logits, targets, gamma_neg=4, gamma_pos=0, clip=0.05, eps=1e-8, detach_weight=True, reduction="sum"
):
    """Asymmetric loss (ASL): easy negatives are focused away, very easy ones (probability below `clip`) dropped.

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
    """Squared difference of two sets of logits of one shape, CPSD's match.

    Returns a float32 scalar, or one value per entry for reduction "none". There is no mask: a teacher has a logit for
    every class. Raises ValueError for shapes that differ or an unknown reduction.
    """
    _check_shapes(student, teacher)
    loss = (student.float() - teacher.float()).square()
    return _reduce(loss, torch.ones_like(loss), reduction)


def class_kl(student, teacher, temperature=4):
    """KL(teacher || student) over the softmax across classes, times temperature^2, summed: the release's other match.

    student, teacher: logits [B, C]. Returns a float32 scalar. Raises ValueError for shapes that differ or a
    temperature that is not above 0.
    """
    _check_shapes(student, teacher)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 (the release's is 4), got {temperature!r}")
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) * temperature**2


def mld(student, teacher, temperature=1):
    """Multi-label logits distillation: binary KL(teacher || student) summed over classes, mean over batch, times T^2.

    student, teacher: logits [B, C], B at least 1; a class's probability is sigmoid(logit / T), T = temperature, L2D's is 1.
    The gradient of an entry is T (sigmoid(student / T) - sigmoid(teacher / T)) / B; the teacher gets none. Returns a
    float32 scalar. Raises ValueError for shapes that differ or are not [B, C], or a temperature that is not above 0.
    """
    _check_shapes(student, teacher)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 (L2D's is 1), got {temperature!r}")
    if student.ndim != 2 or not len(student):
        raise ValueError(f"the logits must be [B, C] with B at least 1, got {tuple(student.shape)}")
    s, t = student.float() / temperature, teacher.detach().float() / temperature
    # Differences of log-sigmoids: exactly 0 for equal logits. The release clamps probabilities before the logarithm
    # instead, and its gradient is NaN from |logit| about 30.
    yes = torch.sigmoid(t) * (F.logsigmoid(t) - F.logsigmoid(s))
    no = torch.sigmoid(-t) * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (yes + no).sum() / len(s) * temperature**2


def led(student_embeddings, teacher_embeddings, targets):
    """Label-wise embedding distillation: relative distances among positive labels match the teacher's.

    student_embeddings, teacher_embeddings: [B, C, Ds] and [B, C, Dt], Ds and Dt may differ; targets: [B, C], only entries
    that are 1 count. Groups are the images that hold one class (class_loss, the paper's CD) and the classes of one image
    (instance_loss, ID). The teacher gets no gradient; nor does a pair of equal embeddings through its distance. Returns
    two float32 scalars (class_loss, instance_loss), 0 where no group has two members. Raises ValueError for shapes that
    do not fit.
    """
    shapes = [tuple(x.shape) for x in (student_embeddings, teacher_embeddings, targets)]
    if not (len(shapes[0]) == len(shapes[1]) == 3 and shapes[0][:2] == shapes[1][:2] == shapes[2]):
        raise ValueError(
            "student embeddings [B, C, Ds], teacher embeddings [B, C, Dt] and targets [B, C] must agree in B and C, "
            f"got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    # nonzero waits for the GPU (once here, once per kind of group). A version without it computes all C labels of an
    # image, and about 3 of 80 are positive.
    image, label = (targets == 1).nonzero(as_tuple=True)
    student = student_embeddings[image, label].float()
    teacher = teacher_embeddings.detach()[image, label].float()
    b, c = shapes[2]
    return _match_distances(student, teacher, label, c), _match_distances(student, teacher, image, b)


def _match_distances(student, teacher, group, groups):
    """Huber between relative distances [P, Ds] and [P, Dt] within each group; group: [P], integers below `groups`."""
    same = group[:, None] == group
    # Each pair once: the matrix is symmetric with a zero diagonal. A group of one has no pair, so it is skipped.
    i, j = same.triu(1).nonzero(as_tuple=True)
    of_pair = group[i]

    def relative_distances(rows):
        # Explicit differences [pairs, D]: about 1,000 pairs for 64 COCO images, 3 MB. A matrix product would need less
        # memory in a crowded batch, but it loses small distances to cancellation and runs in bfloat16 under autocast.
        # The rows are looked up by F.embedding because its backward adds in a fixed order; that of rows[i] does not.
        # vector_norm has gradient 0 at distance 0, where a plain square root has NaN.
        distance = torch.linalg.vector_norm(F.embedding(i, rows) - F.embedding(j, rows), dim=1)
        zeros = distance.new_zeros(groups)
        count = zeros.index_add(0, of_pair, (distance > 0).float())
        mean = zeros.index_add(0, of_pair, distance) / count.clamp(min=1)
        # A group whose distances are all 0 keeps them: 0 / 1, not 0 / 0.
        return distance / torch.where(count > 0, mean, 1).index_select(0, of_pair)

    huber = F.smooth_l1_loss(relative_distances(student), relative_distances(teacher), reduction="none")
    return (2 * huber / same.sum(1)[i]).sum()


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
