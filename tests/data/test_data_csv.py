import pickle
from itertools import combinations

import numpy as np
import pytest

from cpsd_lib.data.readers.csv import annotations_of, read_csv
from cpsd_lib.data.table import LabelTable, check_splits
from cpsd_lib.support import listed


def write(root, text, encoding="utf-8", images=True):
    root.mkdir(exist_ok=True)
    if images:
        (root / "images").mkdir()
    (root / "annotations.csv").write_bytes(text.encode(encoding))
    return root


def refused(root, text, *expected, error=ValueError, **options):
    write(root, text)
    with pytest.raises(error) as caught:
        read_csv(root, **options)
    for part in expected:
        assert part in str(caught.value)


GOOD = "file_name,split,labels\na.jpg,train,dog;cat\nsub/b.jpg,test,cat\nc.jpg,train,\n"


def test_a_plain_file_becomes_a_table_with_alphabetical_classes_and_paths(tmp_path):
    data = read_csv(write(tmp_path / "d", GOOD))
    assert data.table.names == ["cat", "dog"]
    assert data.table.targets.dtype == np.int8
    assert data.table.targets.tolist() == [[1, 1], [1, 0], [0, 0]]
    assert data.table.files == ["a.jpg", "sub/b.jpg", "c.jpg"]
    assert data.table.indices("train").tolist() == [0, 2] and data.table.indices("train").dtype == np.int64
    assert data.table.indices("val").tolist() == []
    assert data.paths[1] == tmp_path / "d" / "images" / "sub" / "b.jpg"


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("dog;cat", " dog ; cat ;dog;; ").replace(",", " , "),
        "labels,split,file_name,camera\ncat;dog,train,a.jpg,x\ncat,test,./sub//b.jpg,y\n,train,c.jpg,z\n",
        GOOD.replace("sub/", "sub\\"),
        GOOD + "\n,,\n\n",
        GOOD.replace("dog;cat", '"dog;cat"'),
    ],
    ids=["windows line ends", "spaces and repeats", "other columns", "backslashes", "blank lines", "quotes"],
)
def test_ways_to_write_the_same_table_give_the_same_table(tmp_path, text):
    table = read_csv(write(tmp_path / "d", text)).table
    assert table.names == ["cat", "dog"]
    assert table.files == ["a.jpg", "sub/b.jpg", "c.jpg"]
    assert table.targets.tolist() == [[1, 1], [1, 0], [0, 0]]


def test_a_byte_order_mark_is_accepted_and_letters_beyond_ascii_are_kept(tmp_path):
    table = read_csv(write(tmp_path / "d", GOOD.replace("dog", "Hündin"), encoding="utf-8-sig")).table
    assert table.names == ["Hündin", "cat"]


def test_classes_named_like_missing_values_or_numbers_survive(tmp_path):
    table = read_csv(write(tmp_path / "d", "file_name,split,labels\n1,train,NA;null;None;nan\n2,test,07;NaN\n")).table
    assert table.names == ["07", "NA", "NaN", "None", "nan", "null"]
    assert table.files == ["1", "2"]


def test_unknown_labels_become_minus_one(tmp_path):
    table = read_csv(write(tmp_path / "d", "file_name,split,labels,unknown\na,train,cat,dog; cow\nb,test,dog,\n")).table
    assert table.names == ["cat", "cow", "dog"]
    assert table.targets.tolist() == [[1, -1, -1], [0, 0, 1]]


def joined(separator, classes="abcd"):
    """Return a table that holds each class and each pair of classes once."""
    sets = [*classes, *(separator.join(pair) for pair in combinations(classes, 2))]
    lines = [f'{number}.jpg,{"test" if number % 3 else "train"},"{names}"' for number, names in enumerate(sets)]
    return "\n".join(["file_name,split,labels", *lines, ""])


@pytest.mark.parametrize("separator", ["|", ",", ", ", " ", "/", " & ", "+"])
def test_labels_joined_by_something_else_are_refused_with_the_separator_to_give(tmp_path, separator):
    root, give = write(tmp_path / "d", joined(separator)), separator.strip() or " "
    with pytest.raises(ValueError) as caught:
        read_csv(root)
    for part in ("joined by ';' its labels are 10 classes", "they are 4: a, b, c, d", f'data.separator: "{give}"'):
        assert part in str(caught.value)
    table = read_csv(root, separator=give).table
    assert table.names == ["a", "b", "c", "d"] and table.targets.sum() == 4 + 2 * 6
    assert table.targets.tolist() == read_csv(write(tmp_path / "e", joined(";"))).table.targets.tolist()


