"""A look at a data set on disk before anyone pays for it: counts, missing files, label frequencies, a verdict."""

from dataclasses import dataclass
from pathlib import Path

from cpsd_lib.data.dataset import PUBLISHED, choose, read_source
from cpsd_lib.data.readers.common import hints, missing_files
from cpsd_lib.data.table import UNLABELLED, LabelTable, check_splits
from cpsd_lib.support import counted, listed, memory, write_text

MISSING = "missing_files.txt"


@dataclass(frozen=True)
class Checked:
    """The result of a check: lines to print, the last of them the verdict, and whether a training could start."""

    lines: list[str]
    trainable: bool
    table: LabelTable | None = None  # of the images that are on disk, where they can be read


def check_data(data, folder):
    """Return the Checked of DataSettings `data`, no image decoded; missing files are named in a file in `folder`."""
    try:
        source, table, notes = choose(read_source(data), data)
    except (ValueError, OSError) as error:
        return Checked([f"verdict: it cannot train: {error}"], False)
    paths, notes = source.paths, [*source.notes, *notes]
    missing = missing_files(paths)
    not_on_disk = f"{counted(len(missing), 'image is', 'images are')} not on disk"
    faults = []
    if data.kind == "labels":
        faults.append("it has labels and no images: 01_data and 02_partition work on it")
    if missing and data.kind != "nuswide" and data.bad_files == "error":
        faults.append(f"{not_on_disk}; put them there, or go on without: data.bad_files=skip")
    try:
        notes = [*notes, *check_splits(table.skip(missing), tested=data.kind != "labels")]
    except ValueError as error:
        faults.append(f"{error} ({not_on_disk})" if missing else str(error))
    lines = [f"{data.kind}: {counted(len(table.files), 'image')}, {counted(len(table.names), 'class', 'classes')}"]
    for split, labels in table.counts().items():
        images, total = len(table.indices(split)), labels.sum()
        per_image = f"{counted(total, 'label')}, {total / images:.2f} an image"
        gone = counted((table.split[missing] == split).sum(), "image")
        lines.append(f"  {split}: {counted(images, 'image')}, {per_image}; {gone} not on disk")
    if unlabelled := len(table.indices(UNLABELLED)):
        gone = counted((table.split[missing] == UNLABELLED).sum(), "image")
        for_whom = "for students to learn on from their teachers"
        lines.append(f"  {UNLABELLED}: {counted(unlabelled, 'image')}, {for_whom}; {gone} not on disk")
    lines += [*_missing_lines(table, paths, missing, folder), *frequency_lines(table)]
    lines += [f"note: {note}" for note in notes]
    lines += [f"read from {Path(data.root).absolute()}"] if data.root else []
    if faults:
        return Checked([*lines, f"verdict: it cannot train: {'; '.join(faults)}"], False, table)
    verdict = "verdict: it can train"
    if missing and data.kind in PUBLISHED:
        verdict += ", INCOMPLETE: its figures will say so"
    if paths and data.cache == "disk":
        bytes_needed = (len(paths) - len(missing)) * 3 * data.size**2
        verdict += f"; decoded at {data.size} px it takes {memory(bytes_needed / 2**30)} of disk"
    if paths:
        # A broken photo is found when it is decoded, the first thing that a run does.
        verdict += "; the photos were looked for, not opened: a run opens them all before it trains"
    return Checked([*lines, verdict], True, table.skip(missing))


def _missing_lines(table, paths, missing, folder):
    path = folder / MISSING
    if not missing:
        path.unlink(missing_ok=True)  # the list of an earlier look would be wrong now
        return []
    write_text(path, "".join(f"{table.split[index]}\t{paths[index]}\n" for index in missing))
    near = hints([paths[index] for index in missing])
    names = listed((table.files[index] + hint for index, hint in zip(missing, near, strict=True)), shown=3)
    return [f"not on disk: {len(missing):,} of {counted(len(paths), 'image')}: {names}; all are named in {path}"]


def frequency_lines(table):
    """Return a table of how many images of each split hold each class, the most frequent of the first split first."""
    counts, width = table.counts(), max(map(len, table.names), default=0)
    first = next(iter(counts.values()), [])
    head = f"  {'class':{width}}" + "".join(f"{split:>14}" for split in counts)
    order = sorted(range(len(first)), key=lambda c: -first[c])
    lines = [f"  {table.names[c]:{width}}" + "".join(f"{held[c]:>14,}" for held in counts.values()) for c in order]
    return ["images that hold each class:", head, *lines]
