"""A method maps a batch to named losses; the loop adds them up and knows nothing else of it."""

from dataclasses import dataclass, field

import torch

from cpsd_lib import losses


@dataclass(frozen=True)
class Batch:
    """One step's images [B, 3, S, S] in [0, 1], targets [B, C] in {0, 1, -1}, image rows [B], soft targets {branch: [B, C]}."""

    images: torch.Tensor
    targets: torch.Tensor
    rows: object
    soft: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Supervised:
    """The asymmetric loss on some columns [P] of the targets: a teacher's sub-task, or the baseline (METHOD 1.3)."""

    columns: torch.Tensor  # on the training device: indexing by a list would copy it there at every step
    gamma_neg: float = 4
    gamma_pos: float = 0
    clip: float = 0.05

    def __call__(self, output, batch):
        """Return {"asl": scalar}."""
        targets = batch.targets.index_select(1, self.columns)
        return {"asl": losses.asymmetric_loss(output.logits, targets, self.gamma_neg, self.gamma_pos, self.clip)}


@dataclass(frozen=True)
class SelfDistillation:
    """CPSD and its ablations: half ASL, half the match to each branch's merged teachers, by weight (METHOD 1.5).

    weights {branch: share}, adding up to 1: {"whole": 1} is +SD, {"co": 1} +CGPD, {"dis": 1} +DGPD and
    {"co": alpha, "dis": 1 - alpha} +CPSD. The halves are the release's; the paper's loss is twice this one at alpha 1/2.
    """

    weights: dict
    match: str = "mse"
    gamma_neg: float = 4
    gamma_pos: float = 0
    clip: float = 0.05

    def __call__(self, output, batch):
        """Return {"asl": scalar, "match_<branch>": scalar ...}, already weighted."""
        match = {"mse": losses.logit_mse, "kl": losses.class_kl}[self.match]
        asl = losses.asymmetric_loss(output.logits, batch.targets, self.gamma_neg, self.gamma_pos, self.clip)
        named = {"asl": 0.5 * asl}
        for branch, weight in self.weights.items():
            named[f"match_{branch}"] = 0.5 * weight * match(output.logits, batch.soft[branch])
        return named


def student_weights(row, alpha):
    """Return which branches teach the student of a row of the component table, and with what share."""
    return {
        "sd": {"whole": 1.0},
        "cgpd": {"co": 1.0},
        "dgpd": {"dis": 1.0},
        "cpsd": {"co": alpha, "dis": 1.0 - alpha},
    }[row]
