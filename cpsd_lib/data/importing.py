"""annotations.csv from labels as people have them: photos found, splits drawn, the result read before it is written."""

import os
import re
import shutil
from collections import defaultdict
from functools import partial
from os.path import relpath
from pathlib import Path

import numpy as np
import pandas as pd
from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit

from cpsd_lib.data.check import frequency_lines
from cpsd_lib.data.readers import common
from cpsd_lib.data.readers.coco2014 import FORM, coco_json, labels_of
from cpsd_lib.data.readers.csv import annotations_of, column_of, read_any_table, split_names
from cpsd_lib.data.readers.voc2007 import objects_of
from cpsd_lib.data.table import SPLITS, UNLABELLED, check_splits
from cpsd_lib.support import atomic, bar, counted, listed, need_space, sha256, write_text

WORDS = {"train": "train", "training": "train", "trainval": "train", "test": "test", "testing": "test"}
WORDS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val") | {"test_shifted": "test_shifted"}
LISTS = re.compile(r"(train|val|valid|test|trainval|train_val)(_list)?\.txt")  # VOC's and ChestX-ray14's
ROBOFLOW = "_classes.csv"  # one in each of train/, valid/ and test/
VALUES = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "-1": -1, "-1.0": -1, "": -2}


def import_labels(settings, dry_run=False):
    """Write annotations.csv for the csv reader into settings.to, with a link to the photos; return what was understood.

    settings: ImportSettings. The result is a list of lines: counts, examples, what was joined, drawn and left out. Raises
    ValueError or OSError, before anything is written, for what has no single meaning or the csv reader would refuse.
    """
    source, to = Path(os.path.abspath(settings.source)), Path(os.path.abspath(settings.to))  # links stay as named
    if not source.exists():
        raise FileNotFoundError(f"there is no file or folder {source}{common.hints([source])[0]}")
    root = source if source.is_dir() else source.parent
    home = Path(os.path.abspath(settings.photos or root))
    photos = common.photos_below(home, skip=to)
    folders = [home, *([os.path.abspath(settings.unlabelled)] if settings.unlabelled else [])]
    every = {path for one in folders for path in common.photos_below(one, to, common.PHOTOS + common.NOT_READ)}
    read = {path.with_suffix("") for path in every if path.suffix.lower() in common.PHOTOS}  # cameras write both
    unread = sorted(path for path in every if path.with_suffix("") not in read)
    others = f"{counted(len(unread), 'photo')} of kinds that are not read, save as JPEG: {listed(unread, shown=3)}"
    if not photos:
        advice = others if unread else "give their folder as --photos"
        raise FileNotFoundError(f"{home} holds no photo ({', '.join(common.PHOTOS)}): {advice}")
    lines = [f"{settings.kind}: {source}", *([f"left out: {others}"] if unread else [])]
    read = {"table": _tables, "coco": _coco, "voc": _voc, "folders": partial(_folders, photos)}
    table, files, labels = read[settings.kind](settings, source, lines)
    (how, name), rows = settings.split_by, pd.DataFrame({"file": table[files]}).rename_axis(["source", "place"])
    by_column = how == "column" or (not how and "split" in table)  # a column `split` is taken unasked
    for kept, column in (("group", settings.group), ("given", (name or "split") if by_column else None)):
        rows[kept] = column_of(source, table, column).fillna("").astype(str).str.strip() if column else ""
    rows = rows.reset_index()
    rows = _with_paths(rows, settings.suffix, home, photos, lines)
    rows = _with_splits(settings, source, rows, root, home, lines)
    rows, labels = _joined(settings, source, rows, labels, lines)
    labels = _held_classes(settings.none, source, labels, lines)
    if not rows.split.any():
        rows["split"] = _drawn(settings, rows, labels, lines)
    paths = [*rows.path, *_unlabelled(settings, rows, photos, home, to, lines)]
    base, way = _where_photos_go(paths, to, settings.copy)
    text, table = _checked_text(rows.set_index("path").split, labels, paths, base, to)
    sizes = ", ".join(f"{one} {(table.split == one).sum():,}" for one in (*SPLITS, UNLABELLED) if one in table.split)
    lines += [f"{len(paths):,} photos: {sizes}; {len(table.names)} classes", *frequency_lines(table), "for example:"]
    lines += [*(f"  {line}" for line in text.splitlines()[:4]), *(f"note: {note}" for note in check_splits(table))]
    return [*lines, *_write(to, base, way, text, paths, dry_run)]


