"""The store of soft targets: the teachers' logits of every view, computed once and read by every later student."""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from cpsd_lib.support import bar, derive_seed, read_json, write_json, write_text
from cpsd_lib.teachers import Output, TrainModeTeachers, logits_of

SAVE_SECONDS = 5  # between notes of the time spent


class StaleTargets(ValueError):
    """A soft-target store has another fingerprint: other teachers, views, classes or images."""


class SoftTargets:
    """Teacher logits per (view, image) in a float16 memory map.

    `fingerprint` is a JSON-able dict of everything that determines the values; a store of another one is refused.
    indices [N]: the images it covers. Each (view, image) has a checksum beside its logits; without the right one it counts
    as missing, so what a kill or a bad disk broke is computed again and never believed.
    """

    def __init__(self, path, fingerprint, indices, num_classes, views):
        self.path = Path(path)
        self.indices = np.sort(np.asarray(indices))
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.shape = (views, len(self.indices), num_classes)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record, sums = self.path.with_suffix(".json"), self.path.with_suffix(".sums")
        maps = {self.path: (np.dtype(np.uint16), self.shape), sums: (np.dtype(np.uint32), self.shape[:2])}
        sizes = {path: math.prod(shape) * dtype.itemsize for path, (dtype, shape) in maps.items()}
        if record.exists():
            self._refuse_another(read_json(record), record)
        if not record.exists() or any(not p.exists() or p.stat().st_size != size for p, size in sizes.items()):
            # Values without a record belong to nobody, whatever their checksums are.
            for path in (sums, self.path.with_suffix(".seconds"), self.path):
                path.unlink(missing_ok=True)
            for path, size in sizes.items():
                with open(path, "wb") as file:
                    file.truncate(size)  # no room is taken before it is written to
        self._bits, self._sums = (np.memmap(p, dtype, "r+", shape=shape) for p, (dtype, shape) in maps.items())
        if not record.exists():
            write_json(record, {"fingerprint": self.fingerprint, "shape": list(self.shape)})
        self._keys = _keys(num_classes)
        self._unsaved, self._saved_at = 0.0, time.monotonic()

    def _refuse_another(self, content, record):
        other = content.get("fingerprint", {}) | {"shape": content.get("shape")}
        wanted = self.fingerprint | {"shape": list(self.shape)}
        if other != wanted:
            names = sorted(name for name in wanted | other if wanted.get(name, "absent") != other.get(name, "absent"))
            raise StaleTargets(f"{record} has another {', '.join(names)}; delete it to fill the store again")

    @property
    def nbytes(self):
        """Bytes of the full store, logits and checksums."""
        return math.prod(self.shape) * 2 + math.prod(self.shape[:2]) * 4

    @property
    def seconds(self):
        """Seconds the teachers have taken so far, over all attempts."""
        path = self.path.with_suffix(".seconds")
        return self._unsaved + (float(path.read_text()) if path.exists() else 0.0)

    def spend(self, seconds):
        """Add to the seconds spent; they are on disk some seconds later, or after flush."""
        self._unsaved += seconds
        if time.monotonic() - self._saved_at > SAVE_SECONDS:
            self.flush()

    def flush(self):
        """Put on disk what was written and spent."""
        if self._unsaved:
            total = self.seconds
            for written in (self._bits, self._sums):
                written.flush()
            write_text(self.path.with_suffix(".seconds"), repr(total))
            self._unsaved = 0.0
        self._saved_at = time.monotonic()

    def has(self, view, indices):
        """Return bool [B]: whether the soft targets of `view` (modulo the stored views) are there, and sound.

        Raises ValueError for an image the store does not cover.
        """
        return self._look(view, indices)[1]

    def read(self, view, indices):
        """Return logits [B, C] float32 of `view` (modulo the stored views) for image `indices` [B].

        Raises ValueError for an image the store does not cover, RuntimeError for values that are not there.
        """
        bits, there = self._look(view, indices)
        if not there.all():
            missing = np.asarray(indices)[~there][:5].tolist()
            raise RuntimeError(
                f"view {view % self.shape[0]} of {self.path.name} lacks the images {missing}; compute them first"
            )
        return torch.from_numpy(bits.view(np.float16).astype(np.float32))

    def write(self, view, indices, logits):
        """Store logits [B, C] for image `indices` [B] of `view`; FloatingPointError for NaN, of which nothing is stored."""
        # float16 ends at 65,504; a logit beyond 6e4 means nothing more than 6e4 does.
        values = logits.detach().float().clamp(-6e4, 6e4).half().cpu().numpy()
        if np.isnan(values).any():
            raise FloatingPointError(
                f"the teachers of {self.path.stem} compute NaN for some of the images {np.asarray(indices)}"
            )
        view, places, bits = view % self.shape[0], self._places(indices), values.view(np.uint16)
        self._bits[view, places] = bits
        self._sums[view, places] = self._checksums(bits)

    def missing(self):
        """Return how many (view, image) are not there, or not sound: the whole store is read."""
        return sum(int((~self.has(view, self.indices)).sum()) for view in range(self.shape[0]))

    def _look(self, view, indices):
        view, places = view % self.shape[0], self._places(indices)
        bits = self._bits[view, places]
        return bits, self._checksums(bits) == self._sums[view, places]

    def _places(self, indices):
        indices = np.asarray(indices)
        places = np.searchsorted(self.indices, indices)
        outside = indices[self.indices[np.minimum(places, len(self.indices) - 1)] != indices]
        if len(outside):
            raise ValueError(f"{self.path.name} does not cover the images {outside[:5].tolist()}")
        return places

    def _checksums(self, bits):
        # Multilinear hashing: one odd key a class, sums modulo 2^64, the upper half. 0 stands for nothing written.
        sums = ((bits.astype(np.uint64) + np.uint64(1)) * self._keys).sum(1) >> np.uint64(32)
        return np.maximum(sums, 1).astype(np.uint32)


