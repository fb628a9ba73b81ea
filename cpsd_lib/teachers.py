"""Frozen experts that act as one C-way teacher, and the store of what they said about every view."""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from cpsd_lib.files import read_json, write_json, write_text
from cpsd_lib.progress import bar


class Teachers(nn.Module):
    """The experts of one partition, merged into one teacher over all classes (METHOD 1.4); it cannot leave eval mode."""

    def __init__(self, models, partition):
        super().__init__()
        if len(models) != len(partition.parts):
            raise ValueError(
                f"{len(models)} teachers for {len(partition.parts)} parts; give one model a part, in order"
            )
        self.experts, self.partition = nn.ModuleList(models), partition
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        """Stay in eval mode: the release's teachers changed their batch-norm statistics while they were distilled."""
        return super().train(False)

    def label_embeddings(self, images):
        """Return merged label-wise embeddings [B, C, D] for images [B, 3, S, S]; ValueError for experts without."""
        self.eval()
        found = [expert(images).label_embeddings for expert in self.experts]
        if any(one is None for one in found):
            raise ValueError("these teachers have no label embeddings; give them a head that has, such as ml_decoder")
        return self.partition.merge(found)

    def forward(self, images):
        """Return merged logits [B, C] for images [B, 3, S, S]."""
        self.eval()  # one expert may have been told train() by name
        return self.partition.merge([expert(images).logits.float() for expert in self.experts])


class TrainModeTeachers(Teachers):
    """The same experts in train mode, as the release distilled them: for the ablation that shows what this fault costs."""

    def train(self, mode=True):
        """Stay in train mode: dropout drops, batch norm uses and moves its statistics."""
        return nn.Module.train(self, True)

    def eval(self):
        """Stay in train mode."""
        return self.train()


class StaleTargets(ValueError):
    """A soft-target store was made by other teachers, views, classes or images than the ones asked for."""


