"""annotations.csv from labels as people have them: photos found, splits drawn, the result read before it is written."""

import ast
import os
import re
import shutil
from collections import defaultdict
from os.path import relpath
from pathlib import Path

import numpy as np
import pandas as pd
from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit
from sklearn.preprocessing import MultiLabelBinarizer

from cpsd_lib.data.check import frequency_lines
from cpsd_lib.data.readers import common
from cpsd_lib.data.readers.coco2014 import FORM, coco_json
from cpsd_lib.data.readers.csv import LIST, annotations_of, read_table, split_names
from cpsd_lib.data.readers.voc2007 import objects_of
from cpsd_lib.data.table import SPLITS, UNLABELLED, check_splits, listed
from cpsd_lib.support import bar, counted, need_space, sha256, write_text

WORDS = {"train": "train", "training": "train", "trainval": "train", "test": "test", "testing": "test"}
WORDS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
LISTS = re.compile(r"(train|val|valid|test|trainval|train_val)(_list)?\.txt")  # VOC's and ChestX-ray14's
ROBOFLOW = "_classes.csv"  # one in each of train/, valid/ and test/
VALUES = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "-1": -1, "-1.0": -1, "": np.nan}


def import_labels(settings, dry_run=False):
    """Write annotations.csv for the csv reader into settings.to, with a link to the photos; return what was understood.

    settings: ImportSettings. The result is a list of lines: classes and their counts, examples, what was joined, drawn and
    left out. Raises ValueError or OSError, before anything is written, for what has no single meaning and for what the csv
    reader or a training would refuse.
    """
    source, to = Path(os.path.abspath(settings.source)), Path(os.path.abspath(settings.to))  # links stay as named
    if not source.exists():
        raise FileNotFoundError(f"there is no file or folder {source}{common.hints([source])[0]}")
    root = source if source.is_dir() else source.parent
    home = Path(os.path.abspath(settings.photos or root))
    photos = common.photos_below(home, skip=to)
    if not photos:
        raise FileNotFoundError(f"{home} holds no photo ({', '.join(common.PHOTOS)}): give their folder as --photos")
    lines, read = [f"{settings.kind}: {source}"], {"table": _tables, "coco": _coco, "voc": _voc, "folders": _folders}
    rows, known = read[settings.kind](settings, source, lines)
    rows = _with_paths(rows, settings.suffix, home, photos, lines)
    rows = _with_splits(settings, source, rows, root, home, lines)
    rows = _joined(settings, source, rows, lines).sort_values("path")
    _drop_classes(settings.none, source, rows, known, lines)
    if not rows.split.any():
        rows["split"] = _drawn(settings, rows, lines)
    paths = [*rows.path, *_unlabelled(settings, rows, photos, home, to, lines)]
    base, way = _place(to, paths, settings.copy)
    text, table = _checked_text(rows, paths, base, to)
    sizes = {split: len(table.indices(split)) for split in (*SPLITS, UNLABELLED)}
    sizes = ", ".join(f"{split} {size:,}" for split, size in sizes.items() if size)
    lines += [f"{len(paths):,} photos: {sizes}; {len(table.names)} classes", *frequency_lines(table), "for example:"]
    lines += [*(f"  {line}" for line in text.splitlines()[:4]), *(f"note: {note}" for note in check_splits(table))]
    return [*lines, *_write(to, base, way, text, paths, dry_run)]


# ---- labels as other programs write them -----------------------------------------------------------------------------
# Each returns (a DataFrame of one row a photo, all class names).


def _rows(settings, source, places, files, sources, labels, unknown=None, more=None):
    """Return rows of place (where it stands), file (as written), source (its label file), labels, unknown, group and given.

    labels, unknown: frozensets of class names. more: a DataFrame of what else is written of each photo, its group and the
    split that is given among it; both are '' where there is none.
    """
    rows = {"place": [*places], "file": [*files], "source": [*sources], "labels": [*labels]}
    rows = pd.DataFrame(rows, dtype=object)
    rows["unknown"] = pd.Series(len(rows) * [frozenset()] if unknown is None else unknown, dtype=object)
    more, (how, name) = pd.DataFrame() if more is None else more, settings.split_by
    by_column = how == "column" or (not how and "split" in more)  # a column `split` is taken unasked
    for kept, column in (("group", settings.group), ("given", (name or "split") if by_column else None)):
        cells = _column(source, more, column).fillna("").astype(str) if column else pd.Series(len(rows) * [""])
        rows[kept] = cells.str.strip().to_numpy()
    return rows


