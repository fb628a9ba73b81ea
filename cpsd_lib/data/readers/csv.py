"""Anyone's own photos: a folder of images with annotations.csv beside it."""

import csv
import io
import re
from collections import defaultdict
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np

from cpsd_lib.data.readers import common
from cpsd_lib.data.table import SPLITS, UNLABELLED, LabelTable, listed

COLUMNS = ("file_name", "split", "labels")
# What others join names by, the likeliest first: the first two are in no name of a class, the others may be.
SEPARATORS = ("|", ",", "/", "&", "+", " ")
LIST = re.compile(r"\[(.*[,'\"].*)?\]")  # as Python and JSON write one; [other] is a name
EXPECTED = f"a table saved as 'CSV UTF-8' with the columns {', '.join(COLUMNS)} and one line an image"


def read_csv(root, annotations="annotations.csv", images="images", separator=";", unnamed="ignore"):
    """Read root/annotations.csv (columns file_name, split, labels, optionally unknown) and return LabelledFiles.

    `labels` and `unknown` hold class names joined by `separator`, a cell may be empty. Classes are all names that occur, in
    alphabetical order. File names are relative to root/images, or to root itself when there is no folder root/images and
    the files lie directly in root. Whether each image can be read is not looked at here. Images of split unlabelled have no
    labels; unnamed="unlabelled" takes the photos there that no line names as such images.
    Raises FileNotFoundError for a missing root, annotations file or image folder; ValueError (with line numbers) for
    anything in the file that has no single meaning, and for names that something else than `separator` seems to join.
    """
    root = common.need_folder(root)
    path = root / annotations
    rows = _read_rows(path)
    files = _file_names(path, rows)
    places, known = [(f"line {line}", row["split"]) for line, row in rows], (*SPLITS, UNLABELLED)
    common.refuse_unknown(path, places, known, f"expected one of {', '.join(known)} in column 'split'")
    _refuse_duplicates(path, rows, files)
    names, targets = _targets(path, rows, separator)
    paths, more = _paths(root, images, files, unnamed)
    targets = np.concatenate([targets, np.full((len(more), len(names)), -1, np.int8)])
    split = np.array([row["split"] for _, row in rows] + len(more) * [UNLABELLED])
    return common.LabelledFiles(LabelTable(names, targets, files + more, split), paths)


def image_paths(root, annotations, images, unnamed):
    """Return the path of each image as `read_csv` does, without its labels, and raise what it raises for file names."""
    root = common.need_folder(root)
    return _paths(root, images, _file_names(root / annotations, _read_rows(root / annotations)), unnamed)[0]


def _read_rows(path):
    # The csv module, not pandas: pandas turns classes named "NA" or "null" into missing values, moves the columns
    # of a ragged file silently, and knows no line numbers.
    reader = csv.reader(io.StringIO(common.read_text(path, EXPECTED), newline=None), strict=True, skipinitialspace=True)
    lines, last = [], 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((last + 1, [cell.strip() for cell in cells]))
            last = reader.line_num
    except csv.Error as error:
        raise ValueError(f"{path}, line {last + 1}, is not valid CSV ({error}): check its quotation marks") from error
    if not lines:
        raise ValueError(f"{path} is empty, expected {EXPECTED}")
    (_, header), *rows = lines
    _check_header(path, header)
    if not rows:
        raise ValueError(f"{path} has a line of column names but no rows, expected {EXPECTED}")
    ragged = (f"line {line}: {len(cells)} cells" for line, cells in rows if len(cells) != len(header))
    expected = f"{len(header)} cells, as in the first line; join class names by ';', quote a cell with a comma"
    common.refuse(path, ragged, f"expected {expected}")
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in rows]


def _check_header(path, header):
    for column in COLUMNS:
        if column not in header:
            separator = " Separate the cells by commas." if len(header) == 1 else ""
            near = common.closest(column, [name for name in header if name not in COLUMNS])
            rename = f" If {near!r} is that column, rename it to {column!r}." if near else ""
            columns = f"its columns are {listed(map(repr, header))}, expected {', '.join(COLUMNS)}.{separator}{rename}"
            other = "`cpsd data import` writes this file from other tables"
            raise ValueError(f"{path} has no column {column!r}; {columns} {other}")
    for column in (*COLUMNS, "unknown"):
        if header.count(column) > 1:
            raise ValueError(f"{path} has the column '{column}' {header.count(column)} times: keep one")


