"""A method is a function (output, targets, soft) -> named losses; whoever trains adds them up and knows nothing else of it.

output: a tensor of logits [B, C], or an Output. targets [B, C] of 1, 0 and -1 (unknown). soft {branch: what the teachers
of that branch computed for the same images}, a tensor of logits [B, C] or an Output.
"""

from dataclasses import dataclass, field

import torch

from cpsd_lib.losses import asymmetric_loss, class_kl, led, logit_mse, mld
from cpsd_lib.teachers import embeddings_of, logits_of

BCE = {"gamma_neg": 0, "gamma_pos": 0, "clip": 0}  # the asymmetric loss without focus and clip is binary cross-entropy


@dataclass(frozen=True)
class Supervised:
    """The asymmetric loss on the labels: the baseline, or an expert on the classes of its part.

    class_indices [P]: a tensor on the training device; None: all classes. asl: arguments of `asymmetric_loss`.
    """

    class_indices: torch.Tensor | None = None  # a list would be copied to the device at every step
    asl: dict = field(default_factory=dict)

    def __call__(self, output, targets, soft=None):
        """Return {"asl": scalar}."""
        if self.class_indices is not None:
            targets = targets.index_select(1, self.class_indices)
        return {"asl": asymmetric_loss(logits_of(output), targets, **self.asl)}


@dataclass(frozen=True)
class SelfDistillation:
    """CPSD and its ablations: ASL / 2 + sum over branches of weight * match(z, z_branch) / 2, summed over batch and class.

    weights {branch: weight}, adding up to 1: {"whole": 1} is + SD, {"co": 1} + CGPD, {"dis": 1} + DGPD and
    {"co": alpha, "dis": 1 - alpha} + CPSD. match: "mse" on logits or "kl" over the classes. The halves are the
    release's; the paper's loss is twice this one at alpha 1/2.
    """

    weights: dict
    match: str = "mse"
    asl: dict = field(default_factory=dict)

    def __call__(self, output, targets, soft):
        """Return {"asl": scalar, "match_<branch>": scalar ...}, already weighted."""
        match, logits = {"mse": logit_mse, "kl": class_kl}[self.match], logits_of(output)
        named = {"asl": 0.5 * asymmetric_loss(logits, targets, **self.asl)}
        for branch, weight in self.weights.items():
            named[f"match_{branch}"] = 0.5 * weight * match(logits, logits_of(_of_branch(soft, branch)))
        return named


@dataclass(frozen=True)
class MultiLabelDistillation:
    """L2D: the loss on labels + mld * MLD of the logits at `temperature` + (cd * CD + id * ID), the LED of the embeddings.

    weights {branch: weight}, adding up to 1: {"whole": 1} is the paper's; with CPSD's branches it is both papers at once.
    method: "mld", "led" or "mld+led". asl: arguments of `asymmetric_loss`; the paper's loss on labels is BCE.
    """

    weights: dict
    method: str = "mld+led"
    mld: float = 10
    cd: float = 100
    id: float = 1000
    asl: dict = field(default_factory=lambda: dict(BCE))
    temperature: float = 1

    def __call__(self, output, targets, soft):
        """Return {"asl", "mld_<branch>", "cd_<branch>", "id_<branch>": scalars}, already weighted.

        Raises ValueError when label-wise embeddings are to be matched and student or teachers have none.
        """
        logits = logits_of(output)
        named = {"asl": asymmetric_loss(logits, targets, **self.asl)}
        for branch, weight in self.weights.items():
            teacher = _of_branch(soft, branch)
            if "mld" in self.method:
                named[f"mld_{branch}"] = weight * self.mld * mld(logits, logits_of(teacher), self.temperature)
            if "led" in self.method:
                embeddings = embeddings_of(output), embeddings_of(teacher)
                if any(one is None for one in embeddings):
                    who = "student" if embeddings[0] is None else f"teacher of branch {branch!r}"
                    raise ValueError(
                        f"this {who} has no label embeddings; LED needs a head that has, such as ml_decoder"
                    )
                cd, id_ = led(*embeddings, targets)
                named[f"cd_{branch}"], named[f"id_{branch}"] = weight * self.cd * cd, weight * self.id * id_
        return named


def _of_branch(soft, branch):
    if branch not in soft:
        raise ValueError(f"no soft targets of branch {branch!r}; this objective needs them, and got {sorted(soft)}")
    return soft[branch]
