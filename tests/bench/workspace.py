"""What the parts with photos share: files, decoded pixels, models, recipe and partitions."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bench.photos import Photos, photos_of
from bench.settings import Settings
from cpsd_lib.data.images import cache
from cpsd_lib.models.classifier import build_model
from cpsd_lib.objectives import Supervised
from cpsd_lib.partition import Partition, random_partition
from cpsd_lib.support import derive_seed, digest, pick_device, pick_precision
from cpsd_lib.training.batches import Batches
from cpsd_lib.training.learner import Learner
from cpsd_lib.training.loop import fit
from cpsd_lib.workbench.defaults import RECIPES
from cpsd_lib.workbench.params import TrainParams

# The release's rate for students. At the default's 5e-4 Adam makes whole steps of the last bits of half-precision targets: after
# 16 steps the same student lay 0.7 of its way off, at this rate 0.06 (mobilenetv2_100, 48 px). The rate costs no time.
LR = 1e-5
SPEAK_UP = 20  # a new head's logits hardly differ from photo to photo, and a mix-up of photos would not show


@dataclass(frozen=True)
class Workspace:
    """Settings, photos, their decoded pixels uint8 [N, 3, S, S], a device, and a folder for what a run leaves behind."""

    settings: Settings
    photos: Photos
    images: np.ndarray
    device: torch.device
    folder: Path

    @property
    def classes(self):
        """Number of classes."""
        return self.photos.targets.shape[1]

    @property
    def partitions(self):
        """{branch: Partition} of whole, co and dis; random parts, since which classes share a teacher costs nothing."""
        cut = {b: random_partition(self.classes, self.settings.k, seed) for seed, b in enumerate(("co", "dis"))}
        return {"whole": Partition([list(range(self.classes))], self.classes)} | cut

    def recipe(self, **change):
        """Return the default recipe as TrainParams, an epoch long, with `change`."""
        usual = RECIPES["default"]["train"] | {"epochs": 1, "batch_size": self.settings.batch, "lr": LR}
        return TrainParams(**usual | change)

    def precision(self):
        """Return the autocast dtype, or None for float32."""
        return pick_precision("auto", self.device)

    def image(self):
        """Return one black image [1, 3, S, S] on the device."""
        return torch.zeros(1, 3, self.settings.size, self.settings.size, device=self.device)

    def model(self, classes, name):
        """Return a model over `classes` classes with random weights that are a function of the seed and `name`."""
        torch.manual_seed(derive_seed(self.settings.seed, "init", name))
        model = build_model(self.settings.model, classes, **self.settings.options)
        with torch.no_grad():
            for matrix in (p for p in model.head.parameters() if p.ndim > 1):
                matrix.mul_(SPEAK_UP)
        return model

    def batches(self, recipe, photos=None, images=None, kind=Batches, **more):
        """Return Batches (or a `kind` of it) of some photos, by default all."""
        photos, images = photos or self.photos, self.images if images is None else images
        arguments = {"batch_size": recipe.batch_size, "view": recipe.view, "seed": self.settings.seed}
        return kind(images, photos.targets, photos.rows, device=self.device, **arguments, **more)

    def objective(self, part, recipe):
        """Return the loss of a teacher of the classes in `part`."""
        columns = torch.tensor(part, device=self.device)
        return Supervised(columns, recipe.gamma_neg, recipe.gamma_pos, recipe.clip)

    def teachers(self, branches):
        """Return {teacher's name: (branch, part)} of some branches, part by part."""
        return {
            f"{branch}-{number}": (branch, part)
            for branch in branches
            for number, part in enumerate(self.partitions[branch].parts)
        }

    def learners(self, branches, recipe):
        """Return a new Learner for each part of some branches."""
        return [
            Learner(name, self.model(len(part), name), self.objective(part, recipe), part, {"name": name})
            for name, (_, part) in self.teachers(branches).items()
        ]

    def fit(self, learners, batches, recipe, validation=None):
        """Train by cpsd_lib's loop in a new folder; return {learner's name: what stands beside its weights}."""
        arguments = {"seed": self.settings.seed, "about": {}, "validation": validation}
        return fit(learners, batches, recipe, self.fresh(), **arguments)

    def fresh(self):
        """Return a new, empty folder, there until `tidy`."""
        (self.folder / "runs").mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.folder / "runs"))

    def tidy(self):
        """Remove what runs have left: the weights of all models of all runs would fill a disk."""
        shutil.rmtree(self.folder / "runs", ignore_errors=True)


def open_workspace(settings, folder):
    """Return the Workspace of Settings below `folder`; ParameterError for photos or a k that do not fit."""
    folder, device = Path(folder), pick_device(settings.device)
    (folder / "photos").mkdir()
    photos = photos_of(settings, folder / "photos")
    return Workspace(settings, photos, decode_once(photos, settings.size, folder / "cache"), device, folder)


def decode_once(photos, size, root):
    """Return the pixels of all photos, uint8 [N, 3, size, size], from cpsd_lib's cache; in one process, as the reference."""
    key = digest([[str(path) for path in photos.paths], size])
    load = cache.CsvImages(photos.paths, size)
    return cache.build(load, len(photos.paths), size, key, root, workers=1).images


def weights_of(model):
    """Return copies of a model's weights {name: tensor}, float32 on the CPU, without batch norm's statistics."""
    return {name: weight.detach().float().cpu().clone() for name, weight in model.named_parameters()}


def apart(one, other, start):
    """Return how far the weights `other` lie from `one`, as a share of the way from `start` to `one`; 0 is bit for bit.

    one, other {name: tensor}: on any device, more names than `start` has are left out.
    """

    def length(a, b):
        return sum((a[name].cpu() - b[name].cpu()).double().square().sum().item() for name in start) ** 0.5

    way, gap = length(one, start), length(one, other)
    return gap / way if way else gap


def distance(one, other):
    """Return the largest difference of two lists of {name: tensor}: 0 is bit for bit."""
    pairs = [(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a]
    return worst((a - b).abs().max().item() for a, b in pairs)


def worst(differences):
    """Return the largest of some numbers, NaN when one is: Python's own max would let a NaN pass."""
    return float(np.max(list(differences)))
