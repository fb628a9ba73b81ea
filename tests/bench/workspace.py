"""What the parts of the benchmark share: sizes, photos, decoded pixels, models, partitions, and stored soft targets."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.timing import worst
from cpsd_lib.data import Scenes
from cpsd_lib.data.images.cache import build
from cpsd_lib.data.images.decode import MAX_PIXELS, decode_from
from cpsd_lib.models import build_model, fold_models
from cpsd_lib.objectives import Supervised
from cpsd_lib.partition import Partition, random_partition
from cpsd_lib.support import derive_seed, pick_device, pick_precision
from cpsd_lib.teachers import PartTeachers
from cpsd_lib.training import Batches, Learner, Training, view_logits

SEED = 0
MIN_STEPS = 4  # one or two move a model hardly more than float32 rounds, and nothing could be compared
# The release's rate for students. At the default's 5e-4 Adam makes whole steps of the last bits of half-precision
# targets: after 16 steps the same student lay 0.7 of its way off, at this rate 0.06 (mobilenetv2_100, 48 px).
TRAINING = Training(epochs=1, lr=1e-5)
HEAD_GAIN = 20  # a new head's logits hardly differ from photo to photo, and a mix-up of photos would not show


@dataclass(frozen=True)
class Settings:
    """Sizes of one benchmark."""

    device: str = "auto"
    model: str = "mobilenetv2_100"  # a timm name; random weights
    size: int = 128  # pixels
    k: int = 5  # parts, so 2k teachers
    images: int = 128  # photos to train on; a quarter as many are held out
    batch: int = 32
    repeats: int = 5  # of each way, in turn; a median of fewer is one run's luck
    photo_size: int = 256  # pixels of the drawn photos, both sides
    scored: tuple = (40_137, 80)  # images x classes that are scored: MS-COCO 2014's labelled val images
    led: tuple = (64, 80, 768)  # batch, classes and width of the embeddings: L2D's on COCO
    averaged: str = "resnet101"  # the model whose EMA is timed
    quick: bool = False  # a smoke test: its ratios mean nothing


QUICK = {"model": "test_resnet", "size": 32, "k": 2, "images": 32, "batch": 8, "repeats": 2, "photo_size": 64}
QUICK |= {"scored": (500, 6), "led": (8, 6, 16), "averaged": "resnet18", "quick": True}


class Workspace:
    """Drawn photos [N] as JPEG files, with targets [N, C] and decoded pixels, and what is made of them."""

    def __init__(self, settings, folder):
        count = settings.images + settings.images // 4
        scenes = Scenes(max(100, count), settings.photo_size, SEED)
        self.settings, self.folder, self.targets = settings, Path(folder), scenes.table.targets[:count]
        self.paths = [self.folder / f"{i}.jpg" for i in range(count)]
        for i, path in enumerate(self.paths):
            Image.fromarray(np.ascontiguousarray(scenes.load(i).transpose(1, 2, 0))).save(path, quality=90)
        self.images = self.decoded()
        self.trained_on, self.held_out = np.split(np.arange(count), [settings.images])
        self.device, self.steps = pick_device(settings.device), settings.images // settings.batch
        self.precision = pick_precision("auto", self.device)
        self.classes = list(range(self.targets.shape[1]))
        # Random parts: which classes share a teacher costs nothing.
        cuts = {b: random_partition(len(self.classes), settings.k, number) for number, b in enumerate(("co", "dis"))}
        self.partitions = {"whole": Partition([self.classes], len(self.classes))} | cuts

    def switch(self, stage):
        """Say what the time is spent on from now on; the whole table puts a Stopwatch's in its place."""

    def autocast(self):
        """Return the context that a forward pass runs in."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision is not None)

    def decoded(self):
        """Return the pixels of all photos, uint8 [N, 3, S, S], in a new cache; in one process, as the reference."""
        root, load = tempfile.mkdtemp(dir=self.folder), partial(decode_from, self.paths, self.settings.size, MAX_PIXELS)
        images, _ = build(load, len(self.paths), self.settings.size, "photos", root, workers=1)
        return images

    def batches(self, view="default", images=None, soft=None):
        """Return Batches of the photos to train on; images: their pixels, by default those decoded before."""
        return Batches(
            self.images if images is None else images,
            self.targets,
            self.trained_on,
            batch_size=self.settings.batch,
            view=view,
            seed=SEED,
            device=self.device,
            soft=soft,
        )

    def student(self):
        """Return a new student; all start from the same weights."""
        return self._model(self.classes, "student")

    def experts(self, branches):
        """Return a new Learner for each part of some branches, named "co-0", "co-1", ..."""
        experts = []
        for branch in branches:
            for number, part in enumerate(self.partitions[branch].parts):
                name, objective = f"{branch}-{number}", Supervised(torch.tensor(part, device=self.device))
                experts.append(Learner(name, self._model(part, name), objective, part))
        return experts

    def _model(self, classes, name):
        torch.manual_seed(derive_seed(SEED, "init", name))
        model = build_model(self.settings.model, len(classes))
        with torch.no_grad():
            for matrix in (p for p in model.head.parameters() if p.ndim > 1):
                matrix.mul_(HEAD_GAIN)
        return model

    def teachers(self, experts):
        """Return {branch: PartTeachers} of the models of experts, on the device, in eval mode."""
        models, merged = {}, {}
        for expert in experts:
            models.setdefault(expert.name.split("-")[0], []).append(expert.model)
        for branch, of_parts in models.items():
            teachers = PartTeachers(of_parts, self.partitions[branch]).eval()
            merged[branch] = teachers.to(self.device, memory_format=torch.channels_last)
        return merged

    def stored(self, teachers, batches):
        """Compute the logits of every image's view, as a run does; return how Batches read them, `soft`."""
        folded = fold_models(teachers, batches.images.shape[-1])
        stored = view_logits(folded, batches, 0, self.precision)

        def soft(view, indices, images):
            return {branch: torch.from_numpy(one[indices]).to(self.device).float() for branch, one in stored.items()}

        return soft


def apart(some, others, starts):
    """Return how far the weights of other models lie from those of some, at most; 0 is bit for bit, NaN is not hidden.

    A model's distance is a share of the way from where it started to where it went.
    """

    def distance(one, other):
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        return sum((a.cpu() - b.cpu()).double().square().sum().item() for a, b in pairs) ** 0.5

    models = zip(some, others, starts, strict=True)
    return worst(distance(one, other) / distance(one, start) for one, other, start in models)
