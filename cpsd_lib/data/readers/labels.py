"""Labels without images: enough for the label graph and its partitions."""

import numpy as np

from cpsd_lib.data.readers import common
from cpsd_lib.data.table import LabelTable

FILE = "labels.npz"
WATCHED = (FILE,)  # files whose times tell that the data set changed
HOLDS = f"{FILE} (targets as np.packbits along classes, image_id, class_names)"


def read_labels(root):
    """Return the LabelledFiles of root/labels.npz, without paths: all images in split "train", classes in alphabetical order.

    The file holds targets uint8 [N, ceil(C / 8)] (np.packbits along classes), image_id [N] and class_names [C].
    Raises FileNotFoundError for a missing file, ValueError for arrays that do not fit together.
    """
    path = common.need_folder(root) / FILE
    packed, ids, names = common.read_arrays(path, ["targets", "image_id", "class_names"], HOLDS)
    ids, names = ids.astype(str).tolist(), names.astype(str).tolist()
    common.refuse_repeats(path, names, "class name")
    common.refuse_repeats(path, ids, "image id")
    width = -(-len(names) // 8)
    if packed.dtype != np.uint8 or packed.shape != (len(ids), width):
        raise ValueError(
            f"{path}: targets are {packed.dtype} {packed.shape}, expected uint8 ({len(ids)}, {width}) for {len(ids):,} "
            f"image ids and {len(names)} classes, as np.packbits(targets, axis=1) writes them"
        )
    bits = np.unpackbits(packed, axis=1)
    if bits[:, len(names) :].any():
        raise ValueError(f"{path}: targets have labels beyond the {len(names)} class names, expected as many of both")
    order = np.argsort(names, kind="stable")
    names, targets = [names[number] for number in order], bits[:, order].astype(np.int8)
    return common.LabelledFiles(LabelTable(names, targets, ids, np.full(len(ids), "train")), [])
