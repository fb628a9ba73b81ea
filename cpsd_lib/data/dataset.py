"""A data set ready for training: its label table beside its decoded images, every fault found before any training."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cpsd_lib.data.images import cache
from cpsd_lib.data.images.fingerprint import fingerprint, overlap
from cpsd_lib.data.images.pixels import OnTheFly, look_through
from cpsd_lib.data.readers import coco2014, labels, nuswide, voc2007
from cpsd_lib.data.readers.common import missing_files
from cpsd_lib.data.readers.csv import read_csv
from cpsd_lib.data.scenes.scenes import Scenes
from cpsd_lib.data.table import LabelTable, check_splits, listed
from cpsd_lib.support import counted, digest, sha256

READERS = {
    "scenes": lambda data: Scenes(images=data.images, size=data.size, seed=data.seed, groups=data.groups),
    "csv": lambda data: read_csv(data.root, data.annotations, data.image_folder),
    "coco2014": lambda data: coco2014.read_coco2014(data.root),
    "nuswide": lambda data: nuswide.read_nuswide(data.root),
    "voc2007": lambda data: voc2007.read_voc2007(data.root, data.difficult),
    "labels": lambda data: labels.read_labels(data.root),
}
PUBLISHED_COUNTS = {  # labelled images by split, classes
    "coco2014": (coco2014.LABELLED, len(coco2014.COCO_CLASSES)),
    "nuswide": (nuswide.LABELLED, nuswide.CONCEPTS),
    "voc2007": (voc2007.LISTED, len(voc2007.CLASSES)),
}
WATCHED = {module.__name__.rpartition(".")[2]: module.watched for module in (coco2014, nuswide, voc2007, labels)}
PUBLISHED = tuple(PUBLISHED_COUNTS)  # others have figures for these: a part of one is not comparable


class NoImages(ValueError):
    """Something needs pixels, and the data set has labels only."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """N decoded images and their labels; row number = image number everywhere."""

    table: LabelTable
    # uint8 [N, 3, S, S], a read-only memory map or decoded when asked for; None for a data set of labels only
    images: np.ndarray | OnTheFly | None
    key: str  # hash of pixels, labels, class order and splits
    notes: list[str]  # what a user should know before training
    skipped: list[tuple[str, str]]  # (file, reason) left out: unreadable or not on disk
    kind: str  # DataSettings.kind
    source: object  # Scenes (knows boxes and planted groups) or LabelledFiles
    incomplete: str = ""  # the caveat of figures that are not from the whole published data set, and why

    def need_images(self):
        """Return `images`; raises NoImages, with what works without, for a data set of labels only."""
        if self.images is None:
            raise NoImages(
                "this data set has labels and no images: 01_data and 02_partition work on it, training and scoring do "
                "not. Give data.kind and data.root of one with images"
            )
        return self.images


def open_dataset(data, cache_root):
    """Return the Dataset of DataSettings `data`, decoding into a cache below `cache_root` what is not there yet.

    Raises ValueError or FileNotFoundError for anything that would spoil a training: see the readers, table and cache.
    """
    opened = {"scenes": _open_scenes, "labels": _open_labels}.get(data.kind, _open_files)(data, cache_root)
    notes = [*opened.notes, *check_splits(opened.table, needed_splits(data))]
    table = opened.table
    label_key = digest([table.names, table.targets.tobytes().hex(), table.split.tolist()])
    return replace(opened, notes=notes, key=digest([opened.key, label_key]))


def read_source(data):
    """Return the Scenes or LabelledFiles of DataSettings `data`: `.table`, `.paths`, `.notes`; no image is decoded."""
    return READERS[data.kind](data)


def count_images(data):
    """Return (training images, test images of all test splits, classes, where the numbers come from), nothing decoded.

    The published data sets need not be there; an image that is missing or broken still counts.
    """
    if data.kind in PUBLISHED:
        counts, classes = PUBLISHED_COUNTS[data.kind]
        origin = "the published data set's labelled images"
    else:
        table = read_source(data).table
        counts, classes = Counter(table.split.tolist()), len(table.names)
        origin = "scenes are drawn" if data.kind == "scenes" else f"counted in {data.root}"
    total = sum(counts.values())
    if data.limit is not None and data.limit < total:
        counts = {split: max(1, round(data.limit * count / total)) for split, count in counts.items()}
        origin += f", data.limit {data.limit:,}"
    return counts.get("train", 0), counts.get("test", 0) + counts.get("test_shifted", 0), classes, origin


def needed_splits(data):
    """Return the splits that must hold labelled images: train and test, or train alone for labels without images."""
    return ("train",) if data.kind == "labels" else ("train", "test")


def _open_scenes(data, cache_root):
    scenes = read_source(data)
    if data.cache == "none":
        return Dataset(
            scenes.table, OnTheFly(scenes.load, data.images, data.size), scenes.key, [], [], data.kind, scenes
        )
    built = cache.build(scenes.load, data.images, data.size, scenes.key, cache_root, desc="drawing scenes")
    return Dataset(scenes.table, built.images, scenes.key, [], [], data.kind, scenes)


def _open_labels(data, _):
    source, notes = _limited(read_source(data), data)
    return Dataset(source.table, None, "labels", [*source.notes, *notes], [], data.kind, source)


def _open_files(data, cache_root):
    source, skipped, incomplete = leave_out_missing(read_source(data), data)
    source, notes = _limited(source, data)
    notes = [*source.notes, *incomplete, *notes]
    incomplete = [*incomplete, *(note for note in notes if note.startswith("data.limit"))]
    table, paths = source.table, source.paths
    digests = fingerprint(paths, Path(cache_root) / "fingerprints" / f"{digest(str(data.root))}.json")
    key = digest([digests, data.size, data.max_pixels])
    load = cache.CsvImages(paths, data.size, data.max_pixels)
    if data.cache == "none":
        images = OnTheFly(load, len(paths), data.size)
        bad = look_through(images, Path(cache_root) / key)
    else:
        built = cache.build(load, len(paths), data.size, key, cache_root)
        images, bad = built.images, built.bad
    unreadable = cache.check_bad(bad, table.files, data.bad_files)
    if unreadable:
        table = table.skip(sorted(bad))
        names = listed(name for name, _ in unreadable)
        notes.append(f"{counted(len(unreadable), 'file')} could not be read, left out: {names}")
        incomplete.append(f"INCOMPLETE: {counted(len(unreadable), 'file')} could not be read, left out")
    notes += _overlap_notes(overlap(digests, table), data.allow_overlap or data.kind in PUBLISHED)
    caveat = "; ".join(incomplete) if data.kind in PUBLISHED else ""
    return Dataset(table, images, key, notes, skipped + unreadable, data.kind, source, caveat)


def leave_out_missing(source, data):
    """Return (LabelledFiles without the images that are not on disk, their (file, reason) list, a sentence in a list).

    Only for the published data sets: NUS-WIDE's missing images are left out, those of the others only under bad_files:
    skip; else they are an error here, before hours of decoding. A csv's are found when decoding, beside its broken files.
    """
    gone = missing_files(source.paths) if data.kind in PUBLISHED else []
    if not gone:
        return source, [], []
    table = source.table
    reason = "the file does not exist"
    if len(gone) == len(source.paths):
        raise FileNotFoundError(f"none of {len(gone):,} images is on disk, expected {source.paths[0]} and so on")
    policy = "skip" if data.kind == "nuswide" else data.bad_files
    skipped = cache.check_bad({row: reason for row in gone}, table.files, policy)
    splits = [
        f"{(table.split[gone] == split).sum():,} of {len(table.indices(split)):,} {split}"
        for split in ("train", "test")
    ]
    sentence = f"INCOMPLETE: images that are not on disk are left out: {', '.join(splits)} images (named in data.json)"
    return source.take(np.setdiff1d(np.arange(len(source.paths)), gone)), skipped, [sentence]


def _limited(source, data):
    count = len(source.table.files)
    if data.limit is None or data.limit >= count:
        return source, []
    kept = _seeded_share(source.table, data.limit, data.seed)
    return source.take(kept), [f"data.limit: {len(kept):,} of {count:,} images are used"]


def _overlap_notes(pairs, allowed):
    if not pairs:
        return []
    shown = listed(f"{first} = {second}" for first, second in pairs)
    text = f"{counted(len(pairs), 'image stands', 'images stand')} in training and in test under two names: {shown}"
    if not allowed:
        raise ValueError(f"{text}; remove one of each pair, or set data.allow_overlap=true to train all the same")
    return [text]


def _seeded_share(table, limit, seed):
    """Return `limit` rows, ascending, each split in its proportion."""
    rng = np.random.default_rng(seed)
    kept = []
    for split in sorted(set(table.split.tolist())):
        rows = table.indices(split)
        kept.extend(rng.permutation(rows)[: max(1, round(limit * len(rows) / len(table.split)))].tolist())
    return np.array(sorted(kept))


def signature(data):
    """Return a hash that changes when the images or labels on disk may have: names, sizes and times, no pixels read.

    For the published data sets: of every label file and image folder, not of 120,000 images one by one. It sees labels
    that changed and images that came, went or were renamed; an image overwritten in place is seen by `open_dataset`.
    """
    if data.kind == "scenes":
        return read_source(data).key
    root = Path(data.root)
    if data.kind in WATCHED:
        texts, folders = WATCHED[data.kind](root)
        files = [(path.relative_to(root).as_posix(), *_state(path)) for path in texts]
        return digest([files, [(path.relative_to(root).as_posix(), _state(path)[1:]) for path in folders]])
    folder = root / data.image_folder if (root / data.image_folder).is_dir() else root
    found = sorted(
        (file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
        for file in folder.rglob("*")
        if file.is_file()
    )
    annotations = root / data.annotations
    return digest([found, sha256(annotations) if annotations.is_file() else None])


def _state(path):
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return (None, None)
    return (status.st_size, status.st_mtime_ns)