def test_one_line_joined_by_something_else_is_seen_among_others(tmp_path):
    refused(tmp_path / "d", GOOD + "d.jpg,train,dog|cat\n", "one of them 'dog|cat'", 'data.separator: "|"')


@pytest.mark.parametrize("cell", ["['a', 'b']", '[""a"", ""b""]', "['a']", "[]", "[a, b]"])
def test_a_list_among_names_that_are_joined_is_refused(tmp_path, cell):
    text = GOOD + f'd.jpg,train,"{cell}"\n'
    refused(tmp_path / "d", text, "line 2: dog;cat", "expected one such as ['cat', 'dog'] in each or in none")


@pytest.mark.parametrize("cell", ["[{[]: 1}, 'a']", "[" * 9_000 + "'a'" + "]" * 9_000], ids=["unhashable", "deep"])
def test_a_list_that_cannot_be_read_is_refused_by_its_line(tmp_path, cell):
    refused(tmp_path / "d", f'file_name,split,labels\na.jpg,train,"{cell}"\n', "line 2: [", "expected one such as")


def test_lists_as_python_and_json_write_them_are_names(tmp_path):
    cells = ["['b', 'a']", "", '[""a"", ""c, d""]', "[]"]
    lines = [f'{number}.jpg,train,"{cell}"' for number, cell in enumerate(cells)]
    table = read_csv(write(tmp_path / "d", "\n".join(["file_name,split,labels", *lines, ""]))).table
    assert table.names == ["a", "b", "c, d"]
    assert table.targets.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]]


def test_names_of_several_words_and_with_signs_are_classes(tmp_path):
    names = ["traffic light", "stop sign", "salt & pepper", "24/7 shop", "C++", "black bear", "polar bear", "[other]"]
    lines = [f"{number}.jpg,train,{names[number - 1]};{name}" for number, name in enumerate(names)]
    table = read_csv(write(tmp_path / "d", "\n".join(["file_name,split,labels", *lines, ""]))).table
    assert table.names == sorted(names)
    alone = [f"{number}.jpg,train,{name}" for number, name in enumerate(names)]
    table = read_csv(write(tmp_path / "e", "\n".join(["file_name,split,labels", *alone, ""]))).table
    assert table.names == sorted(names)


def test_colours_and_things_in_all_pairs_are_classes(tmp_path):
    names = [
        f"{colour} {thing}" for colour in ("red", "blue", "old", "new") for thing in ("car", "bus", "bike", "tram")
    ]
    lines = [f"{number}.jpg,train,{name}" for number, name in enumerate(names)]
    table = read_csv(write(tmp_path / "d", "\n".join(["file_name,split,labels", *lines, ""]))).table
    assert table.names == sorted(names)


def test_images_directly_in_the_root_are_accepted(tmp_path):
    root = write(tmp_path / "d", GOOD, images=False)
    (root / "a.jpg").touch()
    assert read_csv(root).paths[0] == root / "a.jpg"


def test_a_missing_image_folder_is_named(tmp_path):
    root = write(tmp_path / "d", GOOD, images=False)
    with pytest.raises(FileNotFoundError, match=r"no folder .*images, and a\.jpg is not directly in"):
        read_csv(root)


