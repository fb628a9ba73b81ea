import json
import os

import numpy as np
import pytest
from small_copies import COCO, coco, coco_file, coco_instances, coco_short, held, write_json

from cpsd_lib.data.dataset import open_dataset, signature
from cpsd_lib.data.readers.coco2014 import CATEGORIES, COCO_CLASSES, read_coco2014
from cpsd_lib.workbench.params import DataParams

SPLIT = {"train": "train", "test": "val"}


def expected():
    return {
        split: {coco_file(name, n): sorted(COCO[name][n]) for n in sorted(COCO[name]) if COCO[name][n]}
        for split, name in SPLIT.items()
    }


def refused(root, *parts, error=ValueError):
    with pytest.raises(error) as caught:
        read_coco2014(root)
    for part in parts:
        assert part in str(caught.value)


def train_json(root, change, form="instances"):
    """Write a copy whose train file went through `change`, a function of its content."""
    coco(root, form, images=False)
    path = root / ("annotations/instances_train2014.json" if form == "instances" else "train_anno.json")
    content = json.loads(path.read_text())
    write_json(path, change(content) or content)
    return root


@pytest.mark.parametrize("form", ["instances", "short", "both"])
def test_both_forms_give_the_same_table_by_file_name_without_the_unlabelled_images(tmp_path, form):
    data = read_coco2014(coco(tmp_path / "coco", form))
    assert data.table.names == COCO_CLASSES == sorted(CATEGORIES) and len(COCO_CLASSES) == 80
    assert held(data) == expected()
    assert data.paths[0] == tmp_path / "coco" / "train2014" / coco_file("train", 9)
    assert all(path.is_file() for path in data.paths)


def test_classes_are_in_the_order_of_the_released_label_counts(golden, shared_data):
    names = np.load(shared_data / "coco_val2014_labels" / "labels.npz")["class_names"]
    assert names.tolist() == COCO_CLASSES
    occurrence = np.load(golden / "coco_label_counts.npz")["occurrence"]
    assert COCO_CLASSES[occurrence.argmax()] == "person"


def test_counts_that_are_not_the_published_ones_are_notes_with_both_numbers(tmp_path):
    notes = read_coco2014(coco(tmp_path / "a")).notes
    assert [note.partition(":")[2].partition(",")[0].strip() for note in notes] == [
        "4 listed images in split 'train'",
        "3 listed images in split 'test'",
        "3 labelled images in split 'train'",
        "2 labelled images in split 'test'",
    ]
    for number, note in zip(("82,783", "40,504", "82,081", "40,137"), notes, strict=True):
        assert note.startswith("coco2014 count: ") and number in note
    assert len(read_coco2014(coco(tmp_path / "b", "short")).notes) == 2  # it may list labelled images only


@pytest.mark.parametrize("prefix", ["train2014/", "coco\\train2014\\", "./"])
def test_a_short_form_may_name_folders_and_lie_in_annotations(tmp_path, prefix):
    root = coco(tmp_path / "coco", "short")
    (root / "train_anno.json").unlink()
    write_json(root / "annotations" / "train_anno.json", coco_short(prefix=prefix))
    assert held(read_coco2014(root)) == expected()


