"""A data set ready for training: its label table beside its decoded images, every fault found before any training."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpsd_lib.data import cache
from cpsd_lib.data.csv import read_csv
from cpsd_lib.data.scenes import Scenes
from cpsd_lib.data.table import LabelTable, check_splits, listed
from cpsd_lib.files import digest, sha256


@dataclass(frozen=True, eq=False)
class Dataset:
    """N decoded images and their labels; row number = image number everywhere."""

    table: LabelTable
    images: np.ndarray  # uint8 [N, 3, S, S], read-only memory map
    key: str  # hash of pixels, labels, class order and splits
    notes: list[str]  # what a user should know before training
    skipped: list[tuple[str, str]]  # (file, reason) left out under bad_files: skip
    source: object  # Scenes (knows boxes and planted groups) or CsvData


def open_dataset(data, cache_root):
    """Return the Dataset of DataParams `data`, decoding into a cache below `cache_root` what is not there yet.

    Raises ValueError or FileNotFoundError for anything that would spoil a training: see csv, table and cache.
    """
    opened = _open_scenes(data, cache_root) if data.kind == "scenes" else _open_csv(data, cache_root)
    table, images, key, notes, skipped, source = opened
    notes = [*notes, *check_splits(table)]
    label_key = digest([table.names, table.targets.tobytes().hex(), table.split.tolist()])
    return Dataset(table, images, digest([key, label_key]), notes, skipped, source)


def _open_scenes(data, cache_root):
    scenes = Scenes(images=data.images, size=data.size, seed=data.seed, groups=data.groups)
    built = cache.build(scenes.load, data.images, data.size, scenes.key, cache_root, desc="drawing scenes")
    return scenes.table, built.images, scenes.key, [], [], scenes


def _open_csv(data, cache_root):
    source = read_csv(data.root, data.annotations, data.image_folder)
    table, paths, notes = source.table, source.paths, []
    if data.limit is not None and data.limit < len(paths):
        kept = _seeded_share(table, data.limit, data.seed)
        notes.append(f"data.limit: {len(kept):,} of {len(paths):,} images are used")
        paths = [paths[row] for row in kept]
        table = LabelTable(table.names, table.targets[kept], [table.files[row] for row in kept], table.split[kept])
    digests = cache.fingerprint(paths, Path(cache_root) / "fingerprints" / f"{digest(str(data.root))}.json")
    key = digest([digests, data.size, data.max_pixels])
    load = cache.CsvImages(paths, data.size, data.max_pixels)
    built = cache.build(load, len(paths), data.size, key, cache_root)
    skipped = cache.check_bad(built.bad, table.files, data.bad_files)
    if skipped:
        table = table.skip(sorted(built.bad))
        notes.append(f"{len(skipped)} files could not be read and are left out: {listed(name for name, _ in skipped)}")
    notes += _overlap_notes(cache.overlap(digests, table), data.allow_overlap)
    return table, built.images, key, notes, skipped, source


def _overlap_notes(pairs, allowed):
    if not pairs:
        return []
    shown = listed(f"{first} = {second}" for first, second in pairs)
    text = f"{len(pairs)} images stand in training and in test under two names: {shown}"
    if not allowed:
        raise ValueError(f"{text}; remove one of each pair, or set data.allow_overlap=true to train all the same")
    return [text]


def _seeded_share(table, limit, seed):
    """Return `limit` rows, ascending, each split in its proportion."""
    rng = np.random.default_rng(seed)
    kept = []
    for split in sorted(set(table.split.tolist())):
        rows = table.rows(split)
        kept.extend(rng.permutation(rows)[: max(1, round(limit * len(rows) / len(table.split)))].tolist())
    return np.array(sorted(kept))


def signature(data):
    """Return a hash that changes when the images or labels on disk may have: names, sizes and times, no pixels read."""
    if data.kind == "scenes":
        return Scenes(images=data.images, size=data.size, seed=data.seed, groups=data.groups).key
    root = Path(data.root)
    folder = root / data.image_folder if (root / data.image_folder).is_dir() else root
    found = sorted(
        (file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    )
    annotations = root / data.annotations
    return digest([found, sha256(annotations) if annotations.is_file() else None])
