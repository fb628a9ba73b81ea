"""How large the benchmark is."""

from dataclasses import asdict, dataclass, field, replace

from cpsd_lib.workbench.yaml_files import ParameterError

MIN_REPEATS = 5  # of each way, in turn; a median of fewer is one run's luck
MIN_STEPS = 4  # of a training; one or two move a model hardly more than float32 rounds, and nothing could be compared


@dataclass(frozen=True)
class Settings:
    """Sizes of one benchmark; ParameterError for one that measures nothing.

    images: photos a student trains on; the input and the whole table take half of them, the teachers side by side a
    quarter, and a quarter as many are held out. epochs: of each model in the whole table. photos: a folder as
    `data.kind: csv` reads it; None draws scenes. scored: images x classes of the tables that are scored. led: batch, classes
    and width of the embeddings. averaged: the model whose EMA is timed.
    """

    device: str = "auto"
    model: str = "mobilenetv2_100"
    options: dict = field(default_factory=dict)  # timm's
    size: int = 128
    k: int = 5
    images: int = 256
    batch: int = 32
    epochs: int = 2
    repeats: int = MIN_REPEATS
    whole_repeats: int = 3
    photos: str | None = None
    photo_size: int = 256  # pixels of drawn photos, both sides
    scored: tuple = (40_137, 80)  # MS-COCO 2014's labelled val images
    walked: int = 16  # classes, frequent to rare, that the Python loop over tensors walks: 80 would take a minute a run
    led: tuple = (64, 80, 768)  # L2D's batch on COCO
    averaged: str = "resnet101"
    seed: int = 0
    quick: bool = False  # a smoke test: its ratios mean nothing

    def __post_init__(self):
        least = {"size": 16, "k": 1, "images": 16, "batch": 2, "epochs": 1, "repeats": 1, "whole_repeats": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ParameterError(f"{name}: must be at least {low}, got {getattr(self, name)}")
        steps = min(self.images // self.batch, self.epochs * (self.images // 2 // self.batch))
        if steps < MIN_STEPS:
            raise ParameterError(
                f"batch: {self.images} images in batches of {self.batch} give {steps} steps, of which half the images are the "
                f"whole table's, expected at least {MIN_STEPS}; give more images or epochs, or a smaller batch"
            )
        if self.repeats < MIN_REPEATS and not self.quick:
            raise ParameterError(f"repeats: must be at least {MIN_REPEATS} for a median, got {self.repeats}")

    def as_dict(self):
        """Return all of it, JSON-able."""
        return asdict(self)


def quick(settings):
    """Return `settings` shrunk to a smoke test of some seconds, whose ratios say nothing."""
    small = {"model": "test_resnet", "options": {}, "size": 32, "k": 2, "images": 64, "batch": 8, "epochs": 1}
    small |= {"repeats": 2, "whole_repeats": 1, "photos": None, "photo_size": 64}
    return replace(settings, **small, scored=(500, 6), walked=2, led=(8, 6, 16), averaged="resnet18", quick=True)


def from_params(params):
    """Return the smoke test of a run's own model, pixels and k: what notebook 09 measures where no benchmark was run."""
    small, model = quick(Settings(device=params.device, seed=params.seed)), params.model
    own = {"model": model.name, "options": model.options, "size": params.data.size, "k": params.partition.k}
    return replace(small, **own, photo_size=max(small.photo_size, params.data.size))
