"""Where the things of an image are: boxes of the data sets that have them, as fractions of the image.

Images are resized on both sides and never cropped, so a fraction of the original is the same fraction of the cached one.
"""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import PurePosixPath

from cpsd_lib.data.readers.coco2014 import FOLDERS, INSTANCES
from cpsd_lib.data.readers.common import read_text


def boxes_of(dataset, indices):
    """Return {image index: {class index: [(left, top, right, bottom), ...]}} of a Dataset's images, in fractions 0..1.

    All drawn or annotated things count, also VOC's difficult ones and COCO's crowds, as they do in the labels. None for a
    data set without boxes: csv, nuswide, labels, COCO's short form.
    Raises ValueError for an image that is not there and for annotations that cannot be read.
    """
    indices, count = [int(index) for index in indices], len(dataset.table.files)
    outside = [index for index in indices if not 0 <= index < count]
    if outside:
        raise ValueError(f"there are no images {outside[:5]}; give some of 0..{count - 1}")
    read = {"scenes": scenes_boxes, "voc2007": voc_boxes, "coco2014": coco_boxes}.get(dataset.kind)
    return read(dataset.source, indices) if read else None


def in_pixels(boxes, rows, classes, height, width):
    """Return [[boxes in pixels of each of `classes`] of each of `rows`], as cam.share_inside takes them.

    boxes: what `boxes_of` returned; height and width of the map.
    """
    scale = (width, height, width, height)
    return [
        [
            [tuple(side * by for side, by in zip(box, scale, strict=True)) for box in boxes[row].get(c, [])]
            for c in classes
        ]
        for row in rows
    ]


def scenes_boxes(scenes, rows):
    """Return what `boxes_of` does for Scenes: the visible extent of each drawn thing."""
    found = {row: {} for row in rows}
    for row in found:
        for c, *sides in scenes.boxes(row):
            _add(found[row], c, sides, scenes.size, scenes.size)
    return found


def voc_boxes(source, rows):
    """Return what `boxes_of` does for the LabelledFiles of VOC 2007: each object's <bndbox>."""
    found = {row: {} for row in rows}
    for row in found:
        path = source.paths[row].parents[1] / "Annotations" / f"{source.paths[row].stem}.xml"
        try:
            root = ElementTree.fromstring(path.read_bytes())
            width, height = _numbers(root, "size/width", "size/height")
            for thing in root.findall("object"):
                # Pixels count from 1, and the last one is inside.
                left, top, right, bottom = _numbers(thing, *(f"bndbox/{s}" for s in ("xmin", "ymin", "xmax", "ymax")))
                c = source.table.names.index(thing.findtext("name", "").strip())
                _add(found[row], c, (left - 1, top - 1, right, bottom), width, height)
        except (ElementTree.ParseError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{path}: its boxes cannot be read ({error}): unpack the archive again") from None
    return found


def _numbers(element, *paths):
    missing = [path for path in paths if element.find(path) is None]
    if missing:
        raise ValueError(f"it has no <{missing[0].replace('/', '><')}>")
    return [float(element.findtext(path)) for path in paths]


def coco_boxes(source, rows):
    """Return what `boxes_of` does for the LabelledFiles of MS-COCO 2014: each annotation's bbox.

    None when the instances JSON of one of the rows is not there. It is read anew at each call: 10 s for train.
    """
    found = {row: {} for row in rows}
    for split, folder in FOLDERS.items():
        row_of = {source.table.files[row]: row for row in found if source.paths[row].parent.name == folder}
        if not row_of:
            continue
        path = source.paths[next(iter(row_of.values()))].parents[1] / INSTANCES[split]
        if not path.exists():
            return None
        try:
            _read_instances(path, source.table.names, row_of, found)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            name = type(error).__name__
            raise ValueError(f"{path}: its boxes cannot be read ({name}: {error}): unpack the archive again") from None
    return found


def _read_instances(path, names, row_of, found):
    what = "the instances JSON of MS-COCO 2014 (images, annotations, categories)"
    content = json.loads(read_text(path, what), object_hook=_without_outline)
    column = {category["id"]: names.index(category["name"]) for category in content["categories"]}
    images = {image["id"]: image for image in content["images"]}
    for annotation in content["annotations"]:
        image = images[annotation["image_id"]]
        row = row_of.get(PurePosixPath(image["file_name"].replace("\\", "/")).name)
        if row is not None:
            left, top, width, height = annotation["bbox"]
            sides = (left, top, left + width, top + height)
            _add(found[row], column[annotation["category_id"]], sides, image["width"], image["height"])


def _without_outline(record):
    record.pop("segmentation", None)  # most of a 330 MB file; dropped while it is read, it takes no memory
    return record


def _add(boxes, c, sides, width, height):
    """Add a box in pixels to {class: boxes in fractions}, cut at the border; COCO has a few of no area, which say nothing."""
    box = tuple(min(max(side / by, 0.0), 1.0) for side, by in zip(sides, (width, height, width, height), strict=True))
    if box[0] < box[2] and box[1] < box[3]:
        boxes.setdefault(c, []).append(box)
