"""Experts of parts that act as one teacher over all classes: CPSD's merging, its rho."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from cpsd_lib.losses import asymmetric_loss


class Output(NamedTuple):
    """What a model computes for a batch; any model may return a plain tensor of logits in its place."""

    logits: torch.Tensor  # [B, C]
    label_embeddings: torch.Tensor | None = None  # [B, C, D], from heads with one embedding a class
    features: torch.Tensor | None = None  # [B, F, h, w], the backbone's last map


def logits_of(output):
    """Return the logits [B, C] of what a model returned: a tensor, or anything with `.logits`."""
    return output if torch.is_tensor(output) else output.logits


def embeddings_of(output):
    """Return the label-wise embeddings [B, C, D] of what a model returned; None where it has none."""
    return getattr(output, "label_embeddings", None)


@contextmanager
def in_mode(model, training):
    """Put a module into train or eval mode, and every part of it back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, before in modes:
            module.training = before  # not train(): it would go down the tree, and some modules refuse it


class PartTeachers(nn.Module):
    """The experts of one partition as one teacher over all its classes: y+ = rho(experts of co), y- = rho(experts of dis).

    models: one nn.Module a part, in order; each returns logits [B, len(part)] as a tensor or as `.logits`.
    Raises ValueError for another number of models.
    """

    training_targets = False  # the mode its soft targets are computed in

    def __init__(self, models, partition):
        super().__init__()
        if len(models) != len(partition.parts):
            raise ValueError(
                f"{len(models)} teachers for {len(partition.parts)} parts; give one model a part, in order"
            )
        self.experts, self.partition = nn.ModuleList(models), partition

    def forward(self, images):
        """Return the experts' logits in class order: a tensor [B, C] float32, or an Output where all have embeddings."""
        outputs = [expert(images) for expert in self.experts]
        logits = self.partition.merge([logits_of(output).float() for output in outputs])
        embeddings = [embeddings_of(output) for output in outputs]
        return logits if any(one is None for one in embeddings) else Output(logits, self.partition.merge(embeddings))

    def loss(self, images, targets, **asl):
        """Return the asymmetric loss of each expert on its own classes, summed (a scalar); the experts go into train mode.

        images: what the experts take; targets [B, C] of 1, 0 and -1 (unknown). asl: arguments of `asymmetric_loss`.
        """
        self.train()
        columns = self.partition.split(targets)
        return sum(
            asymmetric_loss(logits_of(expert(images)), mine, **asl)
            for expert, mine in zip(self.experts, columns, strict=True)
        )

    @torch.no_grad()
    def soft_targets(self, images):
        """Return what `forward` does, in eval mode and without a gradient; each module's mode stays as it was."""
        with in_mode(self, self.training_targets):
            return self(images)


class Copies:
    """Stands for a Partition where each of `count` models knows all classes: PartTeachers of it answer as an ensemble does."""

    def __init__(self, count, num_classes):
        self.parts = [list(range(num_classes)) for _ in range(count)]

    def split(self, x):
        """Return x [N, C, ...] for each model."""
        return [x] * len(self.parts)

    def merge(self, pieces):
        """Return the mean [N, C, ...] of what the models computed."""
        return torch.stack(pieces).mean(0)


class TrainModeTeachers(PartTeachers):
    """The same experts with soft targets computed in train mode, as the release did: shows what that fault costs."""

    training_targets = True
