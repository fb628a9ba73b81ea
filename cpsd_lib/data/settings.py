"""Which labelled images, and how they are decoded: what the data room needs to know."""

import re
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from annotated_types import Ge, Interval, MinLen


@dataclass(frozen=True)
class DataSettings:
    """A data set by its kind and folder; what else counts depends on the kind.

    Nothing here checks the ranges; pydantic reads them where parameters come from a file.
    """

    kind: Literal["scenes", "csv", "coco2014", "nuswide", "voc2007", "labels"]
    size: Annotated[int, Interval(ge=16, le=2048)] = 64  # pixels, both sides
    images: Annotated[int, Interval(ge=100, le=1_000_000)] = 6000  # scenes: how many to draw
    groups: Annotated[int, Interval(ge=2, le=4)] = 4  # scenes: planted groups
    seed: Annotated[int, Interval(ge=0, le=2**31)] = 0  # scenes: which world; others: which images `limit` keeps
    root: str | None = None  # the folder all but scenes are read from
    annotations: str = "annotations.csv"  # csv: the table of labels, in root
    image_folder: str = "images"  # csv: the folder of photos, in root
    separator: Annotated[str, MinLen(1)] = ";"  # csv: what joins the class names of an image
    # csv: photos in the image folder that no line names; "unlabelled": students train on them too
    unnamed: Literal["ignore", "unlabelled"] = "ignore"
    # voc2007: a class with difficult objects only is present; False: unknown, as VOC scores it; or {"train": ..., "test": ...}
    difficult: bool | dict[str, bool] = True
    # disk: every image is decoded once, size * size * 3 bytes each; none: at every look, for want of room on the disk
    cache: Literal["disk", "none"] = "disk"
    bad_files: Literal["error", "skip"] = "error"  # missing or unreadable photos: stop, or leave them out and say so
    allow_overlap: bool = False  # True: images that stand in train and in test only warn
    max_pixels: Annotated[int, Ge(1)] = 178_956_970  # Pillow's own limit against decompression bombs
    # how many training images keep their labels: a number, or a share below 1; the others are unlabelled
    labelled: float | None = None
    limit: Annotated[int, Ge(20)] | None = None  # all but scenes: a seeded part of this many images, for a quick trial


def _option(text, default=None, kinds=""):
    return field(default=default, metadata={"help": f"{kinds}: {text}".removeprefix(": "), "kinds": kinds})


@dataclass(frozen=True)
class ImportSettings:
    """Labels as they are, how to read them, and what becomes of them: the options of `cpsd data import`.

    Raises ValueError for an option that the kind does not have, and for a value that it cannot have.
    """

    source: str  # a file or a folder
    to: str
    kind: str  # table, coco, voc or folders
    file: str | None = _option("the column of file names (default: the first)", kinds="table")
    labels: str | None = _option("the column of class names, joined by --separator or lists", kinds="table")
    separator: str = _option("what joins class names (default: ;)", ";", "table")
    columns: str | None = _option("FIRST:LAST, one a class, of 0 and 1 or of -1 and 1; blank is unknown", kinds="table")
    suffix: str = _option("what file names lack, such as .jpg", "", "table, coco, voc")
    none: str | None = _option("the class that says that there is none, such as 'No Finding'")
    no_crowd: bool = _option("objects marked as a crowd do not count", False, "coco")
    photos: str | None = _option("the folder of the photos (default: that of the labels)", kinds="table, coco, voc")
    unlabelled: str | None = _option("a folder of more photos, for split unlabelled")
    split: str | None = _option(
        "column:NAME, files (lists, label files or folders named train, val, test) or random:SHARE (default: the first "
        "of these that there is; random:0.2)"
    )
    group: str | None = _option("a column: photos of one patient, or scene, stay in one split", kinds="table, coco")
    seed: int = _option("of a random split (default: 0)", 0)
    copy: bool = _option("copy the photos, do not link to them", False)

    def __post_init__(self):
        if self.kind not in ("table", "coco", "voc", "folders"):
            raise ValueError(f"--kind {self.kind}: expected table, coco, voc or folders")
        for option in fields(self)[3:]:
            kinds = option.metadata["kinds"]
            if kinds and self.kind not in kinds and getattr(self, option.name) != option.default:
                raise ValueError(f"--{option.name.replace('_', '-')} is for --kind {kinds}, not {self.kind}")
        if not self.separator:
            raise ValueError("--separator is empty, expected what joins class names")
        if not re.fullmatch(r"column(:.+)?|files|random(:0?\.\d*[1-9]\d*)?", self.split or "files"):
            raise ValueError(
                f"--split {self.split}: expected column:NAME, files, or random:SHARE, a share below 1 as in random:0.2"
            )

    @property
    def split_by(self):
        """("column", its name), ("files", ""), ("random", the share of test) or ("", "")."""
        how, _, what = (self.split or "").partition(":")
        return how, what
