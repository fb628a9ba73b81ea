"""Scores, losses and updates the straightforward way: one class, one group, one tensor after the other.

Ours is compared with these for time and for value. They follow the papers' definitions and nobody's code.
"""

import numpy as np
import torch
import torch.nn.functional as F


def average_precision_walked(scores, targets):
    """Return AP [C] of arrays scores and targets [N, C]: rank each class's images, walk down the ranking in Python."""
    scores, targets, found = torch.from_numpy(scores), torch.from_numpy(targets), []
    for c in range(scores.shape[1]):
        ranked = targets[torch.argsort(scores[:, c], descending=True), c]
        right, total = 0, 0.0
        for seen, label in enumerate(ranked, 1):
            if label == 1:
                right += 1
                total += right / seen
        found.append(total / right)
    return np.array(found)


def average_precision_class_by_class(scores, targets):
    """Return AP [C] of arrays scores and targets [N, C]: a sort and a running sum a class; NaN without a positive."""
    found = []
    for c in range(scores.shape[1]):
        hit = targets[np.argsort(-scores[:, c]), c] == 1
        precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
        found.append(precision[hit].mean() if hit.any() else np.nan)
    return np.array(found)


def mean_average_precision(scores, targets):
    """Return the mean AP of the classes that have a positive."""
    return np.nanmean(average_precision_class_by_class(scores, targets))


def led_group_by_group(student, teacher, targets):
    """Return (CD, ID), LED's two sums of embeddings [B, C, D], group after group (L2D, label-wise embedding distillation)."""
    of_classes, of_images = student.new_zeros(()), student.new_zeros(())
    for c in range(targets.shape[1]):
        held = targets[:, c] == 1
        of_classes = of_classes + _group(student[held, c], teacher[held, c])
    for b in range(targets.shape[0]):
        held = targets[b] == 1
        of_images = of_images + _group(student[b, held], teacher[b, held])
    return of_classes, of_images


def _group(student, teacher):
    if len(student) < 2:
        return student.new_zeros(())
    loss = F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher), reduction="sum")
    return loss / len(student)


def _relative_distances(rows):
    # Explicit differences: cdist would take a matrix product from 26 members on, which loses small distances.
    distance = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    near = distance > 0
    return distance / distance[near].mean() if near.any() else distance


@torch.no_grad()
def average_tensor_by_tensor(shadow, model, decay):
    """Set `shadow` {name: tensor} to decay * shadow + (1 - decay) * the model's state; counts are copied."""
    for name, live in model.state_dict().items():
        if live.is_floating_point():
            shadow[name].copy_(decay * shadow[name] + (1 - decay) * live)
        else:
            shadow[name].copy_(live)
