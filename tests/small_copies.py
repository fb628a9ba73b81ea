"""Small copies of the published data sets, true to their formats: a few images, real JSON, XML and text files."""

import json

import numpy as np
from PIL import Image

from cpsd_lib.data.readers.coco2014 import CATEGORIES, COCO_CLASSES
from cpsd_lib.data.readers.voc2007 import CLASSES as VOC_CLASSES

COCO_IDS = [number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
COCO = {  # image id: its classes
    "train": {25: ["giraffe"], 9: ["bowl", "orange", "broccoli"], 30: ["vase", "person"], 92: []},
    "val": {42: ["dog", "person"], 73: ["giraffe", "bowl", "orange", "broccoli", "vase"], 74: []},
}
CONCEPTS = [*[f"concept{number:02d}" for number in range(78)], "sky", "water", "airport"]
NUS = {  # in the order of the lists; the third image has no label
    "Train": {
        "actor\\0001_2124494179.jpg": ["sky"],
        "zoo\\0007_10.jpg": ["water", "sky"],
        "actor\\0002_1.jpg": [],
        "actor\\0003_3.jpg": CONCEPTS,
    },
    "Test": {"actor\\0004_4.jpg": ["airport"], "zoo\\0009_9.jpg": ["sky", "water"]},
}
VOC = {  # image id: its (class, difficult) objects
    "trainval": {"000005": [("chair", 0), ("chair", 1)], "000007": [("car", 0), ("person", 1)]},
    "test": {"000001": [("dog", 0), ("person", 0)], "000002": [("train", 1)], "000003": [("chair", 0), ("car", 0)]},
}


def picture(path):
    """Write a small JPEG of a colour that its file name alone determines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.name.encode()))
    Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)


def coco_file(split, number):
    return f"COCO_{split}2014_{number:012d}.jpg"


def coco_instances(split="train", content=COCO):
    """Return the instances JSON as a dictionary: one outline an object, two objects of the first class."""
    category = dict(zip(CATEGORIES, COCO_IDS, strict=True))
    annotations = []
    for number, names in content[split].items():
        for name in names[:1] + names:
            annotations.append(
                {"segmentation": [[1.5, 2.25, 3.0, 4.75, 5.5, 1.0]], "area": 7.5, "iscrowd": 0, "image_id": number}
                | {"bbox": [1.5, 1.0, 4.0, 3.75], "category_id": category[name], "id": 100 + len(annotations)}
            )
    return {
        "info": {"year": 2014},
        "images": [{"id": n, "file_name": coco_file(split, n), "height": 8, "width": 8} for n in content[split]],
        "licenses": [],
        "annotations": annotations,
        "categories": [{"supercategory": "x", "id": category[name], "name": name} for name in CATEGORIES],
    }


def coco_short(split="train", order=COCO_CLASSES, content=COCO, prefix=""):
    """Return the short form as a list."""
    named = content[split].items()
    return [
        {"file_name": prefix + coco_file(split, n), "labels": sorted(order.index(name) for name in names)}
        for n, names in named
    ]


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def coco(root, form="instances", images=True):
    """Write MS-COCO 2014 with 4 train and 3 val images, in the form "instances", "short" or "both"."""
    for split in COCO:
        if form != "short":
            write_json(root / "annotations" / f"instances_{split}2014.json", coco_instances(split))
        if form != "instances":
            write_json(root / f"{split}_anno.json", coco_short(split))
        for number in COCO[split] if images else []:
            picture(root / f"{split}2014" / coco_file(split, number))
    return root


def nuswide(
    root,
    lists="ImageList",
    labels="TrainTestLabels",
    concepts="Concepts81.txt",
    photos="Flickr",
    prefix="",
    end="\n",
    content=NUS,
):
    """Write NUS-WIDE with 4 train and 2 test images, in any layout."""
    (root / concepts).parent.mkdir(parents=True, exist_ok=True)
    (root / concepts).write_text("".join(f"{name}\n" for name in CONCEPTS))
    for folder in (lists, labels):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, images in content.items():
        (root / lists / f"{split}Imagelist.txt").write_bytes(
            "".join(f"{prefix}{line}{end}" for line in images).encode()
        )
        for name in CONCEPTS:
            text = "".join(f"{int(name in held)}{end}" for held in images.values())
            (root / labels / f"Labels_{name}_{split}.txt").write_bytes(text.encode())
        for line in images:
            picture(root / photos / line.replace("\\", "/"))
    return root


def voc_xml(number, objects):
    """Return the XML of one image, with a part inside its first object, as VOC has for persons."""
    texts = []
    for place, (name, difficult) in enumerate(objects):
        part = "<part><name>head</name></part>" if place == 0 else ""
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
        texts.append(f"<object><name>{name}</name><difficult>{difficult}</difficult>{box}{part}</object>")
    return f"<annotation><folder>VOC2007</folder><filename>{number}.jpg</filename>{''.join(texts)}</annotation>"


def voc(root, train="VOCdevkit/VOC2007", test="VOCdevkit/VOC2007"):
    """Write VOC 2007 with 2 trainval and 3 test images below the two folders."""
    for name, home in (("trainval", root / train), ("test", root / test)):
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        (home / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{number}\n" for number in VOC[name]))
        (home / "ImageSets" / "Main" / f"dog_{name}.txt").write_text("000001 -1\n")
        for number, objects in VOC[name].items():
            (home / "Annotations" / f"{number}.xml").write_text(voc_xml(number, objects))
            picture(home / "JPEGImages" / f"{number}.jpg")
    return root


def labels(root, names=("b", "c", "a"), rows=((1, 0, 1), (0, 1, 0)), **change):
    """Write labels.npz; `change` replaces its arrays."""
    root.mkdir(parents=True, exist_ok=True)
    arrays = {
        "targets": np.packbits(np.array(rows, np.uint8), axis=1),
        "image_id": np.arange(len(rows)) + 7,
        "class_names": np.array(names),
    }
    np.savez(root / "labels.npz", **{name: value for name, value in (arrays | change).items() if value is not None})
    return root


def held(data):
    """Return {file: names of its classes} of LabelledFiles, one dictionary a split."""
    names = np.array(data.table.names)
    return {
        split: {data.table.files[i]: names[data.table.targets[i] == 1].tolist() for i in data.table.indices(split)}
        for split in ("train", "test")
    }


assert len(COCO_IDS) == 80 and len(CONCEPTS) == 81 and len(VOC_CLASSES) == 20
