"""NUS-WIDE in 81 concepts: Flickr photos, two image lists, and one file of zeros and ones for each concept and split."""

import os
from pathlib import PurePosixPath

import numpy as np

from cpsd_lib.data.readers import common

CONCEPTS = 81
WORD = {"train": "Train", "test": "Test"}
LISTED = {"train": 161_789, "test": 107_859}
LABELLED = {"train": 125_449, "test": 83_898}
# Copies differ in how their archives were unpacked.
CONCEPT_FILES = ("Concepts81.txt", "ConceptsList/Concepts81.txt", "ConceptsList/ConceptsList/Concepts81.txt")
LISTS = ("ImageList", "ImageList/ImageList", ".")
LABELS = ("TrainTestLabels", "Groundtruth/TrainTestLabels", "Groundtruth/Groundtruth/TrainTestLabels", "Groundtruth")
IMAGES = ("Flickr/Flickr", "Flickr", "images")
# Label files and images whose sizes and times tell that the data set changed.
WATCHED = [*CONCEPT_FILES, *(f"{folder}/*.txt" for folder in (*LISTS, *LABELS))]
WATCHED += [f"{folder}/{name}" for folder in IMAGES for name in ("*.*", "*/*.*")]


def read_nuswide(root):
    """Return the LabelledFiles of NUS-WIDE: 81 classes in alphabetical order, splits train and test in the lists' order.

    Both usual folder layouts, a flat one, and backslashes in the lists are understood. Images with no label are left out;
    whether an image is on disk is not looked at here. Raises FileNotFoundError for a missing folder, list, concept or label file,
    ValueError for lists and label files that do not fit together.
    """
    root = common.need_folder(root)
    path = common.first_existing(root, CONCEPT_FILES, "list of concepts")
    names = sorted(common.read_names(path, f"the {CONCEPTS} concepts of NUS-WIDE, one a line"))
    if len(names) != CONCEPTS:
        raise ValueError(f"{path} names {len(names)} concepts, expected the {CONCEPTS} of NUS-WIDE, one a line")
    first = [f"{folder}/Labels_{names[0]}_Train.txt" for folder in LABELS]
    labels = common.first_existing(root, first, "label files").parent
    folder = common.first_existing(root, IMAGES, "folder of images")
    flat = set(os.listdir(folder))  # some mirrors have no folders of words: their base names are unique
    splits = {}
    for split in WORD:
        files = [name if (name := file.rpartition("/")[2]) in flat else file for file in _image_list(root, split)]
        splits[split] = files, _targets(labels, names, split, len(files)), folder
    return common.join_splits(names, splits, "nuswide", LISTED, LABELLED)


def _image_list(root, split):
    """Return folder/file.jpg of each line, which has slashes of either kind and maybe a folder Flickr before it."""
    choices = [f"{folder}/{WORD[split]}Imagelist.txt".removeprefix("./") for folder in LISTS]
    path = common.first_existing(root, choices, f"image list of split '{split}'")
    lines = common.read_names(path, "one image a line, as in actor\\0001_2124494179.jpg")
    paths = [PurePosixPath("/", line.replace("\\", "/")) for line in lines]
    return [str(path).rpartition("/Flickr/")[2].lstrip("/") for path in paths]


def _targets(folder, names, split, count):
    targets = np.zeros((count, len(names)), np.int8)
    for column, name in enumerate(names):
        path = folder / f"Labels_{name}_{WORD[split]}.txt"
        lines = common.read_names(path, "0 or 1 on each line")
        if not {*lines} <= {"0", "1"}:  # of 22 million lines in 162 files: one by one only to say where the fault is
            wrong = [f"label {n}: {line[:20]!r}" for n, line in enumerate(lines, 1) if line not in ("0", "1")]
            common.refuse(path, wrong, "expected 0 or 1 on each line")
        if len(lines) != count:
            expected = f"as many as {WORD[split]}Imagelist.txt names images: both must be of one download"
            raise ValueError(f"{path} has {len(lines):,} lines, expected {count:,}, {expected}")
        targets[:, column] = [line == "1" for line in lines]
    return targets
