import os
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from small_copies import coco, coco_file, nuswide, voc

from cpsd_lib.data import dataset as module
from cpsd_lib.data.check import check_data
from cpsd_lib.data.dataset import check_bad, open_dataset, signature
from cpsd_lib.data.readers.common import LabelledFiles
from cpsd_lib.data.scenes.scenes import Scenes
from cpsd_lib.data.table import LabelTable
from cpsd_lib.support import digest
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.params import DataParams
from cpsd_lib.workbench.yaml_files import ParameterError

LINES = [
    *[f"train{i}.png,train,{'cat' if i % 2 else 'dog'}" for i in range(6)],
    *[f"test{i}.png,test,{'cat' if i == 1 else 'dog;cat' if i else 'dog'}" for i in range(3)],
]


def photos(root, lines=LINES, header="file_name,split,labels"):
    """Write one small image a line, each of its own colour, and the annotations."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number, line in enumerate(lines):
        Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(root / "images" / line.split(",")[0])
    annotate(root, lines, header)
    return root


def annotate(root, lines, header="file_name,split,labels"):
    (root / "annotations.csv").write_text("\n".join([header, *lines]) + "\n")


def data(root, **more):
    return DataParams(kind="csv", root=str(root), size=16, **more)


def opened(root, **more):
    return open_dataset(data(root, **more), root.parent / "cache")


def test_generated_scenes_open_with_their_table_and_pixels(tmp_path):
    settings = DataParams(kind="scenes", images=100, size=16, seed=3)
    dataset, scenes = open_dataset(settings, tmp_path), Scenes(images=100, size=16, seed=3)
    assert dataset.images.shape == (100, 3, 16, 16) and dataset.images.dtype == np.uint8
    assert (dataset.images[7] == scenes.load(7)).all()
    assert (dataset.table.targets == scenes.table.targets).all()
    assert dataset.skipped == [] and dataset.source.groups_of_classes == scenes.groups_of_classes
    assert signature(settings) == scenes.key


def test_the_parameters_of_a_run_open_its_data(tmp_path):
    params = load_params("tiny", {"data.images": 100, "data.size": 16})
    assert len(open_dataset(params.data, tmp_path).table.files) == 100


@pytest.mark.parametrize("change", [{"seed": 1}, {"groups": 3}, {"images": 101}, {"size": 17}])
def test_other_scenes_have_another_key_and_another_signature(tmp_path, change):
    settings = {"kind": "scenes", "images": 100, "size": 16, "seed": 0}
    first, other = DataParams(**settings), DataParams(**settings | change)
    assert open_dataset(first, tmp_path).key == open_dataset(first, tmp_path / "elsewhere").key
    assert open_dataset(first, tmp_path).key != open_dataset(other, tmp_path).key
    assert signature(first) != signature(other)


def test_a_folder_of_photos_opens_with_one_image_a_line(tmp_path):
    dataset = opened(photos(tmp_path / "photos"))
    assert dataset.table.names == ["cat", "dog"]
    assert dataset.table.targets[:2].tolist() == [[0, 1], [1, 0]]
    assert dataset.table.indices("test").tolist() == [6, 7, 8]
    assert dataset.images.shape == (9, 3, 16, 16)
    assert dataset.images[:, 0, 4, 4].tolist() == list(range(9))  # an image has one index everywhere
    assert dataset.skipped == [] and dataset.notes == [
        "no two classes occur in one image of split 'train': there is no co-occurrence to cut, and no CGP"
    ]


def test_the_key_stays_when_the_folder_is_moved_renamed_or_touched(tmp_path):
    root = photos(tmp_path / "photos")
    key = opened(root).key
    moved = tmp_path / "other" / "name"
    shutil.copytree(root, moved)
    os.utime(moved / "images" / "train0.png", (1, 1))
    assert opened(moved).key == key
    assert opened(root, bad_files="skip", allow_overlap=True).key == key


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0] + ";cat", *lines[1:]],  # a label more
        lambda lines: [lines[0].removesuffix("dog"), *lines[1:]],  # a label less
        lambda lines: [line.replace("cat", "zebra") for line in lines],  # other names, in another order
        lambda lines: [lines[0].replace(",train,", ",val,"), *lines[1:]],
        lambda lines: [lines[0].replace(",train,", ",test,"), *lines[1:]],
        lambda lines: lines[1:],
        lambda lines: [lines[1], lines[0], *lines[2:]],  # indices follow the lines, so their order counts
    ],
    ids=["label more", "label less", "class order", "val", "test", "image less", "row order"],
)
def test_the_key_and_the_signature_change_with_labels_classes_and_splits(tmp_path, change):
    root = photos(tmp_path / "photos")
    before = opened(root).key, signature(data(root))
    annotate(root, change(LINES))
    assert opened(root).key != before[0] and signature(data(root)) != before[1]


def test_an_unknown_label_is_not_the_same_as_an_absent_one(tmp_path):
    header = "file_name,split,labels,unknown"
    root = photos(tmp_path / "photos", [f"{line}," for line in LINES], header)
    key = opened(root).key
    annotate(root, [f"{LINES[0]},cat", *[f"{line}," for line in LINES[1:]]], header)
    dataset = opened(root)
    assert dataset.key != key and dataset.table.targets[0].tolist() == [-1, 1]
    assert any("1 of 12 labels are unknown" in note for note in dataset.notes)


def test_one_changed_pixel_changes_the_key_and_the_signature(tmp_path):
    root = photos(tmp_path / "photos")
    before = opened(root).key, signature(data(root))
    path = root / "images" / "train3.png"
    picture = Image.open(path).convert("RGB")
    picture.putpixel((0, 0), (255, 255, 255))
    picture.save(path)
    after = opened(root)
    assert after.key != before[0] and signature(data(root)) != before[1]
    assert after.images[3, :, 0, 0].tolist() == [255, 255, 255]


def test_another_size_is_another_key(tmp_path):
    root = photos(tmp_path / "photos")
    larger = DataParams(kind="csv", root=str(root), size=32)
    assert open_dataset(larger, tmp_path / "cache").key != opened(root).key


def test_the_signature_stays_when_nothing_changes_and_is_found_without_reading_an_image(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos")
    first = signature(data(root))
    assert signature(data(root)) == first
    monkeypatch.setattr(Image, "open", None)
    assert signature(data(root)) == first


@pytest.mark.parametrize("change", ["new time", "image gone", "annotations"])
def test_the_signature_changes_when_a_file_may_have(tmp_path, change):
    root = photos(tmp_path / "photos")
    first = signature(data(root))
    path = root / "images" / "train0.png"
    if change == "new time":
        os.utime(path, (1, 1))
    elif change == "image gone":
        path.unlink()
    else:
        annotate(root, LINES[:-1])
    assert signature(data(root)) != first


def replaced(path):
    """Put another photo of the same size and time in the place of `path`, as rsync or an archive would."""
    status, other = path.stat(), path.with_name("other.tmp")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    other.write_bytes(data)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize("linked", ["folder", "photos", "nothing"])
def test_a_photo_replaced_by_one_of_the_same_size_and_time_is_seen_through_any_link(tmp_path, linked):
    root = photos(tmp_path / "photos")
    folder, elsewhere = root / "images", tmp_path / "elsewhere"
    if linked != "nothing":
        folder.rename(elsewhere)
        links = (
            {folder: elsewhere} if linked == "folder" else {folder / path.name: path for path in elsewhere.iterdir()}
        )
        for link, target in links.items():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(target)
    before = signature(data(root))
    replaced((folder / "train3.png").resolve())
    assert signature(data(root)) != before


def test_links_below_the_image_folder_are_followed(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "images").rename(tmp_path / "elsewhere")
    (root / "images").mkdir()
    (root / "images" / "sub").symlink_to(tmp_path / "elsewhere")
    annotate(root, [f"sub/{line}" for line in LINES])
    before = signature(data(root))
    replaced(tmp_path / "elsewhere" / "test1.png")
    assert signature(data(root)) != before


def test_files_that_no_label_names_do_not_count(tmp_path):
    root = photos(tmp_path / "photos")
    for path in list((root / "images").iterdir()):
        path.rename(root / path.name)
    (root / "images").rmdir()
    before = signature(data(root))
    shutil.copy(root / "train0.png", root / "more.png")
    (root / ".DS_Store").write_text("x")
    (root / "outputs" / "mine").mkdir(parents=True)
    (root / "outputs" / "mine" / "manifest.json").write_text("{}")
    assert signature(data(root)) == before


@pytest.mark.parametrize(
    ("kind", "copy", "photo"),
    [
        ("coco2014", coco, f"train2014/{coco_file('train', 9)}"),
        ("nuswide", nuswide, "Flickr/actor/0003_3.jpg"),
        ("voc2007", voc, "VOCdevkit/VOC2007/JPEGImages/000007.jpg"),
    ],
)
def test_a_photo_of_a_published_data_set_overwritten_in_place_is_seen_and_a_desktop_file_is_not(
    tmp_path, kind, copy, photo
):
    root = tmp_path / "link"
    root.symlink_to(copy(tmp_path / "data"))
    settings = DataParams(kind=kind, root=str(root))
    before = signature(settings)
    ((root / photo).parent / ".DS_Store").write_text("x")
    assert signature(settings) == before
    replaced(root / photo)
    assert signature(settings) != before


def test_labels_that_cannot_be_read_have_a_signature_of_their_own(tmp_path):
    root = photos(tmp_path / "photos")
    before = signature(data(root))
    (root / "annotations.csv").write_text("no table")
    assert signature(data(root)) != before


def test_images_beside_the_annotations_have_a_signature_too(tmp_path):
    root = photos(tmp_path / "photos")
    for path in list((root / "images").iterdir()):
        path.rename(root / path.name)
    (root / "images").rmdir()
    first = signature(data(root))
    assert opened(root).images[:, 0, 4, 4].tolist() == list(range(9))
    os.utime(root / "train0.png", (1, 1))
    assert signature(data(root)) != first


def many(root):
    lines = [f"a{i}.png,train,{'cat' if i % 2 else 'dog'}" for i in range(60)]
    for letter, split in (("b", "val"), ("c", "test")):
        lines += [f"{letter}{i}.png,{split},{'cat;dog' if i % 2 else 'cat'}" for i in range(20)]
    return photos(root, lines)


def test_a_limit_keeps_the_proportions_of_the_splits_and_says_so(tmp_path):
    dataset = opened(many(tmp_path / "photos"), limit=30)
    assert [len(dataset.table.indices(split)) for split in ("train", "val", "test")] == [18, 6, 6]
    assert any("30 of 100 images are used" in note for note in dataset.notes)
    numbers = [int(file[1:-4]) + {"a": 0, "b": 60, "c": 80}[file[0]] for file in dataset.table.files]
    assert dataset.images[:, 0, 4, 4].tolist() == numbers == sorted(numbers)
    expected = [[1, n % 2] if n >= 60 else [n % 2, 1 - n % 2] for n in numbers]
    assert dataset.table.targets.tolist() == expected


def test_the_images_a_limit_keeps_depend_on_the_seed_alone(tmp_path):
    root = many(tmp_path / "photos")
    kept = [opened(root, limit=30, seed=seed).table.files for seed in (0, 0, 1)]
    assert kept[0] == kept[1] != kept[2]


def test_a_limit_leaves_every_split_an_image_and_one_above_the_number_of_images_is_no_limit(tmp_path):
    lines = [f"a{i}.png,train,{'cat;dog' if i % 2 else 'cat'}" for i in range(99)] + ["b.png,test,dog"]
    root = photos(tmp_path / "photos", lines)
    assert len(opened(root, limit=20).table.indices("test")) == 1
    dataset = opened(root, limit=100)
    assert len(dataset.table.files) == 100 and not any("limit" in note for note in dataset.notes)


def test_a_limit_leaves_two_images_to_train_on(tmp_path):
    lines = ["a.png,train,cat;dog", "b.png,train,cat"] + [
        f"c{i}.png,test,{'cat;dog' if i % 2 else 'cat'}" for i in range(98)
    ]
    dataset = opened(photos(tmp_path / "photos", lines), limit=20)
    assert len(dataset.table.indices("train")) == 2


@pytest.mark.parametrize(
    ("written", "on_disk", "shown"),
    [
        ("IMG_1.JPG", "img_1.jpg", "'img_1.jpg'"),
        ("caf\u00e9.png", "cafe\u0301.png", r"'cafe\u0301.png', another Unicode form"),
        ("photo.1", "photo.1.jpg", "'photo.1.jpg'"),
        ("x.jpeg", "x.jpg", "'x.jpg'"),
        ("Sub/x.png", "sub/X.png", "/images/sub/X.png'"),
        ("Sub/x.png", "sub/x.png", "/images/sub/x.png'"),
    ],
)
def test_a_file_name_that_differs_a_little_from_what_is_there_is_offered(tmp_path, written, on_disk, shown):
    root = photos(tmp_path / "photos")
    path = root / "images" / on_disk
    path.parent.mkdir(exist_ok=True)
    (root / "images" / "train0.png").rename(path)
    annotate(root, [line.replace("train0.png", written) for line in LINES])
    with pytest.raises(ValueError) as caught:
        opened(root)
    assert f"{written}: the file does not exist (did you mean " in str(caught.value) and shown in str(caught.value)
    checked = check_data(data(root), tmp_path / "run")
    assert any("not on disk: 1 of 9 images: " in line and shown in line for line in checked.lines)
    (path,) = (path for path, _ in opened(root, bad_files="skip").skipped)
    assert path == written


def test_nothing_is_offered_for_a_name_like_no_other_and_a_dead_link_is_not_offered_itself(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "images" / "train0.png").unlink()
    (root / "images" / "train1.png").unlink()
    (root / "images" / "train1.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError) as caught:
        opened(root)
    assert "train0.png: the file does not exist\n" in str(caught.value) and "did you mean" not in str(caught.value)


def test_folders_and_tables_in_another_case_are_offered(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "images").rename(root / "Images")
    with pytest.raises(FileNotFoundError, match=r"no folder .*images \(did you mean 'Images'\?\)"):
        opened(root)
    (root / "annotations.csv").rename(root / "annotations.CSV")
    with pytest.raises(FileNotFoundError, match=r"no file .*annotations\.csv \(did you mean 'annotations\.CSV'\?\)"):
        opened(root)


def test_bad_files_are_an_error_that_lists_twenty_or_a_sorted_list(tmp_path):
    names = [f"{index:02}.jpg" for index in range(30)]
    table = LabelTable(["c"], np.ones((30, 1)), names, ["train"] * 30)
    source = LabelledFiles(table, [tmp_path / name for name in names])
    bad = {index: f"reason {index}" for index in range(24, -1, -1)}
    with pytest.raises(ValueError) as caught:
        check_bad(bad, source, "error")
    message = str(caught.value)
    assert message.startswith("25 of 30 image files cannot be used:\n  00.jpg: reason 0\n")
    assert "19.jpg" in message and "20.jpg" not in message and "... and 5 more" in message
    assert message.endswith("data.bad_files=skip")
    assert check_bad(bad, source, "skip") == [(f"{index:02}.jpg", f"reason {index}") for index in range(25)]
    assert check_bad({}, source, "error") == []


@pytest.mark.parametrize("kept", [0, 1])
def test_fewer_than_two_images_to_train_on_are_an_error_of_the_check_and_of_opening(tmp_path, kept):
    root = photos(tmp_path / "photos")
    for number in range(kept, 6):
        (root / "images" / f"train{number}.png").unlink()
    message = ["no image is in split 'train'", "1 image is left in split 'train', expected at least 2"][kept]
    with pytest.raises(ValueError, match=message):
        opened(root, bad_files="skip")
    checked = check_data(data(root, bad_files="skip"), tmp_path / "run")
    assert not checked.trainable and message in checked.lines[-1]


def test_the_key_of_the_labels_is_that_of_their_hex_text(tmp_path):
    dataset = opened(photos(tmp_path / "photos"))
    table = dataset.table
    whole = digest([table.names, table.targets.tobytes().hex(), table.split.tolist()])
    assert module._label_key(table) == whole
    many = LabelTable(
        [str(c) for c in range(2500)], np.ones((4000, 2500)), [str(i) for i in range(4000)], ["val"] * 4000
    )
    tracemalloc.start()
    module._label_key(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < many.targets.nbytes / 4


def test_a_photo_in_train_and_in_test_under_two_names_is_an_error_unless_allowed(tmp_path):
    root = photos(tmp_path / "photos")
    shutil.copy(root / "images" / "train1.png", root / "images" / "test2.png")
    with pytest.raises(ValueError, match=r"train1\.png = test2\.png.*data\.allow_overlap=true"):
        opened(root)
    dataset = opened(root, allow_overlap=True)
    assert any("train1.png = test2.png" in note for note in dataset.notes)


def test_bad_files_are_an_error_before_anything_else_is_looked_at(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "images" / "train0.png").write_bytes(b"")
    (root / "images" / "train2.png").unlink()
    shutil.copy(root / "images" / "train1.png", root / "images" / "test2.png")  # an overlap, too
    with pytest.raises(ValueError) as caught:
        opened(root)
    for part in ("2 of 9 image files", "train0.png", "train2.png", "data.bad_files=skip"):
        assert part in str(caught.value)


def test_skipped_files_keep_their_indices_and_are_named(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "images" / "train0.png").write_bytes(b"no image")
    dataset = opened(root, bad_files="skip")
    assert [name for name, _ in dataset.skipped] == ["train0.png"]
    assert any("1 file could not be read, left out: train0.png" in note for note in dataset.notes)
    assert dataset.table.indices("train").tolist() == [1, 2, 3, 4, 5]
    assert dataset.table.indices("skipped").tolist() == [0]
    assert dataset.images.shape[0] == 9 and dataset.images[8, 0, 4, 4] == 8


def test_a_skipped_photo_is_no_overlap(tmp_path):
    root = photos(tmp_path / "photos")
    for name in ("train0.png", "test0.png"):
        (root / "images" / name).write_bytes(b"the same broken bytes")
    assert len(opened(root, bad_files="skip").skipped) == 2


def test_skipping_all_test_images_is_an_error_before_training(tmp_path):
    root = photos(tmp_path / "photos")
    for number in range(3):
        (root / "images" / f"test{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no image is in split 'test'"):
        opened(root, bad_files="skip")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a.png,train,cat;dog", "b.png,train,cat"], "no image is in split 'test'"),
        (["a.png,train,cat;dog", "b.png,test,cat"], "no image of split 'train' is known to lack a class"),
        (["a.png,train,cat", "b.png,test,cat"], "expected at least 2"),
        (["a.png,train,", "b.png,test,cat;dog"], "no image of split 'train' has a positive label"),
    ],
)
def test_labels_nothing_can_be_learned_from_are_an_error(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        opened(photos(tmp_path / "photos", lines))


def test_other_names_for_annotations_and_image_folder_are_followed(tmp_path):
    root = photos(tmp_path / "photos")
    (root / "images").rename(root / "jpg")
    (root / "annotations.csv").rename(root / "list.csv")
    names = {"annotations": "list.csv", "image_folder": "jpg"}
    assert len(opened(root, **names).table.files) == 9
    first = signature(data(root, **names))
    os.utime(root / "jpg" / "train0.png", (1, 1))
    assert signature(data(root, **names)) != first
    with pytest.raises(FileNotFoundError, match=r"there is no file .*annotations\.csv"):
        opened(root)


def test_a_csv_run_is_checked_as_parameters_first(tmp_path):
    with pytest.raises(ParameterError, match="there is no folder"):
        load_params("tiny", {"data.kind": "csv", "data.root": str(tmp_path / "nowhere")})


def test_real_photos_open(shared_data, tmp_path):
    settings = DataParams(kind="csv", root=str(shared_data / "coco18"), size=16, limit=40)
    dataset = open_dataset(settings, tmp_path)
    assert len(dataset.table.names) == 18 and abs(len(dataset.table.files) - 40) <= 2
    assert dataset.images[:].std() > 20


def test_an_unlabelled_photo_that_is_a_test_photo_too_is_refused(tmp_path):
    root = photos(tmp_path / "d")
    (root / "images" / "copy.png").write_bytes((root / "images" / "test1.png").read_bytes())
    assert open_dataset(data(root), tmp_path / "cache").table.indices("unlabelled").tolist() == []
    with pytest.raises(ValueError, match=r"copy.png = test1.png"):
        open_dataset(data(root, unnamed="unlabelled"), tmp_path / "cache")


def test_a_new_photo_that_no_line_names_counts_as_a_change_only_where_it_is_used(tmp_path):
    root = photos(tmp_path / "d")
    before = [signature(data(root, unnamed=unnamed)) for unnamed in ("ignore", "unlabelled")]
    (root / "images" / "new.png").write_bytes((root / "images" / "test1.png").read_bytes())
    after = [signature(data(root, unnamed=unnamed)) for unnamed in ("ignore", "unlabelled")]
    assert before[0] == after[0] and before[1] != after[1]


def test_a_check_counts_the_unlabelled_photos_and_what_a_limit_leaves(tmp_path):
    root = photos(tmp_path / "d", LINES + [f"more{i}.png,unlabelled," for i in range(3)])
    text = "\n".join(check_data(data(root), tmp_path).lines)
    assert "unlabelled: 3 images" in text and "can train" in text
    text = "\n".join(check_data(data(root, labelled=4), tmp_path).lines)
    assert "train: 4 images" in text and "unlabelled: 5 images" in text and "4 of 6 training images" in text
