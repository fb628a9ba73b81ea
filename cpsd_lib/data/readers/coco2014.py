"""MS-COCO 2014 in 80 classes: the instances JSON of the download, or the short form that papers share."""

import json
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from cpsd_lib.data.readers.common import (
    LabelledFiles,
    count_notes,
    first_existing,
    nearest,
    need_folder,
    read_text,
    refuse,
    refuse_overlap,
    refuse_repeats,
)
from cpsd_lib.data.table import LabelTable, listed

# In category-id order, the order of the ASL family's weights and label files; ours is alphabetical, as in CPSD.
CATEGORIES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
COCO_CLASSES = sorted(CATEGORIES)
FOLDERS = {"train": "train2014", "test": "val2014"}
INSTANCES = {split: f"annotations/instances_{folder}.json" for split, folder in FOLDERS.items()}
SHORT = {
    "train": ("train_anno.json", "annotations/train_anno.json"),
    "test": ("val_anno.json", "annotations/val_anno.json"),
}
SIDECARS = ("class_names.json", "annotations/class_names.json")
LISTED = {"train": 82_783, "test": 40_504}
LABELLED = {"train": 82_081, "test": 40_137}


def read_coco2014(root):
    """Return the LabelledFiles of MS-COCO 2014: 80 classes in alphabetical order, val2014 as split "test", by file name.

    Reads the instances JSON where there is one, else the short form: a list of {file_name, labels: [int]} in
    alphabetical class order; where both are, they must agree. Images with no label are left out.
    Raises FileNotFoundError for a missing folder or label file, ValueError for anything in it that has no single meaning.
    """
    root = need_folder(root)
    _check_sidecar(root)
    found = {split: _read_split(root, split) for split in FOLDERS}
    refuse_overlap(root, *([_image_id(file) for file in found[split][0]] for split in FOLDERS), "image id")
    notes, files, targets, splits, paths = [], [], [], [], []
    for split, (names, rows, _) in found.items():
        kept = sorted(np.flatnonzero(rows.any(axis=1)).tolist(), key=names.__getitem__)
        files += [names[row] for row in kept]
        paths += [root / FOLDERS[split] / names[row] for row in kept]
        targets.append(rows[kept])
        splits += [split] * len(kept)
    counts = {split: (len(names), complete) for split, (names, _, complete) in found.items()}
    # The short form may have left out images with no label already: how many it lists says nothing.
    known = {split: LISTED[split] for split, (_, complete) in counts.items() if complete}
    notes += count_notes("coco2014", "listed images", {split: count for split, (count, _) in counts.items()}, known)
    notes += count_notes("coco2014", "labelled images", Counter(splits), LABELLED)
    return LabelledFiles(LabelTable(COCO_CLASSES, np.concatenate(targets), files, np.array(splits)), paths, notes)


def watched(root):
    """Return (label files, image folders) below `root` whose times tell that the data set changed."""
    names = [*INSTANCES.values(), *SHORT["train"], *SHORT["test"], *SIDECARS]
    return [Path(root) / name for name in names], [Path(root) / folder for folder in FOLDERS.values()]


def _read_split(root, split):
    path = first_existing(root, (INSTANCES[split], *SHORT[split]), f"labels of split '{split}'")
    short = next((root / name for name in SHORT[split] if (root / name).exists()), None)
    if path == short:
        return (*_read_short(path), False)
    files, targets = _read_instances(path)
    if short:
        _compare(path, files, targets, short, *_read_short(short))
    return files, targets, True


def _load(path, kind, what):
    try:
        # Outlines are most of a 330 MB file and are not used: `bool` makes one constant of all their fractions, and no id.
        content = json.loads(read_text(path, what), parse_float=bool)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): its download broke off? Fetch it again") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected {what}")
    return content


def _fields(path, what, records, name, kind):
    """Return records[...][name] as a list, each of exactly type `kind`."""
    values = [record.get(name) if isinstance(record, dict) else None for record in records]
    wrong = [f"{what} number {n}: {value!r:.80}" for n, value in enumerate(values) if type(value) is not kind]
    refuse(
        path, wrong, f"expected '{name}' ({'whole number' if kind is int else kind.__name__}) in each of its {what}s"
    )
    return values


