"""Many short names in a figure, fast: matplotlib lays out each text anew, about 1 ms each, and 80 classes need 160."""

from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from PIL import Image, ImageDraw, ImageFont

GAP = 7  # pixels from the middle of a point's mark to its name
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


class Names(Artist):
    """Names [n] beside data positions [n, 2] of an axis: all `side` "left" or "right", or "free", where there is room.

    With "free" the earlier names of the list have the first choice, and one without room is left out. `size` in points.
    """

    def __init__(self, axis, side, size, names=(), positions=()):
        super().__init__()
        self._axis, self._side, self._size = axis, side, size
        self.show(names, positions)
        self.set_zorder(5)
        axis.add_artist(self)

    def show(self, names, positions):
        """Replace the names; the next drawing of the figure shows these."""
        self._names, self._positions = names, np.reshape(positions, (-1, 2))

    def draw(self, renderer):
        """Draw each name as a picture that is kept from one drawing to the next."""
        pixels = renderer.points_to_pixels(self._size)
        pictures = [_picture(name, round(pixels, 1)) for name in self._names]
        anchors = self._axis.transData.transform(self._positions)
        sizes = [picture.shape[1::-1] for picture in pictures]
        if self._side == "free":
            corners = _where_free(sizes, anchors, self._axis.bbox)
        else:
            corners = [_beside(size, anchor)[self._side] for size, anchor in zip(sizes, anchors, strict=True)]
        context = renderer.new_gc()
        for picture, corner in zip(pictures, corners, strict=True):
            if corner is not None:
                # Agg takes the rows of a picture from the bottom up.
                renderer.draw_image(context, round(corner[0]), round(corner[1]), picture[::-1])
        context.restore()


def size_in_rows(inches, rows):
    """Return the size in points of names one below the other in so many inches; None where nobody could read them."""
    size = min(9, 0.9 * 72 * inches / rows)
    return size if size >= 4 else None


@lru_cache(4096)
def _picture(name, pixels):
    """Return a name as black RGBA uint8 [height, width, 4]."""
    font = _font(pixels)
    ascent, descent = font.getmetrics()
    ink = Image.new("L", (int(font.getlength(name)) + 2, ascent + descent))
    ImageDraw.Draw(ink).text((1, 0), name, 255, font)
    picture = np.zeros((ink.height, ink.width, 4), np.uint8)
    picture[..., 3] = np.asarray(ink)
    return picture


@lru_cache
def _font(pixels):
    return ImageFont.truetype(FONT, pixels)


def _beside(size, anchor):
    """Return the lower left corners {side: (x, y)} of a picture of this size beside a point, best first; pixels."""
    (width, height), (x, y) = size, anchor
    return {
        "right": (x + GAP, y - height / 2),
        "left": (x - GAP - width, y - height / 2),
        "above": (x - width / 2, y + GAP),
        "below": (x - width / 2, y - GAP - height),
    }


def _where_free(sizes, anchors, box):
    """Return a corner a picture, None where each side would cover a point or an earlier picture or leave the box."""
    taken = np.concatenate([anchors - GAP + 1, anchors + GAP - 1], axis=1)
    found = []
    for size, anchor in zip(sizes, anchors, strict=True):
        found.append(None)
        for low in _beside(size, anchor).values():
            high = np.add(low, size)
            covers = ((taken[:, :2] < high) & (low < taken[:, 2:])).all(1).any()
            if not covers and (low >= box.min).all() and (high <= box.max).all():
                taken = np.concatenate([taken, [[*low, *high]]])
                found[-1] = low
                break
    return found
