"""Photos as somebody hands them over: files, folders and lists of paths -> files, and their pixels in batches."""

import os
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cpsd_lib.data.images.decode import FORMATS, BadImage, decode, decode_image
from cpsd_lib.data.images.pixels import OnTheFly
from cpsd_lib.support import counted


def find_photos(names):
    """Return (the photos that `names` stand for, each path once and as text; the number of other files in the folders).

    A folder stands for all image files below it, by their extension, in alphabetical order; a .txt file for the path in each
    of its lines, relative to the working folder or else to the file's own; any other file for itself. Hidden files are left
    out. Raises FileNotFoundError for a name that is not there, ValueError for a folder or list without a photo.
    """
    Image.init()
    suffixes = {suffix for suffix, kind in Image.EXTENSION.items() if kind in FORMATS}
    photos, others = {}, 0
    for name in map(os.fspath, names):
        if os.path.isdir(name):
            files = list(_files_below(name))
            of_name = [file for file in files if Path(file).suffix.lower() in suffixes]
            others += len(files) - len(of_name)
            what = f"no image is in the folder {name} or below it ({counted(len(files), 'other file')}); looked for "
            what += ", ".join(sorted(suffixes))
        elif not os.path.exists(name):
            raise FileNotFoundError(f"there is no file or folder {name}")
        elif name.lower().endswith(".txt"):
            of_name, what = _paths_in(Path(name)), f"the list {name} names no photo: write one path a line"
        else:
            of_name, what = [name], ""
        if not of_name:
            raise ValueError(what)
        photos |= dict.fromkeys(of_name)
    return list(photos), others


def _files_below(folder):
    def stop(error):
        raise error  # os.walk would leave the folder out without a word

    seen = set()
    for place, folders, files in os.walk(folder, onerror=stop, followlinks=True):  # people link their photos
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(one for one in folders if not one.startswith("."))
        yield from () if real in seen else (os.path.join(place, f) for f in sorted(files) if not f.startswith("."))
        seen.add(real)


def _paths_in(path):
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text file of paths ({error}); save it as UTF-8, one path a line") from None
    lines = [line.strip() for line in lines if line.strip()]
    beside = [str(path.parent / line) for line in lines]
    return [b if os.path.exists(b) and not os.path.exists(a) else a for a, b in zip(lines, beside, strict=True)]


def decode_picture(picture, size):
    """Return a path, a PIL image or an array [H, W, 3] or [H, W] as `decode` returns a file; BadImage for anything else."""
    if isinstance(picture, (str, os.PathLike)):
        return decode(picture, size)
    if isinstance(picture, np.ndarray):
        try:
            picture = Image.fromarray(picture)
        except (TypeError, ValueError):
            what = f"{picture.dtype} {list(picture.shape)}"
            raise BadImage(f"an array {what}, expected uint8 [H, W, 3] or [H, W]") from None
    if not isinstance(picture, Image.Image):
        raise BadImage(f"a {type(picture).__name__}, expected a path, a PIL image or an array [H, W, 3]")
    return decode_image(picture, size)


def decode_batches(pictures, size, batch_size, workers=1):
    """Yield (indices [b], pixels uint8 [b, 3, size, size], {index: reason}) of a list of pictures, in order, batch by batch.

    What cannot be read is in the dictionary and has no pixels. workers: processes, which work ahead; those of a script need
    its `if __name__ == "__main__":`. Raises what `decode_picture` raises but BadImage.
    """
    images = OnTheFly(partial(_decode_one, pictures, size), len(pictures), size, workers)
    indices, pixels, bad = [], [], {}
    with closing(images), closing(images.in_chunks(_readable, range(len(pictures)))) as chunks:
        for good, of_chunk, bad_of_chunk in chunks:
            indices, pixels, bad = indices + good, pixels + of_chunk, bad | bad_of_chunk
            while len(pixels) >= batch_size:
                yield indices[:batch_size], np.stack(pixels[:batch_size]), bad
                indices, pixels, bad = indices[batch_size:], pixels[batch_size:], {}
    if pixels or bad:
        yield indices, np.stack(pixels) if pixels else np.empty((0, 3, size, size), np.uint8), bad


def _decode_one(pictures, size, index):
    return decode_picture(pictures[index], size)


def _readable(load, indices):
    good, pixels, bad = [], [], {}
    for index in indices:
        try:
            pixels.append(load(index))
            good.append(index)
        except BadImage as error:
            bad[index] = str(error)
    return good, pixels, bad
