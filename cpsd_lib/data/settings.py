"""Which labelled images, and how they are decoded: what the data room needs to know."""

from dataclasses import dataclass
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
    annotations: str = "annotations.csv"  # csv
    image_folder: str = "images"  # csv
    separator: Annotated[str, MinLen(1)] = ";"  # csv: what joins the class names of an image
    # csv: photos in the image folder that no line names; "unlabelled": students train on them too
    unnamed: Literal["ignore", "unlabelled"] = "ignore"
    difficult: bool = True  # voc2007: a class with difficult objects only is present; False: unknown, as VOC scores it
    # disk: every image is decoded once, size * size * 3 bytes each; none: at every look, for want of room on the disk
    cache: Literal["disk", "none"] = "disk"
    bad_files: Literal["error", "skip"] = "error"
    allow_overlap: bool = False  # True: images that stand in train and in test only warn
    max_pixels: Annotated[int, Ge(1)] = 178_956_970  # Pillow's own limit against decompression bombs
    # how many training images keep their labels: a number, or a share below 1; the others are unlabelled
    labelled: float | None = None
    limit: Annotated[int, Ge(20)] | None = None  # all but scenes: a seeded part of this many images, for a quick trial
