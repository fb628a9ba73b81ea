"""NUS-WIDE in 81 concepts: Flickr photos, two image lists, and one file of zeros and ones for each concept and split."""

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from cpsd_lib.data.readers.common import (
    LabelledFiles,
    count_notes,
    first_existing,
    need_folder,
    read_names,
    refuse,
    refuse_overlap,
    refuse_repeats,
)
from cpsd_lib.data.table import LabelTable

CONCEPTS = 81
WORD = {"train": "Train", "test": "Test"}
LISTED = {"train": 161_789, "test": 107_859}
LABELLED = {"train": 125_449, "test": 83_898}
# Copies differ in how their archives were unpacked.
CONCEPT_FILES = ("Concepts81.txt", "ConceptsList/Concepts81.txt", "ConceptsList/ConceptsList/Concepts81.txt")
LISTS = ("ImageList", "ImageList/ImageList", ".")
LABELS = ("TrainTestLabels", "Groundtruth/TrainTestLabels", "Groundtruth/Groundtruth/TrainTestLabels", "Groundtruth")
IMAGES = ("Flickr/Flickr", "Flickr", "images")


def read_nuswide(root):
    """Return the LabelledFiles of NUS-WIDE: 81 classes in alphabetical order, splits train and test in the lists' order.

    Both usual folder layouts and backslashes in the lists are understood. Images with no label are left out; whether an
    image is on disk is not looked at here. Raises FileNotFoundError for a missing folder, list, concept or label file,
    ValueError for lists and label files that do not fit together.
    """
    root = need_folder(root)
    names = _concepts(root)
    labels = _label_folder(root, names)
    folder = first_existing(root, IMAGES, "folder of images")
    listed_files = {split: _image_list(root, split) for split in WORD}
    refuse_overlap(root, listed_files["train"], listed_files["test"], "image")
    files, targets, splits = [], [], []
    for split, found in listed_files.items():
        rows = _targets(labels, names, split, len(found))
        kept = np.flatnonzero(rows.any(axis=1))
        files += [found[row] for row in kept]
        targets.append(rows[kept])
        splits += [split] * len(kept)
    notes = count_notes(
        "nuswide", "listed images", {split: len(found) for split, found in listed_files.items()}, LISTED
    )
    notes += count_notes("nuswide", "labelled images", Counter(splits), LABELLED)
    table = LabelTable(names, np.concatenate(targets), files, np.array(splits))
    return LabelledFiles(table, [folder / file for file in files], notes)


def watched(root):
    """Return (label files, image folders) below `root` whose times tell that the data set changed."""
    root = Path(root)
    texts = [root / name for name in CONCEPT_FILES]
    for folder in {*LISTS, *LABELS}:
        texts += sorted((root / folder).glob("*.txt"))
    folders = [root / name for name in IMAGES]
    return texts, [*folders, *(below for folder in folders if folder.is_dir() for below in sorted(folder.iterdir()))]


def _concepts(root):
    path = first_existing(root, CONCEPT_FILES, "list of concepts")
    names = read_names(path, f"the {CONCEPTS} concepts of NUS-WIDE, one a line")
    refuse_repeats(path, names, "concept")
    if len(names) != CONCEPTS:
        raise ValueError(f"{path} names {len(names)} concepts, expected the {CONCEPTS} of NUS-WIDE, one a line")
    return sorted(names)


def _label_folder(root, names):
    found = [root / name for name in LABELS if any((root / name).glob("Labels_*_Train.txt"))]
    if not found:
        wanted = " or ".join(LABELS)
        raise FileNotFoundError(
            f"{root} holds no label files, expected Labels_<concept>_{{Train,Test}}.txt in {wanted}"
        )
    folder = found[0]
    wanted = {f"Labels_{name}_{word}.txt" for name in names for word in WORD.values()}
    present = {path.name for path in folder.glob("Labels_*.txt")}
    lacking = sorted(wanted - present)
    if lacking:
        shown = ", ".join(lacking[:5]) + (" ..." if len(lacking) > 5 else "")
        raise FileNotFoundError(f"{folder}: {len(lacking)} of {len(wanted)} label files are missing: {shown}")
    refuse(folder, sorted(present - wanted), "label files of concepts that are not in Concepts81.txt, expected none")
    return folder


def _image_list(root, split):
    name = f"{WORD[split]}Imagelist.txt"
    path = first_existing(
        root, [str(PurePosixPath(folder) / name) for folder in LISTS], f"image list of split '{split}'"
    )
    lines = read_names(path, "one image a line, as in actor\\0001_2124494179.jpg")
    files = [_relative(line) for line in lines]
    wrong = [line for line, file in zip(lines, files, strict=True) if not file]
    refuse(path, wrong, "expected file names inside the image folder, as in actor\\0001_2124494179.jpg")
    refuse_repeats(path, files, "image")
    return files


def _relative(line):
    """Return folder/file.jpg of a line with slashes of either kind, with or without a folder Flickr before it."""
    parts = [part for part in line.replace("\\", "/").split("/") if part not in ("", ".")]
    if "Flickr" in parts:
        parts = parts[len(parts) - parts[::-1].index("Flickr") :]
    inside = parts and ".." not in parts and not parts[0].endswith(":")
    return "/".join(parts) if inside else ""


def _targets(folder, names, split, count):
    targets = np.zeros((count, len(names)), np.int8)
    for column, name in enumerate(names):
        path = folder / f"Labels_{name}_{WORD[split]}.txt"
        lines = [line for line in map(bytes.strip, path.read_bytes().splitlines()) if line]
        # 22 million lines in 162 files: looked at as one array, and line by line only to say where the fault is.
        digits = np.frombuffer(b"".join(lines), np.uint8)
        if len(digits) != len(lines) or not np.isin(digits, (48, 49)).all():
            wrong = [
                f"line {n}: {line[:20]!r}"
                for n, line in enumerate(path.read_bytes().splitlines(), 1)
                if line.strip() not in (b"0", b"1")
            ]
            refuse(path, wrong, "expected 0 or 1 on each line")
        if len(lines) != count:
            expected = f"as many as {WORD[split]}Imagelist.txt names images: both must be of one download"
            raise ValueError(f"{path} has {len(lines):,} lines, expected {count:,}, {expected}")
        targets[:, column] = digits == 49
    return targets
