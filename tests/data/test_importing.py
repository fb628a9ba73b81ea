import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from small_copies import picture, voc, voc_xml, write_json

from cpsd_lib import cli
from cpsd_lib.data import ImportSettings, import_labels
from cpsd_lib.data.readers.csv import read_csv
from cpsd_lib.workbench.yaml_files import repo_root


def imported(source, to, kind="table", **options):
    """Import; return ({split: {file: its labels}}, the lines that were printed)."""
    lines = import_labels(ImportSettings(str(source), str(to), kind, **options))
    table = pd.read_csv(to / "annotations.csv", dtype=str, keep_default_na=False)
    return {
        split: {file: part.split(";") if part else [] for file, part in zip(rows.file_name, rows.labels, strict=True)}
        for split, rows in table.groupby("split")
    }, "\n".join(lines)


def refused(source, to, *parts, kind="table", error=ValueError, **options):
    with pytest.raises(error) as caught:
        imported(source, to, kind, **options)
    for part in parts:
        assert part in str(caught.value)
    assert not to.exists()  # nothing is written before all is known to be right


def flat(splits):
    return {file: labels for rows in splits.values() for file, labels in rows.items()}


def table(path, header, rows, photos="images", ending=""):
    """Write a table and a photo for the first cell of each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows, ""]))
    for row in rows:
        picture(path.parent / photos / (row.split(",")[0] + ending))
    return path


@pytest.fixture
def to(tmp_path):
    return tmp_path / "mine"


# ---- the forms that people have --------------------------------------------------------------------------------------

TAGS = ["haze primary", "agriculture clear primary water", "clear primary", "haze", "water clear", "primary", "clear"]
TAGS = [*TAGS, "primary water", "agriculture", "haze water", "water", "agriculture haze"]


@pytest.fixture
def planet(tmp_path):
    rows = [f"train_{number},{tags}" for number, tags in enumerate(TAGS)]
    return table(tmp_path / "planet" / "train_v2.csv", "image_name,tags", rows, "train-jpg", ".jpg")


def test_planet_has_names_without_an_ending_and_tags_between_blanks(planet, to):
    splits, printed = imported(planet, to, labels="tags", separator=" ", split="random:0.3")
    assert flat(splits) == {f"train_{number}.jpg": sorted(tags.split()) for number, tags in enumerate(TAGS)}
    assert splits.keys() == {"train", "test"} and len(splits["test"]) == 4
    assert "12 photos: train 8, test 4; 5 classes" in printed and f"{to / 'images'} -> {planet.parent}" in printed
    assert all(path.is_file() for path in read_csv(to).paths)


def test_a_photo_that_is_there_with_two_endings_needs_the_suffix(planet, to):
    picture(planet.parent / "train-tif" / "train_3.tif")
    refused(planet, to, "several photos of one name", "line 5: train_3: ", "--suffix", labels="tags", separator=" ")
    splits, printed = imported(planet, to, labels="tags", separator=" ", suffix=".jpg")
    assert len(flat(splits)) == 12 and "left out: 1 photo without a label" in printed and "train_3.tif" in printed


CXR = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
CXR += "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"


@pytest.fixture
def cxr(tmp_path):
    """ChestX-ray14: 3 photos a patient, the photos in the folders of 12 archives, lists of the official split."""
    home, rows = tmp_path / "cxr", []
    for patient in range(1, 21):
        for number in range(3):
            name = f"{patient:08d}_{number:03d}.png"
            findings = [["No Finding"], ["Mass"], ["Effusion", "Mass"], ["Hernia", "Effusion"]][(patient + number) % 4]
            rows.append(f"{name},{'|'.join(findings)},{number},{patient},58,M,PA,2682,2749,0.143,0.143,")
            picture(home / f"images_{patient % 12 + 1:03d}" / "images" / name)
    (home / "Data_Entry_2017.csv").write_text("\n".join([CXR, *rows, ""]))
    return home / "Data_Entry_2017.csv"


CXR_OPTIONS = {"labels": "Finding Labels", "separator": "|", "none": "No Finding", "group": "Patient ID"}


def test_chest_xray14_keeps_a_patient_in_one_split_and_no_finding_is_no_label(cxr, to):
    splits, printed = imported(cxr, to, **CXR_OPTIONS, split="random:0.2")
    patients = {split: {file.split("/")[-1][:8] for file in rows} for split, rows in splits.items()}
    assert not patients["train"] & patients["test"] and len(patients["test"]) == 4
    assert flat(splits)["images_002/images/00000001_000.png"] == ["Mass"]
    assert flat(splits)["images_005/images/00000004_000.png"] == []
    assert (
        "random:0.2 of 20 groups of 'Patient ID', stratified by class, seed 0" in printed and "; 3 classes" in printed
    )
    assert "dropped" not in printed


def test_chest_xray14_has_its_official_lists_and_a_patient_in_both_is_refused(cxr, to):
    names = sorted(path.name for path in cxr.parent.rglob("*.png"))
    (cxr.parent / "train_val_list.txt").write_text("\n".join(name for name in names if name > "00000015"))
    (cxr.parent / "test_list.txt").write_text("\n".join(name for name in names if name < "00000015"))
    splits, printed = imported(cxr, to, **CXR_OPTIONS)
    assert {file.split("/")[-1] for file in splits["test"]} == {name for name in names if name < "00000015"}
    assert "splits from the names of lists" in printed
    (cxr.parent / "train_val_list.txt").write_text("\n".join(names[1:]))
    (cxr.parent / "test_list.txt").write_text(names[0])
    elsewhere = to.parent / "other"
    refused(cxr, elsewhere, "groups of 'Patient ID' in several splits", "1: test, train", **CXR_OPTIONS)
    (cxr.parent / "test_list.txt").write_text("\n".join(names[:2]))
    refused(cxr, elsewhere, "names in the list of test and in another one", "00000001_001", **CXR_OPTIONS)


CELEBA = {
    "000001": (-1, 1, -1),
    "000002": (1, 1, -1),
    "000003": (-1, -1, -1),
    "000004": (1, -1, 1),
    "000005": (-1, 1, 1),
}


@pytest.mark.parametrize("form", ["list_attr_celeba.txt", "list_attr_celeba.csv"])
def test_celeba_has_its_count_first_no_name_for_the_file_column_and_minus_one_for_absent(tmp_path, to, form):
    names, path = ("5_o_Clock_Shadow", "Bald", "Young"), tmp_path / "celeba" / form
    for number in CELEBA:
        picture(path.parent / "img_align_celeba" / f"{number}.jpg")
    if form.endswith("txt"):  # as it is published: blanks of two widths, one at the end of the header
        rows = [f"{number}.jpg " + " ".join(f"{value:2}" for value in values) for number, values in CELEBA.items()]
        path.write_text("\n".join([str(len(rows)), " ".join(names) + " ", *rows, ""]))
    else:
        rows = [f"{number}.jpg," + ",".join(map(str, values)) for number, values in CELEBA.items()]
        path.write_text("\n".join(["image_id," + ",".join(names), *rows, ""]))
    splits, printed = imported(path, to, columns=":", split="random:0.4")
    expected = {
        f"{number}.jpg": [n for n, v in zip(names, values, strict=True) if v == 1] for number, values in CELEBA.items()
    }
    assert flat(splits) == expected and "3 columns: 1 present, -1 absent" in printed
    assert (read_csv(to).table.targets != -1).all()


def test_a_celeba_list_that_broke_off_is_refused(tmp_path, to):
    path = tmp_path / "list.txt"
    picture(tmp_path / "1.jpg")
    path.write_text("3\nBald Young\n1.jpg 1 -1\n")
    refused(path, to, "has 1 line below its column names, expected 3", columns=":")


def roboflow(root, splits=("train", "valid", "test")):
    for split in splits:
        rows = [f"{split}{n}_jpg.rf.{n:08x}.jpg, {n % 2}, {(n + 1) % 2}, {int(n == 0)}" for n in range(4)]
        table(root / split / "_classes.csv", "filename, cat, traffic light, dog", rows, ".")
    return root


def test_a_roboflow_export_has_a_table_a_folder_and_blanks_before_names_and_values(tmp_path, to):
    splits, printed = imported(roboflow(tmp_path / "robo"), to)
    assert splits["val"]["valid/valid0_jpg.rf.00000000.jpg"] == ["dog", "traffic light"]
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4, "val": 4, "test": 4}
    assert "3 columns: 1 present, 0 absent" in printed and "file names from column 'filename'" in printed


def test_a_roboflow_export_without_a_test_folder_uses_valid_as_test_and_says_so(tmp_path, to):
    splits, printed = imported(roboflow(tmp_path / "robo", ("train", "valid")), to)
    assert splits.keys() == {"train", "test"} and "there is no test, so that val is test" in printed


def test_photos_of_one_name_in_two_folders_belong_to_the_table_beside_them(tmp_path, to):
    root = tmp_path / "robo"
    for split, values in (("training data/train", "1, 0"), ("training data/test", "0, 1")):
        rows = [f"{n}.jpg, {values}" for n in range(3)]
        table(root / split / "_classes.csv", "filename, cat, dog", rows, ".")
    splits, _ = imported(root, to)
    assert splits["train"] == {f"train/{n}.jpg": ["cat"] for n in range(3)}
    assert splits["test"] == {f"test/{n}.jpg": ["dog"] for n in range(3)}


def test_file_names_start_at_the_folder_of_their_table(tmp_path, to):
    for folder, values in (("a", "1,0"), ("b", "0,1")):
        table(
            tmp_path / "data" / folder / "_classes.csv", "file,cat,dog", [f"x/{n}.jpg,{values}" for n in range(3)], "."
        )
    splits, _ = imported(tmp_path / "data", to, split="random:0.4")
    assert flat(splits) == {f"{a}/x/{n}.jpg": [name] for a, name in (("a", "cat"), ("b", "dog")) for n in range(3)}


def test_roboflow_tables_with_other_columns_are_refused(tmp_path, to):
    root = roboflow(tmp_path / "robo")
    (root / "valid" / "_classes.csv").write_text("filename, cat\na.jpg, 1\n")
    refused(root, to, "columns that not all tables have", "dog", "traffic light")


GENRES = {
    "tt01": ["Comedy", "Drama"],
    "tt02": ["Drama"],
    "tt03": [],
    "tt04": ["Comedy"],
    "tt05": ["N/A", "Drama"],
    "tt06": ["N/A"],
}


@pytest.mark.parametrize("options", [{"labels": "Genre"}, {"columns": "Comedy:N/A"}], ids=["lists", "columns"])
def test_movie_posters_have_genres_as_lists_and_as_columns(tmp_path, to, options):
    names = ["Comedy", "Drama", "N/A"]
    rows = [f'{id},"{held}",' + ",".join(str(int(n in held)) for n in names) for id, held in GENRES.items()]
    path = table(tmp_path / "posters" / "train.csv", "Id,Genre," + ",".join(names), rows, "Images", ".jpg")
    splits, _ = imported(path, to, suffix=".jpg", split="random:0.5", **options)
    assert flat(splits) == {f"{id}.jpg": sorted(held) for id, held in GENRES.items()}


def labelimg(root):
    """A folder of LabelImg: photos and XML side by side, whose <filename> and <path> may be of another day."""
    for number, names in enumerate((["cup"], ["cup", "plate", "cup"], [], ["plate"], ["fork", "plate"], ["cup"])):
        picture(root / f"IMG_{number}.JPG")
        (root / f"IMG_{number}.xml").write_text(voc_xml("renamed", [(name, 0) for name in names]))
    return root


def test_a_labelimg_folder_has_an_xml_beside_each_photo_of_any_class(tmp_path, to):
    root = labelimg(tmp_path / "kitchen")
    picture(root / "IMG_9.JPG")
    splits, printed = imported(root, to, "voc", split="random:0.3")
    labels = [["cup"], ["cup", "plate"], [], ["plate"], ["fork", "plate"], ["cup"]]
    assert flat(splits) == {f"IMG_{number}.JPG": names for number, names in enumerate(labels)}
    assert "6 XML files, 1 of them without an object" in printed
    assert "left out: 1 photo without a label (see --unlabelled): IMG_9.JPG" in printed


def test_photos_of_one_name_belong_to_the_xml_beside_them(tmp_path, to):
    for day in ("monday", "tuesday"):
        labelimg(tmp_path / "kitchen" / day)
    splits, _ = imported(tmp_path / "kitchen", to, "voc", split="random:0.3")
    assert len(flat(splits)) == 12 and flat(splits)["tuesday/IMG_1.JPG"] == ["cup", "plate"]


def test_a_voc_folder_has_its_splits_in_lists(tmp_path, to):
    root = voc(tmp_path / "voc")
    picture(root / "VOCdevkit" / "VOC2007" / "SegmentationClass" / "000005.png")
    home = root / "VOCdevkit" / "VOC2007"
    refused(home, to, "several photos of one name", "SegmentationClass/000005.png", kind="voc")
    splits, _ = imported(home, to, "voc", suffix=".jpg")
    assert splits["train"] == {"000005.jpg": ["chair"], "000007.jpg": ["car", "person"]}
    assert splits["test"] == {"000001.jpg": ["dog", "person"], "000002.jpg": ["train"], "000003.jpg": ["car", "chair"]}
    assert {path.resolve().parent.name for path in read_csv(to).paths} == {"JPEGImages"}


def test_a_list_of_val_wins_over_trainval_and_a_name_in_two_lists_is_refused(tmp_path, to):
    root = voc(tmp_path / "voc")
    lists = root / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    (lists / "val.txt").write_text("000007\n")
    (lists / "train.txt").write_text("000005\n000003\n")
    (lists / "test.txt").write_text("000001\n000002\n")
    splits, _ = imported(lists.parents[1], to, "voc")
    assert {split: [*rows] for split, rows in splits.items()} == {
        **{"train": ["000003.jpg", "000005.jpg"], "val": ["000007.jpg"], "test": ["000001.jpg", "000002.jpg"]}
    }
    (lists / "train.txt").write_text("000005\n000001\n")
    other = tmp_path / "other"
    refused(lists.parents[1], other, "in the list of test and in another one", "000001", kind="voc")


def test_broken_xml_files_are_named(tmp_path, to):
    root = labelimg(tmp_path / "kitchen")
    (root / "IMG_1.xml").write_text("<annotation>")
    (root / "IMG_2.xml").write_text("<svg/>")
    refused(root, to, "broken XML files", "IMG_1.xml: ", "IMG_2.xml: it is a <svg>", kind="voc")


def coco2017(root, change=lambda content, split: None):
    """COCO as of 2017 with own categories: names with numbers as ids, one category without annotations, a crowd."""
    held = {
        "train": {1: ["zebra crossing"], 2: ["01", "zebra crossing"], 3: []},
        "val": {4: ["01"], 5: ["zebra crossing"]},
    }
    ids = {"zebra crossing": 7, "01": 9, "never": 3}
    for split, images in held.items():
        content = {
            "images": [
                {"id": n, "file_name": f"{n:012d}.jpg", "height": 8, "width": 8, "city": f"c{n}"} for n in images
            ],
            "annotations": [
                {
                    "id": 10 * n + place,
                    "image_id": n,
                    "category_id": ids[name],
                    "iscrowd": int(n == 4),
                    "bbox": [1, 1, 2, 2],
                }
                for n, names in images.items()
                for place, name in enumerate(names)
            ],
            "categories": [{"id": id, "name": name, "supercategory": "x"} for name, id in ids.items()],
        }
        change(content, split)
        write_json(root / "annotations" / f"instances_{split}2017.json", content)
        write_json(root / "annotations" / f"captions_{split}2017.json", {"images": [], "annotations": []})
        for n in images:
            picture(root / f"{split}2017" / f"{n:012d}.jpg")
    return root


def test_coco_of_2017_with_own_categories_drops_those_without_annotations(tmp_path, to):
    splits, printed = imported(coco2017(tmp_path / "coco"), to, "coco")
    assert splits["train"] == {
        "train2017/000000000001.jpg": ["zebra crossing"],
        "train2017/000000000002.jpg": ["01", "zebra crossing"],
        "train2017/000000000003.jpg": [],
    }
    assert splits["test"] == {"val2017/000000000004.jpg": ["01"], "val2017/000000000005.jpg": ["zebra crossing"]}
    assert "dropped: 1 class that no photo has: never" in printed and "val is test" in printed


def test_a_crowd_counts_unless_it_is_switched_off(tmp_path, to):
    splits, printed = imported(coco2017(tmp_path / "coco"), to, "coco", no_crowd=True)
    assert splits["test"]["val2017/000000000004.jpg"] == []
    assert "dropped: 1 object marked as a crowd" in printed


def test_a_column_of_cocos_images_can_be_the_group(tmp_path, to):
    def one_city(content, split):
        for image in content["images"]:
            image["city"] = "Rome" if image["id"] in (1, 4) else "Bonn"

    root = coco2017(tmp_path / "coco", one_city)
    refused(root, to, "groups of 'city' in several splits", "Rome: test, train", kind="coco", group="city")
    splits, _ = imported(root, to, "coco", group="city", split="random:0.5")
    assert sorted(map(len, splits.values())) == [2, 3]


def test_ids_written_with_a_point_are_the_same_ids(tmp_path, to):
    def as_pandas_writes_them(content, split):
        for record in content["annotations"]:
            record |= {"image_id": float(record["image_id"]), "segmentation": [[1.5, 2.25]]}

    expected = imported(coco2017(tmp_path / "coco"), to, "coco")[0]
    assert imported(coco2017(tmp_path / "points", as_pandas_writes_them), to.parent / "other", "coco")[0] == expected


def test_an_image_without_the_group_is_refused(tmp_path, to):
    root = coco2017(tmp_path / "coco", lambda content, split: content["images"][0].pop("city"))
    refused(root, to, "nothing in column 'city'", "image 1", "image 4", kind="coco", group="city", split="random:0.4")


def test_photos_of_one_name_in_two_folders_belong_to_the_json_of_their_split(tmp_path, to):
    def numbered(content, split):
        for place, image in enumerate(content["images"]):
            image["file_name"] = f"{place}.jpg"

    root = coco2017(tmp_path / "coco", numbered)
    for split, count in (("train", 3), ("val", 2)):
        for path in (root / f"{split}2017").iterdir():
            path.unlink()
        for place in range(count):
            picture(root / f"{split}2017" / f"{place}.jpg")
    splits, _ = imported(root, to, "coco")
    assert [*splits["train"]] == [f"train2017/{place}.jpg" for place in range(3)]
    assert splits["test"] == {"val2017/0.jpg": ["01"], "val2017/1.jpg": ["zebra crossing"]}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda content: content.pop("categories"), ["holds images, annotations, expected a COCO JSON"]),
        (lambda content: content["images"][0].pop("id"), ["image number 0: None", "expected 'id'"]),
        (lambda content: content["images"][0].update(id=2), ["image id is listed more than once", "2: 2 times"]),
        (lambda content: content["annotations"][0].update(category_id=5), ["unknown category_id", "5"]),
        (lambda content: content["annotations"][0].update(image_id=77), ["unknown image_id", "77"]),
    ],
)
def test_a_wrong_coco_file_is_refused_with_what_was_expected(tmp_path, to, change, parts):
    root = coco2017(tmp_path / "coco", lambda content, split: change(content) if split == "train" else None)
    refused(root, to, "instances_train2017.json", *parts, kind="coco")


def test_a_photo_in_two_folders_has_two_labels_and_photos_of_one_name_stay_two(tmp_path, to):
    root = tmp_path / "animals"
    for place in (
        "cat/1.jpg",
        "cat/2.jpg",
        "cat/3.jpg",
        "dog/1b.jpg",
        "dog/4.jpg",
        "test/5.jpg",
        "train/x.jpg",
        "6.jpg",
    ):
        picture(root / place)
    (root / "dog" / "both.jpg").write_bytes((root / "cat" / "1.jpg").read_bytes())
    (root / "dog" / "2.jpg").write_bytes((root / "dog" / "4.jpg").read_bytes() + b"other")
    splits, printed = imported(root, to, "folders", split="random:0.5")
    assert flat(splits) == {
        **{"cat/1.jpg": ["cat", "dog"], "cat/2.jpg": ["cat"], "cat/3.jpg": ["cat"], "dog/1b.jpg": ["dog"]},
        **{"dog/2.jpg": ["dog"], "dog/4.jpg": ["dog"], "test/5.jpg": ["test"], "train/x.jpg": ["train"]},
    }
    assert "joined: 1 photo named more than once, with all labels" in printed
    assert "left out: 1 photo without a label (see --unlabelled): 6.jpg" in printed


def test_folders_below_train_and_test_have_their_split(tmp_path, to):
    root = tmp_path / "animals"
    for place in ("train/cat/1.jpg", "train/dog/2.jpg", "train/test/3.jpg", "test/cat/4.jpg", "test/dog/5.jpg"):
        picture(root / place)
    splits, _ = imported(root, to, "folders")
    assert splits["train"] == {"train/cat/1.jpg": ["cat"], "train/dog/2.jpg": ["dog"], "train/test/3.jpg": ["test"]}
    picture(root / "test" / "cat" / "1.jpg")  # the same bytes as in train
    refused(root, to.parent / "other", "more than once with different split", "train/cat/1.jpg", kind="folders")


def test_classes_called_train_and_test_are_classes(tmp_path, to):
    for place in ("train/1.jpg", "train/2.jpg", "test/3.jpg", "test/4.jpg", "train/5.jpg", "test/6.jpg"):
        picture(tmp_path / "vehicles" / place)
    refused(
        tmp_path / "vehicles", to, "expected train, val or test in the names of lists", kind="folders", split="files"
    )
    splits, printed = imported(tmp_path / "vehicles", to, "folders")
    assert "splits drawn: random:0.2" in printed and {file.split("/")[0] for file in splits["train"]} == {
        "train",
        "test",
    }


# ---- tables of any kind ----------------------------------------------------------------------------------------------

ROWS = ["a.jpg,cat;dog", "b.jpg,dog", "c.jpg,cat", "d.jpg,", "e.jpg,cat;dog", "f.jpg,dog"]


@pytest.fixture
def plain(tmp_path):
    return table(tmp_path / "data" / "labels.csv", "photo,classes", ROWS)


@pytest.mark.parametrize("form", ["tabs", "semicolons", "byte order mark", "windows", "absolute", "folder"])
def test_ways_to_write_the_same_table_give_the_same_annotations(plain, to, form):
    text, options = plain.read_text(), {"labels": "classes"}
    if form == "tabs":
        text = text.replace(",", "\t")
    if form == "semicolons":
        text, options["separator"] = text.replace(";", "|").replace(",", ";"), "|"
    if form == "byte order mark":
        text = "\ufeff" + text
    if form == "windows":
        text = text.replace("\n", "\r\n").replace("a.jpg", "C:\\photos\\a.jpg").replace("b.jpg", "images\\b.jpg")
    if form == "absolute":
        text = text.replace("b.jpg", str(plain.parent / "images" / "b.jpg"))
    plain.write_bytes(text.encode())
    splits, _ = imported(plain.parent if form == "folder" else plain, to, **options)
    assert flat(splits) == {row.split(",")[0]: [*filter(None, row.split(",")[1].split(";"))] for row in ROWS}


def test_names_stay_text_whatever_they_look_like(tmp_path, to):
    rows = ["01,NA;None", "1,01;nan", "2,null;1.0", "NA,1e3;NA", "4,None;null", "5,nan;01"]
    path = table(tmp_path / "data" / "labels.csv", "photo,classes", rows, ending=".png")
    splits, _ = imported(path, to, labels="classes", suffix=".png")
    assert flat(splits)["01.png"] == ["NA", "None"] and flat(splits)["NA.png"] == ["1e3", "NA"]
    assert read_csv(to).table.names == ["01", "1.0", "1e3", "NA", "None", "nan", "null"]


@pytest.mark.parametrize("separator", ["|", ",", " ", "/"])
def test_labels_joined_by_something_else_are_refused_with_the_separator_to_give(plain, to, separator):
    rows = ["a,b", "b,c", "a,c", "a", "b", "c"]
    names = [row.replace(",", separator) for row in rows]
    plain.write_text(
        "photo\tclasses\n" + "\n".join(f"{'abcdef'[n]}.jpg\t{name}" for n, name in enumerate(names)) + "\n"
    )
    refused(
        plain,
        to,
        "its labels are 6 classes",
        "they are 3: a, b, c",
        f'Give --separator "{separator}"',
        labels="classes",
    )
    splits, _ = imported(plain, to, labels="classes", separator=separator)
    assert flat(splits)["b.jpg"] == ["b", "c"]


def test_a_bar_in_one_cell_among_joined_ones_is_seen_and_a_name_with_a_comma_is_one(plain, to):
    rows = ["a.jpg\tcat;dog", "b.jpg\tcat|dog", "c.jpg\tdog", "d.jpg\tcat"]
    plain.write_text("\n".join(["photo\tclasses", *rows, ""]))
    refused(plain, to, "one of them 'cat|dog'", 'Give --separator "|"', labels="classes")
    plain.write_text(plain.read_text().replace("cat|dog", "salt, pepper"))
    assert flat(imported(plain, to, labels="classes", split="random:0.4")[0])["b.jpg"] == ["salt, pepper"]


@pytest.mark.parametrize("cell", ["['a' 'b']", "[a, b]", "cat", "['a', 'b'"])
def test_cells_that_are_no_lists_among_lists_are_refused(plain, to, cell):
    plain.write_text(f"photo\tclasses\na.jpg\t['cat', 'dog']\nb.jpg\t{cell}\n")
    refused(plain, to, "labels.csv, line 3", cell, "such as ['cat', 'dog']", labels="classes")


@pytest.mark.parametrize(
    ("text", "options", "parts"),
    [
        ("", {}, ["nothing in it, expected a table"]),
        ("photo,cat\n", {}, ["a line of column names but no rows"]),
        ("photo,cat\na.jpg,1,2\n", {}, ["line 2: 3 cells", "expected 2 cells between ','"]),
        ("photo,cat\na.jpg,1\n\nb.jpg\n", {}, ["line 4: 1 cells", "expected 2 cells"]),
        ('photo,cat\na.jpg,"1\n', {}, ["line 2, is not valid CSV", "quotation marks"]),
        ("photo,cat,cat\na.jpg,1,0\n", {}, ["same column is listed more than once"]),
        ("photo,cat\na.jpg,1\n", {}, ["give one of --labels COLUMN and --columns FIRST:LAST", "'photo', 'cat'"]),
        ("photo,cat\na.jpg,1\n", {"labels": "cat", "columns": "cat:"}, ["give one of --labels"]),
        ("photo,cat\na.jpg,1\n", {"labels": "cats"}, ["has no column 'cats' (did you mean 'cat'?)"]),
        ("photo,cat\na.jpg,1\n", {"labels": "cat", "file": "foto"}, ["'foto' (did you mean 'photo'?)"]),
        ("photo,cat\na.jpg,1\n", {"columns": "cat:dog"}, ["has no column 'dog'"]),
        ("photo,cat,dog\na.jpg,1,0\n", {"columns": "dog:cat"}, ["has no columns dog:cat"]),
        (
            "photo,cat,dog\na.jpg,1,yes\nb.jpg,1,2\n",
            {"columns": "cat:"},
            ["line 2, column 'dog': 'yes'", "line 3, column 'dog': '2'"],
        ),
        ("photo,cat\na.jpg,dog\nb.jpg,dog\n", {"labels": "cat"}, ["one class or none (dog)"]),
        ("photo,cat\na.jpg,x\nb.jpg,y\n", {"labels": "cat", "none": "z"}, ["no photo has the class 'z' of --none"]),
        ("photo,cat\na.jpg,x\nb.jpg,y\n", {"labels": "cat", "group": "patient"}, ["has no column 'patient'"]),
        ("photo,cat,p\na.jpg,x,1\nb.jpg,y,\n", {"labels": "cat", "group": "p"}, ["nothing in column 'p'", "line 3"]),
        ("photo,cat,split\na.jpg,x,train\nb.jpg,y,2\n", {"labels": "cat"}, ["line 3 '2'", "give --split random:0.2"]),
        ("photo,cat\na.jpg,x\nb.jpg,y\n", {"labels": "cat", "split": "column:fold"}, ["has no column 'fold'"]),
        (
            "photo,cat\na.jpg,x\nb.jpg,y\n",
            {"labels": "cat", "split": "files"},
            ["expected train, val or test in the names of lists", "line 2"],
        ),
        (
            "photo\tcat\na.jpg\tx;y\nb.jpg\tred;or\n",
            {"labels": "cat", "separator": "|"},
            ["cannot hold (a ';' in a class"],
        ),
    ],
)
def test_a_table_without_a_single_meaning_is_refused_before_anything_is_written(plain, to, text, options, parts):
    plain.write_text(text)
    refused(plain, to, *parts, **options)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"kind": "tabel"}, "--kind tabel: expected table, coco, voc or folders"),
        ({"kind": "voc", "columns": "a:b"}, "--columns is for --kind table, not voc"),
        ({"kind": "table", "no_crowd": True}, "--no-crowd is for --kind coco"),
        ({"kind": "folders", "group": "x"}, "--group is for --kind table, coco"),
        ({"kind": "table", "separator": ""}, "--separator is empty"),
        *[
            ({"kind": "table", "split": split}, f"--split {split}: expected")
            for split in ("random:2", "random:0.0", "half", "files:x", "column:")
        ],
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options, part):
    with pytest.raises(ValueError, match=part):
        ImportSettings("a", "b", **options)


def test_blank_is_unknown_and_minus_one_is_unknown_where_zero_is_absent(tmp_path, to):
    rows = ["a.jpg,1,0,1", "b.jpg,0,1,", "c.jpg,-1,1,0", "d.jpg,1.0,True,0", "e.jpg,1,0,1", "f.jpg,0,1,1"]
    path = table(tmp_path / "data" / "labels.csv", "photo,cat,dog,cow", rows)
    _, printed = imported(path, to, columns="cat:cow")
    read = read_csv(to).table
    targets = dict(zip(read.files, read.targets.tolist(), strict=True))
    assert read.names == ["cat", "cow", "dog"] and targets["b.jpg"] == [0, -1, 1] and targets["c.jpg"] == [-1, 0, 1]
    assert targets["d.jpg"] == [1, 0, 1] and "3 columns: 1 present, 0 absent, -1 unknown, blank unknown" in printed


def test_columns_that_no_photo_has_are_dropped_and_other_columns_in_between_are_not_classes(tmp_path, to):
    rows = ["a.jpg,1,p,0,0", "b.jpg,0,q,1,0", "c.jpg,0,p,1,", "d.jpg,1,r,0,0"]
    path = table(tmp_path / "data" / "labels.csv", "photo,cat,patient,dog,yeti", rows)
    splits, printed = imported(path, to, columns="cat:", group="patient", split="random:0.4")
    assert {name for names in flat(splits).values() for name in names} == {"cat", "dog"}
    assert "dropped: 1 class that no photo has: yeti" in printed and not (read_csv(to).table.targets == -1).any()


def test_a_photo_in_several_lines_has_the_labels_of_all_and_this_is_said(plain, to):
    plain.write_text(
        "photo,classes\na.jpg,cat\nb.jpg,dog\na.jpg,dog\nc.jpg,cow\nimages/a.jpg,cat\nd.jpg,cat\ne.jpg,dog\n"
    )
    splits, printed = imported(plain, to, labels="classes")
    assert flat(splits)["a.jpg"] == ["cat", "dog"] and len(flat(splits)) == 5
    assert "joined: 1 photo named more than once, with all labels" in printed


def test_lines_of_zeros_and_ones_that_contradict_each_other_are_refused_and_equal_ones_are_one(plain, to):
    plain.write_text("photo,cat,dog\na.jpg,1,0\nb.jpg,0,1\na.jpg,1,1\n")
    refused(plain, to, "same photo more than once with different labels", "line 2", "line 4", columns="cat:dog")
    plain.write_text("photo,cat,dog\na.jpg,1,0\nb.jpg,0,1\na.jpg,1,\n")
    refused(plain, to, "same photo more than once with different labels", "line 2", "line 4", columns="cat:dog")
    plain.write_text("photo,cat,dog\na.jpg,1,0\nb.jpg,0,1\na.jpg,1,0\nc.jpg,1,0\nd.jpg,0,1\n")
    assert len(flat(imported(plain, to, columns="cat:dog", split="random:0.4")[0])) == 4


def test_a_split_column_is_taken_unasked_and_its_words_are_understood(plain, to):
    plain.write_text(
        "photo,classes,split\na.jpg,cat,Training\nb.jpg,dog,TRAIN\nc.jpg,cat,validation\nd.jpg,dog,test\ne.jpg,cat,test_shifted\n"
    )
    splits, printed = imported(plain, to, labels="classes")
    assert {split: [*rows] for split, rows in splits.items()} == {
        **{"train": ["a.jpg", "b.jpg"], "val": ["c.jpg"], "test": ["d.jpg"], "test_shifted": ["e.jpg"]},
    }
    assert "splits from a column" in printed


def test_a_photo_in_two_splits_is_refused(plain, to):
    plain.write_text("photo,classes,fold\na.jpg,cat,train\nb.jpg,dog,test\na.jpg,dog,test\n")
    refused(plain, to, "more than once with different split", "line 2", "line 4", labels="classes", split="column:fold")


def test_only_training_photos_are_refused_with_the_way_to_draw_a_test_split(plain, to):
    plain.write_text("photo,classes,split\na.jpg,cat,train\nb.jpg,dog,train\n")
    refused(plain, to, "all photos are in split train", "give --split random:0.2", labels="classes")


def test_file_names_without_a_photo_are_counted_listed_and_left_out(plain, to):
    (plain.parent / "images" / "b.jpg").unlink()
    (plain.parent / "images" / "f.jpg").rename(plain.parent / "images" / "f.png")
    splits, printed = imported(plain, to, labels="classes")
    assert sorted(flat(splits)) == ["a.jpg", "c.jpg", "d.jpg", "e.jpg"]
    assert (
        f"left out: 2 of 6 file names lead to no photo in {plain.parent}: labels.csv, line 3: b.jpg, labels" in printed
    )


def test_a_name_differs_from_its_photo_in_case_alone_or_in_its_folder_and_this_is_said(plain, to):
    plain.write_text(plain.read_text().replace("a.jpg", "A.JPG").replace("b.jpg", "C:\\old\\b.jpg"))
    splits, printed = imported(plain, to, labels="classes")
    assert sorted(flat(splits)) == [f"{name}.jpg" for name in "abcdef"]
    assert "1 photo found by the last part of the name: C:/old/b.jpg is images/b.jpg" in printed


def test_two_names_of_other_folders_are_never_one_photo(plain, to):
    plain.write_text("photo,classes\ncat/a.jpg,cat\ndog/a.jpg,dog\nb.jpg,cat\nc.jpg,dog\n")
    refused(plain, to, "photos that several file names lead to", "images/a.jpg: cat/a.jpg, dog/a.jpg", labels="classes")
    plain.write_text("photo,classes\nmages/a.jpg,cat\nimages/a.jpg,dog\nb.jpg,cat\nc.jpg,dog\n")
    refused(plain, to, "photos that several file names lead to", "images/a.jpg, mages/a.jpg", labels="classes")


def test_no_photo_at_all_says_what_is_there_and_what_to_give(plain, to, tmp_path):
    plain.write_text(plain.read_text().replace(".jpg", ""))
    parts = ("6 of 6 file names lead to no photo", "a.jpg", "--photos, --suffix or --file")
    refused(plain, to, *parts, labels="classes", suffix=".png", error=FileNotFoundError)
    (tmp_path / "empty").mkdir()
    refused(
        plain,
        to,
        "empty holds no photo (.jpg",
        labels="classes",
        photos=str(tmp_path / "empty"),
        error=FileNotFoundError,
    )
    refused(tmp_path / "labels.csv", to, "there is no file or folder", error=FileNotFoundError)
    for option in ("photos", "unlabelled"):
        with pytest.raises(FileNotFoundError, match=r"there is no folder .*/nowhere$"):  # and nothing of data.root
            imported(plain, to, labels="classes", **{option: str(tmp_path / "nowhere")})
    splits, _ = imported(plain, to, labels="classes", photos=str(plain.parent / "images"))
    assert len(flat(splits)) == 6


def test_names_are_looked_up_in_the_folder_of_photos(plain, to, tmp_path):
    for name in ("x/1.jpg", "y/1.jpg", "x/2.jpg", "y/2.jpg"):
        picture(tmp_path / "photos" / name)
    plain.write_text("photo,classes\nx/1.jpg,cat\ny/1.jpg,dog\nx/2.jpg,dog\ny/2.jpg,cat\n")
    splits, _ = imported(plain, to, labels="classes", photos=str(tmp_path / "photos"), split="random:0.4")
    assert flat(splits) == {"x/1.jpg": ["cat"], "y/1.jpg": ["dog"], "x/2.jpg": ["dog"], "y/2.jpg": ["cat"]}


def test_parquet_is_read_where_pyarrow_is_and_else_says_what_to_do(plain, to, monkeypatch):
    def missing(path):
        raise ImportError("pyarrow")

    path = plain.with_suffix(".parquet")
    path.touch()
    monkeypatch.setattr(pd, "read_parquet", missing)
    refused(path, to, "pip install pyarrow, or save the table as CSV", labels="classes")
    photos = [f"{letter}.jpg" for letter in "abcdef"]
    classes = [np.array(["cat", "dog"]), np.array(["dog"]), np.array([]), None, np.array(["cat"]), np.array(["dog"])]
    frame = pd.DataFrame(
        {
            "photo": photos,
            "classes": classes,
            "x": [1, 0, 1, 0, 1, 0],
            "y": [True, None] * 3,
            "z": [0.0, 1.0, np.nan] * 2,
        }
    )
    monkeypatch.setattr(pd, "read_parquet", lambda path: frame)
    splits, _ = imported(path, to, labels="classes")
    assert [flat(splits)[name] for name in photos] == [["cat", "dog"], ["dog"], [], [], ["cat"], ["dog"]]
    other = to.parent / "other"
    assert flat(imported(path, other, columns="x:z")[0])["a.jpg"] == ["x", "y"]
    assert (read_csv(other).table.targets == -1).sum() == 5


# ---- splits ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """400 photos of 5 classes from 0.5 to 0.02, in 80 scenes."""
    root, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    rows = []
    for number in range(400):
        names = [f"c{c}" for c, share in enumerate((0.5, 0.3, 0.1, 0.05, 0.02)) if rng.random() < share]
        rows.append(f"{number:03d}.jpg,{';'.join(names)},s{number % 80}")
        (root / f"{number:03d}.jpg").touch()
    (root / "labels.csv").write_text("\n".join(["photo,classes,scene", *rows, ""]))
    return root / "labels.csv"


def test_a_drawn_split_has_a_fair_share_of_every_class_and_depends_on_the_seed_alone(many, to):
    splits, printed = imported(many, to, labels="classes", split="random:0.25")
    counts = {
        split: pd.Series([name for names in rows.values() for name in names]).value_counts()
        for split, rows in splits.items()
    }
    share = counts["test"] / (counts["test"] + counts["train"])
    assert len(splits["test"]) == 100 and len(share) == 5 and (share - 0.25).abs().max() < 0.1
    assert "random:0.25 of 400 photos, stratified by class, seed 0" in printed
    header, *rows = many.read_text().splitlines()
    other = many.with_name("other.csv")
    other.write_text("\n".join([header, *rows[::-1]]))
    assert imported(other, to.parent / "reversed", labels="classes", split="random:0.25")[0] == splits
    assert imported(many, to.parent / "seed1", labels="classes", split="random:0.25", seed=1)[0] != splits


def test_a_drawn_split_never_divides_a_group(many, to):
    splits, _ = imported(many, to, labels="classes", group="scene")
    scenes = {split: {int(file[:3]) % 80 for file in rows} for split, rows in splits.items()}
    assert not scenes["train"] & scenes["test"] and len(scenes["test"]) == 16


def test_links_are_followed_but_a_photo_is_named_by_the_path_without_one(plain, to):
    data = plain.parent
    (data / "aaa").mkdir()
    os.symlink(data / "images", data / "aaa" / "images")  # as an earlier import leaves it
    os.symlink(data, data / "circle")
    (data / "images" / "b.jpg").rename(to.parent / "b.jpg")
    (to.parent / "elsewhere").mkdir()
    (to.parent / "b.jpg").rename(to.parent / "elsewhere" / "b.jpg")
    os.symlink(to.parent / "elsewhere", data / "more")
    splits, _ = imported(plain, to, labels="classes")
    assert sorted(flat(splits)) == [*(f"images/{name}.jpg" for name in "acdef"), "more/b.jpg"]


# ---- what is written -------------------------------------------------------------------------------------------------


def test_photos_without_labels_are_written_with_split_unlabelled(plain, to, tmp_path):
    for name in ("x/1.jpg", "x/2.png", "x/.hidden.jpg", "x/note.txt", "x/__MACOSX/1.jpg", "x/.thumbs/1.jpg"):
        picture(tmp_path / "more" / name) if name.endswith(("jpg", "png")) else (tmp_path / "more" / name).touch()
    os.symlink(plain.parent / "images" / "a.jpg", tmp_path / "more" / "known.jpg")
    splits, printed = imported(plain, to, labels="classes", unlabelled=str(tmp_path / "more"))
    assert splits["unlabelled"] == {"more/x/1.jpg": [], "more/x/2.png": []} and len(flat(splits)) == 8
    assert "unlabelled: 2 of 3 photos there, the others have labels" in printed and "unlabelled 2; 2 classes" in printed
    assert (to / "images").resolve() == tmp_path


def test_a_second_import_must_give_the_same_file(plain, to):
    imported(plain, to, labels="classes")
    before = (to / "annotations.csv").read_bytes()
    imported(plain, to, labels="classes")
    with pytest.raises(ValueError, match=r"annotations\.csv is there and differs: remove it, or give another folder"):
        imported(plain, to, labels="classes", seed=3)
    assert (to / "annotations.csv").read_bytes() == before


def test_a_file_name_that_is_not_utf8_is_named(plain, to, tmp_path):
    (tmp_path / "more").mkdir()
    try:
        (tmp_path / "more" / os.fsdecode(b"gr\xfcn.jpg")).touch()
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    refused(
        plain,
        to,
        "no UTF-8 in a file): rename them",
        r"gr\udcfcn.jpg",
        labels="classes",
        unlabelled=str(tmp_path / "more"),
    )


def test_a_dry_run_writes_nothing(plain, to):
    lines = import_labels(ImportSettings(str(plain), str(to), "table", labels="classes"), dry_run=True)
    assert lines[-1].startswith("--dry-run: not written: ") and not to.exists()
    assert "  file_name,split,labels" in lines and any(line.startswith("  dog ") for line in lines)


def test_photos_are_copied_on_demand_also_over_an_unfinished_copy(plain, to):
    (to / "images").mkdir(parents=True)
    (to / "images" / "a.jpg").write_bytes((plain.parent / "images" / "a.jpg").read_bytes())
    imported(plain, to, labels="classes", copy=True)
    for name in "abcdef":
        assert (to / "images" / f"{name}.jpg").read_bytes() == (plain.parent / "images" / f"{name}.jpg").read_bytes()
    assert not (to / "images").is_symlink() and sorted(os.listdir(to)) == ["annotations.csv", "images"]


def test_a_copy_inside_the_folder_of_the_labels_is_not_taken_for_more_photos(plain):
    to = plain.parent / "mine"
    splits, _ = imported(plain, to, labels="classes", copy=True)
    assert imported(plain, to, labels="classes", copy=True)[0] == splits
    assert sorted(path.name for path in (to / "images").iterdir()) == [f"{name}.jpg" for name in "abcdef"]


def test_a_link_to_other_photos_is_refused(plain, to, tmp_path):
    (tmp_path / "others").mkdir()
    to.mkdir()
    os.symlink(tmp_path / "others", to / "images")
    with pytest.raises(ValueError, match=r"images is there and is not these photos"):
        imported(plain, to, labels="classes")


def test_other_photos_where_the_link_would_be_are_refused(plain, to):
    picture(to / "images" / "a.jpg")
    (to / "images" / "a.jpg").write_bytes(b"x")
    for copy in (False, True):
        with pytest.raises(ValueError, match=r"images is there and is not these photos"):
            imported(plain, to, labels="classes", copy=copy)
    assert os.listdir(to) == ["images"]


def test_labels_beside_their_photos_need_no_link(plain):
    imported(plain, plain.parent, labels="classes")
    assert read_csv(plain.parent).paths[0] == plain.parent / "images" / "a.jpg"
    assert sorted(os.listdir(plain.parent)) == ["annotations.csv", "images", "labels.csv"]


def test_photos_directly_in_the_new_folder_need_no_link_either(tmp_path):
    root = labelimg(tmp_path / "kitchen")
    imported(root, root, "voc", split="random:0.3")
    assert not (root / "images").exists() and read_csv(root).paths[0] == root / "IMG_0.JPG"


def test_the_command_imports_and_its_result_is_one_that_can_train(tmp_path, to, monkeypatch, capsys):
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    root = roboflow(tmp_path / "robo")
    assert cli.main(["data", "import", str(root), "--to", str(to), "--kind", "table", "--dry-run"]) == 0
    assert not to.exists() and "--dry-run" in capsys.readouterr().out
    assert cli.main(["data", "import", str(root), "--to", str(to), "--kind", "table"]) == 0
    assert "12 photos: train 4, val 4, test 4; 3 classes" in capsys.readouterr().out
    assert cli.main(["data", "check", "tiny", "data.kind=csv", f"data.root={to}", "partition.k=2"]) == 0
    assert "verdict: it can train" in capsys.readouterr().out
    assert cli.main(["data", "import", str(root), "--to", str(to), "--kind", "table", "--split", "random:0.3"]) == 1
    assert "is there and differs" in capsys.readouterr().err


def test_help_and_wrong_options_are_answered_without_torch_and_pandas():
    program = (
        "import sys; from cpsd_lib.cli import main\n"
        "try: main(['data', 'import', '--help'])\n"
        "except SystemExit: pass\n"
        "status = main(['data', 'import', 'x', '--to', 'y', '--kind', 'voc', '--labels', 'z'])\n"
        "print(status, 'torch' in sys.modules, 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root(), capture_output=True, text=True)
    assert done.stdout.split()[-3:] == ["1", "False", "False"] and "--labels is for --kind table" in done.stderr


def test_a_list_of_json_names_is_read_as_pythons_is(plain, to):
    rows = [json.dumps(["cat", "big dog"]), json.dumps(["cat"]), "", json.dumps(["big dog"])]
    plain.write_text(
        "photo\tclasses\n" + "\n".join(f"{'abcd'[n]}.jpg\t{cell}" for n, cell in enumerate(rows)).replace('"', "'")
    )
    assert flat(imported(plain, to, labels="classes", split="random:0.4")[0])["a.jpg"] == ["big dog", "cat"]


def test_photos_of_kinds_that_are_not_read_are_counted(plain, to, tmp_path):
    picture(plain.parent / "raw" / "z.jpg")
    for name in ("a.HEIC", "deeper/b.heic", "raw/z.CR2"):  # the last lies beside its JPEG
        (plain.parent / name).parent.mkdir(exist_ok=True)
        (plain.parent / name).touch()
    _, printed = imported(plain, to, labels="classes")
    assert "left out: 2 photos of kinds that are not read, save as JPEG:" in printed and "a.HEIC" in printed
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "c.heic").touch()
    parts = ("phone holds no photo (.jpg", "1 photo of kinds that are not read")
    _, printed = imported(plain, tmp_path / "other", labels="classes", unlabelled=str(tmp_path / "phone"))
    assert "left out: 3 photos of kinds that are not read" in printed
    refused(plain, tmp_path / "no", *parts, labels="classes", photos=str(tmp_path / "phone"), error=FileNotFoundError)


def test_a_class_that_one_coco_file_does_not_list_is_said_to_be_absent_there(tmp_path, to):
    def without(content, split):
        if split == "val":
            content["categories"] = [one for one in content["categories"] if one["name"] != "01"]
            content["annotations"] = [one for one in content["annotations"] if one["category_id"] != 9]

    _, printed = imported(coco2017(tmp_path / "coco", without), to, "coco")
    assert "counted as absent where a file does not list it: 01" in printed


def test_a_coco_file_without_images_is_refused(tmp_path, to):
    root = coco2017(tmp_path / "coco", lambda content, split: content.update(images=[], annotations=[]))
    refused(root, to, "lists no image, expected a COCO JSON", kind="coco")
