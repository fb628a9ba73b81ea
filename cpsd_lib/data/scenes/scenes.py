"""The embedded data set: small scenes of twenty drawn things in planted groups, made from a seed, nothing downloaded.

Things of one group co-occur; small, blurred and hidden ones are hard to recognise without that. In the split
`test_shifted` co-occurrence is broken up while every class and every picture keeps its number of labels, so what a model
loses there is what it owed to co-occurrence.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np

from cpsd_lib.data.scenes import shapes
from cpsd_lib.data.table import LabelTable

GENERATOR_VERSION = 1  # raise it with any change that alters a label or a pixel: caches are keyed by it

# Four groups of five, the most frequent first: street, kitchen, harbour, farm.
DRAW = (
    *(shapes.car, shapes.house, shapes.lamp, shapes.sign, shapes.bicycle),
    *(shapes.plate, shapes.bowl, shapes.bottle, shapes.spoon, shapes.carrot),
    *(shapes.boat, shapes.gull, shapes.buoy, shapes.fish, shapes.lighthouse),
    *(shapes.sheep, shapes.barn, shapes.sunflower, shapes.tractor, shapes.pitchfork),
)
NAMES = [draw.__name__ for draw in DRAW]
FREE_TURN = {"plate", "spoon", "carrot", "gull", "fish"}  # things that lie or fly at any angle; the others stand

LABELS_PER_IMAGE = (0.2, 0.35, 0.27, 0.13, 0.05)  # share of images with 1, 2, ... labels: 2.5 on average
GROUP_RATIO, CLASS_RATIO = 0.65, 0.64  # each group, and each class of a group of five, against the one before it
STRAY = 0.04  # weight of a class outside its group: about one label in seven is a stray


@dataclass(frozen=True)
class Scenes:
    """Generated pictures [3,size,size] with labels from `groups` planted groups; ranges as in DataSettings."""

    images: int = 6000
    size: int = 64
    seed: int = 0
    groups: int = 4

    paths, notes = (), ()  # nothing lies on a disk, and nothing is wrong with it

    @property
    def table(self) -> LabelTable:
        """Labels [images,20] of the splits train (60 %), test (20 %) and test_shifted (20 %); a fresh copy at each call."""
        tests, targets = self.images // 5, _labels(self.images, self.seed, self.groups).copy()
        split = np.repeat(["train", "test", "test_shifted"], [self.images - 2 * tests, tests, tests])
        return LabelTable(list(NAMES), targets, [f"scene-{i:05d}" for i in range(self.images)], split)

    @property
    def groups_of_classes(self) -> list[int]:
        """Planted group of each class [20]."""
        return _groups_of_classes(self.groups).tolist()

    @property
    def key(self) -> str:
        """Hash of the parameters and of the generator's version, for a cache."""
        text = f"scenes {GENERATOR_VERSION} {self.images} {self.size} {self.seed} {self.groups}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def load(self, i: int) -> np.ndarray:
        """Picture i, uint8 [3,size,size]: the same bytes in any process and any order."""
        return self._draw(i)[0]

    def boxes(self, i: int) -> list[tuple[int, int, int, int, int]]:
        """Visible extent of every drawn thing in picture i: (class, x0, y0, x1, y1) in pixels, x1 and y1 exclusive."""
        return self._draw(i)[1]

    def _draw(self, i):
        classes = np.flatnonzero(_labels(self.images, self.seed, self.groups)[i])
        for attempt in count():  # about one picture in 70 hides a thing too well and is drawn again
            scene = _compose(np.random.default_rng([self.seed, i, attempt]), self.size, classes)
            if scene is not None:
                return scene


def _groups_of_classes(groups):
    return np.repeat(np.arange(groups), [len(part) for part in np.array_split(NAMES, groups)])


@lru_cache(maxsize=8)  # a worker process gets the four parameters only and draws the labels once: 6,000 in 20 ms
def _labels(images, seed, groups):
    """Targets int8 [images,20], read-only; the last fifth is the fifth before it with its co-occurrence broken up."""
    rng = np.random.default_rng([seed, 2**32 - 1])
    group = _groups_of_classes(groups)
    members = np.bincount(group)
    rank = np.concatenate([np.arange(n) * 5 / n for n in members])  # the same tail whatever the size of a group
    popularity = GROUP_RATIO ** np.arange(groups)
    main = rng.choice(groups, images, p=popularity / popularity.sum())
    weight = CLASS_RATIO**rank * np.where(group == main[:, None], 1.0, STRAY)
    # The n largest of log weight + Gumbel noise are n draws without replacement with these weights.
    score = np.log(weight) + rng.gumbel(size=weight.shape)
    labels = rng.choice(len(LABELS_PER_IMAGE), images, p=LABELS_PER_IMAGE) + 1
    order = np.argsort(np.argsort(-score, axis=1), axis=1)
    targets = (order < labels[:, None]).astype(np.int8)
    tests = images // 5
    targets[-tests:] = _break_up(rng, targets[-2 * tests : -tests])
    targets.flags.writeable = False
    return targets


