import json
from types import SimpleNamespace

import numpy as np
import pytest
import small_copies

from cpsd_lib.data import boxes
from cpsd_lib.data.dataset import open_dataset
from cpsd_lib.data.readers.coco2014 import COCO_CLASSES, read_coco2014
from cpsd_lib.data.readers.voc2007 import read_voc2007
from cpsd_lib.data.scenes.scenes import Scenes
from cpsd_lib.workbench.params import DataParams

SIZE = "<size><width>10</width><height>8</height><depth>3</depth></size>"  # as VOC has it; the small copy has none


def voc(root, change=lambda text: text):
    """Write the small VOC with the pictures' size in held XML, each file changed by `change`; return held LabelledFiles."""
    for path in (small_copies.voc(root) / "VOCdevkit/VOC2007/Annotations").glob("*.xml"):
        path.write_text(change(path.read_text().replace("</filename>", "</filename>" + SIZE)))
    return read_voc2007(root)


def coco(root, change=lambda content: None, form="both"):
    """Write the small COCO, each instances JSON changed by `change`; return held LabelledFiles."""
    small_copies.coco(root, form)
    for path in (root / "annotations").glob("instances_*.json"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    return read_coco2014(root)


def boxes_in(kind, source, indices):
    return boxes.boxes_of(SimpleNamespace(table=source.table, source=source, kind=kind), indices)


def named(source, by_index):
    """{file: {class name: boxes}} of {image index: {class index: boxes}}."""
    return {
        source.table.files[index]: {source.table.names[c]: held for c, held in by_class.items()}
        for index, by_class in by_index.items()
    }


def test_scenes_know_the_extent_of_every_thing():
    scenes = Scenes(images=100, size=32, seed=1)
    indices = [7, 0, 99]
    boxes_by_file = boxes_in("scenes", scenes, indices)
    assert list(boxes_by_file) == indices
    for index in indices:
        assert sorted(boxes_by_file[index]) == np.flatnonzero(scenes.table.targets[index]).tolist()
        flat = [(c, *(round(side * 32) for side in box)) for c, held in boxes_by_file[index].items() for box in held]
        assert sorted(flat) == sorted(scenes.boxes(index))


def test_vocs_boxes_count_from_one_and_hold_their_last_pixel(tmp_path):
    source = voc(tmp_path)
    boxes_by_file = named(source, boxes_in("voc2007", source, range(5)))
    box = (0, 0, 5 / 10, 5 / 8)  # 1..5 of 10 x 8 pixels
    assert boxes_by_file == {
        "000005.jpg": {"chair": [box, box]},  # one of them difficult
        "000007.jpg": {"car": [box], "person": [box]},
        "000001.jpg": {"dog": [box], "person": [box]},
        "000002.jpg": {"train": [box]},
        "000003.jpg": {"chair": [box], "car": [box]},
    }


def test_a_part_of_a_thing_is_not_the_thing_and_fractions_of_a_pixel_count(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"

    def change(text):
        text = text.replace("<bndbox>", f"{part}<bndbox>").replace("<xmin>1<", "<xmin>3.5<")
        return text.replace("<ymax>5<", "<ymax>8<")

    source = voc(tmp_path, change)
    assert named(source, boxes_in("voc2007", source, [3])) == {"000002.jpg": {"train": [(0.25, 0, 0.5, 1)]}}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (SIZE, "", "NoneType"),
        ("<xmax>5</xmax>", "", "NoneType"),
        ("<xmax>5<", "<xmax>five<", "five"),
        ("<width>10<", "<width>0<", "division by zero"),
    ],
)
def test_a_voc_file_without_readable_boxes_is_named(tmp_path, old, new, expected):
    source = voc(tmp_path, lambda text: text.replace(old, new))
    with pytest.raises(
        ValueError, match=rf"00000\d\.xml: its boxes cannot be read \(.*{expected}.*\): unpack the archive"
    ):
        boxes_in("voc2007", source, [2])


def test_cocos_boxes_are_left_top_width_height(tmp_path):
    source = coco(tmp_path)
    boxes_by_file = named(source, boxes_in("coco2014", source, range(len(source.paths))))
    box = (1.5 / 8, 1 / 8, 5.5 / 8, 4.75 / 8)
    assert {file: {name: len(held) for name, held in by_name.items()} for file, by_name in boxes_by_file.items()} == {
        small_copies.coco_file(split, number): {name: 1 + (name == names[0]) for name in names}
        for split, content in small_copies.COCO.items()
        for number, names in content.items()
        if names
    }
    assert all(held in ([box], [box, box]) for by_name in boxes_by_file.values() for held in by_name.values())


def test_coco_boxes_are_cut_at_the_border_and_those_without_area_are_left_out(tmp_path):
    def change(content):
        for image in content["images"]:
            image.update(width=16, height=4)
        for number, annotation in enumerate(content["annotations"]):
            annotation["bbox"] = [0, 0, 3, 0] if number % 2 else [4, 1, 99, 2]
            annotation["iscrowd"], annotation["segmentation"] = 1, {"counts": [1, 2], "size": [4, 16]}

    source = coco(tmp_path, change, form="instances")
    index = source.table.files.index(small_copies.coco_file("train", 25))  # two giraffes, annotations 0 and 1
    assert boxes_in("coco2014", source, [index]) == {index: {COCO_CLASSES.index("giraffe"): [(0.25, 0.25, 1, 0.75)]}}


def test_cocos_short_form_has_no_boxes(tmp_path):
    source = coco(tmp_path, form="short")
    assert boxes_in("coco2014", source, [0]) is None
    assert boxes_in("coco2014", source, []) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["annotations"][0].pop("bbox"),
        lambda content: content["annotations"][0].update(bbox=[1, 2, 3]),
        lambda content: content["annotations"][0].update(bbox="1234"),
        lambda content: content["images"][-2].update(width=0),
        lambda content: [image.pop("height") for image in content["images"]],
    ],
)
def test_a_coco_file_without_readable_boxes_is_named(tmp_path, change):
    source = coco(tmp_path, change)
    with pytest.raises(ValueError, match=r"instances_\w+2014\.json: its boxes cannot be read .*unpack"):
        boxes_in("coco2014", source, range(len(source.paths)))


@pytest.mark.parametrize("kind", ["voc2007", "coco2014", "scenes"])
def test_an_opened_data_set_has_the_boxes_of_its_own_rows(tmp_path, kind):
    root = tmp_path / "photos"
    if kind == "scenes":
        data = DataParams(kind=kind, images=100, size=16)
    else:
        {"voc2007": voc, "coco2014": coco}[kind](root)
        data = DataParams(kind=kind, root=str(root), size=16, bad_files="skip")
        # An image that is not on disk is left out, and the ones after it move up.
        next(root.rglob("*000001.jpg" if kind == "voc2007" else "*000009.jpg")).unlink()
    dataset = open_dataset(data, tmp_path / "cache")
    indices = np.arange(len(dataset.table.files))[::-1]
    boxes_by_file = boxes.boxes_of(dataset, indices)
    assert list(boxes_by_file) == indices.tolist() and all(type(index) is int for index in boxes_by_file)
    for index in indices:
        assert sorted(boxes_by_file[index]) == np.flatnonzero(dataset.table.targets[index] == 1).tolist()


@pytest.mark.parametrize("kind", ["csv", "nuswide", "labels"])
def test_data_sets_without_boxes_say_none(kind):
    dataset = SimpleNamespace(table=SimpleNamespace(files=["a"]), source=None, kind=kind)
    assert boxes.boxes_of(dataset, [0]) is None