# Each kind of labels returns a DataFrame with a line a photo, its index the label file and the place there; its column of
# file names; and the labels, 1, 0 or -1 (unknown), a DataFrame with a column a class.


def _tables(settings, source, lines):
    paths = [source] if source.is_file() else sorted(source.rglob(ROBOFLOW))
    paths = paths or [path for path in sorted(source.iterdir()) if path.suffix.lower() in (".csv", ".tsv", ".parquet")]
    if len({path.name for path in paths}) != 1:
        raise ValueError(f"{source} holds {len(paths)} tables, expected one: give its file. {listed(paths)}".strip())
    tables = [read_any_table(one).rename(index=f"{relpath(one, source.parent)}, line {{}}".format) for one in paths]
    table, path = pd.concat(dict(zip(paths, tables, strict=True))), paths[0]
    common.refuse(source, table.columns[table.isna().any()], "columns that not all tables have, expected them in each")
    columns = settings.columns or (":" if path.name == ROBOFLOW and not settings.labels else None)
    if bool(settings.labels) == bool(columns):
        shown = listed(map(repr, table.columns))
        raise ValueError(f"{path}: give one of --labels COLUMN and --columns FIRST:LAST; its columns are {shown}")
    file = column_of(path, table, settings.file or table.columns[0]).name
    classes = f"column {settings.labels!r}" if settings.labels else f"columns {columns!r}"
    lines.append(f"{counted(len(table), 'line')}, file names from column {file!r}, classes from {classes}")
    if columns:
        others = {file, settings.group, settings.split_by[1] or "split"}
        return table, file, _of_columns(path, table, columns, others, lines)
    cells, places = column_of(path, table, settings.labels), table.index.get_level_values(1)
    return table, file, common.one_hot(split_names(path, places, cells, settings.separator, "--separator "))


def _of_columns(path, table, columns, others, lines):
    """Return the labels in columns of 0 and 1, or -1 and 1."""
    first, _, last = columns.partition(":") if ":" in columns else (columns, "", columns)
    for name in filter(None, (first, last)):
        column_of(path, table, name)
    span = table.loc[:, first or None : last or None]
    span = span[[name for name in span if name not in others]]
    if not span.shape[1]:
        raise ValueError(f"{path} has no columns {columns}; its columns are {listed(map(repr, table.columns))}")
    labels = span.map(lambda cell: VALUES.get(cell.lower(), 2)).reset_index(drop=True)
    wrong = np.argwhere(labels == 2)
    wrong = [f"{span.index[n][1]}, column {span.columns[c]!r}: {span.iat[n, c]!r}" for n, c in wrong]
    common.refuse(path, wrong, f"expected 0, 1, -1 or nothing in the columns {columns}")
    minus = -1 if (labels == 0).any(axis=None) else 0
    meaning = {"1 present": 1, "0 absent": 0, f"-1 {'unknown' if minus else 'absent'}": -1, "blank unknown": -2}
    held = [words for words, value in meaning.items() if (labels == value).any(axis=None)]
    lines.append(f"{counted(span.shape[1], 'column')}: {', '.join(held)}")
    return labels.replace({-1: minus, -2: -1}).astype(np.int8)


