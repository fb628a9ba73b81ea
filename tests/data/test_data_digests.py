"""Files are known again by their content, and a photo in training and in test is found under two names."""

import os
import time

import numpy as np

from cpsd_lib.data.dataset import overlap_notes
from cpsd_lib.data.images import digests as module
from cpsd_lib.data.images.digests import file_digests
from cpsd_lib.data.table import LabelTable


def test_digests_follow_the_content_and_only_changed_files_are_read_again(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a", "b", "copy of a", "missing", "folder")]
    for path, text in zip(paths, ("one", "two", "one"), strict=False):
        path.write_text(text)
        os.utime(path, (1_000_000, 1_000_000))
    paths[4].mkdir()
    later = time.time_ns() + 10**12  # nobody can set a ctime: the clock is moved instead
    monkeypatch.setattr(module.time, "time_ns", lambda: later)
    read = []
    digest = module._digest
    monkeypatch.setattr(module, "_digest", lambda path: read.append(os.path.basename(path)) or digest(path))
    index = tmp_path / "memory" / "digests.json"

    first = file_digests(paths, index)
    assert first[0] == first[2] != first[1] and [len(value) for value in first] == [32, 32, 32, 0, 0]
    assert sorted(read) == ["a", "b", "copy of a"]
    read.clear()
    assert file_digests(paths, index) == first and read == []

    paths[1].write_text("TWO")
    os.utime(paths[1], (2_000_000, 2_000_000))
    second = file_digests(paths[:2], index)
    assert second[0] == first[0] and second[1] != first[1] and read == ["b"]
    assert file_digests(paths[2:], index) == first[2:]

    index.write_text("{")
    assert file_digests(paths[:2], index) == second


def test_a_file_replaced_by_one_of_the_same_size_and_time_is_read_again(tmp_path, monkeypatch):
    later = time.time_ns() + 10**12
    monkeypatch.setattr(module.time, "time_ns", lambda: later)
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("one")
    other.write_text("two")
    for file in (path, other):
        os.utime(file, (1_000_000, 1_000_000))
    first = file_digests([path], tmp_path / "index")
    other.replace(path)
    assert file_digests([path], tmp_path / "index") != first


def test_a_file_changed_a_moment_ago_is_not_remembered(tmp_path):
    path = tmp_path / "a"
    moment = time.time() + 3600  # still young, however slow this machine is
    path.write_text("one")
    os.utime(path, (moment, moment))
    first = file_digests([path], tmp_path / "index")
    path.write_text("two")
    os.utime(path, (moment, moment))
    assert file_digests([path], tmp_path / "index") != first


def test_the_same_photo_under_two_names_in_train_and_test_is_found():
    split = ["train", "train", "val", "test", "test", "test_shifted", "test", "skipped", "test"]
    files = [f"{index}.jpg" for index in range(9)]
    digests = ["x", "x", "v", "x", "y", "v", "y", "y", ""]
    table = LabelTable(["c"], np.ones((9, 1)), files, np.array(split))
    (note,) = overlap_notes(digests, table, allowed=True)
    assert note.startswith("2 images stand") and note.endswith(": 0.jpg = 3.jpg, 2.jpg = 5.jpg")
    assert overlap_notes(["", *"bcdefgh", ""], table, allowed=False) == []


def test_the_same_photo_in_train_and_val_is_a_note():
    split = ["train", "unlabelled", "val", "val", "val", "test"]
    targets = np.where(np.array(split) == "unlabelled", -1, 1)[:, None]
    table = LabelTable(["c"], targets, [f"{index}.jpg" for index in range(6)], np.array(split))
    (note,) = overlap_notes(["x", "u", "x", "u", "v", "t"], table, allowed=False)
    assert note.startswith("2 images stand in training and in val") and note.endswith(": 0.jpg = 2.jpg, 1.jpg = 3.jpg")
