"""A model that learns, and what its training carries from step to step."""

from dataclasses import dataclass, field

import torch
from torch import nn

from cpsd_lib.support import pick_precision

COMPILED = 1024  # models of one process that can be compiled; Dynamo's own limit is 8


class Ema:
    """A moving average of a model's whole state, buffers too: the model that is kept."""

    def __init__(self, model, decay, warmup):
        self.decay, self.warmup = decay, warmup
        self.state = {name: live.detach().clone() for name, live in model.state_dict().items()}
        self._floats, self._counts = ([], []), ([], [])  # the averages, and the live tensors beside them
        for name, live in model.state_dict().items():
            averages, lives = self._floats if live.is_floating_point() else self._counts
            averages.append(self.state[name])
            lives.append(live)

    @torch.no_grad()
    def update(self, step):
        """Move the average towards the live weights after `step` (from 1) updates."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(*self._floats, 1 - decay)
        if self._counts[0]:
            torch._foreach_copy_(*self._counts)


@dataclass
class Learner:
    """A model, what it learns, and the classes [P] of the targets that its logits stand for (None: all)."""

    name: str  # says all that determines the trained weights where a training is to be gone on with
    model: nn.Module
    objective: object  # (output, targets, soft) -> {name: scalar loss}
    class_indices: list | None = None
    draws: tuple = ()  # what its dropout derives from, beside the seed and the step; (): its name


@dataclass
class TrainState:
    """A learner and all that its training carries from step to step."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    schedule: object
    scaler: torch.amp.GradScaler
    ema: Ema
    forward: object
    sums: dict = field(default_factory=dict)  # named losses of this epoch, float64 on the device
    best: dict = field(default_factory=dict)  # score, epoch, kind, state: the best validated weights

    @property
    def parts(self):
        """Those that have a state dict."""
        own = {name: getattr(self, name) for name in ("optimizer", "schedule", "scaler")}
        return {"model": self.learner.model} | own

    def state(self):
        """Return all of it, as a checkpoint holds it."""
        of_parts = {name: part.state_dict() for name, part in self.parts.items()}
        return of_parts | {"ema": list(self.ema.state.values()), "sums": self.sums, "best": self.best}

    def load(self, state):
        """Go on from what `state` returned."""
        for name, part in self.parts.items():
            if state[name]:  # a scaler's is empty where it was not needed, as on a CPU
                part.load_state_dict(state[name])
        for average, saved in zip(self.ema.state.values(), state["ema"], strict=True):
            average.copy_(saved)
        self.sums, self.best = state["sums"], state["best"]


def start_state(learner, training, steps, device):
    """Return the TrainState of a learner at its start, by a Training, for epochs of `steps` steps on a torch device."""
    model = learner.model.to(device, memory_format=torch.channels_last)
    optimizer, schedule = optimizer_of(model, training, steps)
    half = pick_precision(training.precision, device) is torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    ema = Ema(model, training.ema_decay, training.ema_warmup)
    forward = Compiled(learner.name, model) if training.compile else model
    return TrainState(learner, optimizer, schedule, scaler, ema, forward)


def optimizer_of(model, training, steps):
    """Return (Adam or AdamW, its OneCycle schedule) of a model by a Training, for epochs of `steps` steps.

    Vectors (biases, the weights of norms) do not decay.
    """
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    optimizer, total = kind(groups, lr=training.lr, fused=True), training.epochs * steps
    # torch divides by pct_start * total - 1, which very short trainings would make zero.
    pct_start = min(max(training.pct_start, 1.5 / total), 0.99)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=total, pct_start=pct_start)
    return optimizer, schedule


class Compiled:
    """A model compiled for itself; one that does not compile runs eagerly, and a line says so."""

    def __init__(self, name, model):
        # Dynamo's limit counts per code object, which all models of a run share: from the ninth on they would run eagerly.
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, COMPILED)
        config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, COMPILED)
        self.name, self.model = name, model
        self._forward = torch.compile(model, dynamic=False)

    def __call__(self, images):
        """Return the model's output."""
        try:
            return self._forward(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().split("\n")[0]
            print(f"{self.name} does not compile and trains eagerly: {reason}")
            self._forward = self.model
            return self.model(images)
