"""A model that learns, and what its training carries from step to step."""

from dataclasses import dataclass, field

import torch
from torch import nn

from cpsd_lib.ema import Ema
from cpsd_lib.hardware import pick_precision
from cpsd_lib.optimizer import optimizer_of


@dataclass
class Learner:
    """A model, what it learns, and the columns [P] of the targets that its logits stand for."""

    name: str
    model: nn.Module
    objective: object  # (Output, Batch) -> {name: scalar loss}
    columns: list
    made_of: dict  # JSON-able: all that determines the trained weights; finished weights made of the same are loaded


@dataclass
class Track:
    """A learner and all that its training carries from step to step."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    schedule: object
    scaler: torch.amp.GradScaler
    ema: Ema
    forward: object
    sums: dict = field(default_factory=dict)  # named losses of this epoch, float64 on the device
    best: dict = field(default_factory=dict)  # score, epoch, kind, state: the best validated weights

    def state(self):
        """Return all of it, as a checkpoint holds it."""
        return {
            "model": self.learner.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.shadow,
            "sums": self.sums,
            "best": self.best,
        }

    def load(self, state):
        """Go on from what `state` returned."""
        self.learner.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if state["scaler"]:  # empty where it was not needed, as on a CPU
            self.scaler.load_state_dict(state["scaler"])
        for shadow, saved in zip(self.ema.shadow, state["ema"], strict=True):
            shadow.copy_(saved)
        self.sums, self.best = state["sums"], state["best"]


def make_track(learner, recipe, steps, device):
    """Return the Track of a learner at its start, by TrainParams `recipe`, for epochs of `steps` steps on a torch device."""
    model = learner.model.to(device, memory_format=torch.channels_last)
    optimizer, schedule = optimizer_of(model, recipe, steps)
    half = pick_precision(recipe.precision, device) is torch.float16
    ema = Ema(model, recipe.ema_decay, recipe.ema_warmup)
    return Track(
        learner, optimizer, schedule, torch.amp.GradScaler(device.type, enabled=half), ema, _forward(model, recipe)
    )


def _forward(model, recipe):
    if not recipe.compile:
        return model
    torch._dynamo.config.suppress_errors = True  # a graph that does not compile runs eagerly, and torch says so
    return torch.compile(model)
