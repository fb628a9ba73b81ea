"""Cached images -> the same batches of the same views for whoever asks again with the same seed."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from cpsd_lib import views
from cpsd_lib.data.pixels import take
from cpsd_lib.objectives import Batch

VIEWS = {"default": views.DEFAULT, "release": views.RELEASE, "flip": views.FLIP, "plain": views.PLAIN}


class Batches:
    """Epochs of batches over some rows of a cache; order and views depend on (seed, epoch, image) alone.

    images: uint8 [N, 3, S, S], an array, a cache's memory map or OnTheFly. targets: int8 [N, C]. rows [n]: the images to
    train on. view: a name in VIEWS.
    stored_views: reuse this many views round robin; None draws a new view of each image every epoch.
    soft: an Asked (soft_targets), what the teachers say of each batch. experts: {branch: Teachers} asked for their label-wise
    embeddings of each batch, in `precision`: 768 numbers a class and view are too many to store.
    """

    def __init__(
        self,
        images,
        targets,
        rows,
        *,
        batch_size,
        view,
        seed,
        device,
        stored_views=None,
        soft=None,
        experts=None,
        precision=None,
    ):
        self.images, self.rows, self.seed, self.device = images, np.asarray(rows), seed, torch.device(device)
        self.targets = torch.from_numpy(np.ascontiguousarray(targets)).float()
        self.batch_size = min(batch_size, len(self.rows))
        # The last images of an epoch's order that do not fill a batch wait for another epoch: one shape for
        # torch.compile, and no batch of one image in batch norm.
        self.steps = len(self.rows) // self.batch_size
        self.recipe, self.stored_views, self.soft = VIEWS[view], stored_views, soft
        self.experts, self.precision = experts or {}, precision

    @property
    def seconds_asked(self):
        """Seconds that the teachers took so far to answer what was not stored yet."""
        return self.soft.seconds if self.soft else 0.0

    def view(self, number, rows):
        """Return view `number` of image rows [B] as float32 [B, 3, S, S] on the training device."""
        return self._augmented(self._gather(rows), number, rows)

    def order(self, number):
        """Return the image rows of one epoch, a list of [B]."""
        order = self.rows[views.permutation(self.seed, number, len(self.rows))]
        return [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.steps)]

    def view_number(self, number):
        """Return which view of each image an epoch shows."""
        return number % self.stored_views if self.stored_views else number

    def epoch(self, number, start=0):
        """Yield the Batches of one epoch from step `start`; the next batch's images are read while this one trains."""
        parts, view = self.order(number)[start:], self.view_number(number)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._gather, parts[0]) if parts else None
            for step, rows in enumerate(parts):
                pixels = ahead.result()
                if step + 1 < len(parts):
                    ahead = reader.submit(self._gather, parts[step + 1])
                images = self._augmented(pixels, view, rows)
                soft = self.soft(view, rows, images) if self.soft else {}
                soft = {branch: self._move(logits) for branch, logits in soft.items()}
                yield Batch(images, self._move(self.targets[rows]), rows, soft, self._embeddings(images))
        if self.soft:
            self.soft.flush()

    def _embeddings(self, images):
        with torch.no_grad(), torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            return {branch: experts.label_embeddings(images) for branch, experts in self.experts.items()}

    def _gather(self, rows):
        pixels = torch.from_numpy(take(self.images, rows))
        return pixels.pin_memory() if self.device.type == "cuda" else pixels

    def _augmented(self, pixels, view, rows):
        images = views.train_view(self._move(pixels), self.recipe, self.seed, view, rows)
        return images.contiguous(memory_format=torch.channels_last)

    def _move(self, tensor):
        return tensor.to(self.device, non_blocking=True)


def predict(forward, images, rows, device, batch_size=128, precision=None):
    """Return logits [n, C] float32 (numpy) of the test views of image `rows`; forward: images [B, 3, S, S] -> logits [B, C]."""
    device, found = torch.device(device), []
    with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision is not None):
        for start in range(0, len(rows), batch_size):
            pixels = torch.from_numpy(take(images, rows[start : start + batch_size])).to(device)
            view = views.test_view(pixels).contiguous(memory_format=torch.channels_last)
            found.append(forward(view).float().cpu().numpy())
    return np.concatenate(found)
