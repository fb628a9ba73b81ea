"""Adam or AdamW under one cycle of the learning rate."""

import torch


def optimizer_of(model, recipe, steps):
    """Return (optimizer, its schedule) of a model by TrainParams `recipe`, for epochs of `steps` steps (METHOD 1, recipe).

    Vectors (biases, the weights of norms) do not decay.
    """
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    optimizer, total = kind(groups, lr=recipe.lr, fused=True), recipe.epochs * steps
    # torch divides by pct_start * total - 1, which very short trainings would make zero.
    pct_start = min(max(recipe.pct_start, 1.5 / total), 0.99)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=total, pct_start=pct_start)