def _coco(settings, source, lines):
    paths = sorted(source.rglob("*.json")) if source.is_dir() else [source]
    if not paths:
        raise FileNotFoundError(f"{source} holds no JSON file, expected {FORM}")
    # COCO's own folder holds captions and keypoints as well.
    paths = [path for path in paths if path.name.startswith(("instances_", "_annotations."))] or paths
    tables, labels, crowds = {}, [], 0
    for path in paths:
        images, objects, names = coco_json(path)
        kept = [one for one in objects if not (settings.no_crowd and one.get("iscrowd") == 1)]
        crowds += len(objects) - len(kept)
        tables[path] = pd.DataFrame(images, [f"{path.name}, image {image['id']}" for image in images])
        labels.append(labels_of(images, kept, names))
    lines += [f"dropped: {counted(crowds, 'object')} marked as a crowd"] if settings.no_crowd else []
    table, labels = pd.concat(tables), pd.concat(labels, ignore_index=True)
    if table.empty:
        raise ValueError(f"{source} lists no image, expected {FORM}")
    some = labels.columns[labels.isna().any() & (labels == 1).any()]
    lines += [f"counted as absent where a file does not list it: {listed(some)}"] if len(some) else []
    return table, "file_name", labels.fillna(0).astype(np.int8)


def _voc(settings, source, lines):
    paths = sorted(source.rglob("*.xml")) if source.is_dir() else [source]
    if not paths:
        raise FileNotFoundError(f"{source} holds no XML file, expected one a photo")
    held = [{name for name, _ in pairs} for pairs in objects_of(paths)]
    lines.append(f"{counted(len(paths), 'XML file')}, {held.count(set()):,} of them without an object")
    table = pd.DataFrame({"file": [path.stem for path in paths]}, [paths, [*map(str, paths)]])
    return table, "file", common.one_hot(held)


def _folders(photos, settings, source, lines):
    """A photo's label is the folder it lies in; the same bytes in two folders are one photo with two labels."""
    photos = [path for path in photos if source in path.parents[1:]]
    if not photos:
        raise ValueError(f"{source} has no folder with photos in it, expected one folder a label")
    twice, first = pd.Series([path.stat().st_size for path in photos]).duplicated(keep=False), {}
    # Photos of other sizes are different ones.
    same = [first.setdefault(sha256(path), path) if maybe else path for path, maybe in zip(photos, twice, strict=True)]
    # The folder above the label's may be train or test; the label's own may be a class of that name.
    table = pd.DataFrame({"file": map(str, same)}, [[path.parents[1] for path in photos], [*map(str, photos)]])
    return table, "file", common.one_hot([{path.parent.name} for path in photos])


def _with_paths(rows, suffix, home, photos, lines):
    """Return the rows whose photo is there, with its `path`: where the file name says, or else by its last part."""
    alike = defaultdict(list)
    for path in photos:
        for form in {*common.forms(path.name)}:
            alike[form].append(path)
    rows["name"] = rows.file.str.replace("\\", "/") + suffix
    last = [common.forms(name.rpartition("/")[2])[0] for name in rows.name]
    near = [_best(alike[form], *one, home) for form, *one in zip(last, rows.name, rows.source, strict=True)]
    near, places = pd.Series(near), rows.place + ": " + rows.name
    several = [f"{places[n]}: {listed(near[n], shown=3)}" for n in near.index[near.str.len() > 1]]
    common.refuse(home, several, "several photos of one name, expected one: give --suffix, or their folder as --photos")
    missing = places[near.str.len() == 0]
    lost = f"{len(missing):,} of {len(rows):,} file names lead to no photo in {home}: {listed(missing, shown=5)}"
    if len(missing) == len(rows):
        raise FileNotFoundError(f"{lost}. Its photos are {listed(photos, shown=3)}: give --photos, --suffix or --file")
    lines += [f"left out: {lost}"] if len(missing) else []
    rows = rows.assign(path=near.str[0]).drop(missing.index)
    ends = ["/" + Path(os.path.normpath(name)).as_posix().lstrip("./") for name in rows.name]
    pairs = zip(rows.path, rows.name, ends, strict=True)
    loose = rows[["/" in name and not path.as_posix().endswith(end) for path, name, end in pairs]]
    loose = loose.drop_duplicates("path")
    names = rows[rows.path.isin(loose.path)].groupby("path").name.unique()
    several = [f"{path}: {listed(sorted(held))}" for path, held in names.items() if len(held) > 1]
    common.refuse(home, several, "photos that several file names lead to, expected one: their folders are not there")
    for path, name in zip(loose.path[:1], loose.name, strict=False):
        found = f"{counted(len(loose), 'photo')} found by the last part of the name"
        lines.append(f"{found}: {name} is {path.relative_to(home)}")
    return rows


