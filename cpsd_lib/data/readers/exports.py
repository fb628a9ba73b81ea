"""Labels as other programs write them: tables of any kind, COCO and VOC with other classes, one folder a label."""

import ast
import io
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from cpsd_lib.data.readers import common
from cpsd_lib.data.readers.coco2014 import load_json, without_outline
from cpsd_lib.data.readers.csv import LIST, SEPARATORS
from cpsd_lib.data.readers.voc2007 import objects_of
from cpsd_lib.data.table import listed
from cpsd_lib.support import counted, sha256

ROBOFLOW = "_classes.csv"  # one in each of train/, valid/ and test/
COCO_FORM = "a COCO JSON (images, annotations, categories)"
VALUES = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "-1": -1, "-1.0": -1, "": np.nan}


def read_export(settings, source, lines):
    """Return (a DataFrame of one row a photo as its labels name it, all class names) of ImportSettings.

    Columns: place (where the row stands), file (its photo, as written), source (path of the label file), labels and unknown
    (frozensets of class names), group and given (the split; '' where there is none). What was understood is added to the
    list `lines`. Raises ValueError or FileNotFoundError for what has no single meaning.
    """
    read = {"table": _read_table, "coco": _read_coco, "voc": _read_voc, "folders": _read_folders}
    return read[settings.kind](settings, source, lines)


def _rows(places, files, labels, sources, unknown=None, group=None, given=None):
    table = pd.DataFrame({"place": list(places), "file": list(files), "source": list(sources)}, dtype=object)
    table["labels"] = pd.Series(list(labels), dtype=object)
    table["unknown"] = pd.Series([frozenset()] * len(table) if unknown is None else unknown, dtype=object)
    for name, column in (("group", group), ("given", given)):
        table[name] = "" if column is None else column.where(column.notna(), "").astype(str).str.strip().to_numpy()
    return table


def _column(path, frame, name):
    if name not in frame:
        names = [*map(str, frame.columns)]
        raise ValueError(
            f"{path} has no column {common.nearest(name, names)}; its columns are {listed(map(repr, names))}"
        )
    return frame[name]


def _group_and_split(settings, path, frame):
    """Return the columns that the settings name, None for one they do not; a column `split` is taken unasked."""
    how, name = settings.split_by
    by_column = how == "column" or (not how and "split" in frame)
    given = _column(path, frame, name or "split") if by_column else None
    return {"group": _column(path, frame, settings.group) if settings.group else None, "given": given}


def _read_table(settings, source, lines):
    paths = [source] if source.is_file() else sorted(source.rglob(ROBOFLOW))
    paths = paths or [path for path in sorted(source.iterdir()) if path.suffix.lower() in (".csv", ".tsv", ".parquet")]
    if len({path.name for path in paths}) != 1:
        raise ValueError(f"{source} holds {len(paths)} tables, expected one: give its file. {listed(paths)}".strip())
    tables = {path: _parquet(path) if path.suffix.lower() == ".parquet" else _text_table(path) for path in paths}
    path, first = next(iter(tables.items()))
    for other, table in tables.items():
        common.refuse(other, sorted(set(table) ^ set(first)), f"its columns are not those of {path}, expected the same")
    sources, table = [path for path, table in tables.items() for _ in table.index], pd.concat(tables.values())
    places = [f"{os.path.relpath(path, source.parent)}, line {n}" for path, n in zip(sources, table.index, strict=True)]
    columns = settings.columns or (":" if path.name == ROBOFLOW and not settings.labels else None)
    if bool(settings.labels) == bool(columns):
        names = listed(map(repr, table.columns))
        raise ValueError(f"{path}: give one of --labels COLUMN and --columns FIRST:LAST; its columns are {names}")
    file, more = settings.file or table.columns[0], _group_and_split(settings, path, table)
    files, unknown = _column(path, table, file), None
    classes = f"column {settings.labels!r}" if settings.labels else f"columns {columns!r}"
    lines.append(f"{counted(len(table), 'line')}, file names from column {file!r}, classes from {classes}")
    if columns:
        used = {file, settings.group, getattr(more["given"], "name", None)}
        labels, unknown, known = _of_columns(path, table, columns, used, places, lines)
    else:
        labels = _of_cells(path, _column(path, table, settings.labels), settings.separator, places)
        known = frozenset().union(*labels)
    return _rows(places, files, labels, sources, unknown, **more), known