def _column(source, table, name):
    if name not in table:
        names = [*map(str, table.columns)]
        near, shown = common.nearest(name, names), listed(map(repr, names))
        raise ValueError(f"{source} has no column {near}; its columns are {shown}")
    return table[name]


def _tables(settings, source, lines):
    paths = [source] if source.is_file() else sorted(source.rglob(ROBOFLOW))
    paths = paths or [path for path in sorted(source.iterdir()) if path.suffix.lower() in (".csv", ".tsv", ".parquet")]
    if len({path.name for path in paths}) != 1:
        raise ValueError(f"{source} holds {len(paths)} tables, expected one: give its file. {listed(paths)}".strip())
    read = {True: _parquet, False: _text_table}
    table = pd.concat({path: read[path.suffix.lower() == ".parquet"](path) for path in paths})
    common.refuse(
        source, table.columns[table.isna().any()], "columns that not all tables have, expected the same in each"
    )
    path, names, file = paths[0], table.columns, settings.file or table.columns[0]
    places = [f"{relpath(path, source.parent)}, line {n}" for path, n in table.index]
    sources = table.index.get_level_values(0)
    columns = settings.columns or (":" if path.name == ROBOFLOW and not settings.labels else None)
    if bool(settings.labels) == bool(columns):
        shown = listed(map(repr, names))
        raise ValueError(f"{path}: give one of --labels COLUMN and --columns FIRST:LAST; its columns are {shown}")
    classes = f"column {settings.labels!r}" if settings.labels else f"columns {columns!r}"
    lines.append(f"{counted(len(table), 'line')}, file names from column {file!r}, classes from {classes}")
    if columns:
        others = {file, settings.group, settings.split_by[1] or "split"}
        known, labels, unknown = _of_columns(path, table, columns, others, places, lines)
    else:
        labels, unknown = _of_cells(path, _column(path, table, settings.labels), settings.separator, places), None
        known = frozenset().union(*labels)
    return _rows(settings, path, places, _column(path, table, file), sources, labels, unknown, table), frozenset(known)


def _text_table(path):
    """Return a table as text, its index the lines of the file: CSV, TSV, cells between semicolons or between blanks.

    CelebA's first line is the number of lines to come, and its first column has no name.
    """
    expected = "a table: a line of column names, and one a photo"
    first, _, rest = (text := common.read_text(path, expected)).partition("\n")
    if count := first.strip().isdecimal():
        text = f"\nfile {rest}"
    delimiter = next((sign for sign in "\t,;" if sign in text.strip().partition("\n")[0]), None)
    if delimiter is None:
        text = "\n".join("\t".join(line.split()) for line in text.splitlines())
    header, rows = read_table(path, text, expected, delimiter or "\t")
    if count and len(rows) != int(first):
        raise ValueError(f"{path} has {counted(len(rows), 'line')} below its column names, expected {int(first)}")
    table = pd.DataFrame([cells for _, cells in rows], [line for line, _ in rows], header, dtype=object)
    table = table.loc[:, (table.columns != "") | (table != "").any().to_numpy()]  # a comma may end each line
    common.refuse_repeats(path, table.columns.tolist(), "column")
    return table


def _parquet(path):
    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise ValueError(f"{path}: parquet needs pyarrow: pip install pyarrow, or save the table as CSV") from None
    table = table.rename(columns=str).map(lambda cell: cell.tolist() if isinstance(cell, np.ndarray) else cell)
    return table.map(lambda cell: str(cell).strip() if isinstance(cell, list) or pd.notna(cell) else "")


