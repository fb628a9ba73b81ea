"""Photos as somebody hands them over: files, folders and lists of paths -> files, and their pixels in batches."""

import os
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from cpsd_lib.data.images.decode import MAX_PIXELS, decode_from
from cpsd_lib.data.images.pixels import OnTheFly, readable
from cpsd_lib.data.readers.common import PHOTOS, photos_below, read_names
from cpsd_lib.support import counted


def find_photos(names):
    """Return (the photos that `names` stand for, each path once and as text; the number of other files in the folders).

    A folder stands for all photos below it, by their extension, in alphabetical order; a .txt file for the path in each of
    its lines, relative to the working folder or else to the file's own; any other file for itself. Hidden files are left
    out. Raises FileNotFoundError for a name that is not there, ValueError for a folder or list without a photo.
    """
    photos, others = [], 0
    for name in map(Path, names):
        if not name.exists():
            raise FileNotFoundError(f"there is no file or folder {name}")
        if name.is_dir():
            below, files = photos_below(name), (path for path in name.rglob("*") if path.is_file())
            shown = [path for path in files if not any(part[0] == "." for part in path.relative_to(name).parts)]
            rest = sum(path.suffix.lower() not in PHOTOS for path in shown)
            if not below:
                what = f"no image is in the folder {name} or below it ({counted(rest, 'other file')})"
                raise ValueError(f"{what}; looked for {', '.join(PHOTOS)}")
            photos, others = photos + below, others + rest
        elif name.suffix.lower() == ".txt":
            for line in read_names(name, "the path of a photo in each line"):
                beside = name.parent / line
                photos.append(beside if beside.exists() and not os.path.exists(line) else line)
        else:
            photos.append(name)
    return list(dict.fromkeys(map(os.fspath, photos))), others


def decode_batches(pictures, size, batch_size, workers=1):
    """Yield (indices [b], pixels uint8 [b, 3, size, size], {index: reason}) of a list of pictures, in order, batch by batch.

    pictures: as `decode` takes one. What cannot be read is in the dictionary and has no pixels. workers: processes, which
    work ahead; those of a script need its `if __name__ == "__main__":`. Raises what `decode` raises but BadImage.
    """
    images = OnTheFly(partial(decode_from, pictures, size, MAX_PIXELS), len(pictures), size, workers)
    with closing(images):
        each = chain.from_iterable(images.in_chunks(readable, range(len(pictures))))
        while batch := list(islice(each, batch_size)):
            good = {index: pixels for index, pixels, reason in batch if reason is None}
            stacked = np.array([*good.values()], np.uint8).reshape(-1, 3, size, size)
            yield list(good), stacked, {index: reason for index, _, reason in batch if reason is not None}
