"""Drawing for `scenes`: signed distances with soft edges, twenty recognisable things, and clutter that is none of them.

A thing is a function (patch, rng) that fills the patch's unit disc, y down. A distance is negative inside the shape, in
units of the thing's radius, so blur is only a wider edge and rotation only another pair of coordinates.
"""

import colorsys

import numpy as np

RED, ORANGE, YELLOW, GREEN, CYAN, BLUE, PURPLE = 0.0, 0.07, 0.14, 0.33, 0.5, 0.6, 0.78
WHITE, DARK = np.float32([0.95, 0.94, 0.9]), np.float32([0.16, 0.16, 0.2])
WOOD = np.float32([0.55, 0.38, 0.22])


class Patch:
    """A small picture [3,h,w] with alpha [h,w], cut out of a square canvas around one thing; fills paint over each other."""

    def __init__(self, size, centre, radius, angle=0.0, flip=False, edge=1.0):
        reach = radius * 1.08 + edge
        low, high = [np.clip([int(c + s * reach) + (s > 0) for c in centre], 0, size) for s in (-1, 1)]
        self.area = (slice(low[1], high[1]), slice(low[0], high[0]))
        dx = (np.arange(low[0], high[0], dtype=np.float32) + 0.5 - centre[0])[None, :] / radius
        dy = (np.arange(low[1], high[1], dtype=np.float32) + 0.5 - centre[1])[:, None] / radius
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        self.x = (cos * dx + sin * dy) * (-1 if flip else 1)
        self.y = cos * dy - sin * dx
        self.sharpness = np.float32(radius / edge)  # 1 / width of the edge, in units of the radius
        self.light = 1.06 - 0.2 * self.y  # lit from above
        self.colour = np.zeros((3, *self.x.shape), np.float32)
        self.alpha = np.zeros(self.x.shape, np.float32)

    def fill(self, distance, colour, texture=None, outline=0.4):
        """Paint `colour` [3] where `distance` [h,w] < 0; `texture` [h,w] around 0 brightens or darkens it."""
        cover = np.clip(0.5 - distance * self.sharpness, 0, 1)
        tone = self.light * (1 - outline * np.clip(1 + distance * 9, 0, 1))  # darker rim, 1/9 of the radius wide
        if texture is not None:
            tone = tone * (1 + texture)
        self.alpha += cover * (1 - self.alpha)
        self.colour += cover * (np.asarray(colour, np.float32)[:, None, None] * tone - self.colour)

    # Signed distances [h,w] in the thing's own coordinates.
    def disc(self, cx, cy, r):
        return np.hypot(self.x - cx, self.y - cy) - r

    def oval(self, cx, cy, rx, ry):
        return (np.hypot((self.x - cx) / rx, (self.y - cy) / ry) - 1) * min(rx, ry)

    def box(self, cx, cy, hx, hy):
        return np.maximum(np.abs(self.x - cx) - hx, np.abs(self.y - cy) - hy)

    def ring(self, cx, cy, r, half):
        return np.abs(self.disc(cx, cy, r)) - half

    def bar(self, x0, y0, x1, y1, half):
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((self.x - x0) * dx + (self.y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        return np.hypot(self.x - x0 - along * dx, self.y - y0 - along * dy) - half

    def polygon(self, *corners):
        """Convex, corners clockwise on the screen."""
        distance = None
        for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
            length = np.hypot(x1 - x0, y1 - y0)
            side = ((self.x - x0) * (y1 - y0) - (self.y - y0) * (x1 - x0)) / length
            distance = side if distance is None else np.maximum(distance, side)
        return distance

    def trapezoid(self, top, top_half, bottom, bottom_half):
        """Upright and symmetric: half as wide as `top_half` at y = top, as `bottom_half` at y = bottom."""
        return self.polygon((-top_half, top), (top_half, top), (bottom_half, bottom), (-bottom_half, bottom))

    def stripes(self, kx, ky, depth=0.2):
        return depth * np.sin(kx * self.x + ky * self.y)

    def dots(self, k, depth=0.25):
        return depth * np.sin(k * self.x) * np.sin(k * self.y)


def hue(rng, *hues, saturation=(0.5, 0.9), value=(0.55, 0.95)):
    """One of the hues, jittered, with a random saturation and value [3]; no hues = any hue."""
    h = hues[rng.integers(len(hues))] + rng.uniform(-0.035, 0.035) if hues else rng.random()
    return np.array(colorsys.hsv_to_rgb(h % 1, rng.uniform(*saturation), rng.uniform(*value)), np.float32)


def grey(rng, low=0.3, high=0.75):
    return np.float32(rng.uniform(low, high)) * np.float32([0.98, 1, 1.03])


def pale(rng):
    return hue(rng, saturation=(0.02, 0.18), value=(0.8, 0.98))


def glass(rng):
    return hue(rng, CYAN, BLUE, saturation=(0.1, 0.4))


# Pairs from different groups that look alike when small or blurred, so that co-occurrence decides: boat-bowl, lighthouse-bottle,
# buoy-sign-plate-sunflower, car-tractor, house-barn, lamp-spoon-pitchfork, fish-carrot, gull-sheep (both pale).


def car(p, rng):
    body = hue(rng, RED, YELLOW, GREEN, BLUE, PURPLE)
    p.fill(p.polygon((-0.45, -0.5), (0.3, -0.5), (0.62, 0.02), (-0.7, 0.02)), body)
    p.fill(p.polygon((-0.38, -0.38), (-0.05, -0.38), (-0.05, -0.02), (-0.55, -0.02)), glass(rng))
    p.fill(p.polygon((0.05, -0.38), (0.24, -0.38), (0.48, -0.02), (0.05, -0.02)), glass(rng))
    p.fill(p.box(0, 0.18, 0.94, 0.22), body, p.stripes(0, 9, 0.08))
    for x in (-0.52, 0.52):
        p.fill(p.disc(x, 0.42, 0.26), DARK)
        p.fill(p.disc(x, 0.42, 0.11), grey(rng, 0.6, 0.9))


def house(p, rng):
    wall = hue(rng, RED, ORANGE, YELLOW, BLUE, saturation=(0.15, 0.6))
    bricks = 0.18 * np.sign(np.sin(16 * p.y)) * np.sign(np.sin(11 * p.x))
    p.fill(p.box(0, 0.3, 0.6, 0.5), wall, bricks)
    p.fill(p.polygon((0, -0.8), (0.82, -0.12), (-0.82, -0.12)), hue(rng, RED, ORANGE, BLUE), p.stripes(0, 20, 0.12))
    p.fill(p.box(-0.25, 0.5, 0.15, 0.3), WOOD * rng.uniform(0.6, 1.2))
    p.fill(p.box(0.27, 0.3, 0.17, 0.17), hue(rng, YELLOW, CYAN, saturation=(0.2, 0.6), value=(0.8, 1)))


def lamp(p, rng):
    post = grey(rng, 0.15, 0.5)
    p.fill(p.box(0, 0.2, 0.07, 0.75), post)
    p.fill(p.box(0, 0.88, 0.24, 0.08), post)
    p.fill(p.trapezoid(-0.86, 0.3, -0.38, 0.17), hue(rng, YELLOW, saturation=(0.2, 0.7), value=(0.85, 1)))
    p.fill(p.polygon((0, -1.0), (0.34, -0.8), (-0.34, -0.8)), post)


def sign(p, rng):
    p.fill(p.box(0, 0.6, 0.06, 0.4), grey(rng))
    p.fill(p.disc(0, -0.24, 0.66), hue(rng, RED, RED, BLUE), outline=0.1)
    if rng.random() < 0.5:
        p.fill(p.box(0, -0.24, 0.44, 0.14), WHITE, outline=0)
    else:
        p.fill(p.disc(0, -0.24, 0.42), WHITE, outline=0)
        p.fill(p.box(0, -0.24, 0.08, 0.28), DARK, outline=0)


def bicycle(p, rng):
    frame, tyre = hue(rng), grey(rng, 0.1, 0.35)
    for x in (-0.53, 0.53):
        p.fill(p.ring(x, 0.28, 0.36, 0.06), tyre)
    for line in ((-0.53, 0.28, -0.15, -0.28), (-0.15, -0.28, 0.35, -0.28), (-0.15, -0.28, 0.02, 0.28), (0.02, 0.28, 0.35, -0.28),
                 (-0.53, 0.28, 0.02, 0.28), (0.53, 0.28, 0.3, -0.5)):  # fmt: skip
        p.fill(p.bar(*line, 0.05), frame, outline=0.1)
    p.fill(p.bar(-0.28, -0.38, -0.05, -0.38, 0.06), DARK)
    p.fill(p.bar(0.2, -0.52, 0.48, -0.52, 0.05), DARK)


def plate(p, rng):
    rim = hue(rng) if rng.random() < 0.6 else pale(rng)
    squash = rng.uniform(0.75, 1)
    for r, colour in ((0.9, pale(rng)), (0.76, rim), (0.62, pale(rng))):
        p.fill(p.oval(0, 0, r, r * squash), colour, outline=0.25)
    if rng.random() < 0.4:  # something is left on it
        p.fill(p.oval(*rng.uniform(-0.15, 0.15, 2), 0.26, 0.2), hue(rng, RED, YELLOW, GREEN))


def bowl(p, rng):
    clay = hue(rng, RED, ORANGE, BLUE, CYAN, saturation=(0.2, 0.85))
    p.fill(p.box(0, 0.58, 0.34, 0.1), clay * 0.7)
    p.fill(np.maximum(p.disc(0, -0.3, 0.92), -0.22 - p.y), clay, p.dots(11, 0.2))
    p.fill(p.oval(0, -0.22, 0.9, 0.17), hue(rng, ORANGE, YELLOW, GREEN, value=(0.3, 0.8)))


def bottle(p, rng):
    tint = hue(rng, GREEN, GREEN, ORANGE, RED, BLUE, saturation=(0.3, 0.9), value=(0.35, 0.85))
    p.fill(p.box(0, -0.6, 0.13, 0.35), tint)
    p.fill(p.trapezoid(-0.42, 0.13, -0.1, 0.34), tint)
    p.fill(p.box(0, 0.4, 0.34, 0.54), tint, 0.35 * np.exp(-(((p.x + 0.17) / 0.08) ** 2)))  # a gloss down one side
    p.fill(p.box(0, 0.36, 0.34, 0.22), pale(rng), outline=0.1)
    p.fill(p.box(0, -0.88, 0.16, 0.09), hue(rng))


def spoon(p, rng):
    metal = grey(rng, 0.55, 0.9) if rng.random() < 0.6 else WOOD * rng.uniform(0.8, 1.4)
    p.fill(p.bar(0, -0.1, 0, 0.9, 0.075), metal)
    p.fill(p.oval(0, -0.52, 0.3, 0.44), metal)
    p.fill(p.oval(0.03, -0.5, 0.19, 0.31), metal * 0.75, 0.25 * p.x, outline=0)


def carrot(p, rng):
    for lean in (-0.3, 0.0, 0.3):
        p.fill(p.bar(-0.5, 0, -0.92, lean, 0.08), hue(rng, GREEN, value=(0.4, 0.8)))
    root = p.polygon((-0.55, -0.32), (-0.3, -0.32), (0.95, -0.03), (0.95, 0.03), (-0.3, 0.32), (-0.55, 0.32))
    p.fill(root, hue(rng, ORANGE, ORANGE, RED, PURPLE), p.stripes(17, 0, 0.16))


def boat(p, rng):
    paint = hue(rng, RED, ORANGE, BLUE, CYAN, saturation=(0.2, 0.85))
    if rng.random() < 0.75:  # the others have no sail up, and then a hull is nearly a bowl
        p.fill(p.bar(-0.02, -0.92, -0.02, 0.3, 0.045), WOOD)
        p.fill(p.polygon((0.06, -0.88), (0.74, 0.06), (0.06, 0.06)), pale(rng), p.stripes(14, 0, 0.07), outline=0.2)
        p.fill(p.polygon((-0.1, -0.66), (-0.1, 0.06), (-0.52, 0.06)), pale(rng), outline=0.2)
    p.fill(np.maximum(p.oval(0, 0.12, 0.95, 0.62), 0.14 - p.y), paint, p.stripes(0, 22, 0.16))
    p.fill(p.box(0, 0.2, 0.88, 0.06), pale(rng), outline=0.1)


def gull(p, rng):
    feather = grey(rng, 0.78, 1.0)
    for side in (-1, 1):
        wing = np.maximum(p.disc(side * 0.48, 0.22, 0.52), -p.disc(side * 0.5, 0.42, 0.52))
        p.fill(wing, feather * 0.9, p.stripes(13, 0, 0.1), outline=0.25)
        p.fill(p.disc(side * 0.93, 0.2, 0.1), DARK, outline=0)
    p.fill(p.oval(0, 0.08, 0.18, 0.36), feather)
    p.fill(p.polygon((-0.07, -0.3), (0, -0.5), (0.07, -0.3)), hue(rng, ORANGE, YELLOW), outline=0.1)


def buoy(p, rng):
    paint = hue(rng, RED, RED, ORANGE, YELLOW)
    p.fill(p.box(0, -0.75, 0.07, 0.24), DARK)
    p.fill(p.disc(0, 0.14, 0.72), paint, outline=0.3)
    p.fill(np.maximum(p.disc(0, 0.14, 0.7), np.abs(p.y - 0.12) - 0.18), WHITE, outline=0)
    p.fill(p.box(0, -0.92, 0.16, 0.08), paint)


def fish(p, rng):
    scales = hue(rng, ORANGE, ORANGE, RED, CYAN, BLUE, saturation=(0.2, 0.85))
    p.fill(p.polygon((0.38, 0), (0.92, -0.42), (0.92, 0.42)), scales * 0.8)
    p.fill(p.polygon((-0.1, -0.3), (0.1, -0.55), (0.3, -0.2)), scales * 0.7)
    p.fill(p.oval(-0.2, 0, 0.72, 0.38), scales, p.dots(15, 0.2))
    p.fill(p.disc(-0.6, -0.08, 0.1), WHITE, outline=0)
    p.fill(p.disc(-0.6, -0.08, 0.05), DARK, outline=0)


def lighthouse(p, rng):
    paint = hue(rng, RED, RED, BLUE, GREEN, saturation=(0.4, 0.9))
    bands = np.sin(8.5 * p.y + rng.uniform(0, 3)) > 0
    p.fill(p.trapezoid(-0.5, 0.2, 0.94, 0.38), WHITE)
    p.colour[:, bands] *= (paint / WHITE)[:, None]
    p.fill(p.box(0, -0.52, 0.32, 0.06), DARK)
    p.fill(p.box(0, -0.7, 0.17, 0.14), hue(rng, YELLOW, value=(0.9, 1)))
    p.fill(p.polygon((0, -1.0), (0.26, -0.8), (-0.26, -0.8)), paint)


def sheep(p, rng):
    wool, face = grey(rng, 0.78, 1.0), grey(rng, 0.1, 0.35)
    for x in (-0.42, -0.2, 0.2, 0.42):
        p.fill(p.box(x, 0.58, 0.07, 0.26), face)
    puffs = [p.disc(0.72 * np.cos(t) * 0.75, 0.42 * np.sin(t), 0.3) for t in np.arange(6) * 1.047]
    p.fill(np.minimum.reduce([*puffs, p.oval(0, 0, 0.6, 0.4)]), wool, p.dots(14, 0.12), outline=0.25)
    p.fill(p.oval(-0.7, -0.14, 0.24, 0.3), face)
    p.fill(p.disc(-0.76, -0.18, 0.05), WHITE, outline=0)


def barn(p, rng):
    wall = hue(rng, RED, RED, ORANGE, saturation=(0.4, 0.8), value=(0.4, 0.8))
    p.fill(p.trapezoid(-0.72, 0.42, -0.2, 0.78), grey(rng), p.stripes(18, 0, 0.15))
    front = p.polygon((-0.36, -0.6), (0.36, -0.6), (0.7, -0.16), (0.7, 0.74), (-0.7, 0.74), (-0.7, -0.16))
    p.fill(front, wall, p.stripes(22, 0, 0.16))
    p.fill(p.box(0, 0.42, 0.32, 0.32), pale(rng), outline=0)
    p.fill(p.box(0, 0.43, 0.25, 0.26), wall, outline=0)
    for s in (-1, 1):
        p.fill(p.bar(-0.26, 0.42 - s * 0.27, 0.26, 0.42 + s * 0.27, 0.045), pale(rng), outline=0)


def sunflower(p, rng):
    p.fill(p.box(0, 0.65, 0.06, 0.35), hue(rng, GREEN, value=(0.35, 0.7)))
    p.fill(p.oval(0.24, 0.72, 0.22, 0.09), hue(rng, GREEN, value=(0.35, 0.7)))
    petals = 0.09 * np.cos(11 * np.arctan2(p.y + 0.22, p.x))
    p.fill(p.disc(0, -0.22, 0.6) - petals, hue(rng, YELLOW, YELLOW, ORANGE, value=(0.85, 1)), outline=0.25)
    p.fill(p.disc(0, -0.22, 0.3), WOOD * rng.uniform(0.5, 1), p.dots(24, 0.5))


def tractor(p, rng):
    paint = hue(rng, RED, GREEN, BLUE, ORANGE)
    p.fill(p.box(0.42, -0.02, 0.44, 0.24), paint, p.stripes(16, 0, 0.12))
    p.fill(p.box(0.62, -0.45, 0.06, 0.26), DARK)
    p.fill(p.box(-0.22, -0.32, 0.34, 0.5), paint)
    p.fill(p.box(-0.2, -0.46, 0.22, 0.24), glass(rng))
    for x, y, r in ((-0.38, 0.3, 0.48), (0.6, 0.5, 0.28)):
        p.fill(p.disc(x, y, r), DARK)
        p.fill(p.disc(x, y, 0.5 * r), hue(rng, YELLOW, ORANGE))


def pitchfork(p, rng):
    iron = grey(rng, 0.3, 0.7)
    p.fill(p.bar(0, -0.2, 0, 0.92, 0.07), WOOD * rng.uniform(0.7, 1.4))
    p.fill(p.bar(-0.34, -0.3, 0.34, -0.3, 0.065), iron)
    for x in (-0.34, 0.0, 0.34):
        p.fill(p.bar(x, -0.3, x * 1.1, -0.92, 0.06), iron)


def clutter(p, rng):
    """A shape that is no class: wedge, slab, cross, crescent or bow, any colour, sometimes striped."""
    a, b = rng.uniform(0.25, 0.75, 2)
    distance = (
        lambda: p.polygon((-0.9, -a), (0.9, 0), (-0.9, b)),
        lambda: p.box(0, 0, 0.9, 0.4 * a),
        lambda: np.minimum(p.box(0, 0, 0.85, 0.3 * a), p.box(0, 0, 0.3 * b, 0.85)),
        lambda: np.maximum(p.disc(0, 0, 0.8), -p.disc(a, 0, 0.75)),
        lambda: np.maximum(p.ring(0, 0.3, 0.8, 0.3 * a), p.y - 0.2),
        lambda: p.polygon((-0.8, -a), (a, -0.6), (0.8, b), (-b, 0.7)),
    )[rng.integers(6)]()
    texture = p.stripes(*rng.uniform(-18, 18, 2), 0.25) if rng.random() < 0.5 else None
    p.fill(distance, hue(rng, saturation=(0.0, 0.8), value=(0.15, 0.95)), texture, outline=0.25)