# ---- instances_{train,val}2014.json ----------------------------------------------------------------------------------


def _read_instances(path):
    """Return (file names, targets int8 [N, 80]) of all images, labelled or not."""
    content = _load(path, dict, "the instances JSON of MS-COCO 2014 (images, annotations, categories)")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"{path} has no list '{key}', expected images, annotations and categories")
    column = _columns(path, content["categories"])
    ids = _fields(path, "image", content["images"], "id", int)
    files = _base_names(path, _fields(path, "image", content["images"], "file_name", str))
    refuse_repeats(path, ids, "image id")
    refuse_repeats(path, files, "image file")
    # The file name says the id, too; short forms have nothing else.
    differ = [f"{file}: id {id}" for file, id in zip(files, ids, strict=True) if _image_id(file) not in (id, file)]
    refuse(path, differ, "the number in an image's file name is not its id, expected both to agree")
    annotations = content["annotations"]
    refuse_repeats(path, _fields(path, "annotation", annotations, "id", int), "annotation id")
    images = _fields(path, "annotation", annotations, "image_id", int)
    categories = _fields(path, "annotation", annotations, "category_id", int)
    row = {id: number for number, id in enumerate(ids)}
    refuse(path, sorted(set(images) - row.keys()), "annotations of images that are not in 'images'; their ids")
    refuse(
        path,
        sorted(set(categories) - column.keys()),
        "annotations with an unknown category; expected its id in 'categories'",
    )
    targets = np.zeros((len(ids), len(COCO_CLASSES)), np.int8)
    targets[[row[id] for id in images], [column[id] for id in categories]] = 1
    return files, targets


def _columns(path, categories):
    ids = _fields(path, "category", categories, "id", int)
    names = _fields(path, "category", categories, "name", str)
    refuse_repeats(path, ids, "category id")
    refuse_repeats(path, names, "category name")
    strange = [f"{name!r}{nearest(name, COCO_CLASSES)}" for name in names if name not in COCO_CLASSES]
    expected = f"it has {len(names)} categories, expected exactly the {len(COCO_CLASSES)} of MS-COCO 2014; unknown ones"
    refuse(path, strange, expected)
    refuse(path, sorted(set(COCO_CLASSES) - set(names)), expected.replace("unknown ones", "these are not in it"))
    return {id: COCO_CLASSES.index(name) for id, name in zip(ids, names, strict=True)}


# ---- {train,val}_anno.json -------------------------------------------------------------------------------------------


def _read_short(path):
    """Return (file names, targets int8 [N, 80]) of what the short form lists."""
    records = _load(path, list, "the short form: a list of {file_name, labels: [class numbers]}")
    if not records:
        raise ValueError(f"{path} lists no image, expected a list of {{file_name, labels: [class numbers]}}")
    files = _base_names(path, _fields(path, "image", records, "file_name", str))
    refuse_repeats(path, files, "image file")
    labels = _fields(path, "image", records, "labels", list)
    _check_numbers(path, files, labels)
    targets = np.zeros((len(files), len(COCO_CLASSES)), np.int8)
    targets[
        np.repeat(np.arange(len(files)), [len(one) for one in labels]), [number for one in labels for number in one]
    ] = 1
    _check_order(path, targets)
    return files, targets


def _check_numbers(path, files, labels):
    named = list(zip(files, labels, strict=True))
    # type(), not isinstance: true is no class number.
    wrong = [f"{file}: {one!r:.80}" for file, one in named if any(type(number) is not int for number in one)]
    refuse(path, wrong, "expected whole numbers from 0 to 79 in 'labels'")
    vectors = [f"{file}: {len(one)} numbers" for file, one in named if len(one) > 1 and len(set(one)) < len(one)]
    refuse(
        path, vectors, "'labels' names a class twice: expected a list of class numbers, each once, not a row of 0 and 1"
    )
    lowest = min((min(one) for one in labels if one), default=0)
    highest = max((max(one) for one in labels if one), default=0)
    if highest >= len(COCO_CLASSES) or lowest < 0:
        outside = [f"{file}: {one!r:.80}" for file, one in named if any(not 0 <= n < len(COCO_CLASSES) for n in one)]
        guess = ""
        if highest == len(COCO_CLASSES):
            guess = "; this is a file for 81 classes: its numbers start at 1, or one of them is a background class"
        elif len(COCO_CLASSES) < highest <= 90:
            guess = "; these look like COCO's category ids (1 to 90): use their alphabetical position instead"
        refuse(
            path, outside, f"class numbers from {lowest} to {highest}, expected 0 to 79 in alphabetical order{guess}"
        )


