import os

import pytest
from small_copies import CONCEPTS, NUS, held, nuswide

from cpsd_lib.data.check import check_data
from cpsd_lib.data.dataset import open_dataset, signature
from cpsd_lib.data.readers.nuswide import read_nuswide
from cpsd_lib.workbench.params import DataParams

LAYOUTS = [
    {},
    {
        "lists": "ImageList/ImageList",
        "labels": "Groundtruth/TrainTestLabels",
        "concepts": "ConceptsList/Concepts81.txt",
    },
    {"lists": ".", "labels": "Groundtruth", "photos": "Flickr/Flickr", "end": "\r\n"},
    {"prefix": "Flickr\\", "end": " \n"},
    {"prefix": "C:\\ImageData\\Flickr\\", "photos": "images"},
    {"content": {split: {k.replace("\\", "/"): v for k, v in images.items()} for split, images in NUS.items()}},
]


def refused(root, *parts, error=ValueError):
    with pytest.raises(error) as caught:
        read_nuswide(root)
    for part in parts:
        assert part in str(caught.value)


@pytest.fixture
def root(tmp_path):
    return nuswide(tmp_path / "nus")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_table_in_list_order_without_the_unlabelled_images(tmp_path, layout):
    data = read_nuswide(nuswide(tmp_path / "nus", **layout))
    assert data.table.names == sorted(CONCEPTS) and len(CONCEPTS) == 81
    assert held(data) == {
        split: {line.replace("\\", "/"): sorted(names) for line, names in NUS[word].items() if names}
        for split, word in (("train", "Train"), ("test", "Test"))
    }
    assert data.table.files[:2] == ["actor/0001_2124494179.jpg", "zoo/0007_10.jpg"]
    assert all(path.is_file() for path in data.paths)


def test_counts_that_are_not_the_published_ones_are_notes_with_both_numbers(root):
    notes = read_nuswide(root).notes
    assert len(notes) == 4 and all(note.startswith("nuswide count: ") for note in notes)
    assert "4 listed images in split 'train', expected 161,789" in notes[0]
    assert "3 labelled images in split 'train', expected 125,449" in notes[2]
    assert "83,898" in notes[3]


def test_a_missing_concept_file_or_a_wrong_number_of_concepts_is_refused(root):
    path = root / "Concepts81.txt"
    text = path.read_text()
    path.write_text(text.replace("sky\n", ""))
    refused(root, "Concepts81.txt names 80 concepts, expected the 81")
    path.write_text(text + "sky\n")
    refused(root, "names 82 concepts, expected the 81")
    path.write_text("\n")
    refused(root, "Concepts81.txt is empty")
    path.unlink()
    refused(root, "no list of concepts", "ConceptsList/Concepts81.txt", error=FileNotFoundError)


def test_missing_label_files_are_named(root):
    (root / "TrainTestLabels" / "Labels_sky_Test.txt").rename(root / "TrainTestLabels" / "Labels_heaven_Test.txt")
    refused(root, "Labels_sky_Test.txt", error=FileNotFoundError)
    for path in (root / "TrainTestLabels").iterdir():
        path.unlink()
    refused(root, "no label files", "Groundtruth/TrainTestLabels", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1\n0\n0\n", ["has 3 lines, expected 4", "TrainImagelist.txt"]),
        ("1\n0\n\n0\n", ["has 3 lines, expected 4"]),
        ("1\n0\n0\n0\n0\n", ["has 5 lines, expected 4"]),
        ("", ["is empty, expected 0 or 1 on each line"]),
        ("1\n0\n2\n0\n", ["expected 0 or 1 on each line", "label 3: '2'"]),
        ("1\n-1\n0\n0\n", ["label 2: '-1'"]),
        ("1\n0 0\n0\n", ["label 2: '0 0'"]),
        ("1\nyes\n0\n0\n", ["label 2: 'yes'"]),
    ],
)
def test_a_label_file_that_does_not_fit_its_list_is_refused_with_file_and_line(root, text, parts):
    (root / "TrainTestLabels" / "Labels_sky_Train.txt").write_text(text)
    refused(root, "Labels_sky_Train.txt", *parts)


@pytest.mark.parametrize(
    ("split", "change", "parts"),
    [
        ("Train", lambda lines: [*lines[:-1], lines[0]], ["file names must be unique", "actor/0001_2124494179.jpg"]),
        ("Test", lambda lines: [lines[0], "actor/0003_3.jpg"], ["file names must be unique", "actor/0003_3.jpg"]),
        ("Test", lambda lines: [], ["TestImagelist.txt is empty"]),
        ("Test", lambda lines: lines[:1], ["has 2 lines, expected 1"]),
    ],
)
def test_a_wrong_image_list_is_refused(root, split, change, parts):
    path = root / "ImageList" / f"{split}Imagelist.txt"
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    refused(root, *parts)


