import numpy as np
import pytest

from cpsd_lib.models.label_vectors import read_label_vectors

GLOVE = "the 9 9 9\ndining 1 2 3\ntable 3 4 -5\ntv 0.5 1e-2 0\ndog 7 8 9\n"


@pytest.fixture
def glove(tmp_path):
    def write(text=GLOVE, name="glove.txt"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_a_class_is_its_word_and_several_words_are_their_mean(glove):
    found = read_label_vectors(glove(), ["tv", "dining table", "Dog", "dining_table", "dining-table", "tv/dog"])
    assert found.dtype == np.float32
    expected = [[0.5, 0.01, 0], [2, 3, -1], [7, 8, 9], [2, 3, -1], [2, 3, -1], [3.75, 4.005, 4.5]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_every_missing_word_is_named_with_its_class(glove):
    with pytest.raises(ValueError) as caught:
        read_label_vectors(glove(), ["dog", "hair drier", "dining chair"])
    assert "no vector for 3 words" in str(caught.value)
    for part in ("'hair' (class 'hair drier')", "'drier' (class 'hair drier')", "'chair' (class 'dining chair')"):
        assert part in str(caught.value)
    assert "'dining'" not in str(caught.value)


def test_a_long_list_of_missing_words_is_cut_and_counted(glove):
    with pytest.raises(ValueError, match=r"no vector for 25 words: .*'w19' .* and 5 more$"):
        read_label_vectors(glove(), [f"w{i}" for i in range(25)])


@pytest.mark.parametrize("text", ["5 3\n" + GLOVE, GLOVE.replace("\n", " \n"), GLOVE.replace("\n", "\r\n"), GLOVE[:-1]])
def test_a_line_of_counts_and_other_line_ends_change_nothing(glove, text):
    np.testing.assert_array_equal(
        read_label_vectors(glove(text), ["dog", "tv"]), read_label_vectors(glove(), ["dog", "tv"])
    )


def test_an_entry_of_several_words_is_not_its_first_word(glove):
    text = "x 1 1 1\ndog name@domain.com 1 1 1\n" + GLOVE
    np.testing.assert_array_equal(read_label_vectors(glove(text), ["dog"]), [[7, 8, 9]])


def test_the_first_of_two_vectors_of_a_word_is_taken(glove):
    np.testing.assert_array_equal(read_label_vectors(glove(GLOVE + "dog 1 1 1\n"), ["dog"]), [[7, 8, 9]])


@pytest.mark.parametrize("line", ["cat 1 2", "cat 1 2 3 4", "cat 1 2 nan", "cat 1 inf 2", "cat"])
def test_a_line_that_is_no_vector_is_named_by_its_number(glove, line):
    with pytest.raises(ValueError, match="line 6: 'cat' has no 3 finite numbers"):
        read_label_vectors(glove(GLOVE + line + "\n"), ["cat", "dog"])


@pytest.mark.parametrize("text", ["", "\n\n", "\x00\x01", "\n" + GLOVE.replace("dog", "cat")])
def test_a_file_without_the_words_says_so(glove, text):
    with pytest.raises(ValueError, match="no vector for 1 words: 'dog'"):
        read_label_vectors(glove(text), ["dog"])


def test_a_class_without_words_is_refused(glove):
    with pytest.raises(ValueError, match="class number 1 has a name without words"):
        read_label_vectors(glove(), ["dog", " - "])


def test_an_npz_is_read_by_name_in_our_order(tmp_path):
    vectors = np.arange(6, dtype=np.float64).reshape(3, 2)
    path = npz(tmp_path / "v.npz", class_names=["a", "b c", "d"], vectors=vectors)
    found = read_label_vectors(path, ["d", "b c"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, vectors[[2, 1]])


def test_an_npz_without_our_classes_names_them(tmp_path):
    path = npz(tmp_path / "v.npz", class_names=["a", "b"], vectors=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"no vector for 2 words: 'B' .*, 'c'"):
        read_label_vectors(path, ["a", "B", "c"])


@pytest.mark.parametrize(
    "arrays",
    [
        {"vectors": np.zeros((2, 3))},
        {"class_names": ["a", "b"]},
        {"class_names": ["a", "b"], "vectors": np.zeros((3, 3))},
        {"class_names": ["a", "b"], "vectors": np.zeros(2)},
        {"class_names": ["a", "b"], "vectors": np.array([[1, 2], [3, np.nan]])},
        {"class_names": ["a", "b"], "vectors": [["x", "y"], ["z", "w"]]},
        {"class_names": ["a", "a"], "vectors": np.zeros((2, 3))},
        {"class_names": "a", "vectors": np.zeros((1, 3))},
        {"class_names": np.array(["a", None], dtype=object), "vectors": np.zeros((2, 3))},
    ],
)
def test_an_npz_of_something_else_is_refused(tmp_path, arrays):
    with pytest.raises(ValueError, match=r"v\.npz"):
        read_label_vectors(npz(tmp_path / "v.npz", **arrays), ["a"])


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 no zip"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "v.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected the arrays class_names"):
        read_label_vectors(path, ["a"])


def test_the_name_decides_the_reader_and_learned_needs_none(tmp_path, glove):
    assert read_label_vectors("learned", ["a"]) == "learned"
    assert read_label_vectors(None, ["a"]) is None
    assert read_label_vectors(str(glove()), ["dog"]).tolist() == [[7, 8, 9]]
    path = npz(tmp_path / "v.npz", class_names=["a"], vectors=np.ones((1, 2)))
    assert read_label_vectors(path, ["a"]).tolist() == [[1, 1]]
    for wrong in ("nowhere.txt", "nowhere.npz", "."):
        with pytest.raises(FileNotFoundError, match="no label vectors at"):
            read_label_vectors(tmp_path / wrong, ["a"])
