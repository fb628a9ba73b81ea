"""How a model is trained, apart from its data and its objective."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

TRAINING_VERSION = 2  # of this room: raised when a change of its code changes trained weights or soft targets


@dataclass(frozen=True)
class Training:
    """One training of the one loop; the defaults fine-tune a pretrained model on small data.

    Nothing here checks the ranges; pydantic reads them where parameters come from a file.
    """

    epochs: Annotated[int, Interval(ge=1, le=10_000)] = 6  # of the schedule
    stop_after: Annotated[int, Ge(1)] | None = None  # epochs of the schedule that are trained; None: all of them
    optimizer: Literal["adam", "adamw"] = "adamw"  # adam: weight decay is part of the gradient
    lr: Annotated[float, Interval(gt=0, le=10)] = 5e-4  # highest learning rate of OneCycle
    # on matrices and filters only, never on biases and 1-d parameters
    weight_decay: Annotated[float, Interval(ge=0, le=10)] = 1e-2
    pct_start: Annotated[float, Interval(gt=0, lt=1)] = 0.1  # fraction of the steps in which OneCycle rises
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.998  # a step; 0: no moving average
    ema_warmup: bool = True  # decay min(ema_decay, (1 + t) / (10 + t)) at step t
    # auto: bfloat16 on GPUs that have it, else float32
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False  # torch.compile: a minute of compiling, then a sixth faster on a GPU
    validate_every: Annotated[int, Ge(1)] = 1  # epochs between two looks at the images that select one
    checkpoint_seconds: Annotated[float, Ge(0)] = 60  # between two checkpoints; 0: after every step

    @property
    def trained_epochs(self):
        """How many epochs are trained: the schedule's, or those of it before `stop_after`, as L2D's teachers leave theirs."""
        return min(self.epochs, self.stop_after or self.epochs)