def test_a_missing_root_or_annotations_file_says_what_to_write(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        read_csv(tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"no file .*labels\.csv, expected a table .* with the columns file_name, split"
    ):
        read_csv(tmp_path, annotations="labels.csv")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["nothing in it, expected a table", "with the columns file_name, split, labels"]),
        ("\n\n", ["nothing in it"]),
        ("file_name,split,labels\n", ["no rows"]),
        ("filename,split,labels\na,train,x\n", ["no column 'file_name'", "If 'filename' is that column"]),
        ("file_name,split\na,train\n", ["no column 'labels'"]),
        ("file_name;split;labels\na;train;x\n", ["no column 'file_name'", "Separate the cells by commas"]),
        ("file_name,split,labels,labels\na,train,x,y\n", ["same column is listed more than once", "labels: 2 times"]),
        (GOOD + "d.jpg,train,cat,dog\n\ne.jpg,test\n", ["line 5: 4 cells", "line 7: 2 cells", "expected 3 cells"]),
        (GOOD + 'd.jpg,train,"cat\n', ["line 5", "quotation marks"]),
        (GOOD + ",train,cat\n", ["expected a file name", "line 5"]),
        (
            GOOD + "d.jpg,trian,cat\ne.jpg,,cat\n",
            ["line 5: 'trian' (did you mean 'train'?)", "line 6: ''", "val, test"],
        ),
        (GOOD + "d.jpg,skipped,cat\n", ["line 5: 'skipped'"]),
        (GOOD + "./a.jpg,train,cat\n", ["duplicate file name", "a.jpg: line 2 (train), line 5 (train)"]),
        (GOOD + "a.jpg,test,cat\n", ["expected one line a file, in one split", "a.jpg: line 2 (train), line 5 (test)"]),
        (GOOD + "../x.jpg,test,cat\n", ["inside the image folder", "line 5: ../x.jpg"]),
        (GOOD + "y/..\\..\\x.jpg,test,cat\n", ["inside the image folder", "line 5"]),
        (GOOD + "/etc/x.jpg,test,cat\n", ["inside the image folder", "line 5: /etc/x.jpg"]),
        (GOOD + "C:\\x.jpg,test,cat\n", ["inside the image folder", "line 5: C:\\x.jpg"]),
        ("file_name,split,labels,unknown\na,train,cat;dog,dog\n", ["in 'labels' and in 'unknown'", "line 2: dog"]),
    ],
)
def test_a_file_without_a_single_meaning_is_refused_with_the_lines_and_what_to_do(tmp_path, text, expected):
    refused(tmp_path / "d", text, "annotations.csv", *expected)


def test_the_message_of_a_missing_column_says_which_one_to_rename_to_what(tmp_path):
    refused(
        tmp_path / "d",
        "image_name,split,tags\na.jpg,train,cat\n",
        "no column 'file_name'; its columns are 'image_name', 'split', 'tags', expected file_name, split, labels. "
        "If 'image_name' is that column, rename it to 'file_name'. `cpsd data import` writes this file",
    )


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path):
    with pytest.raises(ValueError, match=r"not UTF-8 text \(line 2\), expected a table saved as 'CSV UTF-8'"):
        read_csv(write(tmp_path / "d", GOOD.replace("dog", "Hündin"), encoding="latin-1"))


def test_a_message_lists_at_most_twenty_lines_and_the_count(tmp_path):
    bad = "".join(f"x{i}.jpg,nosuch,cat\n" for i in range(25))
    refused(tmp_path / "d", GOOD + bad, "25 found", "line 24", "... and 5 more")
    assert listed(range(3)) == "0, 1, 2"


def table(targets, split, names=None):
    targets = np.array(targets)
    names = names or [f"c{i}" for i in range(targets.shape[1])]
    return LabelTable(names, targets, [f"{i}.jpg" for i in range(len(targets))], np.array(split))


def test_skipped_images_keep_their_index_and_leave_their_split():
    before = table([[1, 0], [0, 1], [1, 1]], ["train", "test", "train"])
    after = before.skip([2])
    assert after.indices("train").tolist() == [0] and after.indices("skipped").tolist() == [2]
    assert after.files == before.files and before.indices("train").tolist() == [0, 2]
    assert after.skip([]).split.tolist() == after.split.tolist()
    assert pickle.loads(pickle.dumps(after)).split.tolist() == ["train", "test", "skipped"]


