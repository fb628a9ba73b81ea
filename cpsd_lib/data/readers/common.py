"""What every reader of a data set needs: its result, its messages, which files are photos and which are not there."""

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path, PurePath

import numpy as np
import pandas as pd
from sklearn.preprocessing import MultiLabelBinarizer

from cpsd_lib.data.images.digests import file_states
from cpsd_lib.data.table import LabelTable
from cpsd_lib.support import counted, listed

PHOTOS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".jp2", ".avif")
NOT_READ = (".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2")

NOT_COMPARABLE = "are not the papers'"  # a note with these words goes beside every figure


@dataclass(frozen=True, eq=False)
class LabelledFiles:
    """What a reader returns: the label table, the path of each of its N images, and what a user should know."""

    table: LabelTable
    paths: list[Path]  # [N], or empty for a data set that has labels only
    notes: list[str] = field(default_factory=list)

    def take(self, indices):
        """Return the same with the images `indices` alone (int [n]), in that order."""
        paths = [self.paths[index] for index in indices if self.paths]
        return replace(self, table=self.table.take(indices), paths=paths)


def join_splits(names, splits, kind, listed, labelled=None):
    """Return the LabelledFiles of {split: (files [n], targets [n, C], their folder)}, one split after the other.

    listed, labelled: how many images, and images with a label, the published data set has in each split; other counts are
    notes. With `labelled`, images without a label are left out, as the published count leaves them out.
    """
    files = [file for files, _, _ in splits.values() for file in files]
    paths = [folder / file for files, _, folder in splits.values() for file in files]
    targets = np.concatenate([targets for _, targets, _ in splits.values()])
    split = np.repeat(list(splits), [len(files) for files, _, _ in splits.values()])
    read = LabelledFiles(LabelTable(list(names), targets, files, split), paths)
    for what, known in (("listed", listed), ("labelled", labelled)):
        if known and what == "labelled":
            read = read.take(np.flatnonzero(targets.any(axis=1)))
        counts = Counter(read.table.split.tolist())
        read.notes.extend(
            f"{kind} count: {counts[split]:,} {what} images in split '{split}', expected {count:,}: figures from another "
            f"number of images {NOT_COMPARABLE}"
            for split, count in (known or {}).items()
            if counts[split] != count
        )
    return read


def one_hot(held, names=None):
    """Return a DataFrame of int8 [n, C] that is 1 where one of `names` [C] is among the names in held [n]; names: all of them."""
    names = sorted(frozenset().union(*held)) if names is None else names
    ones = MultiLabelBinarizer(classes=names, sparse_output=True).fit_transform(held)
    return pd.DataFrame(ones.astype(np.int8).toarray(), columns=names)


def refuse(path, problems, expected):
    """Raise a ValueError that lists `problems` (up to 20, and the count) with what was expected; no problem, no error."""
    problems = list(problems)
    if problems:
        lines = listed(problems, join="\n  ")
        raise ValueError(f"{path}: {expected}. {len(problems):,} found:\n  {lines}")


def closest(name, names):
    """Return the one of `names` that looks most like `name`, None where none does."""
    original = {option.lower(): option for option in names}
    near = get_close_matches(str(name).lower(), original, n=1, cutoff=0.4)
    return original[near[0]] if near else None


def nearest(name, names):
    """Return `name` in quotes and, where it is not one of `names`, the one that looks most like it."""
    near = closest(name, names)
    return repr(name) if near is None else f"{name!r} (did you mean {near!r}?)"


def refuse_unknown(path, places, known, expected):
    """Raise ValueError when the name of one of `places`, pairs of (where it stands, name), is not among `known`."""
    refuse(path, [f"{where}: {nearest(name, known)}" for where, name in places if name not in known], expected)


def how_to_import(root, kind):
    """Return the sentence that says how labels in the form of `kind` with other classes or folders are used."""
    return f"Other classes or folders are imported by: cpsd data import {root} --kind {kind} --to NEW_FOLDER"


def refuse_repeats(path, names, what):
    """Raise ValueError when one of `names` occurs twice in `path`; `what` says what a name is."""
    twice = [f"{name}: {times} times" for name, times in Counter(names).items() if times > 1]
    refuse(path, twice, f"the same {what} is listed more than once, expected once")


def read_text(path, what):
    """Return the text of a file; FileNotFoundError says `what` it should be, ValueError that it is not UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"there is no file {path}{hints([Path(path)])[0]}, expected {what}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not UTF-8 text (line {line}), expected {what}") from None


def read_arrays(path, names, what):
    """Return the arrays `names` of an .npz, nothing unpickled; FileNotFoundError or ValueError say `what` was expected."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}, expected {what}") from None
    except Exception as error:  # a broken archive can raise anything, MemoryError where a header promises terabytes
        raise ValueError(f"{path} cannot be read ({error}), expected {what}") from None


