"""MS-COCO 2014 in 80 classes: the instances JSON of the download, or the short form that papers share."""

import json
from itertools import zip_longest
from pathlib import PurePosixPath

import numpy as np

from cpsd_lib.data.readers import common
from cpsd_lib.data.table import listed

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
ID_ORDER = [COCO_CLASSES.index(name) for name in CATEGORIES]  # our column of each category
FOLDERS = {"train": "train2014", "test": "val2014"}
INSTANCES = {split: f"annotations/instances_{folder}.json" for split, folder in FOLDERS.items()}
SHORT_NAMES = {"train": "train_anno.json", "test": "val_anno.json"}
SHORT = {split: (name, f"annotations/{name}") for split, name in SHORT_NAMES.items()}
SIDECARS = ("class_names.json", "annotations/class_names.json")
LISTED = {"train": 82_783, "test": 40_504}
LABELLED = {"train": 82_081, "test": 40_137}
# Label files and images whose sizes and times tell that the data set changed.
WATCHED = (*INSTANCES.values(), *SHORT["train"], *SHORT["test"], *SIDECARS, "train2014/*.*", "val2014/*.*")


def read_coco2014(root):
    """Return the LabelledFiles of MS-COCO 2014: 80 classes in alphabetical order, val2014 as split "test", by file name.

    Reads the instances JSON where there is one, else the short form: a list of {file_name, labels: [int]} in
    alphabetical class order; where both are, they must agree. Images with no label are left out.
    Raises FileNotFoundError for a missing folder or label file, ValueError for anything in it that has no single meaning.
    """
    root = common.need_folder(root)
    _check_sidecar(root)
    read = {split: _read_split(root, split) for split in FOLDERS}
    # The short form may have left out images with no label already: their number is not compared.
    listed = {split: LISTED[split] for split, (_, _, whole) in read.items() if whole}
    splits = {}
    for split, (files, targets, _) in read.items():
        order = np.argsort(files)
        splits[split] = [files[index] for index in order], targets[order], root / FOLDERS[split]
    return common.join_splits(root, COCO_CLASSES, splits, "coco2014", listed, LABELLED, _image_id)


def _read_split(root, split):
    """Return (file names, targets int8 [N, 80], whether unlabelled images are among them)."""
    path = common.first_existing(root, (INSTANCES[split], *SHORT[split]))
    if path is None:
        expected = f"{INSTANCES[split]} or {' or '.join(SHORT[split])}"
        other = common.how_to_import(root, "coco")
        raise FileNotFoundError(f"{root} holds no labels of split '{split}', expected {expected} in it. {other}")
    short = common.first_existing(root, SHORT[split])
    if path == short:
        return (*_read_short(path), False)
    files, targets = _read_instances(path)
    if short:
        _compare(path, files, targets, short, *_read_short(short))
    return files, targets, True


def load_json(path, kind, what, **options):
    """Return the content of a JSON file, a `kind`; ValueError says `what` was expected. options: those of json.loads."""
    try:
        content = json.loads(common.read_text(path, what), **options)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): its download broke off? Fetch it again") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected {what}")
    return content


def without_outline(record):
    """Return a record of a COCO JSON without its outline, as an object_hook of `load_json`."""
    record.pop("segmentation", None)  # most of a 330 MB file; dropped while it is read, it takes no memory
    return record


def _fields(path, what, records, name, kind):
    """Return records[...][name] as a list, each of exactly type `kind`."""
    values = [record.get(name) if isinstance(record, dict) else None for record in records]
    wrong = (f"{what} number {n}: {value!r:.80}" for n, value in enumerate(values) if type(value) is not kind)
    kind_name = "whole number" if kind is int else kind.__name__
    common.refuse(path, wrong, f"expected '{name}' ({kind_name}) in each {what}")
    return values


# ---- instances_{train,val}2014.json ----------------------------------------------------------------------------------


