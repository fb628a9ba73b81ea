"""Where the things of an image are: boxes of the data sets that have them, as fractions of the image.

Images are resized on both sides and never cropped, so a fraction of the original is the same fraction of the cached one.
"""

import xml.etree.ElementTree as ElementTree

from cpsd_lib.data.readers.coco2014 import FOLDERS, INSTANCES, base_names, coco_json


def boxes_of(dataset, indices):
    """Return {image index: {class index: [(left, top, right, bottom), ...]}} of a Dataset's images, in fractions 0..1.

    All drawn or annotated things count, also VOC's difficult ones and COCO's crowds, as they do in the labels. None for a
    data set without boxes: csv, nuswide, labels, COCO's short form.
    Raises ValueError for annotations that cannot be read.
    """
    indices = [int(index) for index in indices]
    read = {"scenes": _scenes_boxes, "voc2007": _voc_boxes, "coco2014": _coco_boxes}.get(dataset.kind)
    boxes = {index: {} for index in indices}
    try:
        for index, c, box in read(dataset.source, indices) if read else ():
            if box[0] < box[2] and box[1] < box[3]:  # COCO has a few of no area, which say nothing
                boxes[index].setdefault(c, []).append(box)
    except FileNotFoundError:  # COCO's short form has no boxes
        return None
    return boxes if read else None


def _fractions(left, top, right, bottom, width, height):
    """Return a box in pixels as fractions of the image, cut at its border."""
    return tuple(min(max(side, 0.0), 1.0) for side in (left / width, top / height, right / width, bottom / height))


# Each yields (image index, class index, box in fractions).


def _scenes_boxes(scenes, indices):
    for index in indices:
        for c, *sides in scenes.boxes(index):
            yield index, c, _fractions(*sides, scenes.size, scenes.size)


def _voc_boxes(source, indices):
    for index in indices:
        path = source.paths[index].parents[1] / "Annotations" / f"{source.paths[index].stem}.xml"
        try:
            root = ElementTree.fromstring(path.read_bytes())
            size = [float(root.findtext(f"size/{side}")) for side in ("width", "height")]
            for thing in root.findall("object"):
                # Pixels count from 1, and the last one is inside.
                sides = (thing.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
                left, top, right, bottom = map(float, sides)
                c = source.table.names.index(thing.findtext("name", "").strip())
                yield index, c, _fractions(left - 1, top - 1, right, bottom, *size)
        except (ElementTree.ParseError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{path}: its boxes cannot be read ({error}): unpack the archive again") from None


def _coco_boxes(source, indices):
    """FileNotFoundError where the instances JSON is not there. It is read anew at each call: 10 s for train."""
    for split, folder in FOLDERS.items():
        index_of = {source.table.files[i]: i for i in indices if source.paths[i].parent.name == folder}
        if not index_of:
            continue
        path = source.paths[next(iter(index_of.values()))].parents[1] / INSTANCES[split]
        images, annotations, categories = coco_json(path)
        known = zip(images, base_names(images), strict=True)
        wanted = {image["id"]: (image, index_of[file]) for image, file in known if file in index_of}
        try:
            for annotation in annotations:
                if annotation["image_id"] in wanted:
                    image, index = wanted[annotation["image_id"]]
                    left, top, width, height = annotation["bbox"]
                    box = _fractions(left, top, left + width, top + height, image["width"], image["height"])
                    yield index, source.table.names.index(categories[annotation["category_id"]]), box
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            name = type(error).__name__
            raise ValueError(f"{path}: its boxes cannot be read ({name}: {error}): unpack the archive again") from None