def _of_cells(path, cells, separator, places):
    """Return the frozenset of class names in each cell: a list as Python writes it, or names joined by `separator`."""
    if not any(LIST.fullmatch(cell) for cell in cells):
        return split_names(path, cells, separator, "--separator ")
    labels, wrong = [], []
    for place, cell in zip(places, cells, strict=True):
        try:
            names = ast.literal_eval(cell or "[]")
        except (ValueError, SyntaxError):
            names = ()
        # Of numpy's ['a' 'b'] Python makes the one name ab.
        right = isinstance(names, list) and not re.search(r"['\"]\s+['\"]", cell)
        wrong += [] if right else [f"{place}: {cell:.80}"]
        labels.append(frozenset(str(name).strip() for name in (names if right else ())) - {""})
    common.refuse(path, wrong, "other cells are lists, expected one such as ['cat', 'dog'] in each")
    return labels


def _of_columns(path, table, columns, others, places, lines):
    """Return (all class names, those present and those unknown in each line) of columns of 0 and 1, or -1 and 1."""
    first, _, last = columns.partition(":") if ":" in columns else (columns, "", columns)
    for name in filter(None, (first, last)):
        _column(path, table, name)
    span = table.loc[:, first or None : last or None]
    span = span[[name for name in span if name not in others]]
    if not span.shape[1]:
        raise ValueError(f"{path} has no columns {columns}; its columns are {listed(map(repr, table.columns))}")
    values = span.map(lambda cell: VALUES.get(cell.lower(), 2)).to_numpy(float)
    wrong = [f"{places[n]}, column {span.columns[c]!r}: {span.iat[n, c]!r}" for n, c in np.argwhere(values == 2)]
    common.refuse(path, wrong, f"expected 0, 1, -1 or nothing in the columns {columns}")
    minus = "unknown" if (values == 0).any() else "absent"
    present, blank, names = values == 1, np.isnan(values), span.columns.to_numpy(object)
    meaning = {"1 present": present, "0 absent": values == 0, f"-1 {minus}": values == -1, "blank unknown": blank}
    held = [words for words, where in meaning.items() if where.any()]
    lines.append(f"{counted(span.shape[1], 'column')}: {', '.join(held)}")
    unknown = blank | (values == -1) & (minus == "unknown")
    return names, *([frozenset(names[row]) for row in mask] for mask in (present, unknown))


def _coco(settings, source, lines):
    paths = sorted(source.rglob("*.json")) if source.is_dir() else [source]
    # COCO's own folder holds captions and keypoints as well.
    paths = [path for path in paths if path.name.startswith(("instances_", "_annotations."))] or paths
    if not paths:
        raise FileNotFoundError(f"{source} holds no JSON file, expected {FORM}")
    images, places, sources, labels, known, crowds = [], [], [], [], set(), 0
    for path in paths:
        of_file, objects, names = coco_json(path)
        held = {image["id"]: set() for image in of_file}
        for one in objects:
            if settings.no_crowd and one.get("iscrowd") == 1:
                crowds += 1
            else:
                held[one["image_id"]].add(names[one["category_id"]])
        images += of_file
        places += [f"{path.name}, image {id}" for id in held]
        sources += len(held) * [path]
        labels += map(frozenset, held.values())
        known.update(names.values())
    lines += [f"dropped: {counted(crowds, 'object')} marked as a crowd"] if settings.no_crowd else []
    files, more = (image["file_name"] for image in images), pd.DataFrame(images)
    return _rows(settings, source, places, files, sources, labels, more=more), known


def _voc(settings, source, lines):
    paths = sorted(source.rglob("*.xml")) if source.is_dir() else [source]
    if not paths:
        raise FileNotFoundError(f"{source} holds no XML file, expected one a photo")
    labels = [frozenset(name for name, _ in pairs) for pairs in objects_of(paths)]
    lines.append(f"{counted(len(paths), 'XML file')}, {labels.count(frozenset()):,} of them without an object")
    return _rows(settings, source, paths, (path.stem for path in paths), paths, labels), frozenset().union(*labels)


