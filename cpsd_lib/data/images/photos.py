"""Photos as somebody hands them over: files, folders and lists of paths -> files, a folder of them, pixels in batches."""

import os
import shutil
from contextlib import closing
from functools import partial
from itertools import chain, islice
from pathlib import Path

import numpy as np

from cpsd_lib.data.images.decode import MAX_PIXELS, decode_from
from cpsd_lib.data.images.pixels import OnTheFly, readable
from cpsd_lib.data.readers.common import PHOTOS, photos_below, read_names
from cpsd_lib.support import atomic, bar, counted, need_space


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
            files = photos_below(name, endings="")  # of any ending
            below = [path for path in files if path.name.lower().endswith(PHOTOS)]
            if not below:
                what = f"no image is in the folder {name} or below it ({counted(len(files), 'other file')})"
                raise ValueError(f"{what}; looked for {', '.join(PHOTOS)}")
            photos, others = photos + below, others + len(files) - len(below)
        elif name.suffix.lower() == ".txt":
            for line in read_names(name, "the path of a photo in each line"):
                beside = name.parent / line
                photos.append(beside if beside.exists() and not os.path.exists(line) else line)
        else:
            photos.append(name)
    return list(dict.fromkeys(map(os.fspath, photos))), others


def where_photos_go(paths, to, copy):
    """Return (the folder that file names start at, "link", "copy" or "" for photos that are in `to` already)."""
    images, base = to / "images", Path(os.path.commonpath([path.parent for path in paths]))
    if base.is_relative_to(images) or (base == to and not os.path.lexists(images)):
        return images if base.is_relative_to(images) else to, ""
    copied = [(path, images / path.relative_to(base)) for path in paths if copy and not images.is_symlink()]
    ours = copied or not os.path.lexists(images) or (not copy and images.resolve() == base.resolve())
    if not ours or any(new.exists() and new.stat().st_size != path.stat().st_size for path, new in copied):
        raise ValueError(f"{images} is there and is not these photos: remove it, or give another folder as --to")
    return base, "copy" if copy else "link"


def put_photos(paths, base, images, way):
    """Make the folder `images` a link to the folder `base`, or copy `paths` below `base` into it, by `where_photos_go`'s way."""
    if way == "link" and not os.path.lexists(images):
        try:
            images.symlink_to(base, target_is_directory=True)
        except OSError as error:
            raise OSError(f"no link {images} -> {base} can be made ({error}): give --copy") from None
    if way == "copy":
        need_space(images.parent, sum(path.stat().st_size for path in paths), "copies of the photos")
        with bar(len(paths), "copying", "photo") as progress:
            for path in paths:
                with atomic(images / path.relative_to(base)) as new:
                    shutil.copy2(path, new)
                progress.update(1)


def decode_batches(pictures, size, batch_size, workers=1):
    """Yield (indices [b], pixels uint8 [b, 3, size, size], {index: reason}) of a list of pictures, in order, batch by batch.

    What `decode` cannot read is in the dictionary. workers: processes, which need a script's `if __name__ == "__main__":`.
    """
    images = OnTheFly(partial(decode_from, pictures, size, MAX_PIXELS), len(pictures), size, workers)
    with closing(images):
        each = chain.from_iterable(images.in_chunks(readable, range(len(pictures))))
        while batch := list(islice(each, batch_size)):
            good = {index: pixels for index, pixels, reason in batch if reason is None}
            stacked = np.array([*good.values()], np.uint8).reshape(-1, 3, size, size)
            yield list(good), stacked, {index: reason for index, _, reason in batch if reason is not None}
