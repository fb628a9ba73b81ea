"""Which labelled images, and how they are decoded: what the data room needs to know."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSettings:
    """A data set by its kind and folder; what else counts depends on the kind."""

    kind: str  # scenes, csv, coco2014, nuswide, voc2007 or labels
    root: str | None = None  # the folder all but scenes are read from
    size: int = 64  # pixels, both sides
    images: int = 6000  # scenes: how many to draw
    groups: int = 4  # scenes: planted groups
    seed: int = 0  # scenes: which world; others: which images `limit` keeps
    annotations: str = "annotations.csv"  # csv
    image_folder: str = "images"  # csv
    separator: str = ";"  # csv: what joins the class names of an image
    # voc2007: a class with difficult objects only is present; False: unknown, as VOC scores it; or {"train": ..., "test": ...}
    difficult: bool | dict[str, bool] = True
    # disk: every image is decoded once, size * size * 3 bytes each; none: at every look, for want of room on the disk
    cache: str = "disk"
    bad_files: str = "error"  # or "skip"
    allow_overlap: bool = False  # True: images that stand in train and in test only warn
    max_pixels: int = 178_956_970  # Pillow's own limit against decompression bombs
    limit: int | None = None  # all but scenes: a seeded part of this many images, for a quick trial
