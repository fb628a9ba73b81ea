"""Images -> the same batches of the same views for whoever needs them again with the same seed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field

import numpy as np
import torch

from cpsd_lib.data import VIEWS, permutation, test_view, train_view
from cpsd_lib.teachers import logits_of


@dataclass(frozen=True)
class Batch:
    """One step's images [B, 3, S, S] in [0, 1], targets [B, C] in {0, 1, -1}, image indices [B] and soft targets.

    soft {branch: what the teachers of that branch computed for these images}: logits [B, C], or an Output.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: np.ndarray
    soft: dict = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class Batches:
    """Epochs of batches over some images of a data set; order and views depend on (seed, epoch, image) alone."""

    images: np.ndarray  # uint8 [N, 3, S, S], or a Dataset's images
    targets: np.ndarray  # int8 [N, C] of 1, 0, -1 (unknown)
    indices: np.ndarray | None = None  # [n], the images to train on; None: all
    _: KW_ONLY
    batch_size: int = 32
    view: object = "default"  # a name in VIEWS, or a ViewRecipe
    seed: int = 0
    device: torch.device | str = "cpu"
    stored_views: int | None = None  # reuse this many views round robin; None: a new view of each image every epoch
    # (view number, image indices, images) -> {branch: logits [B, C] or Output}, such as
    # `lambda view, indices, images: {"co": teachers.soft_targets(images)}`; None: no soft targets
    soft: Callable | None = None

    def __post_init__(self):
        self.device = torch.device(self.device)
        self.indices = np.arange(len(self.images)) if self.indices is None else np.asarray(self.indices)
        self.targets = torch.from_numpy(np.ascontiguousarray(self.targets)).float()
        self.batch_size = min(self.batch_size, len(self.indices))
        # The last images of an epoch's order that do not fill a batch wait for another epoch: one shape for
        # torch.compile, and no batch of one image in batch norm.
        self.steps = len(self.indices) // self.batch_size
        self.recipe = VIEWS[self.view] if isinstance(self.view, str) else self.view

    @property
    def soft_seconds(self):
        """Seconds that the teachers took so far to compute soft targets that were not stored yet."""
        return getattr(self.soft, "seconds", 0.0)

    def view_of(self, number, indices):
        """Return view `number` of image `indices` [B] as float32 [B, 3, S, S] on the training device."""
        return self._augmented(self._gather(indices), number, indices)

    def order(self, number):
        """Return the image indices of one epoch, a list of [B]."""
        order = self.indices[permutation(self.seed, number, len(self.indices))]
        return [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(self.steps)]

    def epoch(self, number, start=0):
        """Yield the Batches of one epoch from step `start`; the next batch's images are read while this one trains."""
        parts, view = self.order(number)[start:], number % self.stored_views if self.stored_views else number
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._gather, parts[0]) if parts else None
            for step, indices in enumerate(parts):
                pixels = ahead.result()
                if step + 1 < len(parts):
                    ahead = reader.submit(self._gather, parts[step + 1])
                images = self._augmented(pixels, view, indices)
                soft = self.soft(view, indices, images) if self.soft else {}
                soft = {b: self._move(one) if torch.is_tensor(one) else one for b, one in soft.items()}
                yield Batch(images, self._move(self.targets[indices]), indices, soft)

    def _gather(self, indices):
        return self._pinned(torch.from_numpy(self.images[np.asarray(indices)]))

    def _augmented(self, pixels, view, indices):
        images = train_view(self._move(pixels), self.recipe, self.seed, view, indices)
        return images.contiguous(memory_format=torch.channels_last)

    def _move(self, tensor):
        return self._pinned(tensor).to(self.device, non_blocking=True)

    def _pinned(self, tensor):
        # From other memory a GPU's copy is not asynchronous, whatever non_blocking says.
        return tensor.pin_memory() if self.device.type == "cuda" and tensor.device.type == "cpu" else tensor


def predict_logits(models, images, indices, device, batch_size=128, precision=None, progress=None):
    """Return the logits [n, C] float32 (numpy) of each of `models` on the test views of image `indices`, read once for all.

    models: functions of images [B, 3, S, S] that return logits [B, C], a tensor or `.logits`. progress: a bar of images.
    """
    device, found = torch.device(device), []
    with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision is not None):
        for start in range(0, len(indices), batch_size):
            pixels = torch.from_numpy(images[np.asarray(indices[start : start + batch_size])]).to(device)
            view = test_view(pixels).contiguous(memory_format=torch.channels_last)
            logits = [logits_of(model(view)).float() for model in models]
            found.append(torch.cat(logits, 1).cpu().numpy())
            if progress:
                progress.update(len(view))
    return np.split(np.concatenate(found), np.cumsum([one.shape[1] for one in logits])[:-1], axis=1)
