"""How many images and classes a data set has, before any image of it is looked at."""

from cpsd_lib.data import coco2014, nuswide, voc2007
from cpsd_lib.data.dataset import READERS
from cpsd_lib.data.scenes import Scenes
from cpsd_lib.param_files import blamed_on
from cpsd_lib.param_reading import data_on_disk

PUBLISHED = {  # images by split, classes
    "coco2014": (coco2014.LABELLED, len(coco2014.CLASSES)),
    "nuswide": (nuswide.LABELLED, nuswide.CONCEPTS),
    "voc2007": (voc2007.LISTED, len(voc2007.CLASSES)),
}


def images_of(data):
    """Return (training images, test images of all test splits, classes, where the numbers come from) of DataParams `data`.

    The published data sets need not be there; the label table of `csv` and `labels` must be, and readable (ParameterError).
    No image is decoded, so one that is missing or broken still counts.
    """
    if data.kind in PUBLISHED:
        counts, classes = PUBLISHED[data.kind]
        source = "the published data set's labelled images"
    else:
        if data.kind == "scenes":
            table, source = Scenes(data.images, data.size, data.seed, data.groups).table, "scenes are drawn"
        else:
            found = data_on_disk(data)  # the labels there say how many images this run has
            with blamed_on("data"):
                table = READERS[data.kind](found).table
            source = f"counted in {found.root}"
        counts, classes = {split: int((table.split == split).sum()) for split in set(table.split)}, len(table.names)
    total = sum(counts.values())
    if data.limit is not None and data.limit < total:
        counts = {split: max(1, round(data.limit * count / total)) for split, count in counts.items()}
        source += f", data.limit {data.limit:,}"
    return counts.get("train", 0), counts.get("test", 0) + counts.get("test_shifted", 0), classes, source
