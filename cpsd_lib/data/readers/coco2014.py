"""MS-COCO 2014 in 80 classes: the instances JSON of the download, or the short form that papers share."""

import json
from pathlib import PurePosixPath

import numpy as np

from cpsd_lib.data.readers import common

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
SHORT = {"train": ("train_anno.json", "annotations/train_anno.json")}
SHORT |= {"test": ("val_anno.json", "annotations/val_anno.json")}
LISTED = {"train": 82_783, "test": 40_504}
LABELLED = {"train": 82_081, "test": 40_137}
# Label files and images whose sizes and times tell that the data set changed.
WATCHED = (*INSTANCES.values(), *SHORT["train"], *SHORT["test"], "train2014/*.*", "val2014/*.*")


def read_coco2014(root):
    """Return the LabelledFiles of MS-COCO 2014: 80 classes in alphabetical order, val2014 as split "test", by file name.

    Reads the instances JSON where there is one, else the short form: a list of {file_name, labels: [int]} in
    alphabetical class order. Images with no label are left out.
    Raises FileNotFoundError for a missing folder or label file, ValueError for anything in it that has no single meaning.
    """
    root = common.need_folder(root)
    splits, listed = {}, {}
    for split, folder in FOLDERS.items():
        places, other = (INSTANCES[split], *SHORT[split]), common.how_to_import(root, "coco")
        path = common.first_existing(root, places, f"labels of split '{split}'", other)
        if path == root / INSTANCES[split]:
            files, targets = _read_instances(path)
            listed[split] = LISTED[split]  # the short form may have left out images with no label already
        else:
            files, targets = _read_short(path)
        order = np.argsort(files)
        splits[split] = [files[index] for index in order], targets[order], root / folder
    return common.join_splits(COCO_CLASSES, splits, "coco2014", listed, LABELLED)


def _load_json(path, kind, what, **options):
    """Return the content of a JSON file, a `kind`; ValueError says `what` was expected. options: those of json.loads."""
    try:
        content = json.loads(common.read_text(path, what), **options)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): its download broke off? Fetch it again") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected {what}")
    return content


def _fields(path, what, records, name, *kinds):
    """Return records[...][name] as a list, each of exactly one of the types `kinds`."""
    values = [record.get(name) if isinstance(record, dict) else None for record in records]
    wrong = (f"{what} number {n}: {value!r:.80}" for n, value in enumerate(values) if type(value) not in kinds)
    common.refuse(path, wrong, f"expected '{name}' ({' or '.join(kind.__name__ for kind in kinds)}) in each {what}")
    return values


# ---- a COCO JSON of any classes --------------------------------------------------------------------------------------


FORM = "a COCO JSON (lists images, annotations and categories)"
ID = (int, float, str)  # pandas writes 1.0, and some tools write names


def coco_json(path):
    """Return (images, annotations, {category id: name}) of a COCO JSON: its records without outlines, their ids checked."""
    content = _load_json(path, dict, FORM, object_hook=_without_outline)
    lists = [content.get(key) for key in ("images", "annotations", "categories")]
    if not all(isinstance(records, list) for records in lists):
        raise ValueError(f"{path} holds {', '.join(content) or 'nothing'}, expected {FORM}")
    images, annotations, categories = lists
    _fields(path, "image", images, "file_name", str)
    names = _fields(path, "category", categories, "name", str)
    category_ids = _fields(path, "category", categories, "id", *ID)
    for what, ids in (("image", _fields(path, "image", images, "id", *ID)), ("category", category_ids)):
        common.refuse_repeats(path, ids, f"{what} id")
        unknown = set(_fields(path, "annotation", annotations, f"{what}_id", *ID)).difference(ids)
        expected = f"annotations with an unknown {what}_id, expected one of the file's"
        common.refuse(path, sorted(unknown, key=str), expected)
    return images, annotations, dict(zip(category_ids, map(str.strip, names), strict=True))


def _without_outline(record):
    record.pop("segmentation", None)  # most of a 330 MB file; dropped while it is read, it takes no memory
    return record


def labels_of(images, annotations, names):
    """Return a DataFrame of 1 and 0 of what `coco_json` returns, a line an image, a column a class."""
    held = {image["id"]: set() for image in images}
    for one in annotations:
        held[one["image_id"]].add(names[one["category_id"]])
    return common.one_hot([*held.values()], sorted({*names.values()}))


def _read_instances(path):
    """Return (file names, targets int8 [N, 80]) of all images, labelled or not."""
    images, annotations, categories = coco_json(path)
    names = [*categories.values()]
    wrong = [f"unknown: {common.nearest(name, COCO_CLASSES)}" for name in names if name not in COCO_CLASSES]
    wrong += [f"not in it: {name}" for name in COCO_CLASSES if name not in names]
    expected = f"it has {len(names)} classes, expected exactly the {len(COCO_CLASSES)} of MS-COCO 2014"
    common.refuse(path, wrong, f"{expected}. {common.how_to_import(path.parents[1], 'coco')}")
    return base_names(images), labels_of(images, annotations, categories)[COCO_CLASSES].to_numpy()


# ---- {train,val}_anno.json -------------------------------------------------------------------------------------------


def _read_short(path):
    """Return (file names, targets int8 [N, 80]) of what the short form lists."""
    records = _load_json(path, list, "the short form: a list of {file_name, labels: [class numbers]}")
    _fields(path, "image", records, "file_name", str)
    files, labels = base_names(records), _fields(path, "image", records, "labels", list)
    numbers = range(len(COCO_CLASSES))
    wrong = [
        f"{file}: {held!r:.80}"
        for file, held in zip(files, labels, strict=True)
        # type(), not isinstance: true is no class number.
        if any(type(n) is not int or n not in numbers for n in held) or len(set(held)) < len(held)
    ]
    expected = "expected in 'labels' the numbers of an image's classes in alphabetical order, from 0 to 79, each once"
    common.refuse(path, wrong, f"{expected}: not from 1, no category ids of COCO (1 to 90), no row of 0 and 1")
    targets = common.one_hot(labels, numbers).to_numpy()
    # Half of all COCO images hold a person, 3 in 100 an airplane and 2 in 100 an orange: where `person` stands tells the
    # order, given enough images to count.
    labelled = targets[targets.any(axis=1)]
    share = labelled.mean(axis=0) if len(labelled) >= 100 else np.zeros(len(COCO_CLASSES))
    if share[0] > 0.3 and share[COCO_CLASSES.index("person")] < 0.1:
        raise ValueError(
            f"{path}: class 0 is in {share[0]:.0%} of its images, as only 'person' is in COCO. Its classes are in category-id "
            "order (person, bicycle, car, ...), expected alphabetical order (airplane, apple, backpack, ...). Write its "
            "numbers anew, or use the instances JSON, which needs no order"
        )
    return files, targets


def base_names(records):
    """Return the file name of each record without its folders, unique in COCO: coco\\\\train2014\\\\x.jpg is x.jpg."""
    return [PurePosixPath(record["file_name"].replace("\\", "/")).name for record in records]
