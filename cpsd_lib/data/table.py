"""The label table: which image carries which label, and which split it belongs to."""

import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np

from cpsd_lib import graph
from cpsd_lib.support import counted, listed

SPLITS = ("train", "val", "test", "test_shifted")
SKIPPED = "skipped"
UNLABELLED = "unlabelled"  # to train on: students learn there what their teachers predict


@dataclass(frozen=True, eq=False)
class LabelTable:
    """N images and C classes: names [C], targets int8 [N, C] in {0, 1, -1 = unknown}, files [N], split [N] of str.

    An image's index is its index in the cache, so images never move: one left out keeps its index, in split "skipped".
    A training image of which no label is known goes to split "unlabelled". Raises ValueError for known labels in that
    split, other values, class or file names that are empty, occur twice or hold control characters, and class names that
    look the same (two Unicode forms of é, a space of no width).
    """

    names: list[str]
    targets: np.ndarray
    files: list[str]
    split: np.ndarray

    def __post_init__(self):
        names, files = list(self.names), list(self.files)
        targets, split = np.asarray(self.targets), np.asarray(self.split, dtype=str)
        if other := graph.other_values(targets):
            raise ValueError(f"targets hold {listed(other)}, expected only 0, 1 and -1 (unknown)")
        unknown = sorted(set(split.tolist()) - {*SPLITS, UNLABELLED, SKIPPED})
        if unknown:
            expected = ", ".join((*SPLITS, UNLABELLED))
            raise ValueError(f"unknown split {listed(map(repr, unknown))}, expected one of {expected}")
        known = (targets != -1).any(axis=1)
        if labelled := np.flatnonzero(known & (split == UNLABELLED)).tolist():
            named = listed(files[index] for index in labelled)
            raise ValueError(f"images of split '{UNLABELLED}' have labels, expected none (or split 'train'): {named}")
        # Wide enough for every split: numpy would cut "skipped" to "skipp" in an array of 5 letters.
        split = np.where(~known & (split == "train") & (len(names) > 0), UNLABELLED, split).astype("U12")
        for what, given, values in (
            ("class", names, [_visible(name, "NFC") for name in names]),
            ("file", files, files),
        ):
            if "" in values:
                raise ValueError(f"{what} number {values.index('')} has an empty name, expected a name")
            if odd := [ascii(name) for name in given if re.search(r"[\x00-\x1f\x7f-\x9f]", name)]:
                raise ValueError(f"{what} names must have no control characters, rename these: {listed(odd)}")
            twice = [value for value, times in Counter(values).items() if times > 1]
            if twice:
                written = [ascii(name) for name, value in zip(given, values, strict=True) if value in twice]
                how = f" (written {listed(written)}: write them alike)" if len(set(written)) > len(twice) else ""
                raise ValueError(f"{what} names must be unique, these occur more than once: {listed(twice)}{how}")
        vars(self).update(names=names, files=files, targets=targets.astype(np.int8, copy=False), split=split)  # frozen

    def indices(self, split):
        """Return the image indices of `split`, ascending (int64 [n], maybe empty)."""
        return np.flatnonzero(self.split == split).astype(np.int64)

    def counts(self):
        """Return {split: how many of its images hold each class [C]} of the splits with labels that have images."""
        return {s: (self.targets[self.split == s] == 1).sum(axis=0) for s in SPLITS if s in self.split}

    def skip(self, indices):
        """Return the same table with these images in split "skipped"; all other images and all indices stay."""
        split = self.split.copy()
        split[np.asarray(list(indices), dtype=np.int64)] = SKIPPED
        return replace(self, split=split)

    def hide(self, labelled, seed):
        """Return the same table where `labelled` training images keep their labels, and the others go to "unlabelled".

        Which ones is a draw from `seed`: fewer are part of more.
        """
        targets = self.targets.copy()
        targets[np.random.default_rng([seed, 1]).permutation(self.indices("train"))[labelled:]] = -1
        return replace(self, targets=targets)

    def take(self, indices):
        """Return a table of the images `indices` alone (int [n]), in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        files = [self.files[index] for index in indices]
        return LabelTable(self.names, self.targets[indices], files, self.split[indices])


def check_splits(table, tested=True):
    """Return what a user should know before training, as plain sentences (list of str, empty when all is well).

    Raises ValueError where training or testing would be meaningless: fewer than two classes, no image, no positive or
    no absent label in train or, where models are `tested` (labels alone cut a graph), in test, fewer than two images to train on.
    """
    if len(table.names) < 2:
        count = counted(len(table.names), "class", "classes")
        raise ValueError(f"the data set has {count}, expected at least 2: label more than one thing")
    targets = {split: table.targets[table.indices(split)] for split in SPLITS if len(table.indices(split))}
    for split in ("train", "test") if tested else ("train",):
        if split not in targets:
            raise ValueError(f"no image is in split '{split}', expected at least one: a run needs train and test")
        if not (targets[split] == 1).any():
            raise ValueError(f"no image of split '{split}' has a positive label: label some of them")
        if not (targets[split] == 0).any():
            unknown = "blanks in columns of 0 and 1, and what column 'unknown' names, are unknown"
            raise ValueError(f"no image of split '{split}' is known to lack a class: label some that do ({unknown})")
    if tested and len(targets["train"]) < 2:  # batch norm has no statistics of one image
        raise ValueError("1 image is left in split 'train', expected at least 2")
    return [*_uneven_classes(table.names, targets), *_similar_names(table.names), *_odd_labels(targets)]


def _uneven_classes(names, targets):
    present = {split: (of_split == 1).any(axis=0) for split, of_split in targets.items()}
    anywhere = np.any(list(present.values()), axis=0)
    counts, occurrence = graph.cooccurrence(targets["train"])
    alone = np.isin(np.arange(len(names)), graph.alone(counts, occurrence)) & counts.any()
    cases = [(~anywhere, "never positive in any split (nothing to learn, no score)")]
    cases += [(alone, "with no other in any image of split 'train' (nothing says which part of CGP they belong to)")]
    if len(present) > 1:  # with label statistics alone there is no other split to compare with
        cases += [
            (anywhere & ~present["train"], "never positive in split 'train' (it cannot be learned)"),
            (anywhere & ~present["test"], "never positive in split 'test' (left out of its mAP)"),
        ]
        for split, of_split in targets.items():
            what = "nothing to tell apart" if split == "train" else "its AP is 100 whatever a model says"
            always = present[split] & (of_split != 0).all(axis=0)
            cases.append((always, f"never absent in split '{split}' ({what})"))
    none = "no two classes occur in one image of split 'train': there is no co-occurrence to cut, and no CGP"
    notes = [] if counts.any() else [none]
    return notes + [
        f"{counted(mask.sum(), 'class', 'classes')} {text}: {listed(names[c] for c in np.flatnonzero(mask))}"
        for mask, text in cases
        if mask.any()
    ]


def _visible(name, form):
    """Return a name in a Unicode form ("NFC": é is one character; "NFKC": and ² is 2) without characters nobody sees."""
    return unicodedata.normalize(form, "".join(c for c in name if unicodedata.category(c) != "Cf"))


def _similar_names(names):
    same = defaultdict(list)
    for name in names:
        same["".join(_visible(name, "NFKC").split()).casefold()].append(name)
    return [
        f"classes {listed(map(repr, group))} differ only in case, spaces or Unicode form: are they one class?"
        for group in same.values()
        if len(group) > 1
    ]


def _odd_labels(targets):
    sentences = []
    for split, of_split in targets.items():
        empty, unknown = int((~(of_split == 1).any(axis=1)).sum()), int((of_split == -1).sum())
        if empty:
            which = f"{empty:,} of {len(of_split):,} images have no positive label"
            sentences.append(
                f"split '{split}': {which}: they hold none, or it is unknown (not labelled? split {UNLABELLED})"
            )
        if unknown:
            sentences.append(f"split '{split}': {unknown:,} of {of_split.size:,} labels are unknown and will be masked")
    return sentences
