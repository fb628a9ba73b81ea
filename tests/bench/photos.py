"""JPEG files with labels for the benchmark: drawn scenes, or the photos of a folder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cpsd_lib.data.readers.csv import read_csv
from cpsd_lib.data.scenes.scenes import Scenes
from cpsd_lib.support import bar
from cpsd_lib.workbench.yaml_files import ParameterError


@dataclass(frozen=True)
class Photos:
    """Files [N] with targets [N, C]; the first `training` of them are trained on, the others held out."""

    paths: list
    targets: np.ndarray  # int8
    training: int

    @property
    def rows(self):
        """Rows to train on."""
        return np.arange(self.training)

    @property
    def held_out(self):
        """Rows to validate on."""
        return np.arange(self.training, len(self.paths))

    def part(self, training):
        """Return the first `training` photos and a quarter as many held-out ones; files are the same."""
        rows = np.concatenate([self.rows[:training], self.held_out[: max(1, training // 4)]])
        return Photos([self.paths[row] for row in rows], self.targets[rows], training)


def photos_of(settings, folder):
    """Return the Photos of Settings: from settings.photos, or scenes drawn and written into `folder` as JPEG, quality 90."""
    count = settings.images + max(1, settings.images // 4)
    if settings.photos is not None:
        return _from_folder(settings.photos, count, settings)
    scenes = Scenes(max(100, count), settings.photo_size, settings.seed)
    paths = [Path(folder) / f"{row}.jpg" for row in range(count)]
    with bar(count, "drawing photos", "img") as progress:
        for row, path in enumerate(paths):
            Image.fromarray(np.ascontiguousarray(scenes.load(row).transpose(1, 2, 0))).save(path, quality=90)
            progress.update(1)
    return _checked(Photos(paths, scenes.table.targets[:count], settings.images), settings.k)


def _from_folder(folder, count, settings):
    found = read_csv(folder)
    if len(found.paths) < count:
        raise ParameterError(f"photos: {folder} has {len(found.paths)} images, {count} are needed; give fewer --images")
    rows = np.random.default_rng(settings.seed).permutation(len(found.paths))[:count]
    return _checked(Photos([found.paths[row] for row in rows], found.table.targets[rows], settings.images), settings.k)


def _checked(photos, k):
    if k > photos.targets.shape[1]:
        raise ParameterError(f"k: {k} parts, but these photos have {photos.targets.shape[1]} classes")
    return photos
