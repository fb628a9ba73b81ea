"""Labels without images: enough for the label graph and its partitions."""

import zipfile
from pathlib import Path

import numpy as np

from cpsd_lib.data.readers.common import LabelledFiles, need_folder, refuse_repeats
from cpsd_lib.data.table import LabelTable

FILE = "labels.npz"
HOLDS = f"{FILE} (targets as np.packbits along classes, image_id, class_names)"


def read_labels(root):
    """Return the LabelledFiles of root/labels.npz, without paths: all images in split "train", classes in alphabetical order.

    The file holds targets uint8 [N, ceil(C / 8)] (np.packbits along classes), image_id [N] and class_names [C].
    Raises FileNotFoundError for a missing file, ValueError for arrays that do not fit together.
    """
    path = need_folder(root) / FILE
    packed, ids, names = _load(path)
    refuse_repeats(path, names, "class name")
    refuse_repeats(path, ids, "image id")
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
    table = LabelTable(
        [names[number] for number in order], bits[:, order].astype(np.int8), ids, np.full(len(ids), "train")
    )
    return LabelledFiles(table, [])


def watched(root):
    """Return (label files, image folders) below `root` whose times tell that the data set changed."""
    return [Path(root) / FILE], []


def _load(path):
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            return found["targets"], found["image_id"].astype(str).tolist(), found["class_names"].astype(str).tolist()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}, expected {HOLDS}") from None
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]}; expected targets, image_id and class_names") from None
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}), expected {HOLDS}") from None