def test_a_crowd_counts_as_present(tmp_path):
    def change(content):
        for annotation in content["annotations"]:
            annotation |= {"iscrowd": 1, "segmentation": {"counts": [1, 2], "size": [8, 8]}}

    assert held(read_coco2014(train_json(tmp_path / "coco", change))) == expected()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (
            lambda c: c["categories"].append({"id": 91, "name": "background"}),
            ["81 classes, expected exactly the 80", "'background'"],
        ),
        (lambda c: c["categories"].pop() and None, ["79 classes", "not in it", "toothbrush"]),
        (
            lambda c: c["categories"][0].update(name="persn"),
            ["80 classes", "'persn' (did you mean 'person'?)"],
        ),
        (lambda c: c["categories"][1].update(id=1), ["same category id", "1: 2 times"]),
        (lambda c: c["categories"][1].update(name="person"), ["not in it: bicycle"]),
        (lambda c: c["annotations"][0].update(category_id=12), ["unknown category_id", "12"]),
        (lambda c: c["annotations"][0].update(image_id=42), ["unknown image_id", "42"]),
        (lambda c: c["images"].append(dict(c["images"][0])), ["same image id", "25: 2 times"]),
        (lambda c: c["images"].append(c["images"][0] | {"id": 26}), ["file names must be unique", "000000000025.jpg"]),
        (lambda c: c["images"][0].pop("file_name") and None, ["'file_name'", "image number 0: None"]),
        (lambda c: c["images"][0].update(file_name=""), ["has an empty name"]),
        (lambda c: c["annotations"][2].update(image_id=9.5), ["unknown image_id", "9.5"]),
        (lambda c: c["annotations"][2].update(image_id=True), ["'image_id' (int or float or str)", "number 2: True"]),
        (lambda c: c["annotations"].append(7), ["'image_id'", "number 9: None"]),
        (lambda c: c.pop("annotations") and None, ["licenses, categories, expected a COCO JSON"]),
        (lambda c: c["images"], ["holds a JSON list, expected a COCO JSON"]),
    ],
)
def test_a_wrong_instances_file_is_refused_with_what_was_expected(tmp_path, change, parts):
    refused(train_json(tmp_path / "coco", change), *parts)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c[0]["labels"].append(80), ["in alphabetical order", "from 0 to 79, each once"]),
        (
            lambda c: [one | {"labels": [n + 1 for n in [*one["labels"], 79]]} for one in c],
            ["not from 1", "from 0 to 79, each once"],
        ),
        (lambda c: c[0]["labels"].append(90), ["no category ids of COCO (1 to 90)"]),
        (lambda c: c[0]["labels"].append(-1), ["from 0 to 79, each once", ", -1]"]),
        (lambda c: c[0].update(labels=[0, 1] + [0] * 78), ["from 0 to 79, each once", "no row of 0 and 1"]),
        (lambda c: c[0].update(labels=["dog"]), ["from 0 to 79, each once"]),
        (lambda c: c[0].update(labels=[3.0]), ["from 0 to 79, each once"]),
        (lambda c: c[0].update(labels=[True]), ["from 0 to 79, each once"]),
        (lambda c: c[0].update(labels=3), ["'labels' (list)"]),
        (lambda c: c[0].pop("labels") and None, ["'labels' (list)", "image number 0"]),
        (lambda c: c.append(c[0]), ["file names must be unique"]),
        (lambda c: {"images": c}, ["holds a JSON dict, expected the short form"]),
    ],
)
def test_a_wrong_short_form_is_refused_with_what_was_expected(tmp_path, change, parts):
    refused(train_json(tmp_path / "coco", change, "short"), *parts)


def test_where_both_forms_are_the_instances_count(tmp_path):
    root = coco(tmp_path / "coco", "both", images=False)
    write_json(root / "train_anno.json", coco_short(order=CATEGORIES))
    assert held(read_coco2014(root)) == expected()


def test_category_id_order_is_found_by_the_share_of_persons_when_enough_images_say_so(tmp_path):
    content = {"train": {n: ["person", "car"] if n % 2 else ["dog"] for n in range(1000, 1120)}}
    root = coco(tmp_path / "coco", "short", images=False)
    write_json(root / "train_anno.json", coco_short(order=CATEGORIES, content=content))
    refused(root, "class 0 is in 50% of its images", "category-id order", "instances JSON")
    write_json(root / "train_anno.json", coco_short(content=content))
    assert len(held(read_coco2014(root))["train"]) == 120


def test_missing_folders_and_files_say_what_must_lie_where(tmp_path):
    refused(tmp_path / "nowhere", "no folder", "data.root", error=FileNotFoundError)
    root = coco(tmp_path / "coco")
    (root / "annotations" / "instances_val2014.json").unlink()
    parts = ("labels of split 'test'", "annotations/instances_val2014.json or val_anno.json")
    refused(root, *parts, error=FileNotFoundError)