INSTANCES_FORM = "the instances JSON of MS-COCO 2014 (images, annotations, categories)"


def _read_instances(path):
    """Return (file names, targets int8 [N, 80]) of all images, labelled or not."""
    # Outlines are most of a 330 MB file and are not used: `bool` makes one constant of all their fractions, and no id.
    content = load_json(path, dict, INSTANCES_FORM, parse_float=bool)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise ValueError(f"{path} has no list '{key}', expected {INSTANCES_FORM}")
    column = _column_of_category(path, content["categories"])
    ids = _fields(path, "image", content["images"], "id", int)
    common.refuse_repeats(path, ids, "image id")
    files = _base_names(path, content["images"])
    # The file name says the id, too; short forms have nothing else.
    differ = [f"{file}: id {id}" for file, id in zip(files, ids, strict=True) if _image_id(file) not in (id, file)]
    common.refuse(path, differ, "the number in an image's file name is not its id, expected both to agree")
    annotations = content["annotations"]
    common.refuse_repeats(path, _fields(path, "annotation", annotations, "id", int), "annotation id")
    images = _fields(path, "annotation", annotations, "image_id", int)
    categories = _fields(path, "annotation", annotations, "category_id", int)
    index = {id: place for place, id in enumerate(ids)}
    common.refuse(path, sorted(set(images) - index.keys()), "annotations of images that are not in 'images'; their ids")
    unknown = sorted(set(categories) - column.keys())
    common.refuse(path, unknown, "annotations with an unknown category; expected its id in 'categories'")
    targets = np.zeros((len(ids), len(COCO_CLASSES)), np.int8)
    targets[[index[id] for id in images], [column[id] for id in categories]] = 1
    return files, targets


def _column_of_category(path, categories):
    ids = _fields(path, "category", categories, "id", int)
    names = _fields(path, "category", categories, "name", str)
    common.refuse_repeats(path, ids, "category id")
    common.refuse_repeats(path, names, "category name")
    wrong = [f"unknown: {common.nearest(name, COCO_CLASSES)}" for name in names if name not in COCO_CLASSES]
    wrong += [f"not in it: {name}" for name in COCO_CLASSES if name not in names]
    expected = f"it has {len(names)} categories, expected exactly the {len(COCO_CLASSES)} of MS-COCO 2014"
    common.refuse(path, wrong, f"{expected}. {common.how_to_import(path.parents[1], 'coco')}")
    return {id: COCO_CLASSES.index(name) for id, name in zip(ids, names, strict=True)}


# ---- {train,val}_anno.json -------------------------------------------------------------------------------------------


SHORT_FORM = "the short form: a list of {file_name, labels: [class numbers]}"


def _read_short(path):
    """Return (file names, targets int8 [N, 80]) of what the short form lists."""
    records = load_json(path, list, SHORT_FORM)
    if not records:
        raise ValueError(f"{path} lists no image, expected {SHORT_FORM}")
    files = _base_names(path, records)
    labels = _fields(path, "image", records, "labels", list)
    _check_numbers(path, files, labels)
    targets = np.zeros((len(files), len(COCO_CLASSES)), np.int8)
    for index, numbers in enumerate(labels):
        targets[index, numbers] = 1
    _check_order(path, targets)
    return files, targets


def _check_numbers(path, files, labels):
    def refuse_where(wrong, expected):
        images = zip(files, labels, strict=True)
        common.refuse(path, (f"{file}: {numbers!r:.80}" for file, numbers in images if wrong(numbers)), expected)

    # type(), not isinstance: true is no class number.
    not_whole = "expected whole numbers from 0 to 79 in 'labels'"
    refuse_where(lambda numbers: any(type(n) is not int for n in numbers), not_whole)
    twice = "'labels' names a class twice: expected a list of class numbers, each once, not a row of 0 and 1"
    refuse_where(lambda numbers: len(set(numbers)) < len(numbers), twice)
    low, high = (pick((n for numbers in labels for n in numbers), default=0) for pick in (min, max))
    guess = ""
    if high == len(COCO_CLASSES):
        guess = "; this is a file for 81 classes: its numbers start at 1, or one of them is a background class"
    elif len(COCO_CLASSES) < high <= 90:
        guess = "; these look like COCO's category ids (1 to 90): use their alphabetical position instead"
    outside = f"class numbers from {low} to {high}, expected 0 to 79 in alphabetical order{guess}"
    refuse_where(lambda numbers: any(not 0 <= n < len(COCO_CLASSES) for n in numbers), outside)


