import os

import pytest
from small_copies import VOC, held, voc, voc_xml

from cpsd_lib.data.dataset import open_dataset, signature
from cpsd_lib.data.readers.voc2007 import CLASSES, read_voc2007
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.params import DataParams
from cpsd_lib.workbench.yaml_files import ParameterError, parse_overrides

MERGED = "VOCdevkit/VOC2007"
LAYOUTS = [
    {},
    {"train": "VOCtrainval2007/VOCdevkit/VOC2007", "test": "VOCtest2007/VOCdevkit/VOC2007"},
    {"train": "VOC2007", "test": "VOC2007"},
    {"train": ".", "test": "."},
]


def refused(root, *parts, error=ValueError):
    with pytest.raises(error) as caught:
        read_voc2007(root)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture
def root(tmp_path):
    return voc(tmp_path / "voc")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_split_and_merged_folders_give_the_same_table(tmp_path, layout):
    data = read_voc2007(voc(tmp_path / "voc", **layout))
    assert data.table.names == list(CLASSES) == sorted(CLASSES) and len(CLASSES) == 20
    assert held(data) == {
        split: {f"{number}.jpg": sorted({name for name, _ in VOC[word][number]}) for number in VOC[word]}
        for split, word in (("train", "trainval"), ("test", "test"))
    }
    assert all(path.is_file() for path in data.paths)


def test_a_class_with_difficult_objects_only_is_present_or_unknown_as_set(root):
    person, chair, train = (CLASSES.index(name) for name in ("person", "chair", "train"))
    assert (read_voc2007(root).table.targets != -1).all()
    table = read_voc2007(root, difficult=False).table
    assert table.files == ["000005.jpg", "000007.jpg", "000001.jpg", "000002.jpg", "000003.jpg"]
    assert table.targets[:, person].tolist() == [0, -1, 1, 0, 0]
    assert table.targets[:, chair].tolist() == [1, 0, 0, 0, 1]  # a plain one beside the difficult one
    assert table.targets[:, train].tolist() == [0, 0, 0, -1, 0]
    dataset = open_dataset(DataParams(kind="voc2007", root=str(root), size=16, difficult=False), root.parent / "cache")
    assert any("labels are unknown" in note for note in dataset.notes)


def test_difficult_objects_may_count_in_one_split_alone_and_the_key_changes_with_the_labels_only(root):
    person, train = CLASSES.index("person"), CLASSES.index("train")
    targets = read_voc2007(root, difficult={"train": True, "test": False}).table.targets
    assert targets[1, person] == 1 and targets[3, train] == -1
    targets = read_voc2007(root, difficult={"train": False, "test": True}).table.targets
    assert targets[1, person] == -1 and targets[3, train] == 1
    keys = [
        open_dataset(
            DataParams(kind="voc2007", root=str(root), size=16, difficult=difficult), root.parent / "cache"
        ).key
        for difficult in (True, {"train": True, "test": True}, {"train": True, "test": False}, False)
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 3


@pytest.mark.parametrize("value", ["1", "maybe", "{train: true}", "{train: true, test: 0}", "{train: true, val: true}"])
def test_difficult_that_is_not_one_or_each_split_is_refused_with_the_two_ways(root, value):
    words = parse_overrides(["data.kind=voc2007", f"data.root={root}", f"data.difficult={value}"])
    with pytest.raises(
        ParameterError, match=r"data\.difficult: must be true, false, or one of them a split: \{train: t"
    ):
        load_params("tiny", words)
    words["data.difficult"] = {"train": True, "test": False}
    assert load_params("tiny", words).data.difficult == {"train": True, "test": False}


def test_other_classes_are_refused_with_the_command_that_imports_them(root):
    (root / MERGED / "Annotations" / "000005.xml").write_text(voc_xml("000005", [("tulip", 0)]))
    refused(root, "unknown class", f"cpsd data import {root / MERGED} --kind voc --to NEW_FOLDER", "'tulip'")


def test_counts_that_are_not_the_published_ones_are_notes_with_both_numbers(root):
    first, second = read_voc2007(root).notes
    assert first.startswith("voc2007 count: 2 listed images in split 'train', expected 5,011")
    assert "3 listed images in split 'test', expected 4,952" in second


def test_a_missing_half_says_which_list_is_looked_for_and_how_to_get_it(root, tmp_path):
    refused(tmp_path / "nowhere", "no folder", error=FileNotFoundError)
    (root / MERGED / "ImageSets" / "Main" / "test.txt").unlink()
    refused(root, "Main/test.txt", "VOCtest2007/VOCdevkit/VOC2007", "VOCDetection", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("000005\n000005\n", ["file names must be unique", "000005.jpg"]),
        ("000005\n000001\n", ["file names must be unique", "000001.jpg"]),
        ("000005 1\n000007 -1\n", ["missing or broken XML files", "000005 1.xml"]),
        ("../000005\n", ["missing or broken XML files", "../000005.xml"]),
        ("\n", ["trainval.txt is empty"]),
    ],
)
def test_a_wrong_list_is_refused(root, text, parts):
    (root / MERGED / "ImageSets" / "Main" / "trainval.txt").write_text(text)
    refused(root, *parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            voc_xml("000005", [("chair", 0)])[:-20],
            ["missing or broken XML files", "000005.xml: ", "expected one <annotation>"],
        ),
        ("", ["missing or broken XML files"]),
        ("<html></html>", ["it is a <html>, expected an <annotation>"]),
        (voc_xml("000005", [("chiar", 0)]), ["unknown class", "000005.xml: 'chiar' (did you mean 'chair'?)"]),
        (voc_xml("000005", [("", 0)]), ["unknown class", "000005.xml: ''"]),
        (voc_xml("000005", [("chair", "maybe")]), ["<difficult> is 'maybe', expected 0 or 1"]),
    ],
)
def test_a_wrong_xml_file_is_named_with_what_was_expected(root, text, parts):
    (root / MERGED / "Annotations" / "000005.xml").write_text(text)
    refused(root, *parts)


def test_missing_xml_files_are_counted_and_named(root):
    (root / MERGED / "Annotations" / "000007.xml").unlink()
    refused(root, "missing or broken XML files", "1 found", "000007.xml: ", "No such file")


def test_an_object_without_the_word_difficult_is_a_plain_one(root):
    path = root / MERGED / "Annotations" / "000002.xml"
    path.write_text(path.read_text().replace("<difficult>1</difficult>", ""))
    assert (read_voc2007(root, difficult=False).table.targets[3] != -1).all()


def test_a_copy_opens_with_its_pixels_and_every_image_even_one_without_a_label(root):
    (root / MERGED / "Annotations" / "000003.xml").write_text(voc_xml("000003", []))
    dataset = open_dataset(DataParams(kind="voc2007", root=str(root), size=16), root.parent / "cache")
    assert dataset.images.shape == (5, 3, 16, 16) and dataset.incomplete == ""
    assert any("1 of 3 images have no positive label" in note for note in dataset.notes)


def test_the_signature_changes_with_an_xml_file_edited_in_place_and_with_image_folders(root):
    data = DataParams(kind="voc2007", root=str(root))
    for path in root.rglob("*"):  # a file system's clock ticks every few milliseconds: all this is long ago
        os.utime(path, (1, 1))
    first = signature(data)
    assert signature(data) == first
    path = root / MERGED / "Annotations" / "000003.xml"
    path.write_text(voc_xml("000003", []))
    second = signature(data)
    (root / MERGED / "JPEGImages" / "000003.jpg").unlink()
    assert len({first, second, signature(data)}) == 3
