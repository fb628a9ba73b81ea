"""annotations.csv from labels as people have them: photos found, splits drawn, the result read before it is written."""

import os
import re
import shutil
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from iterstrat.ml_stratifiers import MultilabelStratifiedShuffleSplit
from sklearn.preprocessing import MultiLabelBinarizer

from cpsd_lib.data.check import frequency_lines
from cpsd_lib.data.readers import common
from cpsd_lib.data.readers.csv import read_csv
from cpsd_lib.data.readers.exports import read_export
from cpsd_lib.data.table import SPLITS, check_splits, listed
from cpsd_lib.support import bar, counted, need_space, write_text

WORDS = {"train": "train", "training": "train", "trainval": "train", "test": "test", "testing": "test"}
WORDS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
LISTS = re.compile(r"(train|val|valid|test|trainval|train_val)(_list)?\.txt")  # VOC's and ChestX-ray14's


def import_labels(settings, dry_run=False):
    """Write annotations.csv for the csv reader into settings.to, with a link to the photos; return what was understood.

    settings: ImportSettings. The result is a list of lines: classes and their counts, examples, what was joined, drawn and
    left out. Raises ValueError or OSError, before anything is written, for what has no single meaning and for what the csv
    reader or a training would refuse.
    """
    source, to = _absolute(settings.source), _absolute(settings.to)
    if not source.exists():
        raise FileNotFoundError(f"there is no file or folder {source}{common.hints([source])[0]}")
    home = _absolute(settings.photos) if settings.photos else source if source.is_dir() else source.parent
    photos = common.photos_below(home, skip=to)
    if not photos:
        raise FileNotFoundError(f"{home} holds no photo ({', '.join(common.PHOTOS)}): give their folder as --photos")
    lines = [f"{settings.kind}: {source}"]
    rows, known = read_export(settings, source, lines)
    rows = _with_paths(rows, settings.suffix, home, photos, lines)
    rows = _with_splits(settings, source, rows, home, lines)
    rows = _joined(settings, source, rows, lines).sort_values("path")
    names = _classes(settings, source, rows, known, lines)
    if not rows.split.any():
        rows["split"] = _drawn(settings, rows, lines)
    more = _unlabelled(settings, rows, photos, home, to, lines)
    base, way = _place(to, [*rows.path, *more], settings.copy)
    text, notes = _checked_text(rows, names, base, to, more)
    lines += [*_summary(rows, names, more), "for example:", *(f"  {line}" for line in text.splitlines()[:4])]
    return [*lines, *(f"note: {note}" for note in notes), *_write(to, base, way, text, [*rows.path, *more], dry_run)]


def _absolute(path):
    return Path(os.path.abspath(path))  # links stay as the user named them


# ---- rows of labels -> one row a photo, with its path, its classes and its split -------------------------------------


def _with_paths(rows, suffix, home, photos, lines):
    """Return the rows whose photo is there, with its `path`: where the file name says, or else by its last part."""
    there, alike, names, loose = set(photos), defaultdict(list), defaultdict(set), {}
    for path in photos:
        for form in set(common.forms(path.name)):
            alike[form].append(path)
    paths, several, missing = [], [], []
    for place, file, source in zip(rows.place, rows.file, rows.source, strict=True):
        name = file.replace("\\", "/") + suffix
        exact = (Path(os.path.normpath(folder / name)) for folder in (source.parent, home))
        exact = [path for path in exact if path in there][:1]
        near = exact or alike.get(common.forms(name.rpartition("/")[2])[0], [])
        if len(near) > 1:  # the one that lies beside its label file, or in a folder of the same split
            beside = [path for path in near if path.parent == source.parent]
            near = beside or [path for path in near if _split_of(path.parent, home) == _split_of(source, home)] or near
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
    return rows.assign(path=pd.Series(paths, rows.index, dtype=object))[[path is not None for path in paths]]


def _word(text):
    """Return the split that a text names (train_val is train), '' for none."""
    return next((WORDS[word] for word in re.findall("[a-z]+", text.lower()) if word in WORDS), "")


def _split_of(path, home):
    """Return the split that a part of `path` below `home` names, the last one that does; '' for none."""
    return next(filter(None, map(_word, reversed(os.path.relpath(path, home).split(os.sep)))), "")


def _lists(folder):
    """Return {file name without ending: split} of the lists that VOC and ChestX-ray14 have beside their labels."""
    both, splits = set(), {}
    for path in sorted([*folder.glob("*.txt"), *folder.glob("ImageSets/Main/*.txt")]):
        if LISTS.fullmatch(path.name):
            names = {Path(name).stem for name in common.read_names(path, "one file name a line")}
            if "trainval" in path.stem.replace("_", ""):
                both |= names
            else:
                common.refuse(path, sorted(names & splits.keys()), "names that another list has, expected each in one")
                splits |= dict.fromkeys(names, _word(path.stem))
    common.refuse(folder, sorted(name for name in both if splits.get(name) == "test"), "names in trainval and in test")
    return dict.fromkeys(both, "train") | splits


