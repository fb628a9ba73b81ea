"""The store of what merged teachers said about every view, and who asks them what is not there yet."""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from cpsd_lib.files import read_json, write_json, write_text
from cpsd_lib.hardware import derive_seed
from cpsd_lib.progress import bar
from cpsd_lib.teachers import TrainModeTeachers

SAVE_SECONDS = 5  # between notes of the time spent


class StaleTargets(ValueError):
    """A soft-target store was made by other teachers, views, classes or images than the ones asked for."""


class SoftTargets:
    """Teacher logits per (view, image) in a float16 memory map, computed once and read by every later student.

    `made_of` is a JSON-able dict of everything that determines the values; a store made of anything else is refused.
    rows [N]: the image rows it covers. Each (view, image) has a checksum beside its logits; without the right one it is not
    there, so a write that a kill or a bad disk broke is asked again and never believed.
    """

    def __init__(self, path, made_of, rows, num_classes, views):
        self.path = Path(path)
        self.rows = np.sort(np.asarray(rows))
        self.made_of = json.loads(json.dumps(made_of))
        self.shape = (views, len(self.rows), num_classes)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record, sums = self.path.with_suffix(".json"), self.path.with_suffix(".sums")
        maps = {self.path: (np.dtype(np.uint16), self.shape), sums: (np.dtype(np.uint32), self.shape[:2])}
        sizes = {path: math.prod(shape) * dtype.itemsize for path, (dtype, shape) in maps.items()}
        if record.exists():
            self._refuse_another(read_json(record), record)
        if not record.exists() or any(not p.exists() or p.stat().st_size != size for p, size in sizes.items()):
            # Values without a record belong to nobody, whatever their checksums say.
            for path in (sums, self.path.with_suffix(".seconds"), self.path):
                path.unlink(missing_ok=True)
            for path, size in sizes.items():
                with open(path, "wb") as file:
                    file.truncate(size)  # no room is taken before it is written to
        self._bits, self._sums = (np.memmap(p, dtype, "r+", shape=shape) for p, (dtype, shape) in maps.items())
        if not record.exists():
            write_json(record, {"made_of": self.made_of, "shape": list(self.shape)})
        self._keys = _keys(num_classes)
        self._unsaved, self._saved_at = 0.0, time.monotonic()

    def _refuse_another(self, found, record):
        if found["made_of"] == self.made_of and found["shape"] == list(self.shape):
            return
        other = found["made_of"] | {"shape": found["shape"]}
        wanted = self.made_of | {"shape": list(self.shape)}
        names = sorted(name for name in wanted | other if wanted.get(name, "absent") != other.get(name, "absent"))
        raise StaleTargets(f"{record} was made of another {', '.join(names)}; delete it to fill the store again")

    @property
    def nbytes(self):
        """Bytes of the full store, logits and checksums."""
        return math.prod(self.shape) * 2 + math.prod(self.shape[:2]) * 4

    @property
    def seconds(self):
        """Seconds spent asking the teachers so far, over all attempts."""
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

    def has(self, view, rows):
        """Return bool [B]: whether what the teachers said of `view` (modulo the stored views) is there, and sound.

        Raises ValueError for a row the store does not cover.
        """
        return self._look(view, rows)[1]

    def read(self, view, rows):
        """Return logits [B, C] float32 of `view` (modulo the stored views) for image `rows` [B].

        Raises ValueError for a row the store does not cover, RuntimeError for values that are not there.
        """
        bits, there = self._look(view, rows)
        if not there.all():
            lacking = np.asarray(rows)[~there][:5].tolist()
            raise RuntimeError(
                f"view {view % self.shape[0]} of {self.path.name} lacks the image rows {lacking}; ask the teachers first"
            )
        return torch.from_numpy(bits.view(np.float16).astype(np.float32))

    def write(self, view, rows, logits):
        """Store logits [B, C] for image `rows` [B] of `view`; FloatingPointError for NaN, of which nothing is stored."""
        # float16 ends at 65,504; a logit beyond 6e4 says nothing more than 6e4 does.
        values = logits.detach().float().clamp(-6e4, 6e4).half().cpu().numpy()
        if np.isnan(values).any():
            raise FloatingPointError(
                f"the teachers of {self.path.stem} answer NaN for images among rows {np.asarray(rows)}"
            )
        view, places, bits = view % self.shape[0], self._places(rows), values.view(np.uint16)
        self._bits[view, places] = bits
        self._sums[view, places] = self._checksums(bits)

    def missing(self):
        """Return how many (view, image) are not there, or not sound: the whole store is read."""
        return sum(int((~self.has(view, self.rows)).sum()) for view in range(self.shape[0]))

    def _look(self, view, rows):
        view, places = view % self.shape[0], self._places(rows)
        bits = self._bits[view, places]
        return bits, self._checksums(bits) == self._sums[view, places]

    def _places(self, rows):
        rows = np.asarray(rows)
        places = np.searchsorted(self.rows, rows)
        outside = rows[self.rows[np.minimum(places, len(self.rows) - 1)] != rows]
        if len(outside):
            raise ValueError(f"{self.path.name} does not cover the image rows {outside[:5].tolist()}")
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


