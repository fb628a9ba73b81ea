"""A method maps a batch to named losses; the loop adds them up and knows nothing else of it."""

from dataclasses import dataclass, field

import torch

from cpsd_lib import losses


@dataclass(frozen=True)
class Batch:
    """One step's images [B, 3, S, S] in [0, 1], targets [B, C] in {0, 1, -1}, image rows [B].

    soft, embeddings: what the merged teachers of each branch say, logits [B, C] and label-wise embeddings [B, C, D].
    """

    images: torch.Tensor
    targets: torch.Tensor
    rows: object
    soft: dict = field(default_factory=dict)
    embeddings: dict = field(default_factory=dict)


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
        match = {"mse": losses.logit_mse, "kl": losses.class_kl, "mld": _summed_mld}[self.match]
        asl = losses.asymmetric_loss(output.logits, batch.targets, self.gamma_neg, self.gamma_pos, self.clip)
        named = {"asl": 0.5 * asl}
        for branch, weight in self.weights.items():
            named[f"match_{branch}"] = 0.5 * weight * match(output.logits, batch.soft[branch])
        return named


def _summed_mld(student, teacher):
    return losses.mld(student, teacher) * len(student)  # a sum over the batch, as the other two matches are


@dataclass(frozen=True)
class MultiLabelDistillation:
    """L2D: the loss on labels, MLD of the logits and LED of the label-wise embeddings, weighted (METHOD 2).

    weights {branch: share}, adding up to 1: {"whole": 1} is the paper's; with CPSD's branches it is both papers at once.
    method: "mld", "led" or "mld+led". The losses on labels are ASL's, which is BCE at gamma 0 and clip 0.
    """

    weights: dict
    method: str
    mld: float = 10
    cd: float = 100
    id: float = 1000
    gamma_neg: float = 0
    gamma_pos: float = 0
    clip: float = 0

    def __call__(self, output, batch):
        """Return {"asl", "mld_<branch>", "cd_<branch>", "id_<branch>": scalars}, already weighted.

        Raises ValueError when a model without label-wise embeddings is to be matched by them.
        """
        named = {"asl": losses.asymmetric_loss(output.logits, batch.targets, self.gamma_neg, self.gamma_pos, self.clip)}
        for branch, share in self.weights.items():
            if "mld" in self.method:
                named[f"mld_{branch}"] = share * self.mld * losses.mld(output.logits, batch.soft[branch])
            if "led" in self.method:
                if output.label_embeddings is None:
                    raise ValueError("this student's head has no label embeddings; LED needs one, such as ml_decoder")
                cd, id_ = losses.led(output.label_embeddings, batch.embeddings[branch], batch.targets)
                named[f"cd_{branch}"], named[f"id_{branch}"] = share * self.cd * cd, share * self.id * id_
        return named
