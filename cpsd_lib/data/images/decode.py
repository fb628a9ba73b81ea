"""One image file of any kind -> RGB pixels of a fixed size, or a plain reason why not."""

import errno
import os
import stat
import warnings
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError

MAX_PIXELS = 178_956_970  # where Pillow itself refuses
NO_FILE = "the file does not exist"
DECODE_VERSION = []  # [2] when a file first gets other pixels, then [3]: keys of photos follow

# Named, because Pillow would otherwise also hand PostScript to Ghostscript, whatever the file's extension says.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")

# How to turn the pixels of a photo upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The machine's trouble, not the file's: it must stop the work, not be remembered as a bad image.
_MACHINE = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}


class BadImage(Exception):
    """An image file that cannot be used; the message is the reason, without the file's name."""


def decode(picture, size, max_pixels=MAX_PIXELS):
    """Return a picture as uint8 [3, size, size]: upright (EXIF), RGB, both sides resized, nothing cropped.

    picture: the path of a file, a PIL image, or an array uint8 [H, W, 3] or [H, W]. The first frame of an animation;
    transparent parts become white; 16-bit grey is scaled to 8 bits. Raises BadImage for anything else, and for a file that
    is missing, unreadable, empty, truncated, no image, or larger than `max_pixels` (width x height).
    """
    try:
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        if isinstance(picture, Image.Image):
            return _pixels(picture, size)
        path = os.fspath(picture)
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise BadImage("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        if status.st_size == 0:
            raise BadImage("the file is empty (0 bytes)")
        with open(path, "rb") as file, _strict_pillow(max_pixels), Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadImage(f"gigantic: {width:,} x {height:,} pixels, more than max_pixels = {max_pixels:,}")
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 for less time (12 Mpx: 27 instead of 150 ms). That shrinks by a box
            # filter; with twice the target or more left for the real one (triangle), pixels differ by 0.5 levels on average.
            image.draft(image.mode, (2 * size, 2 * size))
            return _pixels(image, size)
    except (BadImage, MemoryError):
        raise
    except FileNotFoundError:
        raise BadImage(NO_FILE) from None
    except UnidentifiedImageError:
        raise BadImage(f"not an image of a kind that can be read ({', '.join(FORMATS)})") from None
    except Exception as error:  # a broken file can raise anything in Pillow: OSError, SyntaxError, struct.error, ...
        number = getattr(error, "errno", None)  # of the system; Pillow's own errors have none
        if number in _MACHINE:
            error.filename = getattr(picture, "filename", picture)
            raise
        reason = f"the file cannot be read ({error.strerror})" if number else None
        raise BadImage(reason or f"broken image ({str(error) or type(error).__name__})") from error


def decode_from(pictures, size, max_pixels, index):
    """Return pictures[index] as `decode` does; a functools.partial of it is what a cache loads by."""
    return decode(pictures[index], size, max_pixels)


@contextmanager
def _strict_pillow(max_pixels):
    # Someone else may have allowed truncated images in this process: Pillow would then pad them in grey, silently.
    # The size is checked here, with its own limit, so Pillow's warning and error about it are not needed. Texts and colour
    # profiles of a PNG, of which nothing is used, may take a byte for each pixel that is allowed; Pillow allows 1 MiB.
    saved = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    texts = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = (max(limit, max_pixels) for limit in texts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; what matters raises
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = saved
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = texts


def _pixels(image, size):
    image.load()  # what is broken in the pixels raises here; a PNG's EXIF may come after them
    image = _rgb(_upright(image))
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _upright(image):
    # Not ImageOps.exif_transpose: it writes all other EXIF anew, which fails for much that cameras and editors leave there.
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except MemoryError:
        raise
    except Exception:  # broken metadata, as of a broken file, can raise anything; it says nothing about the pixels
        turn = None
    return image if turn is None else image.transpose(turn)


def _rgb(image):
    if image.mode == "F":
        raise BadImage("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # I;16 and its byte orders, or 16 bits held in 32; convert("L") would clip at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise BadImage("its pixels have more than 16 bits; save it with 8 or 16 bits")
        image = Image.fromarray(np.round(grey / 257).astype(np.uint8))
    if image.has_transparency_data:
        # Under full transparency a file may hold any colour; what its author saw there was the page.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it: a tenth of decoding a JPEG