def _keys(num_classes):
    keys = np.random.default_rng(0).integers(0, 2**64, num_classes, np.uint64)
    return keys | np.uint64(1)


def remove_store(path):
    """Remove a soft-target store's files, its record first, so that a kill in between leaves no valid store."""
    for suffix in (".json", ".sums", ".seconds", Path(path).suffix):
        Path(path).with_suffix(suffix).unlink(missing_ok=True)


class TargetSource:
    """The soft targets of a batch: read from their stores where they are there, else computed once and kept.

    stores: {branch: SoftTargets}. load() -> {branch: PartTeachers}, called when something is computed for the first time.
    seconds: spent computing so far, which is no part of a student's own time.
    """

    def __init__(self, stores, load, device, precision=None):
        self.stores, self.device, self.precision = stores, torch.device(device), precision
        self.seconds, self._load, self._teachers = 0.0, load, None

    def there(self, view, indices):
        """Return whether all of it is stored already."""
        return all(store.has(view, indices).all() for store in self.stores.values())

    def __call__(self, view, indices, images):
        """Return {branch: logits [B, C] float32, on the images' device} for view `view` of image `indices` [B].

        images [B, 3, S, S]: that view.
        """
        indices, parts = np.asarray(indices), {}
        for branch, store in self.stores.items():
            missing = ~store.has(view, indices)
            if missing.any():
                # The same part is the same tensor for all branches: their trunk knows it by that.
                key = missing.tobytes()
                parts.setdefault(key, images if missing.all() else images[torch.from_numpy(missing).to(images.device)])
                self._compute(branch, store, view, indices, missing, images, parts[key])
        stored = {branch: store.read(view, indices) for branch, store in self.stores.items()}
        return {branch: logits.to(images.device, non_blocking=True) for branch, logits in stored.items()}

    def flush(self):
        """Put on disk what was stored."""
        for store in self.stores.values():
            store.flush()

    def _compute(self, branch, store, view, indices, missing, images, part):
        began = time.perf_counter()
        if self._teachers is None:
            self._teachers = self._load()
            for teacher in self._teachers.values():
                teacher.to(self.device, memory_format=torch.channels_last)
        teacher = self._teachers[branch]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.precision, enabled=self.precision is not None),
        ):
            if isinstance(teacher, TrainModeTeachers):  # the batch is what they normalise by, and their dropout draws
                torch.manual_seed(derive_seed("teachers in train mode", branch, int(view), indices.tolist()))
                logits = logits_of(teacher.soft_targets(images))[torch.from_numpy(missing).to(self.device)]
            else:
                logits = logits_of(teacher.soft_targets(part))
        store.write(view, indices[missing], logits)
        spent = time.perf_counter() - began
        store.spend(spent)
        self.seconds += spent


class WithEmbeddings:
    """Soft targets with label-wise embeddings, computed anew for each batch: 768 numbers a class and view are too many to keep.

    source: a TargetSource for the logits, or None. experts {branch: PartTeachers} whose heads have embeddings.
    """

    def __init__(self, source, experts, device, precision=None):
        self.source, self.experts, self.device, self.precision = source, experts, torch.device(device), precision

    @property
    def seconds(self):
        """Seconds spent computing stored logits; the embeddings are part of every step."""
        return self.source.seconds if self.source else 0.0

    def flush(self):
        """Put on disk what was stored."""
        if self.source:
            self.source.flush()

    def __call__(self, view, indices, images):
        """Return {branch: Output of logits [B, C] and label_embeddings [B, C, D]} for view `view` of image `indices` [B]."""
        stored = self.source(view, indices, images) if self.source else {}
        with torch.no_grad(), torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            computed = {branch: experts.soft_targets(images) for branch, experts in self.experts.items()}
        return stored | {
            branch: Output(stored.get(branch, logits_of(output)), output.label_embeddings)
            for branch, output in computed.items()
        }


def fill(source, batches, epochs, desc="soft targets"):
    """Compute all that a student will read in `epochs` of `batches`, in the very batches it will read it in."""
    with bar(epochs * batches.steps * batches.batch_size, desc, "img") as progress:
        for epoch in range(epochs):
            view = batches.view_number(epoch)
            for indices in batches.order(epoch):
                if not source.there(view, indices):
                    source(view, indices, batches.view(view, indices))
                progress.update(len(indices))
        source.flush()


def expected(source, batches, epochs):
    """Return (bytes of the full stores, seconds that filling them will take, 0 when they are full).

    Two batches are computed, timed and kept.
    """
    size = sum(store.nbytes for store in source.stores.values())
    todo = [
        (view, indices)
        for view in range(min(epochs, batches.stored_views or epochs))
        for indices in batches.order(view)
        if not source.there(view, indices)
    ]
    seconds = 0.0
    for view, indices in todo[:2]:  # the first call loads the teachers, too
        began = time.perf_counter()
        source(view, indices, batches.view(view, indices))
        seconds = time.perf_counter() - began
    return size, seconds * len(todo)
