"""Anyone's own photos: a folder of images with annotations.csv beside it."""

import ast
import csv
import io
import re
from collections import defaultdict
from contextlib import suppress
from pathlib import PurePosixPath

import numpy as np
import pandas as pd

from cpsd_lib.data.readers import common
from cpsd_lib.data.table import SPLITS, UNLABELLED, LabelTable
from cpsd_lib.support import counted, listed

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
    table = annotations_of(path, common.read_text(path, EXPECTED), separator)
    folder, more = root / images, []
    if not folder.is_dir():
        first = table.files[:1000]
        if len(common.missing_files([root / file for file in first])) == len(first):
            hint = common.hints([folder])[0]
            neither = f"there is no folder {folder}{hint}, and {first[0]} is not directly in {root} either"
            raise FileNotFoundError(f"{neither}: put the images into one")
        folder = root
    if unnamed == UNLABELLED:
        there = common.photos_below(folder)
        more = sorted({path.relative_to(folder).as_posix() for path in there} - set(table.files))
        targets = np.concatenate([table.targets, np.full((len(more), len(table.names)), -1, np.int8)])
        table = LabelTable(table.names, targets, table.files + more, [*table.split, *len(more) * [UNLABELLED]])
    return common.LabelledFiles(table, [folder / file for file in table.files])


def annotations_of(path, text, separator=";"):
    """Return the LabelTable of the text of annotations.csv; `path` is where it stands, for the messages."""
    table = read_table(path, text, EXPECTED)
    _check_header(path, [*table])
    lines, split = [f"line {n}" for n in table.index], table["split"].tolist()
    files, known = _file_names(path, lines, table["file_name"], split), (*SPLITS, UNLABELLED)
    expected = f"expected one of {', '.join(known)} in column 'split'"
    common.refuse_unknown(path, zip(lines, split, strict=True), known, expected)
    unknown = table["unknown"] if "unknown" in table else len(lines) * [""]
    names, targets = _targets(path, lines, [*table["labels"], *unknown], separator)
    targets[(np.array(split) == UNLABELLED) & ~targets.any(axis=1)] = -1
    return LabelTable(names, targets, files, split)


def read_any_table(path):
    """Return the DataFrame of `read_table` of a file: parquet, CSV, TSV, cells between semicolons or between blanks."""
    if path.suffix.lower() == ".parquet":
        try:
            table = pd.read_parquet(path).rename(columns=str)
        except ImportError:
            raise ValueError(f"{path}: parquet needs pyarrow: pip install pyarrow, or save the table as CSV") from None
        return table.map(lambda x: "" if np.ndim(x) == 0 and pd.isna(x) else str(np.asarray(x).tolist()).strip())
    expected = "a table: a line of column names, and one a photo"
    first, _, rest = (text := common.read_text(path, expected)).partition("\n")
    if count := first.strip().isdecimal():  # CelebA's: the number of lines to come, then no name of the first column
        text = f"\nfile {rest}"
    delimiter = next((sign for sign in "\t,;" if sign in text.strip().partition("\n")[0]), None)
    if delimiter is None:
        text = "\n".join("\t".join(line.split()) for line in text.splitlines())
    table = read_table(path, text, expected, delimiter or "\t")
    if count and len(table) != int(first):
        raise ValueError(f"{path} has {counted(len(table), 'line')} below its column names, expected {int(first)}")
    table = table.loc[:, (table.columns != "") | (table != "").any().to_numpy()]  # a comma may end each line
    common.refuse_repeats(path, table.columns.tolist(), "column")
    return table


def read_table(path, text, expected, delimiter=","):
    """Return the DataFrame of a text in which each line that is not empty has as many cells; its index: line numbers."""
    # The csv module, not pandas: pandas turns classes named "NA" or "null" into missing values, moves the columns
    # of a ragged file silently, and knows no line numbers.
    lines, last = [], 0
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((last + 1, [cell.strip() for cell in cells]))
            last = reader.line_num
    except csv.Error as error:
        raise ValueError(f"{path}, line {last + 1}, is not valid CSV ({error}): check its quotation marks") from error
    if len(lines) < 2:
        there = "a line of column names but no rows" if lines else "nothing in it"
        raise ValueError(f"{path} has {there}, expected {expected}")
    (_, header), *rows = lines
    ragged = (f"line {line}: {len(cells)} cells" for line, cells in rows if len(cells) != len(header))
    quote = f"a cell that holds {delimiter!r} stands in quotes"
    common.refuse(path, ragged, f"expected {len(header)} cells between {delimiter!r}, as in the first line; {quote}")
    return pd.DataFrame([cells for _, cells in rows], [line for line, _ in rows], header, dtype=object)


