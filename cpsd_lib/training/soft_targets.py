"""Soft targets for batches: the logits of a whole view at once, and what has to be computed anew for each batch."""

import numpy as np
import torch

from cpsd_lib.support import bar, derive_seed
from cpsd_lib.teachers import logits_of

BATCH = 64  # images: a view's soft targets depend on nobody's batches


def view_logits(teachers, batches, number, precision=None, desc="soft targets"):
    """Return {branch: logits float16 [n, C]} that teachers give view `number` of all images of `batches`, in their order.

    teachers: {branch: PartTeachers}; all branches see the same batch, so that a trunk they share runs once. float16 ends at
    65,504; a logit beyond 6e4 means nothing more than 6e4 does. Raises FloatingPointError for NaN.
    """
    logits_of_view = {}  # filled in place: of many classes they are large
    with (
        torch.inference_mode(),
        torch.autocast(batches.device.type, precision, enabled=precision is not None),
        bar(len(batches.indices), f"{desc}, view {number}", "img") as progress,
    ):
        for start in range(0, len(batches.indices), BATCH):
            indices = batches.indices[start : start + BATCH]
            images = batches.view_of(number, indices)
            for branch, merged in teachers.items():
                logits = logits_of(merged.soft_targets(images)).float().clamp(-6e4, 6e4)
                if torch.isnan(logits).any():
                    raise FloatingPointError(f"the teachers of {branch} compute NaN for some of the images {indices}")
                if branch not in logits_of_view:
                    logits_of_view[branch] = np.empty((len(batches.indices), logits.shape[1]), np.float16)
                logits_of_view[branch][start : start + BATCH] = logits.half().cpu().numpy()
            progress.update(len(indices))
    return logits_of_view


def computed(teachers, precision=None):
    """Return a function for Batches that computes soft targets anew for each batch: what they are may depend on it.

    teachers {branch: PartTeachers} on the training device. It returns {branch: tensor or Output}.
    """

    def soft(view, indices, images):
        with torch.autocast(images.device.type, precision, enabled=precision is not None):
            found = {}
            for branch, merged in teachers.items():
                # In train mode dropout draws, and the draw is a function of the batch.
                torch.manual_seed(derive_seed("soft targets", branch, int(view), np.asarray(indices).tolist()))
                found[branch] = merged.soft_targets(images)
        return found

    return soft
