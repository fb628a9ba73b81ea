"""Anyone's own photos: a folder of images with annotations.csv beside it."""

import csv
import io
from collections import defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from cpsd_lib.data.readers.common import LabelledFiles, nearest, refuse
from cpsd_lib.data.table import SPLITS, LabelTable, listed

COLUMNS = ("file_name", "split", "labels")


def read_csv(root, annotations="annotations.csv", images="images", classes=None):
    """Read root/annotations.csv (columns file_name, split, labels, optionally unknown) and return LabelledFiles.

    `labels` and `unknown` hold class names joined by `;`, a cell may be empty. Classes are in alphabetical order of all
    names that occur, or exactly `classes`. File names are relative to root/images, or to root itself when there is no
    folder root/images and the files lie directly in root. Whether each image can be read is not looked at here.
    Raises FileNotFoundError for a missing root, annotations file or image folder; ValueError (with line numbers) for
    anything in the file that has no single meaning.
    """
    root = Path(root)
    path = root / annotations
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}: give the folder that holds {annotations} and {images}/")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: write one with the columns {', '.join(COLUMNS)}")
    rows = _read_rows(path)
    files = _file_names(path, rows)
    split = _splits(path, rows)
    _refuse_duplicates(path, rows, files, split)
    names, targets = _targets(path, rows, classes)
    folder = _image_folder(root, images, files)
    return LabelledFiles(LabelTable(names, targets, files, np.array(split)), [folder / file for file in files])


def _read_rows(path):
    # The csv module, not pandas: pandas turns classes named "NA" or "null" into missing values, moves the columns
    # of a ragged file silently, and knows no line numbers.
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not UTF-8 (line {line}): save it again as 'CSV UTF-8'") from error
    reader = csv.reader(io.StringIO(text, newline=None), strict=True, skipinitialspace=True)
    lines, last = [], 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((last + 1, [cell.strip() for cell in cells]))
            last = reader.line_num
    except csv.Error as error:
        raise ValueError(f"{path}, line {last + 1}, is not valid CSV ({error}): check its quotation marks") from error
    if not lines:
        raise ValueError(f"{path} is empty, expected the columns {', '.join(COLUMNS)} and one line an image")
    (_, header), *rows = lines
    _check_header(path, header)
    if not rows:
        raise ValueError(f"{path} has a line of column names but no rows, expected one line an image")
    refuse(
        path,
        [f"line {line}: {len(cells)} cells" for line, cells in rows if len(cells) != len(header)],
        f"expected {len(header)} cells, as in the first line; join class names by ';', quote a cell with a comma",
    )
    return [(line, dict(zip(header, cells, strict=True))) for line, cells in rows]


def _check_header(path, header):
    for column in COLUMNS:
        if column not in header:
            columns = f"its columns are {listed(map(repr, header))}{nearest(column, header)}"
            separator = " Separate the cells by commas." if len(header) == 1 else ""
            raise ValueError(f"{path} has no column '{column}'; {columns}. Expected {', '.join(COLUMNS)}.{separator}")
    for column in (*COLUMNS, "unknown"):
        if header.count(column) > 1:
            raise ValueError(f"{path} has the column '{column}' {header.count(column)} times: keep one")


def _file_names(path, rows):
    # Backslashes come from lists written on Windows; `./a.jpg` and `a//b.jpg` must not hide a duplicate.
    files = [PurePosixPath(row["file_name"].replace("\\", "/")) for _, row in rows]
    refuse(
        path,
        [f"line {line}" for (line, _), file in zip(rows, files, strict=True) if not file.parts],
        "expected a file name in column 'file_name'",
    )
    refuse(
        path,
        [
            f"line {line}: {row['file_name']}"
            for (line, row), file in zip(rows, files, strict=True)
            if file.is_absolute() or ".." in file.parts or PureWindowsPath(file).drive
        ],
        "expected file names inside the image folder: relative, without '..'",
    )
    return [str(file) for file in files]


def _splits(path, rows):
    refuse(
        path,
        [
            f"line {line}: {row['split']!r}{nearest(row['split'], SPLITS)}"
            for line, row in rows
            if row["split"] not in SPLITS
        ],
        f"expected one of {', '.join(SPLITS)} in column 'split'",
    )
    return [row["split"] for _, row in rows]


def _refuse_duplicates(path, rows, files, split):
    places = defaultdict(list)
    for (line, _), file, name in zip(rows, files, split, strict=True):
        places[file].append((line, name))
    shared, twice = [], []
    for file, found in places.items():
        if len(found) > 1:
            where = listed(f"line {line} ({name})" for line, name in found)
            (shared if len({name for _, name in found}) > 1 else twice).append(f"{file}: {where}")
    refuse(path, shared, "the same file is in two splits, expected each in one: a test on seen photos says nothing")
    refuse(path, twice, "duplicate file name, expected one line a file: join its labels in one line by ';'")


def _targets(path, rows, classes):
    positive = [_cell_names(row["labels"]) for _, row in rows]
    unknown = [_cell_names(row.get("unknown", "")) for _, row in rows]
    lines = [line for line, _ in rows]
    names = sorted(set().union(*positive, *unknown)) if classes is None else [name.strip() for name in classes]
    column = {name: number for number, name in enumerate(names)}
    found = list(zip(lines, positive, unknown, strict=True))
    refuse(
        path,
        [
            f"line {line}: {name!r}{nearest(name, names)}"
            for line, yes, maybe in found
            for name in (yes | maybe) - column.keys()
        ],
        "expected only names of the given list of classes",
    )
    refuse(
        path,
        [f"line {line}: {', '.join(sorted(yes & maybe))}" for line, yes, maybe in found if yes & maybe],
        "the same class is in 'labels' and in 'unknown', expected it in one of them",
    )
    targets = np.zeros((len(rows), len(names)), np.int8)
    for row, (_, yes, maybe) in enumerate(found):
        targets[row, [column[name] for name in yes]] = 1
        targets[row, [column[name] for name in maybe]] = -1
    return names, targets


def _cell_names(cell):
    return {name.strip() for name in cell.split(";")} - {""}


def _image_folder(root, images, files):
    if (root / images).is_dir():
        return root / images
    # A path too long or with a NUL is a bad image later, not an error here.
    if any((root / file).is_file() for file in files[:1000] if "\0" not in file and len(file) < 1000):
        return root
    raise FileNotFoundError(
        f"there is no folder {root / images}, and {files[0]} is not directly in {root} either: put the images into one"
    )
