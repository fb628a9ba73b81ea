"""What every reader of a data set needs: its result, its messages, and a quick look for files that are not there."""

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path

from cpsd_lib.data.table import LabelTable, listed


@dataclass(frozen=True, eq=False)
class LabelledFiles:
    """What a reader returns: the label table, the path of each of its N rows, and what a user should know."""

    table: LabelTable
    paths: list[Path]  # [N], or empty for a data set that has labels only
    notes: list[str] = field(default_factory=list)

    def take(self, rows):
        """Return the same with `rows` alone (int [n]), in that order."""
        return replace(self, table=self.table.take(rows), paths=[self.paths[row] for row in rows if self.paths])


def refuse(path, problems, expected):
    """Raise a ValueError that lists `problems` (up to 20, and the count) with what was expected; no problem, no error."""
    if problems:
        lines = listed(problems, join="\n  ")
        raise ValueError(f"{path}: {expected}. {len(problems):,} found:\n  {lines}")


def nearest(name, names):
    """Return " (did you mean ...?)" with the one of `names` that looks most like `name`, or nothing."""
    original = {option.lower(): option for option in names}
    near = get_close_matches(name.lower(), original, n=1, cutoff=0.4)
    return f" (did you mean {original[near[0]]!r}?)" if near else ""


def refuse_repeats(path, names, what):
    """Raise ValueError when one of `names` occurs twice in `path`; `what` says what a name is."""
    twice = [f"{name}: {times} times" for name, times in Counter(names).items() if times > 1]
    refuse(path, twice, f"the same {what} is listed more than once, expected once")


def refuse_overlap(root, train, test, what):
    """Raise ValueError when train and test (lists of what an image is known by) share one."""
    shared = sorted({str(one) for one in train} & {str(one) for one in test})
    expected = f"the same {what} is in train and in test, expected each in one: take the lists of the original download"
    refuse(root, shared, expected)


NOT_COMPARABLE = "are not the papers'"  # a note with these words goes beside every figure


def count_notes(kind, what, found, known):
    """Return a sentence for each split whose number of `what` is not the one the published data set has."""
    return [
        f"{kind} count: {found[split]:,} {what} in split '{split}', expected {known[split]:,}: figures from another "
        f"number of images {NOT_COMPARABLE}"
        for split in known
        if found[split] != known[split]
    ]


def read_text(path, what):
    """Return the text of a file; FileNotFoundError says `what` it should be, ValueError that it is not UTF-8."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}, expected {what}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is not UTF-8 text (line {line}), expected {what}") from None


def read_names(path, what):
    """Return the lines of a file without spaces around them and without empty ones; ValueError when there is none."""
    lines = [line.strip() for line in read_text(path, what).splitlines()]
    names = [line for line in lines if line]
    if not names:
        raise ValueError(f"{path} is empty, expected {what}")
    return names


def need_folder(root):
    """Return `root` as a Path; FileNotFoundError when it is no folder."""
    if not Path(root).is_dir():
        raise FileNotFoundError(f"there is no folder {root}: data.root must be the folder the data set was unpacked in")
    return Path(root)


def first_existing(root, choices, what):
    """Return the first of root/choice that exists; FileNotFoundError names them all."""
    for choice in choices:
        if (root / choice).exists():
            return root / choice
    raise FileNotFoundError(f"{root} holds no {what}, expected {' or '.join(map(str, choices))} in it")


def missing_files(paths):
    """Return the row numbers of `paths` that are no file, ascending; it lists folders, and opens nothing."""
    # One listing a folder: asking for 270,000 files one by one takes minutes on a network drive.
    present = {folder: _file_names(folder) for folder in {path.parent for path in paths}}
    gone = [row for row, path in enumerate(paths) if path.name not in present[path.parent]]
    # TargetSource directly too: a listing may spell a name in another case or another Unicode form than the label file.
    return [row for row in gone if not os.path.isfile(paths[row])]


def _file_names(folder):
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return set()