def _best(paths, name, source, home):
    """Return those of `paths` that fit a name best: at that path, or beside its label file, or in a folder of its split."""
    exact = [os.path.normpath(folder / name) for folder in (source.parent, home)]
    split, of = _split_of(relpath(source, home)), {path: _split_of(relpath(path.parent, home)) for path in paths}
    fits = [(*(str(path) == one for one in exact), path.parent == source.parent, of[path] == split) for path in paths]
    return [path for path, fit in zip(paths, fits, strict=True) if fit == max(fits)]


def _split_of(text):
    """Return the split that a text or a path names, the last one that it does; '' for none."""
    words = re.findall("test_shifted|[a-z]+", str(text).lower().replace("train_val", "trainval"))
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
    where, texts = "a column", rows.given
    if how == "files":  # the label file's name says more than the photo's folder, and a list says more than both
        where, by_list = "the names of lists, label files and folders", _lists(root)
        # A photo's folder is its label in kind folders, maybe "test".
        folders = rows.path.map(lambda path: "" if settings.kind == "folders" else relpath(path.parent, home))
        files = rows.source.map(lambda path: relpath(path, root))
        texts = folders + " " + files + " " + rows.path.map(lambda path: by_list.get(path.stem, ""))
    split = [*map(_split_of, texts)]
    if how == "random" or not (settings.split or how == "column" or {"train"} < set(split) <= {*SPLITS}):
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


def _joined(settings, source, rows, labels, lines):
    """Return both with one line a photo, by its path: several rows' labels joined, other contradictions refused."""
    labels = labels.loc[rows.index]
    rows = rows.assign(labels=[line.tobytes() for line in labels.to_numpy()])
    whole = settings.kind == "table" and not settings.labels  # a line of 0 and 1 says all about its photo
    seen = rows[rows.duplicated("path", keep=False)].groupby("path")
    for name in ("split", "group", *(("labels",) if whole else ())):
        wrong = [f"{path}: {listed(every.place)}" for path, every in seen if every[name].nunique() > 1]
        common.refuse(source, wrong, f"the same photo more than once with different {name}, expected one")
    if len(seen):
        joined = f"joined: {counted(len(seen), 'photo')} named more than once, with all labels"
        lines.append(f"{joined}: {listed(seen.groups, shown=3)}")
    if settings.group:
        common.refuse(source, rows.place[rows.group == ""], f"nothing in column {settings.group!r}, expected a group")
        splits = rows.groupby("group").split.agg(lambda every: listed(sorted(set(every))))
        wrong = [f"{group}: {every}" for group, every in splits.items() if "," in every]
        common.refuse(source, wrong, f"groups of {settings.group!r} in several splits: give --split random:0.2")
    return rows.drop_duplicates("path").sort_values("path"), labels.groupby(rows.path).max()


def _held_classes(none, source, labels, lines):
    """Return the labels without the class `none` and those that no photo has, in alphabetical order."""
    held = labels.columns[(labels == 1).any()]
    if none and none not in held:
        raise ValueError(f"{source}: no photo has the class {common.nearest(none, held)} of --none")
    if gone := sorted({*labels} - {*held}):
        lines.append(f"dropped: {counted(len(gone), 'class', 'classes')} that no photo has: {listed(gone)}")
    names = sorted({*held} - {none})
    if len(names) < 2:
        raise ValueError(f"{source}: one class or none ({listed(names)}), expected at least 2")
    return labels[names]