def _folders(settings, source, lines):
    """A photo's label is the folder it lies in; the same bytes in two folders are one photo with two labels."""
    photos = common.photos_below(source, Path(os.path.abspath(settings.to)))
    photos = [path for path in photos if path.parent != source]
    if not photos:
        raise ValueError(f"{source} has no folder with photos in it, expected one folder a label")
    twice, first = pd.Series([path.stat().st_size for path in photos]).duplicated(keep=False), {}
    alike = zip(photos, twice, strict=True)  # of other sizes they are different photos
    same = (str(first.setdefault(sha256(path), path) if maybe else path) for path, maybe in alike)
    labels = [frozenset([path.parent.name]) for path in photos]
    # The folder above the label's may be train or test; the label's own may be a class of that name.
    above = (path.parents[1] for path in photos)
    return _rows(settings, source, photos, same, above, labels), frozenset().union(*labels)


# ---- each photo's path, split and classes ----------------------------------------------------------------------------


def _with_paths(rows, suffix, home, photos, lines):
    """Return the rows whose photo is there, with its `path`: where the file name says, or else by its last part."""
    alike, names, loose, paths, several, missing = defaultdict(list), defaultdict(set), {}, [], [], []
    for path in photos:
        for form in {path, *common.forms(path.name)}:
            alike[form].append(path)
    for place, file, source in zip(rows.place, rows.file, rows.source, strict=True):
        name = file.replace("\\", "/") + suffix
        exact = [
            path for folder in (source.parent, home) for path in alike.get(Path(os.path.normpath(folder / name)), ())
        ]
        near = exact[:1] or alike.get(common.forms(name.rpartition("/")[2])[0], [])
        if len(near) > 1:  # the one that lies beside its label file, or in a folder of the same split
            beside, split = [path for path in near if path.parent == source.parent], _split_of(relpath(source, home))
            near = beside or [path for path in near if _split_of(relpath(path.parent, home)) == split] or near
        several += [f"{place}: {name}: {listed(near, shown=3)}"] if len(near) > 1 else []
        missing += [] if near else [f"{file} ({place})"]
        loose |= {near[0]: name} if near and not exact and "/" in name else {}
        paths.append(near[0] if near else None)
        names[paths[-1]].add(name)
    common.refuse(home, several, "several photos of one name, expected one: give --suffix, or their folder as --photos")
    several = [f"{path}: {listed(sorted(names[path]))}" for path in loose if len(names[path]) > 1]
    common.refuse(home, several, "photos that several file names lead to, expected one: their folders are not there")
    for path, name in [*loose.items()][:1]:
        found = f"{counted(len(loose), 'photo')} found by the last part of the name"
        lines.append(f"{found}: {name} is {path.relative_to(home)}")
    lost = f"{len(missing):,} of {len(rows):,} file names lead to no photo in {home}: {listed(missing, shown=5)}"
    if len(missing) == len(rows):
        raise FileNotFoundError(f"{lost}. Its photos are {listed(photos, shown=3)}: give --photos, --suffix or --file")
    lines += [f"left out: {lost}"] if missing else []
    return rows.assign(path=pd.Series(paths, rows.index, dtype=object)).dropna(subset="path")


def _split_of(text):
    """Return the split that a text or a path names, the last one that it does; '' for none."""
    words = re.findall("[a-z]+", str(text).lower().replace("train_val", "trainval"))
    return next((WORDS[word] for word in reversed(words) if word in WORDS), "")


def _lists(folder):
    """Return {file name without ending: split} of the lists that VOC and ChestX-ray14 have beside their labels."""
    splits = defaultdict(set)
    for path in [*folder.glob("*.txt"), *folder.glob("ImageSets/Main/*.txt")]:
        if LISTS.fullmatch(path.name):
            for name in common.read_names(path, "one file name a line"):
                splits[Path(name).stem].add(_split_of(path.stem))
    both = sorted(name for name, words in splits.items() if "test" in words and len(words) > 1)
    common.refuse(folder, both, "names in the list of test and in another one, expected each in one")
    return {name: max(words) for name, words in splits.items()}  # val, where trainval has it as well


