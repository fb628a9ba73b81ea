import subprocess
import sys
import zipfile

import numpy as np
import pytest
from small_copies import coco, coco_file, labels, nuswide, voc

from cpsd_lib import cli, graph
from cpsd_lib.data.check import check_data
from cpsd_lib.data.dataset import open_dataset, signature
from cpsd_lib.data.readers.common import join_splits, missing_files
from cpsd_lib.data.readers.labels import read_labels
from cpsd_lib.data.table import LabelTable, check_splits
from cpsd_lib.partition import cut
from cpsd_lib.workbench.loading import load_params
from cpsd_lib.workbench.params import DataParams
from cpsd_lib.workbench.yaml_files import ParameterError, repo_root


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Run `cpsd data check tiny` on a folder; return (status, lines) and leave the run folder in `check.folder`."""
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))

    def run(kind, root, *words):
        where = [f"data.root={root}"] if root else []
        status = cli.main(["data", "check", "tiny", f"data.kind={kind}", *where, *words])
        return status, capsys.readouterr().out.splitlines()

    run.folder = tmp_path / "outputs" / "tiny"
    return run


@pytest.mark.parametrize("copy", [coco, nuswide, voc])
def test_a_whole_copy_can_train_and_its_counts_and_frequencies_are_shown(check, tmp_path, copy):
    kind = {"coco": "coco2014", "nuswide": "nuswide", "voc": "voc2007"}[copy.__name__]
    status, lines = check(kind, copy(tmp_path / "data"))
    assert status == 0 and lines[-1].startswith("verdict: it can train; decoded at 32 px it takes 0 MiB of disk; ")
    assert "the photos were looked for, not opened" in lines[-1]
    assert lines[0] == f"{kind}: 5 images, {dict(coco2014=80, nuswide=81, voc2007=20)[kind]} classes"
    assert any("0 images not on disk" in line for line in lines)
    assert any(f"{kind} count:" in line and "expected" in line for line in lines)
    assert "02_partition cuts the graph" in lines[-2]
    assert not check.folder.exists()  # nothing decoded, nothing missing: nothing written


def test_a_check_names_the_space_of_the_cache_where_there_will_be_one(check, tmp_path):
    root = voc(tmp_path / "voc")
    assert (
        "of disk" in check("voc2007", root)[1][-1] and "of disk" not in check("voc2007", root, "data.cache=none")[1][-1]
    )


def test_the_most_frequent_class_of_train_comes_first(check, tmp_path):
    _, lines = check("voc2007", voc(tmp_path / "voc"))
    head = next(number for number, line in enumerate(lines) if line.split() == ["class", "train", "test"])
    assert [line.split() for line in lines[head + 1 : head + 4]] == [
        ["car", "1", "1"],
        ["chair", "1", "1"],
        ["person", "1", "1"],
    ]


def test_missing_images_are_an_error_for_coco_unless_bad_files_are_skipped(check, tmp_path):
    root = coco(tmp_path / "coco")
    path = root / "train2014" / coco_file("train", 9)
    path.unlink()
    status, lines = check("coco2014", root)
    assert status == 1 and "cannot train: 1 image is not on disk" in lines[-1] and "bad_files=skip" in lines[-1]
    assert (check.folder / "missing_files.txt").read_text() == f"train\t{path}\n"
    assert any("not on disk: 1 of 5 images: " in line and "missing_files.txt" in line for line in lines)
    status, lines = check("coco2014", root, "data.bad_files=skip")
    assert status == 0 and "INCOMPLETE" in lines[-1]
    (root / "val2014" / coco_file("val", 42)).rename(path)
    (root / "val2014" / coco_file("val", 42)).write_bytes(path.read_bytes())
    assert check("coco2014", root)[0] == 0 and not (check.folder / "missing_files.txt").exists()


def test_missing_images_of_nuswide_are_counted_by_split_named_and_marked(check, tmp_path):
    root = nuswide(tmp_path / "nus")
    (root / "Flickr" / "zoo" / "0009_9.jpg").unlink()
    status, lines = check("nuswide", root)
    assert status == 0 and "INCOMPLETE" in lines[-1]
    assert lines[2].startswith("  test: 2 images, 3 labels, 1.50 an image; 1 image not on disk")
    assert any(line.startswith("read from /") for line in lines)
    assert "0009_9.jpg" in (check.folder / "missing_files.txt").read_text()


def test_no_image_at_all_cannot_train(check, tmp_path):
    root = nuswide(tmp_path / "nus")
    (root / "Flickr").rename(tmp_path / "elsewhere")
    (root / "Flickr").mkdir()
    status, lines = check("nuswide", root)
    assert status == 1 and "no image is in split 'train'" in lines[-1] and "5 images are not on disk" in lines[-1]


def test_what_a_reader_refuses_is_the_verdict(check, tmp_path):
    root = coco(tmp_path / "coco")
    (root / "annotations" / "instances_val2014.json").write_text("{")
    status, lines = check("coco2014", root)
    assert status == 1 and len(lines) > 0
    assert lines[0].startswith("verdict: it cannot train: ") and "not valid JSON" in lines[0]


def test_drawn_scenes_and_own_photos_are_looked_at_too(check, tmp_path):
    status, lines = check("scenes", None)
    assert status == 0 and lines[0] == "scenes: 400 images, 20 classes" and lines[-1] == "verdict: it can train"
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "mine" / "annotations.csv").write_text("file_name,split,labels\na.jpg,train,x;y\nb.jpg,test,x\n")
    status, lines = check("csv", tmp_path / "mine")
    assert status == 1 and "2 images are not on disk" in lines[-1]


def test_a_wrong_parameter_ends_with_status_2(check, tmp_path, capsys):
    assert cli.main(["data", "check", "tiny", "data.kind=coco2014"]) == 2
    assert "kind coco2014 needs data.root, the folder that holds train2014/" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["data"])


@pytest.mark.parametrize("kind", ["csv", "coco2014", "nuswide", "voc2007", "labels"])
def test_every_kind_that_is_read_needs_a_folder(kind):
    with pytest.raises(ParameterError, match=rf"kind {kind} needs data\.root"):
        load_params("tiny", {"data.kind": kind})


def test_the_data_alone_is_looked_at_and_no_model_file_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("GLOVE", raising=False)
    monkeypatch.setenv("CPSD_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("COCO2014", str(coco(tmp_path / "coco")))
    assert cli.main(["data", "check", "coco_resnet101_tf"]) == 0
    assert "verdict: it can train" in capsys.readouterr().out
    monkeypatch.delenv("COCO2014")
    assert cli.main(["data", "check", "coco_resnet101_tf"]) == 2
    error = capsys.readouterr().err
    assert "data.root: the environment variable COCO2014 is not set" in error and "GLOVE" not in error


def test_a_check_loads_no_torch(tmp_path):
    program = (
        "import sys; from cpsd_lib.cli import main; "
        f"status = main(['data', 'check', 'tiny', 'data.kind=voc2007', 'data.root={voc(tmp_path / 'voc')}']); "
        "print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=repo_root(), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_missing_files_are_found_in_any_folder_and_nothing_else_is_called_missing(tmp_path):
    for name in ("a/x.jpg", "b/y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "folder.jpg").mkdir()
    (tmp_path / "a" / "link.jpg").symlink_to(tmp_path / "b" / "y.jpg")
    (tmp_path / "a" / "dead.jpg").symlink_to(tmp_path / "nowhere")
    names = ["a/x.jpg", "b/x.jpg", "b/y.jpg", "c/y.jpg", "a/folder.jpg", "a/link.jpg", "a/dead.jpg", "a/\0.jpg", "\0/a"]
    assert missing_files([tmp_path / name for name in names]) == [1, 3, 4, 6, 7, 8]


def test_the_published_counts_need_no_note_and_others_name_both_numbers(tmp_path):
    splits = {split: ([f"{split}.jpg"], np.ones((1, 2), np.int8), tmp_path) for split in ("train", "test")}
    known = {"train": 1, "test": 1}
    assert join_splits("ab", splits, "coco2014", known, known).notes == []
    (note,) = join_splits("ab", splits, "coco2014", known, known | {"test": 40_137}).notes
    assert "coco2014 count: 1 labelled images in split 'test', expected 40,137" in note


# ---- labels without images -------------------------------------------------------------------------------------------


def test_labels_without_images_come_in_alphabetical_order_all_in_train(tmp_path):
    data = read_labels(labels(tmp_path / "labels"))
    assert data.table.names == ["a", "b", "c"] and data.table.files == ["7", "8"] and data.paths == []
    assert data.table.targets.tolist() == [[1, 1, 0], [0, 0, 1]] and data.table.targets.dtype == np.int8
    assert data.table.indices("train").tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"targets": np.zeros((2, 3), np.uint8)}, ["targets are uint8 (2, 3), expected uint8 (2, 1)", "np.packbits"]),
        ({"targets": np.zeros((3, 1), np.uint8)}, ["expected uint8 (2, 1)"]),
        ({"targets": np.zeros((2, 1), np.int64)}, ["targets are int64"]),
        ({"targets": np.array([[255], [0]], np.uint8)}, ["labels beyond the 3 class names"]),
        ({"image_id": np.array([7, 7])}, ["same image id", "7: 2 times"]),
        ({"class_names": np.array(["a", "b", "a"])}, ["same class name", "a: 2 times"]),
        (
            {"class_names": None},
            ["class_names is not a file in the archive", "image_id, class_names)"],
        ),
        ({"class_names": np.array(["a", None, "b"], object)}, ["cannot be read"]),
    ],
)
def test_wrong_label_arrays_are_refused_with_what_was_expected(tmp_path, change, parts):
    with pytest.raises(ValueError) as caught:
        read_labels(labels(tmp_path / "labels", **change))
    for part in ("labels.npz", *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize("shape", ["(1099511627776, 64)", "(9999999999, 1)", "(99, 1)", "(-1, 1)"])
def test_an_array_that_promises_what_the_file_does_not_hold_is_refused_by_its_header(tmp_path, shape):
    path = labels(tmp_path / "labels") / "labels.npz"
    before = f"'shape': (2, 1), }}{'':{len(shape) - 6}}".encode()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["targets.npy"] = members["targets.npy"].replace(before, f"'shape': {shape}, }}".encode().ljust(len(before)))
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"labels\.npz cannot be read"):
        read_labels(path.parent)


def test_a_missing_or_broken_label_file_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*labels\.npz, expected labels\.npz \(targets"):
        read_labels(tmp_path)
    for content in (b"", b"PK\x03\x04 no archive", b"text"):
        (tmp_path / "labels.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"labels\.npz cannot be read"):
            read_labels(tmp_path)


def test_labels_open_without_images_and_say_so_where_images_are_needed(tmp_path):
    root = labels(tmp_path / "labels")
    data = DataParams(kind="labels", root=str(root))
    dataset = open_dataset(data, tmp_path / "cache")
    assert dataset.images is None and not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="labels and no images: 01_data and 02_partition work"):
        dataset.need_images()
    before = dataset.key, signature(data)
    labels(root, rows=((1, 0, 1), (1, 1, 0), (1, 1, 0)))
    assert open_dataset(data, tmp_path / "cache").key != before[0] and signature(data) != before[1]


def test_a_limit_keeps_a_seeded_share_of_labels(tmp_path):
    root = labels(tmp_path / "labels", rows=[(n % 2, 1, 0) for n in range(50)])
    dataset = open_dataset(DataParams(kind="labels", root=str(root), limit=20), tmp_path)
    assert len(dataset.table.files) == 20 and any("20 of 50" in note for note in dataset.notes)


def test_a_table_of_one_split_gets_no_note_that_its_classes_lack_another(tmp_path):
    table = LabelTable(["a", "b", "c"], np.array([[1, 1, 0]]), ["x"], np.array(["train"]))
    assert check_splits(table, tested=False) == ["1 class never positive in any split (nothing to learn, no score): c"]


def test_the_real_label_table_of_coco_is_checked_and_cut(check, shared_data, tmp_path):
    status, lines = check("labels", shared_data / "coco_val2014_labels")
    assert status == 1 and lines[0] == "labels: 40,137 images, 80 classes"
    assert lines[-1].endswith("it has labels and no images: 01_data and 02_partition work on it")
    assert lines[-2].startswith("02_partition cuts the graph of 80 classes for about 19 s")
    data = DataParams(kind="labels", root=str(shared_data / "coco_val2014_labels"))
    table = open_dataset(data, tmp_path).table
    counts, occurrence = graph.cooccurrence(table.targets[table.indices("train")])
    parts = cut(graph.affinity(counts, occurrence, "co"), 3).parts
    assert sorted(number for part in parts for number in part) == list(range(80))


def test_check_itself_returns_its_lines_and_whether_a_training_could_start(tmp_path):
    checked = check_data(DataParams(kind="voc2007", root=str(voc(tmp_path / "voc"))), tmp_path / "run")
    assert checked.trainable and checked.lines[-1].startswith("verdict: it can train")