def _break_up(rng, targets, rounds=60):
    """Random table with the same row sums and the same column sums.

    Pairs of rows trade the classes that only one of them has, many times over: the curveball algorithm (Strona et al.,
    2014). 20 rounds already level the groups (co-occurrence 0.8 of chance inside and across); 60 cost 10 ms.
    """
    targets = targets.copy()
    for _ in range(rounds):
        left, right = rng.permutation(len(targets))[: len(targets) // 2 * 2].reshape(2, -1)
        a, b = targets[left], targets[right]
        free = a != b
        lot = np.where(free, rng.random(a.shape), 2.0)  # shared and absent classes come last: not traded
        keep = np.argsort(np.argsort(lot, axis=1), axis=1) < (a & free).sum(axis=1, keepdims=True)
        targets[left] = np.where(free, keep, a)
        targets[right] = np.where(free, ~keep, b)
    return targets


def _compose(rng, size, classes):
    """One picture and its boxes, or None when a thing shows less than 40 % of itself. Clutter knows nothing of the classes."""
    canvas = _background(rng, size)
    owner = np.full((size, size), -1, np.int16)
    for _ in range(rng.integers(2, 6)):
        _paste(rng, canvas, owner, -1, shapes.clutter, rng.uniform(0, size, 2), size * rng.uniform(0.06, 0.25), 3.14)
    things = rng.permutation(np.concatenate([classes, classes[rng.random(len(classes)) < 0.15]]))
    whole, placed = [], []
    for number, c in enumerate(things):
        radius = size * 0.1 * 3.0 ** rng.random() ** 1.2  # 0.10 to 0.30 of the picture, small ones more often
        centres = rng.uniform(0.1, 0.9, (4, 2)) * size
        gaps = [min((np.hypot(*(xy - other)) - radius - r for other, r in placed), default=0) for xy in centres]
        centre = centres[int(np.argmax(gaps))]  # the freest of four places: overlap stays, but partly
        placed.append((centre, radius))
        turn = 3.14 if NAMES[c] in FREE_TURN else 0.3
        whole.append(_paste(rng, canvas, owner, number, DRAW[c], centre, radius, turn))
    for _ in range(rng.integers(0, 3)):  # something stands in front
        _paste(rng, canvas, owner, -1, shapes.clutter, rng.uniform(0, size, 2), size * rng.uniform(0.06, 0.16), 3.14)
    boxes = []
    for number, c in enumerate(things):
        ys, xs = np.nonzero(owner == number)
        if len(ys) == 0 or len(ys) < 0.4 * whole[number]:
            return None
        boxes.append((int(c), int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    canvas += rng.uniform(0.01, 0.05) * rng.standard_normal(canvas.shape, np.float32)
    return np.clip(canvas * 255 + 0.5, 0, 255).astype(np.uint8), boxes


def _paste(rng, canvas, owner, number, draw, centre, radius, turn):
    """Draw one thing, maybe blurred or pale, and return its number of pixels (those it covers by 30 % or more)."""
    size = canvas.shape[1]
    blur = size / 64 * rng.uniform(1, 5) if rng.random() < 0.4 else 0.0
    opacity = rng.uniform(0.4, 0.8) if rng.random() < 0.35 else 1.0
    patch = shapes.Patch(size, centre, radius, rng.uniform(-turn, turn), rng.random() < 0.5, max(1.0, blur))
    draw(patch, rng)
    rows, columns = patch.area
    below = canvas[:, rows, columns]
    below += np.float32(opacity) * (patch.colour - patch.alpha * below)
    inside = patch.alpha >= 0.3
    owner[patch.area][inside] = number
    return int(inside.sum())


def _background(rng, size):
    """Two colours that meet at a soft horizon, clouds and, in one picture of three, faint stripes [3,size,size]."""
    t = (np.arange(size, dtype=np.float32) + 0.5) / size
    top, bottom = (shapes.hue(rng, saturation=(0.05, 0.45), value=(0.3, 0.9))[:, None, None] for _ in range(2))
    angle = rng.uniform(0, 6.28)
    along = np.float32(np.sin(angle)) * t[None, :] + np.float32(np.cos(angle)) * t[:, None]
    ground = 1 / (1 + np.exp(-(along - rng.uniform(-0.5, 1)) * rng.uniform(2, 30)))
    cells = rng.integers(3, 9)
    cloud = _stretch(_stretch(rng.standard_normal((4, cells, cells), np.float32), t).swapaxes(1, 2), t)
    cloud = cloud[3] + 0.4 * cloud[:3]  # more light and shade than colour
    stripes = rng.uniform(0.02, 0.07) * np.sin(along * rng.uniform(10, 70)) if rng.random() < 0.3 else 0.0
    return (top + (bottom - top) * ground + rng.uniform(0.02, 0.09) * cloud + stripes).astype(np.float32)


def _stretch(grid, t):
    """Linear interpolation along the last axis at the points t in [0,1]."""
    at = t * (grid.shape[-1] - 1)
    low = at.astype(int)
    return grid[..., low] + (at - low) * (grid[..., low + 1] - grid[..., low])