def _check_order(path, targets):
    # Half of all COCO images hold a person, 3 in 100 an airplane and 2 in 100 an orange: where `person` stands tells the
    # order, given enough images to count.
    labelled = targets[targets.any(axis=1)]
    share = labelled.mean(axis=0) if len(labelled) >= 100 else np.zeros(len(COCO_CLASSES))
    if share[0] > 0.3 and share[COCO_CLASSES.index("person")] < 0.1:
        raise ValueError(_by_id(f"{path}: class 0 is in {share[0]:.0%} of its images, as only 'person' is in COCO"))


def _by_id(fact):
    return (
        f"{fact}. Its classes are in category-id order (person, bicycle, car, ...), expected alphabetical order (airplane, "
        "apple, backpack, ...). Write its numbers anew, or remove it and use the instances JSON, which needs no order"
    )


def _compare(path, files, targets, short, short_files, short_targets):
    index = {file: place for place, file in enumerate(files)}
    common.refuse(short, (file for file in short_files if file not in index), f"images that are not in {path.name}")
    given = np.zeros_like(targets)
    given[[index[file] for file in short_files]] = short_targets
    differ = np.flatnonzero((given != targets).any(axis=1))
    if len(differ) and (given == targets[:, ID_ORDER]).all():
        raise ValueError(_by_id(f"{short} and {path.name} disagree"))
    missing = sorted({files[i] for i in np.flatnonzero(targets.any(axis=1))} - set(short_files))
    expected = f"it lists {len(short_files):,} images and lacks labelled ones of {path.name}: remove or complete it"
    common.refuse(short, missing, expected)
    lines = [f"{files[i]}: {_named(given[i])}, but {_named(targets[i])} in {path.name}" for i in differ]
    common.refuse(short, lines, f"other labels than {path.name}, expected the same: remove the one that is wrong")


def _named(targets):
    return listed((COCO_CLASSES[c] for c in np.flatnonzero(targets)), shown=5) or "no label"


def _check_sidecar(root):
    path = common.first_existing(root, SIDECARS)
    if path is None:
        return
    names = load_json(path, list, "a list of the 80 class names in the order of the numbers in the short form")
    if names == list(CATEGORIES):
        raise ValueError(_by_id(f"{path} says so"))
    places = enumerate(zip_longest(names, COCO_CLASSES, fillvalue="nothing"))
    wrong = [f"number {n}: {name!r}, expected {expected!r}" for n, (name, expected) in places if name != expected]
    common.refuse(path, wrong, f"{len(names)} class names, expected the 80 of MS-COCO 2014 in alphabetical order")


def _base_names(path, records):
    # Short forms write `train2014/x.jpg`, `coco\\train2014\\x.jpg` or `x.jpg`; the name alone is unique in COCO.
    names = _fields(path, "image", records, "file_name", str)
    files = [PurePosixPath(name.replace("\\", "/")).name for name in names]
    wrong = [repr(name) for name, file in zip(names, files, strict=True) if file in ("", "..")]
    common.refuse(path, wrong, "expected a file name")
    common.refuse_repeats(path, files, "image file")
    return files


def _image_id(file):
    """Return the number at the end of COCO_val2014_000000000042.jpg, or the name itself when it ends otherwise."""
    digits = file.rpartition(".")[0].rpartition("_")[2]
    return int(digits) if digits.isdecimal() else file