def test_folders_of_2017_and_other_classes_are_refused_with_the_command_that_imports_them(tmp_path):
    root = coco(tmp_path / "2017", images=False)
    command = "imported by: cpsd data import {} --kind coco --to NEW_FOLDER"
    for split in ("train", "val"):
        path = root / "annotations" / f"instances_{split}2014.json"
        path.rename(path.with_name(f"instances_{split}2017.json"))
    parts = ("no labels of split 'train'", "instances_train2014.json or train_anno.json", command.format(root))
    refused(root, *parts, error=FileNotFoundError)
    root = train_json(tmp_path / "own", lambda content: content["categories"][0].update(name="tulip"))
    refused(root, "unknown: 'tulip'", command.format(root))


def test_a_download_that_broke_off_is_named(tmp_path):
    root = coco(tmp_path / "coco")
    path = root / "annotations" / "instances_train2014.json"
    path.write_text(path.read_text()[:-40])
    refused(root, "instances_train2014.json is not valid JSON", "broke off")
    path.write_bytes(b"\xff\xfe\x00")
    refused(root, "is not UTF-8 text")


def test_outlines_are_passed_over_and_an_id_with_a_point_is_the_same_id(tmp_path):
    def change(content):
        content["images"][0]["id"] = 25.0
        for annotation in content["annotations"]:
            annotation |= {"image_id": float(annotation["image_id"]), "segmentation": [[1.5, 2.25]]}

    assert held(read_coco2014(train_json(tmp_path / "coco", change))) == expected()


def opened(root, **more):
    return open_dataset(DataParams(kind="coco2014", root=str(root), size=16, **more), root.parent / "cache")


def test_a_copy_opens_with_pixels_in_the_order_of_its_table(tmp_path):
    dataset = opened(coco(tmp_path / "coco"))
    assert dataset.images.shape == (5, 3, 16, 16) and dataset.incomplete == "" and dataset.skipped == []
    assert len(np.unique(dataset.images[:].reshape(5, -1), axis=0)) == 5
    assert any("82,081" in note for note in dataset.notes)
    assert opened(coco(tmp_path / "short", "short")).key == dataset.key  # the same labels and pixels in another form


def test_missing_images_are_an_error_before_decoding_or_are_left_out_and_the_figures_get_a_caveat(tmp_path):
    root = coco(tmp_path / "coco")
    (root / "train2014" / coco_file("train", 30)).unlink()
    with pytest.raises(ValueError, match=r"1 of 5 image files cannot be used.*\n.*30\.jpg: the file does not exist"):
        opened(root)
    assert not (tmp_path / "cache").exists()
    dataset = opened(root, bad_files="skip")
    assert dataset.images.shape[0] == 4 and dataset.skipped == [(coco_file("train", 30), "the file does not exist")]
    assert dataset.incomplete.startswith("INCOMPLETE") and "1 of 3 train" in dataset.incomplete
    assert dataset.incomplete in dataset.notes


def test_a_broken_image_that_is_left_out_gives_a_caveat_too(tmp_path):
    root = coco(tmp_path / "coco")
    (root / "train2014" / coco_file("train", 30)).write_bytes(b"")
    dataset = opened(root, bad_files="skip")
    assert "INCOMPLETE: 1 file could not be read" in dataset.incomplete
    assert dataset.table.indices("train").tolist() == [0, 1]


@pytest.mark.parametrize("change", ["labels", "new image", "image gone", "short form"])
def test_the_signature_changes_with_label_files_and_image_folders(tmp_path, change):
    root = coco(tmp_path / "coco")
    data = DataParams(kind="coco2014", root=str(root))
    for path in root.rglob("*"):  # a file system's clock ticks every few milliseconds: all this is long ago
        os.utime(path, (1, 1))
    before = signature(data)
    assert signature(data) == before
    image = root / "val2014" / coco_file("val", 42)
    if change == "labels":
        write_json(root / "annotations" / "instances_val2014.json", coco_instances("val") | {"more": 1})
    elif change == "short form":
        write_json(root / "val_anno.json", coco_short("val"))
    else:
        image.rename(root / "val2014" / "new.jpg" if change == "new image" else root / image.name)
    assert signature(data) != before