def _check_order(path, targets):
    # Half of all COCO images hold a person, 3 in 100 an airplane and 2 in 100 an orange: where `person` stands tells the
    # order, given enough images to count.
    share = targets[targets.any(axis=1)].mean(axis=0) if targets.any() else np.zeros(len(COCO_CLASSES))
    if targets.any(axis=1).sum() >= 100 and share[0] > 0.3 and share[COCO_CLASSES.index("person")] < 0.1:
        raise ValueError(_by_id(f"{path}: class 0 is in {share[0]:.0%} of its images, as only 'person' is in COCO"))


def _by_id(fact):
    return (
        f"{fact}. Its classes are in category-id order (person, bicycle, car, ...), expected alphabetical order (airplane, "
        "apple, backpack, ...). Write its numbers anew, or remove it and use the instances JSON, which needs no order"
    )


def _compare(path, files, targets, short, short_files, short_targets):
    row = {file: number for number, file in enumerate(files)}
    refuse(short, [file for file in short_files if file not in row], f"images that are not in {path.name}")
    given = np.zeros_like(targets)
    given[[row[file] for file in short_files]] = short_targets
    if (given == targets).all():
        return
    moved = np.zeros_like(targets)
    moved[:, [COCO_CLASSES.index(name) for name in CATEGORIES]] = given
    if (moved == targets).all():
        raise ValueError(_by_id(f"{short} and {path.name} disagree"))
    lacking = sorted({files[n] for n in np.flatnonzero(targets.any(axis=1))} - set(short_files))
    refuse(
        short,
        lacking,
        f"it lists {len(short_files):,} images and lacks labelled ones of {path.name}: remove or complete it",
    )
    differ = [
        f"{files[n]}: {_named(given[n])}, but {_named(targets[n])} in {path.name}"
        for n in np.flatnonzero((given != targets).any(axis=1))
    ]
    refuse(short, differ, f"other labels than {path.name}, expected the same: remove the one that is wrong")


def _named(row):
    return listed((COCO_CLASSES[n] for n in np.flatnonzero(row)), shown=5) or "no label"


def _check_sidecar(root):
    path = next((root / name for name in SIDECARS if (root / name).exists()), None)
    if path is None:
        return
    names = _load(path, list, "a list of the 80 class names in the order of the numbers in the short form")
    if names == COCO_CLASSES:
        return
    if names == list(CATEGORIES):
        raise ValueError(_by_id(f"{path} says so"))
    strange = [f"{name!r}{nearest(str(name), COCO_CLASSES)}" for name in names if name not in COCO_CLASSES]
    expected = f"{len(names)} class names, expected the {len(COCO_CLASSES)} of MS-COCO 2014 in alphabetical order"
    refuse(path, strange, f"{expected}; unknown ones")
    places = [
        f"number {n}: {one!r}, expected {two!r}"
        for n, (one, two) in enumerate(zip(names, COCO_CLASSES, strict=False))
        if one != two
    ]
    refuse(path, places or [f"ends after {names[-1:]}"], expected)


def _base_names(path, names):
    # Short forms write `train2014/x.jpg`, `coco\\train2014\\x.jpg` or `x.jpg`; the name alone is unique in COCO.
    files = [PurePosixPath(name.replace("\\", "/")).name for name in names]
    refuse(path, [repr(n) for n, file in zip(names, files, strict=True) if file in ("", "..")], "expected a file name")
    return files


def _image_id(file):
    """Return the number at the end of COCO_val2014_000000000042.jpg, or the name itself when it ends otherwise."""
    digits = file.rpartition(".")[0].rpartition("_")[2]
    return int(digits) if digits.isdecimal() else file