def column_of(path, table, name):
    """Return the column `name` of a table; ValueError, with the nearest name, where there is none."""
    if name not in table:
        near, shown = common.nearest(name, map(str, table.columns)), listed(map(repr, table.columns))
        raise ValueError(f"{path} has no column {near}; its columns are {shown}")
    return table[name]


def _check_header(path, header):
    for column in COLUMNS:
        if column not in header:
            separator = " Separate the cells by commas." if len(header) == 1 else ""
            near = common.closest(column, [name for name in header if name not in COLUMNS])
            rename = f" If {near!r} is that column, rename it to {column!r}." if near else ""
            columns = f"its columns are {listed(map(repr, header))}, expected {', '.join(COLUMNS)}.{separator}{rename}"
            advice = "`cpsd data import` writes this file from others"
            raise ValueError(f"{path} has no column {column!r}; {columns} {advice}")
    common.refuse_repeats(path, [name for name in header if name in (*COLUMNS, "unknown")], "column")
    alike = (repr(name) for name in header if name != "unknown" == name.strip().casefold().rstrip("s"))
    common.refuse(path, alike, "expected the column of labels that nobody knows to be called 'unknown': rename it")


def _file_names(path, lines, cells, split):
    # Backslashes come from lists written on Windows; `./a.jpg` and `a//b.jpg` must not hide a duplicate.
    outside, places = [], defaultdict(list)
    for line, cell, of_split in zip(lines, cells, split, strict=True):
        file = PurePosixPath(cell.replace("\\", "/"))
        places[str(file)].append(f"{line} ({of_split})")
        if not file.parts or file.is_absolute() or ".." in file.parts or re.match("[A-Za-z]:", file.parts[0]):
            outside.append(f"{line}: {cell}")
    expected = "expected a file name inside the image folder in column 'file_name': relative, without '..'"
    common.refuse(path, outside, expected)
    twice = (f"{file}: {listed(lines)}" for file, lines in places.items() if len(lines) > 1)
    expected = "one line a file, in one split (a test on seen photos says nothing), its labels joined by ';'"
    common.refuse(path, twice, f"duplicate file name, expected {expected}")
    return [*places]


def _targets(path, lines, cells, separator):
    """Return (all class names, targets [n, C]) of the n cells of labels and n of unknown labels."""
    every = split_names(path, 2 * lines, cells, separator, "data.separator: ")
    present, unknown = every[: len(lines)], every[len(lines) :]
    both = (f"{line}: {listed(sorted(a & b))}" for line, a, b in zip(lines, present, unknown, strict=True) if a & b)
    common.refuse(path, both, "the same class is in 'labels' and in 'unknown', expected it in one of them")
    names = sorted(frozenset().union(*every))
    return names, np.array(common.one_hot(present, names) - common.one_hot(unknown, names))


def split_names(path, places, cells, separator, option):
    """Return the frozenset of class names in each cell: joined by `separator`, or a list as Python and JSON write it.

    Raises ValueError, with the `option` to give, for another separator: one that makes far fewer classes of the names.
    """
    if any(map(LIST.fullmatch, cells)):
        every = [*map(_listed_names, cells)]
        pairs = zip(places, cells, strict=True)
        wrong = [f"{place}: {cell:.80}" for (place, cell), names in zip(pairs, every, strict=True) if names is None]
        common.refuse(path, wrong, "some cells are lists, expected one such as ['cat', 'dog'] in each or in none")
        return every
    every = [frozenset(name.strip() for name in cell.split(separator)) - {""} for cell in cells]
    names, joins = frozenset().union(*every), max(map(len, every)) > 1
    for other in SEPARATORS:
        parts = {part.strip() for name in names for part in name.split(other)} - {""}
        # "red car" and "blue bus" may be names: colours alone are none, where labels that were joined do stand alone.
        seems_joined = not joins and 2 * len(parts) <= len(names) and parts & names
        if len(parts) < len(names) if other in "|," else seems_joined:
            raise ValueError(
                f"{path}: joined by {separator!r} its labels are {len(names):,} classes, one of them "
                f"{next(name for name in sorted(names) if other in name)!r}; joined by {other!r} they are {len(parts):,}: "
                f'{listed(sorted(parts), shown=5)}. Give {option}"{other}", or write these names another way if each is one'
            )
    return every


def _listed_names(cell):
    with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval raises
        names = ast.literal_eval(cell or "[]")
        # Of numpy's ['a' 'b'] Python makes the one name ab.
        if isinstance(names, list) and not re.search(r"['\"]\s+['\"]", cell):
            return frozenset(str(name).strip() for name in names) - {""}