def _with_splits(settings, source, rows, home, lines):
    """Return the rows with their `split`, '' in all of them where it will be drawn; val is test where there is no test."""
    how = settings.split_by[0] or ("column" if rows.given.any() else "files")
    if how == "random":
        return rows.assign(split="")
    if how == "column":
        split = [text if text in SPLITS else _word(text) for text in rows.given]
    else:
        root, pairs = source if source.is_dir() else source.parent, zip(rows.source, rows.path, strict=True)
        by_list, folders = _lists(root), settings.kind == "folders"  # a photo's folder is its label there, maybe "test"
        split = [
            by_list.get(path.stem) or _split_of(labels, root) or ("" if folders else _split_of(path.parent, home))
            for labels, path in pairs
        ]
        if not settings.split and not {"train"} < set(split) <= {*SPLITS}:
            return rows.assign(split="")
    where = {"column": "a column", "files": "the names of lists, label files and folders"}[how]
    written = zip(rows.place, rows.given, split, strict=True)
    unnamed = [f"{place} {given!r}".removesuffix(" ''") for place, given, name in written if not name]
    common.refuse(source, unnamed, f"expected train, val or test in {where}, or give --split random:0.2")
    lines.append(f"splits from {where}")
    rows = rows.assign(split=split)
    if "test" not in split and "val" in split:
        rows["split"] = rows.split.replace("val", "test")
        lines[-1] += "; there is no test, so that val is test"
    if not {"train", "test"} <= set(rows.split):
        only = f"all photos are in split {listed(set(split))}"
        raise ValueError(f"{source}: {only}, expected some in train and some in test: give --split random:0.2")
    return rows


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
        rows = rows.assign(labels=rows.labels.where(~rows.path.isin(union.index), rows.path.map(union)))
    if settings.group:
        common.refuse(source, rows.place[rows.group == ""], f"nothing in column {settings.group!r}, expected a group")
        splits = rows.groupby("group").split.agg(lambda every: listed(sorted(set(every))))
        wrong = [f"{group}: {every}" for group, every in splits.items() if "," in every]
        common.refuse(source, wrong, f"groups of {settings.group!r} in several splits: give --split random:0.2")
    return rows


def _classes(settings, source, rows, known, lines):
    """Return the class names that photos have, sorted; --none and names that no photo has go from the rows."""
    none, names = {settings.none} - {None}, frozenset().union(*rows.labels)
    if none - names:
        raise ValueError(f"{source}: no photo has the class {common.nearest(settings.none, known)} of --none")
    names -= none
    if gone := sorted(known - names - none):
        lines.append(f"dropped: {counted(len(gone), 'class', 'classes')} that no photo has: {listed(gone)}")
    if len(names) < 2:
        raise ValueError(f"{source}: one class or none ({listed(names)}), expected at least 2")
    rows["labels"], rows["unknown"] = rows.labels.map(names.intersection), rows.unknown.map(names.intersection)
    return sorted(names)


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
        below = common.photos_below(_absolute(settings.unlabelled), skip=to)
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
    if all(path.is_relative_to(images) for path in paths):
        return images, ""
    if not os.path.lexists(images):
        return base, "" if base == to else "copy" if copy else "link"
    if images.is_symlink() and images.resolve() == base.resolve() and not copy:
        return base, ""
    copied = [(path, images / path.relative_to(base)) for path in paths if copy and not images.is_symlink()]
    if not copied or any(new.exists() and new.stat().st_size != path.stat().st_size for path, new in copied):
        raise ValueError(f"{images} is there and is not these photos: remove it, or give another folder as --to")
    return base, "copy"


def _checked_text(rows, names, base, to, more):
    """Return (the text of annotations.csv, notes); ValueError where the csv reader would read something else, or nothing."""
    files = [path.relative_to(base).as_posix() for path in [*rows.path, *more]]
    strange = [ascii(file) for file in files if file != file.encode(errors="replace").decode()]
    common.refuse(to, strange, "file names that are not UTF-8: rename them")
    table = pd.DataFrame({"file_name": files, "split": [*rows.split, *["unlabelled"] * len(more)]})
    for name in ("labels", "unknown"):
        table[name] = [*map(";".join, map(sorted, rows[name])), *[""] * len(more)]
    table = table if table.unknown.ne("").any() else table.drop(columns="unknown")
    with TemporaryDirectory() as folder:
        (Path(folder) / "images").mkdir()
        seen = table.assign(split=table.split.replace("unlabelled", "train"))  # their names are read as the others'
        write_text(Path(folder) / "annotations.csv", seen.to_csv(index=False, lineterminator="\n"))
        try:
            read = read_csv(folder).table
        except ValueError as error:
            raise ValueError(str(error).replace(folder, str(to))) from None
    odd = [repr(name) for name in sorted(set(names) ^ set(read.names)) + sorted(set(files) ^ set(read.files))]
    common.refuse(
        to, odd, "names that annotations.csv cannot hold: no ';' in a class, no backslash or outer space in a file"
    )
    present, unknown = (MultiLabelBinarizer(classes=names).fit_transform(rows[name]) for name in ("labels", "unknown"))
    assert (read.targets[: len(rows)] == present - unknown).all()
    return table.to_csv(index=False, lineterminator="\n"), check_splits(read.take(range(len(rows))))


def _summary(rows, names, more):
    sizes = {split: (rows.split == split).sum() for split in SPLITS} | {"unlabelled": len(more)}
    sizes = ", ".join(f"{split} {size:,}" for split, size in sizes.items() if size)
    counts = rows.explode("labels").groupby("split").labels.value_counts().unstack("split", fill_value=0).reindex(names)
    counts = {split: counts[split].tolist() for split in SPLITS if split in counts}
    return [f"{len(rows) + len(more):,} photos: {sizes}; {len(names)} classes", *frequency_lines(names, counts)]


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