def _text_table(path):
    """Return a table as text, its index the lines of the file: CSV, TSV, cells between semicolons or between blanks.

    "NA" and "01" stay what they are. CelebA's first line is the number of lines to come, and its first column has no name.
    """
    text, count = common.read_text(path, "a table with a line of column names"), None
    if (first := text.partition("\n"))[0].strip().isdecimal():
        count, text = int(first[0]), f"file {first[2]}"
    delimiter = next((sign for sign in "\t,;" if sign in text.partition("\n")[0]), r"\s+")
    as_written = {"dtype": str, "keep_default_na": False, "skipinitialspace": True, "skip_blank_lines": False}
    try:  # the Python engine tells cells that are not there (NaN) from empty ones
        table = pd.read_csv(io.StringIO(text), sep=delimiter, header=None, engine="python", **as_written)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path} is not a table ({error}): check its quotation marks and that line") from None
    table.index += 1 if count is None else 2
    table = table[table.fillna("").ne("").any(axis=1)].apply(lambda column: column.str.strip())
    short = [f"line {line}" for line in table.index[table.isna().any(axis=1)]]
    common.refuse(path, short, f"fewer cells than the {table.shape[1]} column names")
    if len(table) < 2 or count not in (None, len(table) - 1):
        below = counted(max(0, len(table) - 1), "line")
        raise ValueError(f"{path} has {below} below its column names, expected {count or 'some'}")
    names, table = table.iloc[0], table.iloc[1:]
    kept = (names != "") | (table != "").any()  # a comma may end each line
    common.refuse_repeats(path, names[kept], "column")
    return table.loc[:, kept].set_axis(names[kept], axis=1)


def _parquet(path):
    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise ValueError(f"{path}: parquet needs pyarrow: pip install pyarrow, or save the table as CSV") from None
    table = table.rename(columns=str).map(lambda cell: cell.tolist() if isinstance(cell, np.ndarray) else cell)
    return table.map(lambda cell: str(cell).strip() if isinstance(cell, list) or pd.notna(cell) else "")


def _of_cells(path, cells, separator, places):
    """Return the frozenset of class names in each cell: a list as Python writes it, or names joined by `separator`."""
    if any(LIST.fullmatch(cell) for cell in cells):
        labels = [_of_list(cell or "[]") for cell in cells]
        written = zip(places, cells, labels, strict=True)
        wrong = [f"{place}: {cell:.80}" for place, cell, names in written if names is None]
        common.refuse(path, wrong, "other cells are lists, expected one such as ['cat', 'dog'] in each")
        return labels
    labels = [frozenset(name.strip() for name in cell.split(separator)) - {""} for cell in cells]
    names, joins = frozenset().union(*labels), max(map(len, labels)) > 1
    for other in SEPARATORS:  # as the csv reader does it
        parts = {part.strip() for name in names for part in name.split(other)} - {""}
        if len(parts) < len(names) if other in "|," else not joins and 2 * len(parts) <= len(names) and parts & names:
            raise ValueError(
                f"{path}: joined by {separator!r} there are {len(names):,} classes, one of them "
                f"{next(name for name in sorted(names) if other in name)!r}; joined by {other!r} they are {len(parts):,}: "
                f'{listed(sorted(parts), shown=5)}. Give --separator "{other}"'
            )
    return labels


def _of_list(cell):
    try:
        names = ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return None
    apart = not re.search(r"['\"]\s+['\"]", cell)  # numpy's ['a' 'b'] would be the one name ab
    return frozenset(str(name).strip() for name in names) - {""} if isinstance(names, list) and apart else None


def _of_columns(path, table, columns, used, places, lines):
    """Return (labels, unknown: a frozenset of class names a line each, all names) of columns of 0 and 1, or -1 and 1."""
    first, _, last = columns.partition(":") if ":" in columns else (columns, "", columns)
    for name in filter(None, (first, last)):
        _column(path, table, name)
    span = table.loc[:, first or None : last or None]
    span = span[[name for name in span if name not in used]]
    if not span.shape[1]:
        raise ValueError(f"{path} has no columns {columns}; its columns are {listed(map(repr, table.columns))}")
    values = span.map(lambda cell: VALUES.get(cell.lower(), 2)).to_numpy(float)
    wrong = [f"{places[n]}, column {span.columns[c]!r}: {span.iat[n, c]!r}" for n, c in np.argwhere(values == 2)]
    common.refuse(path, wrong, f"expected 0, 1, -1 or nothing in the columns {columns}")
    minus = "unknown" if (values == 0).any() else "absent"
    meaning = {1: "1 present", 0: "0 absent", -1: f"-1 {minus}"}
    meaning = [*(words for value, words in meaning.items() if (values == value).any())]
    meaning += ["blank unknown"] if np.isnan(values).any() else []
    lines.append(f"{counted(span.shape[1], 'column')}: {', '.join(meaning)}")
    unknown, names = np.isnan(values) | (values == -1) & (minus == "unknown"), span.columns.to_numpy(object)
    return *([frozenset(names[row]) for row in mask] for mask in (values == 1, unknown)), frozenset(names)