@pytest.mark.parametrize(
    ("names", "targets", "files", "split", "expected"),
    [
        (["a"], [[2]], ["x"], ["train"], "targets hold 2"),
        (["a"], [[0.5]], ["x"], ["train"], "targets hold 0.5"),
        (["a", "a"], [[1, 1]], ["x"], ["train"], "class names must be unique.*: a$"),
        (["a"], [[1], [1]], ["x", "x"], ["train", "test"], "file names must be unique.*: x$"),
        ([""], [[1]], ["x"], ["train"], "class number 0 has an empty name"),
        (["a\x1b[31m"], [[1]], ["x"], ["train"], r"class names must have no control characters.*: 'a\\x1b\[31m'$"),
        (["a"], [[1]], ["x\0.jpg"], ["train"], r"file names must have no control characters.*: 'x\\x00\.jpg'$"),
        (["a"], [[1]], ["x"], ["training set"], "unknown split 'training set'"),
    ],
)
def test_a_table_refuses_what_does_not_fit_together(names, targets, files, split, expected):
    with pytest.raises(ValueError, match=expected):
        LabelTable(names, np.array(targets), files, np.array(split))


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["caf\u00e9", "cafe\u0301"], r"'caf\\xe9', 'cafe\\u0301'"),
        (["cat", "ca\u200bt"], r"'cat', 'ca\\u200bt'"),
        (["\ufeffdog", "dog", "x"], r"'\\ufeffdog', 'dog': write them alike\)$"),
    ],
)
def test_names_that_look_the_same_are_refused_as_they_are_written(names, written):
    with pytest.raises(ValueError, match=rf"class names must be unique.*\(written {written}"):
        table(np.eye(len(names), dtype=int), ["train"] * len(names), names)


def test_a_name_that_nobody_sees_is_empty_and_forms_that_look_different_are_a_note():
    with pytest.raises(ValueError, match="class number 1 has an empty name"):
        table([[1, 1]], ["train"], ["a", "\u200b"])
    targets, split = [[1, 0], [0, 1], [1, 1]] * 2, ["train"] * 3 + ["test"] * 3
    (note,) = check_splits(table(targets, split, ["m\u00b2", "M2"]))
    assert note == "classes 'm²', 'M2' differ only in case, spaces or Unicode form: are they one class?"
    assert check_splits(table(targets, split, ["1", "01"])) == check_splits(table(targets, split, ["NA", "nan "])) == []


def test_a_sound_table_has_no_warnings():
    targets = [[1, 0], [0, 1], [1, 1]] * 2
    assert check_splits(table(targets, ["train"] * 3 + ["test"] * 3)) == []


def test_classes_that_occur_with_no_other_are_named_and_no_co_occurrence_at_all_is_said():
    split = ["train"] * 3 + ["test"] * 3
    (note,) = check_splits(table([[1, 1, 0], [1, 0, 0], [0, 0, 1]] * 2, split, ["a", "b", "c"]))
    assert note.startswith("1 class with no other in any image of split 'train' (nothing says ")
    assert note.endswith("part of CGP they belong to): c")
    notes = check_splits(table([[1, 0, 0], [0, 1, 0], [0, 0, 1]] * 2, split, ["a", "b", "c"]))
    assert notes == ["no two classes occur in one image of split 'train': there is no co-occurrence to cut, and no CGP"]


def test_uneven_classes_and_odd_labels_are_named_in_plain_sentences():
    notes = check_splits(
        table(
            #  both, train, test, never, always, Dog, "dog "
            [
                [1, 1, 0, 0, 1, 0, 1],
                [0, 0, 0, 0, 1, 1, -1],
                [1, 0, 1, 0, 1, 1, 1],
                [0, 0, 0, 0, 0, 0, 0],
            ],
            ["train", "train", "test", "test"],
            ["both", "in train", "in test", "never", "always", "Dog", "dog "],
        )
    )
    assert notes == [
        "1 class never positive in any split (nothing to learn, no score): never",
        "1 class never positive in split 'train' (it cannot be learned): in test",
        "1 class never positive in split 'test' (left out of its mAP): in train",
        "2 classes never absent in split 'train' (nothing to tell apart): always, dog ",
        "classes 'Dog', 'dog ' differ only in case, spaces or Unicode form: are they one class?",
        "split 'train': 1 of 14 labels are unknown and will be masked",
        "split 'test': 1 of 2 images have no positive label: they hold none, or it is unknown (not labelled? split "
        "unlabelled)",
    ]