def _with_splits(settings, source, rows, root, home, lines):
    """Return the rows with their `split`, '' in all of them where it will be drawn; val is test where there is no test."""
    how = settings.split_by[0] or ("column" if rows.given.any() else "files")
    if how == "random":
        return rows.assign(split="")
    if how == "column":
        where = "a column"
        split = [text if text in SPLITS else _split_of(text) for text in rows.given]
    else:
        where = "the names of lists, label files and folders"
        by_list = _lists(root)
        # A photo's folder is its label in kind folders, maybe "test"; the label file's name says more than the photo's.
        folders = rows.path.map(lambda path: "" if settings.kind == "folders" else relpath(path.parent, home))
        split = [
            by_list.get(path.stem) or _split_of(relpath(labels, root)) or _split_of(folder)
            for labels, path, folder in zip(rows.source, rows.path, folders, strict=True)
        ]
        if not settings.split and not {"train"} < set(split) <= {*SPLITS}:
            return rows.assign(split="")
    written = zip(rows.place, rows.given, split, strict=True)
    unnamed = [f"{place} {given!r}".removesuffix(" ''") for place, given, name in written if not name]
    common.refuse(source, unnamed, f"expected train, val or test in {where}, or give --split random:0.2")
    lines.append(f"splits from {where}")
    if "test" not in split and "val" in split:
        split = ["test" if name == "val" else name for name in split]
        lines[-1] += "; there is no test, so that val is test"
    if not {"train", "test"} <= set(split):
        only = f"all photos are in split {listed(set(split))}"
        raise ValueError(f"{source}: {only}, expected some in train and some in test: give --split random:0.2")
    return rows.assign(split=split)


def _joined(settings, source, rows, lines):
    """Return one row a photo: labels of several rows are joined, other contradictions refused, between groups as well."""
    whole = settings.kind == "table" and not settings.labels  # a line of 0 and 1 says all about its photo
    seen = rows[rows.duplicated("path", keep=False)].groupby("path")
    for name in ("split", "group", *(("labels", "unknown") if whole else ())):
        wrong = [f"{path}: {listed(every.place)}" for path, every in seen if every[name].nunique() > 1]
        common.refuse(source, wrong, f"the same photo more than once with different {name}, expected one")
    if len(seen):
        union = seen.labels.agg(lambda every: frozenset().union(*every))
        joined = f"joined: {counted(len(union), 'photo')} named more than once, with all labels"
        lines.append(f"{joined}: {listed(union.index, shown=3)}")
        rows = rows.drop_duplicates("path")
        rows = rows.assign(labels=rows.path.map(union).fillna(rows.labels))
    if settings.group:
        common.refuse(source, rows.place[rows.group == ""], f"nothing in column {settings.group!r}, expected a group")
        splits = rows.groupby("group").split.agg(lambda every: listed(sorted(set(every))))
        wrong = [f"{group}: {every}" for group, every in splits.items() if "," in every]
        common.refuse(source, wrong, f"groups of {settings.group!r} in several splits: give --split random:0.2")
    return rows


def _drop_classes(none, source, rows, known, lines):
    """Take the class `none` from the rows, and names that no photo has."""
    names = frozenset().union(*rows.labels)
    if none and none not in names:
        raise ValueError(f"{source}: no photo has the class {common.nearest(none, known)} of --none")
    names -= {none}
    if gone := sorted(known - names - {none}):
        lines.append(f"dropped: {counted(len(gone), 'class', 'classes')} that no photo has: {listed(gone)}")
    if len(names) < 2:
        raise ValueError(f"{source}: one class or none ({listed(names)}), expected at least 2")
    rows["labels"], rows["unknown"] = rows.labels.map(names.intersection), rows.unknown.map(names.intersection)


def _drawn(settings, rows, lines):
    """Return the split of each row: train or test, with a fair share of every class, groups undivided."""
    share = float(settings.split_by[1] or 0.2)
    unit = (rows.group if settings.group else rows.path.astype(str)).to_numpy()
    units = pd.DataFrame(MultiLabelBinarizer().fit_transform(rows.labels)).groupby(unit).max()
    draw = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=share, random_state=settings.seed)
    _, test = next(draw.split(units, units.to_numpy()))
    of_what = f"{len(units):,} groups of {settings.group!r}" if settings.group else counted(len(units), "photo")
    lines.append(f"splits drawn: random:{share:g} of {of_what}, stratified by class, seed {settings.seed}")
    return np.where(pd.Index(unit).isin(units.index[test]), "test", "train")