def read_names(path, what):
    """Return the lines of a file without spaces around them and without empty ones; ValueError when there is none."""
    names = [line for line in map(str.strip, read_text(path, what).splitlines()) if line]
    if not names:
        raise ValueError(f"{path} is empty, expected {what}")
    return names


def _raise(error):
    raise error  # a folder that cannot be read would be left out in silence


def photos_below(root, skip=None, endings=PHOTOS):
    """Return the paths of all photos below a folder, sorted, links followed, without hidden ones and those in `skip`."""
    paths, seen, starts = [], set(), [need_folder(root, advice="")]
    for start in starts:  # folders that links lead to come last, unless they were met without a link
        for folder, folders, files in os.walk(start, onerror=_raise):
            if (real := os.path.realpath(folder)) in seen or Path(folder) == skip != Path(root):
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
            starts += [path for name in sorted(folders) if (path := Path(folder, name)).is_symlink()]
            paths += [Path(folder, name) for name in files if name.lower().endswith(endings) and name[0] != "."]
    return sorted(paths)


def find_photos(names):
    """Return (the photos that `names` stand for, each path once and as text; the number of other files in the folders).

    A folder stands for all photos below it, by their extension, in alphabetical order; a .txt file for the path in each of
    its lines, relative to the working folder or else to the file's own; any other file for itself. Hidden files are left
    out. Raises FileNotFoundError for a name that is not there, ValueError for a folder or list without a photo.
    """
    photos, others = [], 0
    for name in map(Path, names):
        if not name.exists():
            raise FileNotFoundError(f"there is no file or folder {name}")
        if name.is_dir():
            files = photos_below(name, endings="")  # of any ending
            below = [path for path in files if path.name.lower().endswith(PHOTOS)]
            if not below:
                what = f"no image is in the folder {name} or below it ({counted(len(files), 'other file')})"
                raise ValueError(f"{what}; looked for {', '.join(PHOTOS)}")
            photos, others = photos + below, others + len(files) - len(below)
        elif name.suffix.lower() == ".txt":
            for line in read_names(name, "the path of a photo in each line"):
                beside = name.parent / line
                photos.append(beside if beside.exists() and not os.path.exists(line) else line)
        else:
            photos.append(name)
    return list(dict.fromkeys(map(os.fspath, photos))), others


def need_folder(root, advice=": data.root must be the folder the data set was unpacked in"):
    """Return `root` as a Path; FileNotFoundError when it is no folder."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"there is no folder {root}{advice}")
    return Path(root)


def first_existing(root, choices, what, advice=""):
    """Return the first of root/choice that exists; FileNotFoundError names them all, `what` they are and what to do."""
    path = next((root / choice for choice in choices if (root / choice).exists()), None)
    if path is None:
        raise FileNotFoundError(f"{root} holds no {what}, expected {' or '.join(choices)} in it. {advice}".rstrip(". "))
    return path


def missing_files(paths):
    """Return the indices of `paths` that are no file, ascending; it opens nothing."""
    return [index for index, state in enumerate(file_states(paths)) if state is None]


def hints(paths):
    """Return " (did you mean 'IMG_1.JPG'?)" for each of `paths` that are no file, '' where nothing there has a name like it.

    Like it is a name that differs in case, Unicode form or ending only, in the file or in a folder above it.
    """

    @cache  # each folder is listed once
    def names_in(folder):
        try:
            return {form: name for name in sorted(os.listdir(folder)) for form in forms(name)}
        except (OSError, ValueError):
            return {}

    @cache
    def near(path):
        folder = path.parent if os.path.isdir(path.parent) else near(path.parent)
        names = names_in(folder) if folder else {}
        alike = (folder / names[form] for form in forms(path.name) if form in names)
        return next((other for other in alike if other != path), None)

    return [_hint(path, near(path)) for path in paths]


def _hint(path, other):
    if other is None:
        return ""
    name = other.name if other.parent == path.parent else str(other)
    # Two Unicode forms of a name look the same: the one on the disk is shown by its codes.
    looks_alike = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", path.name)
    return f" (did you mean {ascii(name) + ', another Unicode form' if looks_alike else repr(name)}?)"


def forms(name):
    """Return a file name without its case and Unicode form, and that without its ending."""
    plain = unicodedata.normalize("NFC", name).casefold()
    return plain, PurePath(plain).stem