def _file_names(path, rows):
    # Backslashes come from lists written on Windows; `./a.jpg` and `a//b.jpg` must not hide a duplicate.
    files = [PurePosixPath(row["file_name"].replace("\\", "/")) for _, row in rows]
    lines = [(f"line {line}: {row['file_name']}", file) for (line, row), file in zip(rows, files, strict=True)]
    common.refuse(path, (line for line, file in lines if not file.parts), "expected a file name in column 'file_name'")
    outside = (line for line, f in lines if f.is_absolute() or ".." in f.parts or PureWindowsPath(f).drive)
    common.refuse(path, outside, "expected file names inside the image folder: relative, without '..'")
    return [str(file) for file in files]


def _refuse_duplicates(path, rows, files):
    places = defaultdict(list)
    for (line, row), file in zip(rows, files, strict=True):
        places[file].append(f"line {line} ({row['split']})")
    twice = (f"{file}: {listed(lines)}" for file, lines in places.items() if len(lines) > 1)
    expected = "one line a file, in one split (a test on seen photos says nothing), its labels joined by ';'"
    common.refuse(path, twice, f"duplicate file name, expected {expected}")


def _targets(path, rows, separator):
    written = [(f"line {line}", row["labels"], row.get("unknown", "")) for line, row in rows]
    lists = (f"{line}: {cell:.80}" for line, *both in written for cell in both if LIST.fullmatch(cell))
    common.refuse(path, lists, f"expected names joined by {separator!r}, as in cat{separator}dog, and no lists")
    cells = [(line, *(_class_names(cell, separator) for cell in both)) for line, *both in written]
    names = sorted(set().union(*(present | unknown for _, present, unknown in cells)))
    _check_separator(path, names, separator, any(len(present) > 1 for _, present, _ in cells))
    column = {name: number for number, name in enumerate(names)}
    both = (f"{line}: {', '.join(sorted(present & unknown))}" for line, present, unknown in cells if present & unknown)
    common.refuse(path, both, "the same class is in 'labels' and in 'unknown', expected it in one of them")
    labelled = (
        line for (line, present, _), (_, row) in zip(cells, rows, strict=True) if row["split"] == UNLABELLED and present
    )
    common.refuse(path, labelled, f"images of split {UNLABELLED} have labels, expected none (or split train)")
    targets = np.array([len(names) * [-(row["split"] == UNLABELLED)] for _, row in rows], np.int8)
    for index, (_, present, unknown) in enumerate(cells):
        targets[index, [column[name] for name in present]] = 1
        targets[index, [column[name] for name in unknown]] = -1
    return names, targets


def _class_names(cell, separator):
    return {name.strip() for name in cell.split(separator)} - {""}


def _check_separator(path, names, separator, joins):
    """Raise ValueError where another separator makes far fewer classes of `names`; joins: whether `separator` joins any."""
    for other in SEPARATORS:
        parts = set().union(*(_class_names(name, other) for name in names))
        # "red car" and "blue bus" may be names: colours alone are none, where labels that were joined do stand alone.
        seems_joined = not joins and 2 * len(parts) <= len(names) and parts & set(names)
        if len(parts) < len(names) if other in "|," else seems_joined:
            joined = next(name for name in names if other in name)
            raise ValueError(
                f"{path}: joined by {separator!r} its labels are {len(names):,} classes, one of them {joined!r}; joined by "
                f'{other!r} they are {len(parts):,}: {listed(sorted(parts), shown=5)}. Give data.separator: "{other}" (on the '
                f"command line 'data.separator=\"{other}\"'), or write these names another way if each is one class"
            )


def _paths(root, images, files, unnamed):
    """Return (the path of each image, the names of those that no line names, whose paths come last)."""
    folder = root / images
    if folder.is_dir() or len(common.missing_files([root / file for file in files[:1000]])) < len(files[:1000]):
        folder, more = folder if folder.is_dir() else root, []
        if unnamed == UNLABELLED:
            there = common.photos_below(folder)
            more = sorted({path.relative_to(folder).as_posix() for path in there} - set(files))
        return [folder / file for file in files + more], more
    hint = common.hints([root / images])[0]
    raise FileNotFoundError(
        f"there is no folder {root / images}{hint}, and {files[0]} is not directly in {root} either: put the images into one"
    )
