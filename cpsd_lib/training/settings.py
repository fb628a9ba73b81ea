"""How a model is trained, apart from its data and its objective."""

from dataclasses import dataclass

TRAINING_VERSION = 2  # of this room: raised when a change of its code changes trained weights or soft targets


@dataclass(frozen=True)
class Training:
    """One training of the one loop; the defaults fine-tune a pretrained model on small data."""

    epochs: int = 6
    stop_after: int | None = None  # epochs of the schedule that are trained; None: all of them
    optimizer: str = "adamw"  # or "adam", where weight decay is part of the gradient
    lr: float = 5e-4  # highest learning rate of OneCycle
    weight_decay: float = 1e-2  # on matrices and filters only, never on biases and 1-d parameters
    pct_start: float = 0.1  # OneCycle's rising part
    ema_decay: float = 0.998
    ema_warmup: bool = True  # decay min(ema_decay, (1 + t) / (10 + t)) at step t
    precision: str = "auto"  # "float32", "bfloat16", "float16"; auto: bfloat16 on GPUs that have it, else float32
    compile: bool = False
    validate_every: int = 1  # epochs
    checkpoint_seconds: float = 60  # 0: after every step

    @property
    def trained_epochs(self):
        """How many epochs are trained: the schedule's, or those of it before `stop_after`, as L2D's teachers leave theirs."""
        return min(self.epochs, self.stop_after or self.epochs)
