"""A data set ready for training: its label table beside its decoded images, every fault found before any training."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import partial
from glob import glob
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cpsd_lib.data.images import cache
from cpsd_lib.data.images.decode import DECODE_VERSION, NO_FILE, decode_from
from cpsd_lib.data.images.digests import file_digests, file_states
from cpsd_lib.data.images.pixels import OnTheFly
from cpsd_lib.data.readers import coco2014, labels, nuswide, voc2007
from cpsd_lib.data.readers.common import LabelledFiles, hints, missing_files
from cpsd_lib.data.readers.csv import read_csv
from cpsd_lib.data.scenes.scenes import Scenes
from cpsd_lib.data.table import UNLABELLED, LabelTable, check_splits
from cpsd_lib.support import counted, digest, listed, sha256

READERS = {
    "scenes": lambda data: Scenes(images=data.images, size=data.size, seed=data.seed, groups=data.groups),
    "csv": lambda data: read_csv(data.root, data.annotations, data.image_folder, data.separator, data.unnamed),
    "coco2014": lambda data: coco2014.read_coco2014(data.root),
    "nuswide": lambda data: nuswide.read_nuswide(data.root),
    "voc2007": lambda data: voc2007.read_voc2007(data.root, data.difficult),
    "labels": lambda data: labels.read_labels(data.root),
}
PUBLISHED = {  # labelled images by split, classes; others have figures for these: a part of one is not comparable
    "coco2014": (coco2014.LABELLED, len(coco2014.COCO_CLASSES)),
    "nuswide": (nuswide.LABELLED, nuswide.CONCEPTS),
    "voc2007": (voc2007.LISTED, len(voc2007.CLASSES)),
}
WATCHED = {module.__name__.rpartition(".")[2]: module.WATCHED for module in (coco2014, nuswide, voc2007, labels)}


@dataclass(frozen=True, eq=False)
class Dataset:
    """N decoded images and their labels; an image has one index in all of them."""

    table: LabelTable
    images: OnTheFly | None  # uint8 [N, 3, S, S], from the cache or decoded when read; None for labels only
    key: str  # hash of pixels, labels, class order and splits
    notes: list[str]  # what a user should know before training
    skipped: list[tuple[str, str]]  # (file, reason) left out: unreadable or not on disk
    kind: str  # DataSettings.kind
    source: object  # Scenes (knows boxes and planted groups) or LabelledFiles
    incomplete: str = ""  # the caveat of figures that are not from the whole published data set, and why

    def need_images(self):
        """Return `images`; raises ValueError, with what works without, for a data set of labels only."""
        if self.images is None:
            raise ValueError(
                "this data set has labels and no images: 01_data and 02_partition work on it, training and scoring do "
                "not. Give data.kind and data.root of one with images"
            )
        return self.images


def open_dataset(data, cache_root):
    """Return the Dataset of DataSettings `data`, decoding into a cache below `cache_root` what is not there yet.

    Raises ValueError or FileNotFoundError for anything that would spoil a training: see the readers, table and cache.
    """
    source, skipped, incomplete = leave_out_missing(read_source(data), data)
    source, table, chosen = choose(source, data)
    incomplete = [*incomplete, *chosen]
    notes = [*source.notes, *incomplete]
    digests = file_digests(source.paths, Path(cache_root) / "fingerprints" / f"{digest(str(data.root))}.json")
    images, bad, key = _pixels(source, digests, data, cache_root)
    unreadable = check_bad(bad, source, data.bad_files)
    if unreadable:
        table = table.skip(sorted(bad))
        left_out = f"{counted(len(unreadable), 'file')} could not be read, left out"
        notes.append(f"{left_out}: {listed(name for name, _ in unreadable)}")
        incomplete.append(f"INCOMPLETE: {left_out}")
    notes += overlap_notes(digests, table, data.allow_overlap or data.kind in PUBLISHED) if digests else []
    notes += check_splits(table, tested=data.kind != "labels")
    key, skipped = digest([key, _label_key(table)]), skipped + unreadable
    caveat = "; ".join(incomplete) if data.kind in PUBLISHED else ""
    return Dataset(table, images, key, notes, skipped, data.kind, source, caveat)


def _label_key(table):
    # What `digest` gives for [names, targets in hex, splits], row by row: as one text it takes four times the labels' memory.
    whole = hashlib.sha256(f'[{json.dumps(table.names)}, "'.encode())
    for row in table.targets:
        whole.update(row.tobytes().hex().encode())
    whole.update(f'", {json.dumps(table.split.tolist())}]'.encode())
    return whole.hexdigest()[:16]


def _pixels(source, digests, data, cache_root):
    """Return (images, {index: reason} of the unusable ones, key of the pixels); no images for labels alone."""
    if data.kind == "labels":
        return None, {}, "labels"
    scenes, count, keep = data.kind == "scenes", len(source.table.files), data.cache != "none"
    load = source.load if scenes else partial(decode_from, source.paths, data.size, data.max_pixels)
    key = source.key if scenes else digest([digests, data.size, data.max_pixels, *DECODE_VERSION])
    if scenes and not keep:  # nothing to look through: each of them can be drawn
        return OnTheFly(load, count, data.size), {}, key
    desc = "drawing scenes" if scenes else "decoding" if keep else "looking through"
    return *cache.build(load, count, data.size, key, cache_root, desc=desc, keep=keep), key


def read_source(data):
    """Return the Scenes or LabelledFiles of DataSettings `data`: `.table`, `.paths`, `.notes`; no image is decoded."""
    return READERS[data.kind](data)


class Counts(NamedTuple):
    """How many labelled images train and all test splits have, of how many classes, where that is from; unlabelled images."""

    train: int
    test: int
    classes: int
    origin: str
    unlabelled: int = 0


def count_images(data):
    """Return the Counts of DataSettings `data`, nothing decoded.

    The published data sets need not be there; an image that is missing or broken still counts.
    """
    if data.kind in PUBLISHED:
        counts, classes = PUBLISHED[data.kind]
        split = np.repeat(list(counts), list(counts.values()))
        names, files = ([*map(str, range(count))] for count in (classes, len(split)))
        source = LabelledFiles(LabelTable(names, np.ones((len(files), classes), np.int8), files, split), [])
        origin = "the published data set's labelled images"
    else:
        source = read_source(data)
        origin = "scenes are drawn" if data.kind == "scenes" else f"counted in {data.root}"
    _, table, notes = choose(source, data)
    counts, origin = Counter(table.split.tolist()), "; ".join([origin, *notes])
    test = counts["test"] + counts["test_shifted"]
    return Counts(counts["train"], test, len(table.names), origin, counts[UNLABELLED])


def leave_out_missing(source, data):
    """Return (LabelledFiles without the images that are not on disk, their (file, reason) list, a sentence in a list).

    Only for the published data sets: NUS-WIDE's missing images are left out, those of the others only under bad_files:
    skip; else they are an error here, before hours of decoding. A csv's are found when decoding, beside its broken files.
    """
    missing = missing_files(source.paths) if data.kind in PUBLISHED else []
    if not missing:
        return source, [], []
    counts, policy = [], "skip" if data.kind == "nuswide" else data.bad_files
    for split in ("train", "test"):
        indices = source.table.indices(split)
        gone = np.isin(indices, missing)
        if len(indices) and gone.all():
            path = source.paths[indices[0]]
            expected = f"{path}{hints([path])[0]} and so on"
            raise FileNotFoundError(f"none of {len(indices):,} {split} images is on disk, expected {expected}")
        counts.append(f"{gone.sum():,} of {len(indices):,} {split}")
    skipped = check_bad(dict.fromkeys(missing, NO_FILE), source, policy)
    what = f"{', '.join(counts)} images (named in data.json)"
    sentence = f"INCOMPLETE: images that are not on disk are left out: {what}"
    return source.take(np.setdiff1d(np.arange(len(source.paths)), missing)), skipped, [sentence]


def check_bad(bad, source, policy):
    """Return the bad files as a sorted list of (file, reason); with policy "error" raise ValueError if there are any.

    `bad` maps the index of an image of `source` to the reason, `policy` is "error" or "skip".
    """
    gone, names = [index for index, reason in bad.items() if reason == NO_FILE], source.table.files
    near = dict(zip(gone, hints([source.paths[index] for index in gone]), strict=True))
    files = sorted((names[index], reason + near.get(index, "")) for index, reason in bad.items())
    if files and policy != "skip":
        lines = listed((f"{file}: {reason}" for file, reason in files), join="\n  ")
        raise ValueError(
            f"{len(files):,} of {len(names):,} image files cannot be used:\n  {lines}\n"
            "Repair them or remove their rows, or go on without them: data.bad_files=skip"
        )
    return files


def choose(source, data):
    """Return (source, its LabelTable, notes) as data.limit and data.labelled leave what `read_source` returned."""
    table, notes, total = source.table, [], len(source.table.files)
    if data.kind != "scenes" and data.limit is not None and data.limit < total:
        rng, kept = np.random.default_rng(data.seed), []
        for split in sorted(set(table.split.tolist())):
            indices = table.indices(split)
            share = max(2, round(data.limit * len(indices) / total))  # what can be trained on can be in part
            kept.extend(rng.permutation(indices)[:share].tolist())
        source, notes = source.take(sorted(kept)), [f"data.limit: {len(kept):,} of {total:,} images are used"]
        table = source.table
    if data.labelled is not None:
        count = len(table.indices("train"))
        labelled = max(2, round(data.labelled * count)) if data.labelled < 1 else int(data.labelled)
        table = table.hide(labelled, data.seed)
        notes.append(f"data.labelled: {len(table.indices('train')):,} of {count:,} training images keep their labels")
    return source, table, notes


def overlap_notes(digests, table, allowed):
    """Return sentences on files of val, and of test, whose content a file that is trained on has too; [] without any.

    `digests` [N] are those of `file_digests`. Raises ValueError where those of test (or of val and test) are not `allowed`.
    """
    sentences = []
    for looked, splits in (("val", (UNLABELLED, "train")), ("test", (UNLABELLED, "val", "train"))):
        trained = {}
        for split in splits:
            trained |= {digests[index]: index for index in table.indices(split)[::-1]}  # the first of several is named
        trained.pop("", None)  # of files that cannot be read
        places = np.flatnonzero(np.isin(table.split, [looked, f"{looked}_shifted"]))
        pairs = [f"{table.files[trained[digests[i]]]} = {table.files[i]}" for i in places if digests[i] in trained]
        how_many = counted(len(pairs), "image stands", "images stand")
        text = f"{how_many} in training and in {looked} under two names: {listed(pairs)}"
        if pairs and looked == "test" and not allowed:
            raise ValueError(f"{text}; remove one of each pair, or set data.allow_overlap=true to train all the same")
        sentences += [text] if pairs else []
    return sentences


def signature(data):
    """Return a hash that changes when the labels or an image that they name may have: a stat a file, no pixels read.

    Those of the published data sets have fixed places (WATCHED), so that no label file of 300 MB is read for their names.
    Other files beside the images do not count, and links are followed: see `file_states`.
    """
    if data.kind == "scenes":
        return read_source(data).key
    if data.kind in WATCHED:
        names = sorted({name for pattern in WATCHED[data.kind] for name in glob(pattern, root_dir=data.root)})
        return digest([names, file_states([f"{data.root}/{name}" for name in names])])
    annotations = Path(data.root) / data.annotations
    try:
        paths = read_source(data).paths
    except (ValueError, OSError):
        paths = []  # labels that cannot be read are refused by 01_data, which says why
    return digest([file_states(paths), sha256(annotations) if annotations.is_file() else None])
