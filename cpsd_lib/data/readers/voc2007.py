"""PASCAL VOC 2007 in 20 classes: one XML file an image, trainval to learn from and test to test on."""

import os
import xml.etree.ElementTree as ElementTree

from cpsd_lib.data.readers import common

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LISTS = {"train": "ImageSets/Main/trainval.txt", "test": "ImageSets/Main/test.txt"}
LISTED = {"train": 5_011, "test": 4_952}
MERGED = ("VOCdevkit/VOC2007", "VOC2007", ".")
FOLDERS = {"train": ("VOCtrainval2007/VOCdevkit/VOC2007", *MERGED), "test": ("VOCtest2007/VOCdevkit/VOC2007", *MERGED)}
# Label files and images whose sizes and times tell that the data set changed.
WATCHED = [
    f"{home}/{name}"
    for home in dict.fromkeys((*FOLDERS["train"], *FOLDERS["test"]))
    for name in (*LISTS.values(), "Annotations/*.xml", "JPEGImages/*.jpg")
]


def read_voc2007(root, difficult=True):
    """Return the LabelledFiles of VOC 2007: 20 classes in alphabetical order, trainval as split "train", test as "test".

    `difficult`: whether a class of which an image holds only difficult objects counts as present there; if not, it is
    unknown (-1), as in VOC's own scoring, which passes over such images. One bool, or {"train": bool, "test": bool}.
    Raises FileNotFoundError for a missing folder or list, ValueError for XML files that are missing, broken or name an
    unknown class.
    """
    root = common.need_folder(root)
    what, splits = "list of VOC 2007 (unpack both archives, or let torchvision.datasets.VOCDetection fetch them)", {}
    for split, name in LISTS.items():
        path = common.first_existing(root, [f"{home}/{name}".removeprefix("./") for home in FOLDERS[split]], what)
        ids, home = common.read_names(path, "one image id a line, as in 000005"), path.parents[2]
        present = difficult[split] if isinstance(difficult, dict) else difficult
        targets = _targets(home / "Annotations", ids, present)
        splits[split] = [f"{image_id}.jpg" for image_id in ids], targets, home / "JPEGImages"
    return common.join_splits(CLASSES, splits, "voc2007", LISTED)


def _targets(folder, ids, difficult):
    files = [f"{image_id}.xml" for image_id in ids]
    objects = objects_of([folder / file for file in files])
    names = [(file, name) for file, pairs in zip(files, objects, strict=True) for name, _ in pairs]
    expected = f"objects of an unknown class, expected the {len(CLASSES)} of VOC 2007"
    common.refuse_unknown(folder, names, CLASSES, f"{expected}. {common.how_to_import(folder.parent, 'voc')}")
    # One plain object makes its class present, however many difficult ones stand beside it.
    plain = [{name for name, hard in pairs if not hard or difficult} for pairs in objects]
    named = [{name for name, _ in pairs} for pairs in objects]
    return (2 * common.one_hot(plain, CLASSES) - common.one_hot(named, CLASSES)).to_numpy()


def objects_of(paths):
    """Return for each of the XML files, of any classes, the (class name, whether it is difficult) of its objects."""
    objects, broken, folder = [], [], os.path.commonpath([path.parent for path in paths])
    for path in paths:
        try:
            root = ElementTree.fromstring(path.read_bytes())
            if root.tag != "annotation":
                raise ValueError(f"it is a <{root.tag}>, expected an <annotation>")
            objects.append([_object(element) for element in root.findall("object")])
        except (ElementTree.ParseError, ValueError, OSError) as error:
            broken.append(f"{path.relative_to(folder)}: {error}")
    common.refuse(folder, broken, "missing or broken XML files, expected one <annotation> with its <object>s in each")
    return objects


def _object(element):
    difficult = element.findtext("difficult", "0").strip()
    if difficult not in ("0", "1"):
        raise ValueError(f"<difficult> is {difficult!r}, expected 0 or 1")
    return element.findtext("name", "").strip(), difficult == "1"