def test_missing_lists_and_folders_say_what_must_lie_where(root, tmp_path):
    refused(tmp_path / "nowhere", "no folder", error=FileNotFoundError)
    (root / "ImageList" / "TestImagelist.txt").unlink()
    parts = ("image list of split 'test'", "ImageList/ImageList/TestImagelist.txt")
    refused(root, *parts, error=FileNotFoundError)
    (root / "Flickr").rename(root / "pictures")
    refused(root, "no folder of images, expected Flickr/Flickr or Flickr", error=FileNotFoundError)


def opened(root, **more):
    return open_dataset(DataParams(kind="nuswide", root=str(root), size=16, **more), root.parent / "cache")


def test_a_whole_copy_opens_with_pixels_and_no_caveat(root):
    dataset = opened(root)
    assert dataset.images.shape == (5, 3, 16, 16) and dataset.incomplete == "" and dataset.skipped == []


def test_images_that_are_not_on_disk_are_left_out_counted_named_and_the_figures_get_a_caveat(root):
    (root / "Flickr" / "actor" / "0001_2124494179.jpg").unlink()
    (root / "Flickr" / "zoo" / "0009_9.jpg").unlink()
    (root / "Flickr" / "actor" / "0002_1.jpg").unlink()  # has no label: nobody misses it
    dataset = opened(root)
    assert dataset.table.files == ["zoo/0007_10.jpg", "actor/0003_3.jpg", "actor/0004_4.jpg"]
    assert dataset.images.shape[0] == 3
    assert [name for name, _ in dataset.skipped] == ["actor/0001_2124494179.jpg", "zoo/0009_9.jpg"]
    assert "INCOMPLETE" in dataset.incomplete and "1 of 3 train, 1 of 2 test" in dataset.incomplete
    assert dataset.incomplete in dataset.notes


def test_a_copy_without_any_image_says_where_they_are_looked_for(root):
    (root / "Flickr").rename(root / "pictures")
    (root / "Flickr").mkdir()
    with pytest.raises(FileNotFoundError, match=r"none of 3 train images is on disk, expected .*0001_2124494179\.jpg"):
        opened(root)


def test_a_flat_copy_is_found_by_base_names(root):
    flat = root / "images"
    flat.mkdir()
    for path in [*(root / "Flickr").rglob("*.jpg")]:
        path.rename(flat / path.name)
    for folder in (root / "Flickr" / "actor", root / "Flickr" / "zoo", root / "Flickr"):
        folder.rmdir()
    data = read_nuswide(root)
    assert data.table.files[:2] == ["0001_2124494179.jpg", "0007_10.jpg"]
    assert len(data.paths) == 5 and all(path.parent == flat and path.is_file() for path in data.paths)
    assert opened(root).incomplete == ""


def test_a_split_without_any_image_on_disk_says_where_they_are_looked_for_and_nothing_of_rows(root, tmp_path):
    (root / "Flickr" / "actor" / "0004_4.jpg").unlink()
    (root / "Flickr" / "zoo" / "0009_9.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"none of 2 test images is on disk, expected .*0004_4\.jpg and so on"):
        opened(root)
    lines = check_data(DataParams(kind="nuswide", root=str(root)), tmp_path).lines
    assert "no image is in split 'test', expected at least one" in lines[-1] and "2 images are not on disk" in lines[-1]
    assert "rows" not in lines[-1]


def test_one_training_image_left_on_disk_is_refused_without_a_word_of_rows(root):
    for name in ("actor/0001_2124494179.jpg", "actor/0003_3.jpg"):
        (root / "Flickr" / name).unlink()
    with pytest.raises(ValueError, match=r"1 image is left in split 'train', expected at least 2$"):
        opened(root)


def test_the_same_photo_in_train_and_test_is_a_note_because_the_split_is_the_published_one(root):
    twin = root / "Flickr" / "actor"
    (twin / "0004_4.jpg").write_bytes((twin / "0003_3.jpg").read_bytes())
    assert any("actor/0003_3.jpg = actor/0004_4.jpg" in note for note in opened(root).notes)


@pytest.mark.parametrize("change", ["labels", "list", "image gone", "folder gone"])
def test_the_signature_changes_with_label_files_and_image_folders(root, change):
    data = DataParams(kind="nuswide", root=str(root))
    for path in root.rglob("*"):  # a file system's clock ticks every few milliseconds: all this is long ago
        os.utime(path, (1, 1))
    before = signature(data)
    assert signature(data) == before
    if change == "labels":
        (root / "TrainTestLabels" / "Labels_sky_Test.txt").write_text("1\n1\n\n")
    elif change == "list":
        (root / "ImageList" / "TrainImagelist.txt").write_text("x")
    elif change == "image gone":
        (root / "Flickr" / "zoo" / "0009_9.jpg").unlink()
    else:
        (root / "Flickr" / "zoo").rename(root / "zoo")
    assert signature(data) != before