class Asked:
    """What merged teachers say of a batch: read from their stores where it is there, else asked for once and kept.

    stores: {branch: SoftTargets}. load() -> {branch: Teachers}, called when something is asked for the first time.
    seconds: spent asking so far, which is no part of a student's own time.
    """

    def __init__(self, stores, load, device, precision=None):
        self.stores, self.device, self.precision = stores, torch.device(device), precision
        self.seconds, self._load, self._teachers = 0.0, load, None

    def there(self, view, rows):
        """Return whether all of it is stored already."""
        return all(store.has(view, rows).all() for store in self.stores.values())

    def __call__(self, view, rows, images):
        """Return {branch: logits [B, C] float32} for view `view` of image `rows` [B]; images [B, 3, S, S]: that view."""
        rows, parts = np.asarray(rows), {}
        for branch, store in self.stores.items():
            lacking = ~store.has(view, rows)
            if lacking.any():
                # The same part is the same tensor for all branches: their trunk knows it by that.
                key = lacking.tobytes()
                parts.setdefault(key, images if lacking.all() else images[torch.from_numpy(lacking).to(images.device)])
                self._ask(branch, store, view, rows, lacking, images, parts[key])
        return {branch: store.read(view, rows) for branch, store in self.stores.items()}

    def flush(self):
        """Put on disk what was stored."""
        for store in self.stores.values():
            store.flush()

    def _ask(self, branch, store, view, rows, lacking, images, part):
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
                torch.manual_seed(derive_seed("teachers in train mode", branch, int(view), rows.tolist()))
                logits = teacher(images)[torch.from_numpy(lacking).to(self.device)]
            else:
                logits = teacher(part)
        store.write(view, rows[lacking], logits)
        spent = time.perf_counter() - began
        store.spend(spent)
        self.seconds += spent


def fill(asked, batches, epochs, desc="soft targets"):
    """Ask for all that a student will read in `epochs` of `batches`, in the very batches it will read it in."""
    with bar(epochs * batches.steps * batches.batch_size, desc, "img") as progress:
        for epoch in range(epochs):
            view = batches.view_number(epoch)
            for rows in batches.order(epoch):
                if not asked.there(view, rows):
                    asked(view, rows, batches.view(view, rows))
                progress.update(len(rows))
        asked.flush()


def expected(asked, batches, epochs):
    """Return (bytes of the full stores, seconds that filling them will take, 0 when they are full).

    Two batches are asked about, timed and kept.
    """
    size = sum(store.nbytes for store in asked.stores.values())
    todo = [
        (view, rows)
        for view in range(min(epochs, batches.stored_views or epochs))
        for rows in batches.order(view)
        if not asked.there(view, rows)
    ]
    seconds = 0.0
    for view, rows in todo[:2]:  # the first call loads the teachers, too
        began = time.perf_counter()
        asked(view, rows, batches.view(view, rows))
        seconds = time.perf_counter() - began
    return size, seconds * len(todo)
