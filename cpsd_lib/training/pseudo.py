"""Class-aware pseudo-labels: what semi-supervised multi-label learning gives images without labels, the baseline of experts.

CAP: Xie et al., Class-Distribution-Aware Pseudo-Labeling for Semi-Supervised Multi-Label Learning, NeurIPS 2023.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from cpsd_lib.support import digest
from cpsd_lib.training.batches import predict_logits


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of the images `indices` [n]: of each class the share `shares` [C] with its highest scores is positive.

    The scores are the moving average's on the images' test views, anew at the start of each epoch: the model should know
    something when it begins. shares: those of the labelled images, so the threshold of a class follows its frequency.
    """

    indices: np.ndarray
    shares: np.ndarray

    @property
    def described(self):
        """JSON-able: what determines the labels, beside the training itself."""
        return {"images": digest(self.indices.tolist()), "shares": self.shares.tolist()}

    def label(self, states, batches, progress, precision):
        """Write this epoch's labels into the targets of Batches; in the middle of an epoch those of its start, as saved.

        states: one TrainState; progress: the loop's. Raises ValueError for more, whose labels would differ.
        """
        if len(states) != 1:
            raise ValueError(f"pseudo-labels are those of one model, got {len(states)}; train them one after the other")
        if not len(self.indices):
            return
        if progress["step"] == 0:
            average = partial(torch.func.functional_call, states[0].learner.model.eval(), states[0].ema.state)
            (logits,) = predict_logits([average], batches.images, self.indices, batches.device, precision=precision)
            progress["pseudo"] = torch.from_numpy(self.positives(logits))
        batches.targets[self.indices] = progress["pseudo"].cpu().float()

    def positives(self, logits):
        """Return int8 [n, C]: 1 for the round(share * n) highest logits [n, C] of each class, 0 for the others."""
        ranks = np.argsort(np.argsort(-logits, axis=0, kind="stable"), axis=0)
        return (ranks < np.round(self.shares * len(logits))).astype(np.int8)