def _read_coco(settings, source, lines):
    paths = sorted(source.rglob("*.json")) if source.is_dir() else [source]
    # COCO's own folder holds captions and keypoints as well.
    paths = [path for path in paths if path.name.startswith(("instances_", "_annotations."))] or paths
    if not paths:
        raise FileNotFoundError(f"{source} holds no JSON file, expected {COCO_FORM}")
    read = [_coco_file(path, settings, lines) for path in paths]
    return pd.concat([rows for rows, _ in read], ignore_index=True), frozenset().union(*(known for _, known in read))


def _coco_file(path, settings, lines):
    content = load_json(path, dict, COCO_FORM, object_hook=without_outline)
    try:
        images, objects, categories = (pd.DataFrame(content[key]) for key in ("images", "annotations", "categories"))
        needed = images[["id", "file_name"]], objects[["image_id", "category_id"]], categories[["id", "name"]]
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}), expected {COCO_FORM}") from None
    lacking = [" and ".join(part) for part in needed if part.isna().any(axis=None)]
    common.refuse(path, lacking, "records without the fields, expected both in each")
    for name, known in (("image_id", images.id), ("category_id", categories.id)):
        common.refuse_repeats(path, known.tolist(), name)
        unknown = sorted(set(objects[name]) - set(known), key=str)
        common.refuse(path, unknown, f"annotations with an unknown {name}, expected one that the file lists")
    crowd = objects.get("iscrowd", pd.Series(0, objects.index)) == 1
    if settings.no_crowd:
        lines.append(f"dropped: {counted(crowd.sum(), 'object')} marked as a crowd in {path.name}")
        objects = objects[~crowd]
    names = dict(zip(categories.id, categories.name.astype(str).str.strip(), strict=True))
    labels = objects.category_id.map(names).groupby(objects.image_id).agg(frozenset)
    labels = [labels.get(image, frozenset()) for image in images.id]
    places = [f"{path.name}, image {image}" for image in images.id]
    more = _group_and_split(settings, path, images)
    return _rows(places, images.file_name.astype(str), labels, [path] * len(images), **more), frozenset(names.values())


def _read_voc(settings, source, lines):
    paths, labels, broken = sorted(source.rglob("*.xml")) if source.is_dir() else [source], [], []
    for path in paths:
        try:
            labels.append(frozenset(name for name, _ in objects_of(path)))
        except (ElementTree.ParseError, ValueError) as error:
            broken.append(f"{path}: {error}")
    common.refuse(source, broken, "XML files that cannot be read, expected one <annotation> with its <object>s in each")
    if not paths:
        raise FileNotFoundError(f"{source} holds no XML file, expected one a photo")
    lines.append(f"{counted(len(paths), 'XML file')}, {sum(not names for names in labels):,} of them without an object")
    return _rows(paths, (path.stem for path in paths), labels, paths), frozenset().union(*labels)


def _read_folders(settings, source, lines):
    """A photo's label is the folder it lies in; the same bytes in two folders are one photo with two labels."""
    photos = [path for path in common.photos_below(source, Path(os.path.abspath(settings.to))) if path.parent != source]
    if not photos:
        raise ValueError(f"{source} has no folder with photos in it, expected one folder a label")
    twice, first = pd.Series([path.stat().st_size for path in photos]).duplicated(keep=False), {}
    alike = zip(photos, twice, strict=True)  # of other sizes they are different photos
    same = [first.setdefault(sha256(path), path) if maybe else path for path, maybe in alike]
    labels = [frozenset([path.parent.name]) for path in photos]
    # The folder above the label's may be train or test; the label's own may be a class of that name.
    return _rows(photos, map(str, same), labels, (path.parents[1] for path in photos)), frozenset().union(*labels)