class SoftTargets:
    """Teacher logits per (view, image) in a float16 memory map, computed once and read by every later student.

    `made_of` is a JSON-able dict of everything that determines the values; a store made of anything else is refused.
    rows [N]: the image rows it covers. A view is stored in blocks of images, each marked done after its values are on
    disk, so a killed filling goes on where it was.
    """

    BLOCK = 512  # images; the unit that is lost when filling is killed

    def __init__(self, path, made_of, rows, num_classes, views):
        self.path = Path(path)
        self.rows = np.sort(np.asarray(rows))
        self.made_of = json.loads(json.dumps(made_of))
        self.shape = (views, len(self.rows), num_classes)
        self.block_starts = range(0, len(self.rows), self.BLOCK)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record, done_path = self.path.with_suffix(".json"), self.path.with_suffix(".done")
        maps = {
            self.path: (np.dtype(np.float16), self.shape),
            done_path: (np.dtype(np.uint8), (views, len(self.block_starts))),
        }
        sizes = {path: math.prod(shape) * dtype.itemsize for path, (dtype, shape) in maps.items()}
        if record.exists():
            self._refuse_another(read_json(record), record)
        if not record.exists() or any(not p.exists() or p.stat().st_size != size for p, size in sizes.items()):
            # Values without a record belong to nobody, and marks without their values vouch for nothing. The marks go
            # first and come back last but for the record, so that a kill in between leaves nothing that claims too much.
            for path in (done_path, self.path.with_suffix(".seconds"), self.path):
                path.unlink(missing_ok=True)
            for path, size in sizes.items():
                with open(path, "wb") as file:
                    file.truncate(size)
        self._values, self._done = (np.memmap(p, dtype, "r+", shape=shape) for p, (dtype, shape) in maps.items())
        if not record.exists():
            write_json(record, {"made_of": self.made_of, "shape": list(self.shape)})

    def _refuse_another(self, found, record):
        if found["made_of"] == self.made_of and found["shape"] == list(self.shape):
            return
        other = found["made_of"] | {"shape": found["shape"]}
        wanted = self.made_of | {"shape": list(self.shape)}
        names = sorted(name for name in wanted | other if wanted.get(name, "absent") != other.get(name, "absent"))
        raise StaleTargets(f"{record} was made of another {', '.join(names)}; delete it to fill the store again")

    def delete(self):
        """Remove the store's files, its record first."""
        remove_store(self.path)

    @property
    def seconds(self):
        """Seconds spent filling this store so far, over all attempts."""
        path = self.path.with_suffix(".seconds")
        return float(path.read_text()) if path.exists() else 0.0

    def _mark_done(self, view, block, seconds):
        self._values.flush()
        self._done[view, block] = 1
        self._done.flush()
        write_text(self.path.with_suffix(".seconds"), repr(self.seconds + seconds))

    def missing(self):
        """Return the (view, block) pairs that are not there yet."""
        return [tuple(pair) for pair in np.argwhere(np.asarray(self._done) == 0).tolist()]

    def read(self, view, rows):
        """Return logits [B, C] float32 of `view` (taken modulo the stored views) for image `rows` [B].

        Raises ValueError for a row the store does not cover, RuntimeError for values that are not filled yet.
        """
        rows = np.asarray(rows)
        positions = np.searchsorted(self.rows, rows)
        outside = rows[self.rows[np.minimum(positions, len(self.rows) - 1)] != rows]
        if len(outside):
            raise ValueError(f"{self.path.name} does not cover the image rows {outside[:5].tolist()}")
        view = view % self.shape[0]
        if not self._done[view, positions // self.BLOCK].all():
            raise RuntimeError(f"view {view} of {self.path.name} is not filled; call fill first")
        return torch.from_numpy(self._values[view, positions].astype(np.float32))


def remove_store(path):
    """Remove a soft-target store's files, its record first, so that a kill in between leaves no valid store."""
    for suffix in (".json", ".done", ".seconds", Path(path).suffix):
        Path(path).with_suffix(suffix).unlink(missing_ok=True)


def fill(stores, teachers, view_of, device, desc="soft targets", batch_size=32, precision=None):
    """Compute what is missing in `stores` {branch: SoftTargets}, all branches on one pass over the views.

    teachers: {branch: Teachers}; a branch that is filled needs none. view_of(view, rows) -> images [B, 3, S, S] on
    `device`, the very views the student gets. Raises FloatingPointError when a teacher answers NaN.
    """
    if not any(store.missing() for store in stores.values()):
        return
    any_store = next(iter(stores.values()))
    if not all(np.array_equal(store.rows, any_store.rows) for store in stores.values()):
        raise ValueError(f"the stores of {', '.join(stores)} cover different images; fill them one by one")
    with FileLock(any_store.path.with_name(".lock")), torch.inference_mode():
        # Listed under the lock: another process may just have done some of it.
        todo = {}
        for branch, store in stores.items():
            for pair in store.missing():
                todo.setdefault(pair, []).append(branch)
        for branch in {branch for branches in todo.values() for branch in branches}:
            teachers[branch].to(device, memory_format=torch.channels_last)
        block_rows = [any_store.rows[start : start + any_store.BLOCK] for start in any_store.block_starts]
        with bar(sum(len(block_rows[block]) for _, block in todo), desc, "img") as progress:
            for (view, block), branches in sorted(todo.items()):
                chosen = {branch: (stores[branch], teachers[branch]) for branch in branches}
                _fill_block(chosen, view, block, view_of, batch_size, precision)
                progress.update(len(block_rows[block]))


def _fill_block(chosen, view, block, view_of, batch_size, precision):
    any_store = next(iter(chosen.values()))[0]
    first = any_store.block_starts[block]
    stop = min(first + any_store.BLOCK, len(any_store.rows))
    spent = dict.fromkeys(chosen, 0.0)
    for start in range(first, stop, batch_size):
        part = slice(start, min(start + batch_size, stop))
        began = time.perf_counter()
        images = view_of(view, any_store.rows[part])
        for branch, (store, teacher) in chosen.items():
            with torch.autocast(images.device.type, precision, enabled=precision is not None):
                logits = teacher(images)
            # float16 ends at 65,504; a logit beyond 6e4 says nothing more than 6e4 does.
            values = logits.clamp(-6e4, 6e4).half().cpu().numpy()
            if np.isnan(values).any():
                raise FloatingPointError(
                    f"the {branch} teachers answer NaN for images among rows {any_store.rows[part]}"
                )
            store._values[view, part] = values
            now = time.perf_counter()  # the first branch of a batch also pays for its view
            spent[branch], began = spent[branch] + now - began, now
    for branch, (store, _) in chosen.items():
        store._mark_done(view, block, spent[branch])