def _unlabelled(settings, rows, photos, home, to, lines):
    """Return the photos in settings.unlabelled that no row names."""
    more = []
    if settings.unlabelled:
        below = common.photos_below(os.path.abspath(settings.unlabelled), skip=to)
        labelled = {os.path.realpath(path) for path in rows.path}
        more = [path for path in below if os.path.realpath(path) not in labelled]
        lines.append(f"unlabelled: {len(more):,} of {counted(len(below), 'photo')} there, the others have labels")
    rest = sorted(set(photos) - set(rows.path) - set(more))
    if settings.kind == "folders":  # the same photo in two folders has one row
        rest = [path for path in rest if path.parent == home]
    if rest:
        shown = listed((path.relative_to(home) for path in rest), shown=3)
        lines.append(f"left out: {counted(len(rest), 'photo')} without a label (see --unlabelled): {shown}")
    return more


# ---- annotations.csv and the photos ----------------------------------------------------------------------------------


def _place(to, paths, copy):
    """Return (the folder that file names start at, "link", "copy" or "" where the csv reader finds the photos as they are)."""
    images, base = to / "images", Path(os.path.commonpath([path.parent for path in paths]))
    if base.is_relative_to(images):
        return images, ""
    if not os.path.lexists(images):
        return base, "" if base == to else "copy" if copy else "link"
    if images.is_symlink() and images.resolve() == base.resolve() and not copy:
        return base, ""
    copied = [(path, images / path.relative_to(base)) for path in paths if copy and not images.is_symlink()]
    if not copied or any(new.exists() and new.stat().st_size != path.stat().st_size for path, new in copied):
        raise ValueError(f"{images} is there and is not these photos: remove it, or give another folder as --to")
    return base, "copy"


def _checked_text(rows, paths, base, to):
    """Return (the text of annotations.csv, its LabelTable); ValueError where it would be read as something else."""
    files = [path.relative_to(base).as_posix() for path in paths]
    strange = [ascii(file) for file in files if file != file.encode(errors="replace").decode()]
    common.refuse(to, strange, "file names that are not UTF-8: rename them")
    more = (len(files) - len(rows)) * [""]
    table = pd.DataFrame({"file_name": files, "split": [*rows.split, *(UNLABELLED for _ in more)]})
    for name in ("labels", "unknown"):
        table[name] = [*map(";".join, map(sorted, rows[name])), *more]
    table = table if table.unknown.ne("").any() else table.drop(columns="unknown")
    text = table.to_csv(index=False, lineterminator="\n")
    read = annotations_of(to / "annotations.csv", text)
    odd = {*read.names} ^ frozenset().union(*rows.labels) | {*read.files} ^ {*files}
    expected = "names that annotations.csv cannot hold: no ';' in a class, no backslash or outer space in a file"
    common.refuse(to, map(repr, sorted(odd)), expected)
    return text, read


def _write(to, base, way, text, paths, dry_run):
    """Link or copy the photos, then write annotations.csv; return what was done. One that is there must be the same."""
    path, images = to / "annotations.csv", to / "images"
    if path.exists() and path.read_bytes() != text.encode():
        raise ValueError(f"{path} is there and differs: remove it, or give another folder as --to")
    done = {"link": f"{images} -> {base}", "copy": f"copies in {images}", "": f"photos in {base}"}[way]
    if dry_run:
        return [f"--dry-run: not written: {path}, {done}"]
    to.mkdir(parents=True, exist_ok=True)
    if way == "link":
        try:
            images.symlink_to(base, target_is_directory=True)
        except OSError as error:
            raise OSError(f"no link {images} -> {base} can be made ({error}): give --copy") from None
    if way == "copy":
        need_space(to, sum(old.stat().st_size for old in paths), "copies of the photos")
        with bar(len(paths), "copying", "photo") as progress:
            for old in paths:
                new = images / old.relative_to(base)
                new.parent.mkdir(parents=True, exist_ok=True)
                os.replace(shutil.copy2(old, to / ".copy"), new)  # never half a photo
                progress.update(1)
    write_text(path, text)
    return [f"written: {path}, {done}", f"next: cpsd data check csv_mobilenetv2 data.root={to}"]
