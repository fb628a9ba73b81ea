"""A look at a data set on disk before anyone pays for it: counts, missing files, label frequencies, a verdict."""

from dataclasses import dataclass

from cpsd_lib.data.dataset import PUBLISHED, needed_splits, read_source
from cpsd_lib.data.readers.common import missing_files
from cpsd_lib.data.table import SPLITS, check_splits, listed
from cpsd_lib.support import counted, memory, write_text

MISSING = "missing_files.txt"


@dataclass(frozen=True)
class Checked:
    """What a check found: lines to print, the last of them the verdict, and whether a training could start."""

    lines: list[str]
    trainable: bool


def check_data(data, folder):
    """Return what can be told of DataSettings `data` without decoding an image; missing files are named in a file in `folder`."""
    try:
        source = read_source(data)
    except (ValueError, OSError) as error:
        return Checked([f"verdict: it cannot train: {error}"], False)
    table, paths, notes = source.table, source.paths, source.notes
    gone = missing_files(paths)
    lines = [f"{data.kind}: {counted(len(table.files), 'image')}, {counted(len(table.names), 'class', 'classes')}"]
    lines += _split_lines(table, gone)
    lines += _missing_lines(table, paths, gone, folder)
    lines += _frequency_lines(table)
    faults = []
    if data.kind == "labels":
        faults.append("it has labels and no images: 01_data and 02_partition work on it")
    if gone and (data.kind != "nuswide" and data.bad_files == "error"):
        faults.append(f"{_not_on_disk(gone)}; put them there, or go on without: data.bad_files=skip")
    present = table.skip(gone)
    try:
        notes = [*notes, *check_splits(present, needed_splits(data))]
    except ValueError as error:
        faults.append(str(error) + (f" ({_not_on_disk(gone)})" if gone else ""))
    lines += [f"note: {note}" for note in notes]
    if faults:
        return Checked([*lines, f"verdict: it cannot train: {'; '.join(faults)}"], False)
    caveat = ", INCOMPLETE: its figures will say so" if gone and data.kind in PUBLISHED else ""
    bytes_needed = (len(paths) - len(gone)) * 3 * data.size**2
    cost = f"; decoded at {data.size} px it takes {memory(bytes_needed / 2**30)} of disk" if paths else ""
    # A broken photo is found when it is decoded, the first thing that a run does.
    unopened = "; the photos were looked for, not opened: a run opens them all before it trains" if paths else ""
    return Checked([*lines, f"verdict: it can train{caveat}{cost}{unopened}"], True)


def _split_lines(table, gone):
    found = []
    for split in SPLITS:
        rows = table.indices(split)
        if len(rows):
            labels = (table.targets[rows] == 1).sum()
            missing = (table.split[gone] == split).sum()
            per_image = f"{counted(labels, 'label')}, {labels / len(rows):.2f} an image"
            gone_here = counted(missing, "image")
            found.append(f"  {split}: {counted(len(rows), 'image')}, {per_image}; {gone_here} not on disk")
    return found


def _missing_lines(table, paths, gone, folder):
    path = folder / MISSING
    if not gone:
        path.unlink(missing_ok=True)  # the list of an earlier look would be wrong now
        return []
    write_text(path, "".join(f"{table.split[row]}\t{paths[row]}\n" for row in gone))
    names = listed((table.files[row] for row in gone), shown=3)
    return [f"not on disk: {len(gone):,} of {counted(len(paths), 'image')}: {names}; all are named in {path}"]


def _not_on_disk(gone):
    return f"{counted(len(gone), 'image is', 'images are')} not on disk"


def _frequency_lines(table):
    splits = [split for split in SPLITS if len(table.indices(split))]
    counts = {split: (table.targets[table.indices(split)] == 1).sum(axis=0) for split in splits}
    width = max(map(len, table.names), default=0)
    order = sorted(range(len(table.names)), key=lambda number: -counts[splits[0]][number]) if splits else []
    head = f"  {'class':{width}}" + "".join(f"{split:>14}" for split in splits)
    lines = [
        f"  {table.names[number]:{width}}" + "".join(f"{counts[split][number]:>14,}" for split in splits)
        for number in order
    ]
    return ["images that hold each class:", head, *lines]