def test_a_class_in_several_splits_but_not_in_train_or_test_is_named():
    split = ["train", "train", "val", "test", "test_shifted"]
    notes = check_splits(table([[1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0], [0, 0, 1]], split))
    assert "1 class never positive in split 'train' (it cannot be learned): c1" in notes
    assert "1 class never positive in split 'test' (left out of its mAP): c2" in notes


@pytest.mark.parametrize(
    ("targets", "split", "expected"),
    [
        ([[1], [1]], ["train", "test"], "1 class, expected at least 2"),
        ([[1, 0], [0, 1]], ["train", "train"], "no image is in split 'test'"),
        ([[1, 0], [0, 1]], ["val", "test"], "no image is in split 'train'"),
        ([[0, -1], [0, 1]], ["train", "test"], "no image of split 'train' has a positive label"),
        ([[1, 0], [0, 0]], ["train", "test"], "no image of split 'test' has a positive label"),
        ([[1, 0], [0, 1]], ["train", "test"], "1 image is left in split 'train', expected at least 2"),
    ],
)
def test_a_table_nothing_can_be_learned_or_tested_on_is_refused(targets, split, expected):
    with pytest.raises(ValueError, match=expected):
        check_splits(table(targets, split))


UNLABELLED = "file_name,split,labels,unknown\na.jpg,train,cat,\nb.jpg,unlabelled,,\nc.jpg,train,,cat\nd.jpg,test,cat,\n"


def test_images_of_split_unlabelled_and_those_of_which_no_label_is_known_have_unknown_labels(tmp_path):
    table = read_csv(write(tmp_path / "d", UNLABELLED)).table
    assert table.split.tolist() == ["train", "unlabelled", "unlabelled", "test"]
    assert table.targets.tolist() == [[1], [-1], [-1], [1]]
    assert table.indices("unlabelled").tolist() == [1, 2]


def test_an_unlabelled_image_with_labels_is_refused_by_name(tmp_path):
    refused(
        tmp_path / "d", UNLABELLED.replace("unlabelled,,", "unlabelled,cat,"), "have labels", "split 'train'", "b.jpg"
    )
    with pytest.raises(ValueError, match=r"split 'unlabelled' have labels.*x.jpg"):
        LabelTable(["cat"], [[1]], ["x.jpg"], np.array(["unlabelled"]))


def test_photos_that_no_line_names_are_unlabelled_where_that_is_asked_for(tmp_path):
    root = write(tmp_path / "d", GOOD)
    (root / "images" / "sub").mkdir()
    for name in ("a.jpg", "z.JPG", "sub/y.png", "notes.txt", "sub/b.jpg"):
        (root / "images" / name).write_bytes(b"")
    assert read_csv(root).table.files == ["a.jpg", "sub/b.jpg", "c.jpg"]
    data = read_csv(root, unnamed="unlabelled")
    assert data.table.files == ["a.jpg", "sub/b.jpg", "c.jpg", "sub/y.png", "z.JPG"]
    assert data.table.split.tolist()[3:] == 2 * ["unlabelled"] and (data.table.targets[3:] == -1).all()
    assert data.paths[3] == root / "images" / "sub" / "y.png"


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_of_which_none_is_known_to_be_absent_are_refused(split):
    targets = np.array([[1, -1], [-1, 1], [1, 0], [0, 1]])
    splits = [split] * 2 + ["test" if split == "train" else "train"] * 2
    with pytest.raises(ValueError, match=f"no image of split '{split}' is known to lack a class: label some"):
        check_splits(table(targets, splits, ["a", "b"]))


def test_a_class_that_is_never_absent_in_test_is_named_because_its_ap_is_100():
    notes = check_splits(table([[1, 0], [0, 1], [1, 0], [-1, 1]], ["train", "train", "test", "test"], ["a", "b"]))
    assert "1 class never absent in split 'test' (its AP is 100 whatever a model says): a" in notes


@pytest.mark.parametrize("name", ["Unknown", "unknowns", "UNKNOWN"])
def test_a_column_of_unknown_labels_by_another_name_is_refused(tmp_path, name):
    text = f"file_name,split,labels,{name}\na.jpg,train,cat,dog\n"
    with pytest.raises(ValueError, match="expected the column of labels that nobody knows to be called 'unknown'"):
        annotations_of(tmp_path / "annotations.csv", text)
