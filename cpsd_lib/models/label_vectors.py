"""A vector of each class for the label transformer: GloVe's text files, or an .npz of your own."""

import re
from pathlib import Path

import numpy as np

from cpsd_lib.data import read_arrays
from cpsd_lib.support import listed


def read_label_vectors(source, class_names):
    """Return vectors float32 [C, V] for an .npz or a GloVe text file; None and "learned" are returned as they are.

    An .npz has `class_names` [n] and `vectors` [n, V]. A text file has lines `word number number ...`: a class of several words
    is their mean, compared in lower case.
    Raises FileNotFoundError for no file, ValueError that names each missing word and its class, or what is wrong in the file.
    """
    if source in (None, "learned"):
        return source
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"no label vectors at {path}; give a GloVe text file or an .npz")
    if path.suffix == ".npz":
        words, vectors = [[name] for name in class_names], _read_npz(path)
    else:
        words = [re.findall(r"[^\s_\-/]+", name.lower()) for name in class_names]
        if not all(words):
            raise ValueError(f"class number {[bool(found) for found in words].index(False)} has a name without words")
        vectors = _read_words(path, {word for found in words for word in found})
    missing = [
        f"{word!r} (class {name!r})"
        for name, found in zip(class_names, words, strict=True)
        for word in found
        if word not in vectors
    ]
    if missing:
        raise ValueError(f"{path} has no vector for {len(missing)} words: {listed(missing)}")
    return np.stack([np.mean([vectors[word] for word in found], axis=0) for found in words])


def _read_words(path, wanted):
    # A file of GloVe has 400,000 lines or more and a class list a hundred words: only those are parsed.
    vectors, width = {}, None
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not width:
                if number == 1 and len(line.split()) == 2:
                    continue  # word2vec and fasttext begin with their counts
                width = len(line.split()) - 1
            word = line.partition(" ")[0].rstrip()
            if word not in wanted or word in vectors:
                continue
            try:
                vector = np.array(line.split()[1:], dtype=np.float32)
            except ValueError:
                continue  # glove.840B has a few entries of several words; `at name@domain.com` is not `at`
            if len(vector) != width or not np.isfinite(vector).all():
                raise ValueError(f"{path}, line {number}: {word!r} has no {width} finite numbers as the first line has")
            vectors[word] = vector
    return vectors


def _read_npz(path):
    names, vectors = read_arrays(path, ["class_names", "vectors"], "the arrays class_names [n] and vectors [n, V]")
    numbers = vectors.ndim == 2 and vectors.dtype.kind in "fiu" and np.isfinite(vectors).all()
    if not numbers or names.shape != vectors.shape[:1] or len(set(names.tolist())) < len(names):
        raise ValueError(f"{path}: vectors {vectors.shape} must be finite, a row for each of its different class_names")
    return dict(zip(names.tolist(), vectors.astype(np.float32), strict=True))