def _drawn(settings, rows, labels, lines):
    """Return the split of each row: train or test, with a fair share of every class, groups undivided."""
    share = float(settings.split_by[1] or 0.2)
    unit = (rows.group if settings.group else rows.path.astype(str)).to_numpy()
    units = labels.eq(1).astype(int).groupby(unit).max()
    draw = MultilabelStratifiedShuffleSplit(n_splits=1, test_size=share, random_state=settings.seed)
    _, test = next(draw.split(units, units.to_numpy()))
    of_what = f"{len(units):,} groups of {settings.group!r}" if settings.group else counted(len(units), "photo")
    lines.append(f"splits drawn: random:{share:g} of {of_what}, stratified by class, seed {settings.seed}")
    return np.where(pd.Index(unit).isin(units.index[test]), "test", "train")


def _unlabelled(settings, rows, photos, home, to, lines):
    """Return the photos in settings.unlabelled that no row names."""
    below = common.photos_below(os.path.abspath(settings.unlabelled), skip=to) if settings.unlabelled else []
    labelled = {os.path.realpath(path) for path in rows.path} if below else ()
    more = [path for path in below if os.path.realpath(path) not in labelled]
    if settings.unlabelled:
        lines.append(f"unlabelled: {len(more):,} of {counted(len(below), 'photo')} there, the others have labels")
    rest = sorted({*photos} - {*rows.path} - {*more})
    if settings.kind == "folders":  # the same photo in two folders has one row
        rest = [path for path in rest if path.parent == home]
    if rest:
        shown = listed((path.relative_to(home) for path in rest), shown=3)
        lines.append(f"left out: {counted(len(rest), 'photo')} without a label (see --unlabelled): {shown}")
    return more


def _where_photos_go(paths, to, copy):
    """Return (the folder that file names start at, "link", "copy" or "" for photos that are in `to` already)."""
    images, base = to / "images", Path(os.path.commonpath([path.parent for path in paths]))
    if base.is_relative_to(images) or (base == to and not os.path.lexists(images)):
        return images if base.is_relative_to(images) else to, ""
    copied = [(path, images / path.relative_to(base)) for path in paths if copy and not images.is_symlink()]
    ours = copied or not os.path.lexists(images) or (not copy and images.resolve() == base.resolve())
    if not ours or any(new.exists() and new.stat().st_size != path.stat().st_size for path, new in copied):
        raise ValueError(f"{images} is there and is not these photos: give another folder as --to")
    return base, "copy" if copy else "link"


def _checked_text(split, labels, paths, base, to):
    """Return (the text of annotations.csv, its LabelTable); ValueError where it would be read as something else."""
    files, names = [path.relative_to(base).as_posix() for path in paths], labels.columns.to_numpy(object)
    table = pd.DataFrame({"file_name": files, "split": [*split.reindex(paths, fill_value=UNLABELLED)]})
    for name, value in (("labels", 1), ("unknown", -1)):
        held = labels.eq(value).reindex(paths, fill_value=False).to_numpy()
        if name == "labels" or held.any():
            table[name] = [";".join(names[of_photo]) for of_photo in held]
    text = table.to_csv(index=False, lineterminator="\n")
    read = annotations_of(to / "annotations.csv", text)
    odd = {*read.names} ^ {*names} | {*read.files} ^ {*files}
    odd |= {file for file in files if file != file.encode(errors="replace").decode()}
    which = "a ';' in a class; a backslash, an outer space or no UTF-8 in a file"
    common.refuse(to, map(ascii, sorted(odd)), f"names that annotations.csv cannot hold ({which}): rename them")
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
    if way == "link" and not os.path.lexists(images):
        try:
            images.symlink_to(base, target_is_directory=True)
        except OSError as error:
            raise OSError(f"no link {images} -> {base} can be made ({error}): give --copy") from None
    if way == "copy":
        need_space(to, sum(photo.stat().st_size for photo in paths), "copies of the photos")
        with bar(len(paths), "copying", "photo") as progress:
            for photo in paths:
                with atomic(images / photo.relative_to(base)) as new:
                    shutil.copy2(photo, new)
                progress.update(1)
    write_text(path, text)
    return [f"written: {path}, {done}", f"next: cpsd data check csv_mobilenetv2 data.root={to}"]
