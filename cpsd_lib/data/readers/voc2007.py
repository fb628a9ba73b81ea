"""PASCAL VOC 2007 in 20 classes: one XML file an image, trainval to learn from and test to test on."""

import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np

from cpsd_lib.data.readers.common import (
    LabelledFiles,
    count_notes,
    nearest,
    need_folder,
    read_names,
    refuse,
    refuse_overlap,
    refuse_repeats,
)
from cpsd_lib.data.table import LabelTable

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
LISTS = {"train": "trainval", "test": "test"}
LISTED = {"train": 5_011, "test": 4_952}
MERGED = ("VOCdevkit/VOC2007", "VOC2007", ".")
FOLDERS = {"train": ("VOCtrainval2007/VOCdevkit/VOC2007", *MERGED), "test": ("VOCtest2007/VOCdevkit/VOC2007", *MERGED)}


def read_voc2007(root, difficult=True):
    """Return the LabelledFiles of VOC 2007: 20 classes in alphabetical order, trainval as split "train", test as "test".

    `difficult`: whether a class of which an image holds only difficult objects counts as present there; if not, it is
    unknown (-1), as in VOC's own scoring, which passes over such images. Raises FileNotFoundError for a missing folder,
    list or XML file, ValueError for one that is broken or names an unknown class.
    """
    root = need_folder(root)
    homes = {split: _home(root, split) for split in LISTS}
    ids = {split: _ids(homes[split], name) for split, name in LISTS.items()}
    refuse_overlap(root, ids["train"], ids["test"], "image id")
    targets = [_targets(homes[split] / "Annotations", ids[split], difficult) for split in LISTS]
    splits = [split for split in LISTS for _ in ids[split]]
    files = [f"{one}.jpg" for split in LISTS for one in ids[split]]
    paths = [homes[split] / "JPEGImages" / f"{one}.jpg" for split in LISTS for one in ids[split]]
    notes = count_notes("voc2007", "images", Counter(splits), LISTED)
    return LabelledFiles(LabelTable(list(CLASSES), np.concatenate(targets), files, np.array(splits)), paths, notes)


def fetch_voc2007(root):
    """Download VOC 2007 (900 MB) from its home and unpack it into root/VOCdevkit; returns `root` as data.root wants it.

    Never called by a run: call it once by hand, when online. Raises what torchvision's download raises.
    """
    from torchvision.datasets import VOCDetection

    Path(root).mkdir(parents=True, exist_ok=True)
    for name in LISTS.values():
        VOCDetection(str(root), year="2007", image_set=name, download=True)
    return Path(root)


def watched(root):
    """Return (label files, image folders) below `root` whose times tell that the data set changed."""
    homes = {Path(root) / name for names in FOLDERS.values() for name in names}
    lists = [home / "ImageSets" / "Main" / f"{name}.txt" for home in sorted(homes) for name in LISTS.values()]
    labels = [path for home in sorted(homes) for path in sorted((home / "Annotations").glob("*.xml"))]
    return [*lists, *labels], [home / "JPEGImages" for home in sorted(homes)]


def _home(root, split):
    for name in FOLDERS[split]:
        if (root / name / "ImageSets" / "Main" / f"{LISTS[split]}.txt").is_file():
            return root / name
    places = " or ".join(FOLDERS[split])
    raise FileNotFoundError(
        f"{root} holds no ImageSets/Main/{LISTS[split]}.txt, expected it in {places}: unpack both archives of VOC 2007, "
        "or call fetch_voc2007 of cpsd_lib.data.readers.voc2007 when online"
    )


def _ids(home, name):
    path = home / "ImageSets" / "Main" / f"{name}.txt"
    ids = read_names(path, "one image id a line, as in 000005")
    wrong = [repr(one) for one in ids if not one.isalnum() and not one.replace("_", "").isalnum()]
    refuse(path, wrong, "expected one image id a line, as in 000005, and nothing else")
    refuse_repeats(path, ids, "image id")
    return ids


def _targets(folder, ids, difficult):
    targets, missing, broken, strange = np.zeros((len(ids), len(CLASSES)), np.int8), [], [], []
    column = {name: number for number, name in enumerate(CLASSES)}
    for row, one in enumerate(ids):
        path = folder / f"{one}.xml"
        try:
            objects = [
                (each.findtext("name", "").strip(), _is_difficult(each)) for each in _root(path).findall("object")
            ]
        except FileNotFoundError:
            missing.append(path.name)
            continue
        except (ElementTree.ParseError, ValueError) as error:
            broken.append(f"{path.name}: {error}")
            continue
        strange += [f"{path.name}: {name!r}{nearest(name, CLASSES)}" for name, _ in objects if name not in column]
        # Plain objects last: one of them makes its class present, however many difficult ones stand beside it.
        for name, hard in sorted(objects, key=lambda found: not found[1]):
            if name in column:
                targets[row, column[name]] = -1 if hard and not difficult else 1
    if missing:
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        raise FileNotFoundError(f"{folder}: {len(missing)} of {len(ids)} XML files are missing: {shown}")
    refuse(folder, broken, "broken XML files, expected one <annotation> with its <object>s: unpack the archive again")
    refuse(folder, strange, f"objects of an unknown class, expected the {len(CLASSES)} of VOC 2007")
    return targets


def _root(path):
    with open(path, "rb") as file:
        found = ElementTree.parse(file).getroot()
    if found.tag != "annotation":
        raise ValueError(f"it is a <{found.tag}>, expected an <annotation>")
    return found


def _is_difficult(found):
    text = found.findtext("difficult", "0").strip()
    if text not in ("0", "1"):
        raise ValueError(f"<difficult> is {text!r}, expected 0 or 1")
    return text == "1"
