"""How much of a model's maps lies on the thing: maps of positives against their boxes, with intervals over the images.

A positive is a pair (image index, class). Images are uint8 [N, 3, S, S], boxes (left, top, right, bottom) in pixels.
"""

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from cpsd_lib.data import test_view
from cpsd_lib.evaluation import cam
from cpsd_lib.evaluation.bootstrap import bootstrap_mean
from cpsd_lib.evaluation.cam import ACTIVATION, ATTENTION, map_kinds
from cpsd_lib.models import trial_images
from cpsd_lib.teachers import PartTeachers, in_mode

BATCH = 32  # maps of 448 pixels at once: 26 MB, and twice that while they are compared with boxes


# ---- maps of many positives ------------------------------------------------------------------------------------------


def map_places(model, size):
    """Return (h, w), the places of the features that a model's maps of size x size pixels are enlarged from."""
    expert = model.experts[0] if isinstance(model, PartTeachers) else model
    with in_mode(expert, training=False), torch.no_grad():
        return tuple(expert(trial_images(size, expert.mean.device)).features.shape[2:])


def pointing(models, size):
    """Return those of {title: model} whose maps of size x size pixels have more than one place: one cannot point anywhere."""
    return {title: model for title, model in models.items() if map_places(model, size) != (1, 1)}


def stack_maps(model, images, pairs, kind=ACTIVATION):
    """Return the maps [n, S, S] >= 0, float32 on the CPU, of `pairs` [n] of (image index, class).

    kind: "attention", enlarged to the image (bilinear) as the class activation is, or another: the class activation.
    """
    (indices, classes), size = np.array(pairs).reshape(-1, 2).T, images.shape[2:]
    device = next(model.parameters()).device
    stacked = torch.zeros(len(pairs), *size)
    for c in np.unique(classes):  # one class at a time: of merged teachers, the expert of that class alone runs
        places = np.flatnonzero(classes == c)
        view = test_view(torch.from_numpy(np.array(images[indices[places]])).to(device))
        maps = (cam.attention_maps if kind == ATTENTION else cam.class_activation)(model, view, [c])
        # A class activation has the image's size already.
        stacked[places] = functional.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0].cpu()
    return stacked


# ---- inside the box? -------------------------------------------------------------------------------------------------


def best_share(boxes, places, size):
    """Return the largest share inside [P] that any map >= 0 of places (h, w), enlarged to size x size pixels, could have.

    boxes [P]: a list of boxes each. The share of a sum of maps lies between theirs: the best map has one single place lit.
    """
    place = torch.zeros(1, 1, *places, dtype=torch.float64, requires_grad=True)
    large = functional.interpolate(place, (size, size), mode="bilinear", align_corners=False)[0, 0]

    def reached(weights):  # enlarging is linear: its gradient is what each place lights of the weights
        return torch.autograd.grad(large, place, weights, retain_graph=True)[0]

    total = reached(torch.ones_like(large))
    return np.array([(reached(cam.covered_by(one, size, size)) / total).max().item() for one in boxes])


def inside_boxes(models, images, sample):
    """Return a line a positive, model and kind of map: image, class, strategy, map, share, chance, best (shares 0..1).

    models {strategy: Classifier or PartTeachers}. sample: DataFrame of positives, columns image, class, boxes (a list each,
    one box at least). share: what of the map lies inside the boxes of its class, NaN for a map that is all 0; chance: the
    area of the boxes; best: `best_share` for this model's places.
    """
    size, by_class, lines = images.shape[-1], sample.sort_values("class", kind="stable"), []
    best = {(1, 1): best_share(sample["boxes"], (1, 1), size)}  # a map of one place is the same everywhere: chance
    for strategy, model in models.items():
        places = map_places(model, size)
        if places not in best:
            best[places] = best_share(sample["boxes"], places, size)
        for kind in map_kinds(model, size):
            shares = []
            for start in range(0, len(sample), BATCH):
                batch = by_class[start : start + BATCH]
                maps = stack_maps(model, images, batch[["image", "class"]], kind)
                shares.append(pd.Series(cam.share_inside(maps, batch["boxes"]), batch.index))
            about = {"strategy": strategy, "map": kind, "share": pd.concat(shares)}
            lines.append(sample[["image", "class"]].assign(**about, chance=best[1, 1], best=best[places]))
    return pd.concat(lines, ignore_index=True)


def summarise_shares(shares, against=None, resamples=1000, seed=0):
    """Return one line a strategy and kind of map: mean share, what it is above chance, and over `against`'s, in percent.

    shares: DataFrame of `inside_boxes`. *_low, *_high: 95 % bootstrap intervals over images, the same draws for every line;
    differences are taken positive by positive, `over` where both have a map: of class activation, exact or by gradient, or
    both of attention. NaN for what is not there. empty: how many maps are all 0 and left out, of chance and best as well.
    """
    wide = shares.pivot(index=["image", "class"], columns=["strategy", "map"])
    images, lines = wide.index.get_level_values("image"), []
    kinds = list(shares[["strategy", "map"]].drop_duplicates().itertuples(index=False, name=None))
    others = {kind == ATTENTION: wide["share", strategy, kind] for strategy, kind in kinds if strategy == against}
    for strategy, kind in kinds:
        share, chance, best = (wide[name, strategy, kind] for name in ("share", "chance", "best"))
        other = None if strategy == against else others.get(kind == ATTENTION)
        over = share * np.nan if other is None else share - other
        line = {"strategy": strategy, "map": kind}
        for name, values in {"share": share, "above": share - chance, "over": over}.items():
            mean, low, high = bootstrap_mean(values, images, resamples, seed)
            line |= {name: 100 * mean, f"{name}_low": 100 * low, f"{name}_high": 100 * high}
        # Of the positives that have a map: share minus above is chance then.
        line |= {name: 100 * values[share.notna()].mean() for name, values in (("chance", chance), ("best", best))}
        lines.append(line | {"positives": len(share), "images": images.nunique(), "empty": int(share.isna().sum())})
    return pd.DataFrame(lines).set_index(["strategy", "map"])


# ---- a few pictures --------------------------------------------------------------------------------------------------


def map_captions(maps, probabilities, boxes=None):
    """Return what stands above each of maps [n, S, S]: its probability, and with boxes [n] its share inside them.

    A map that is the same everywhere points nowhere, and has no share.
    """
    texts = []
    for place, (one, probability) in enumerate(zip(maps, probabilities, strict=True)):
        if not one.any():
            note = ", map all 0"
        elif _is_flat(one):
            note = ", map flat"
        else:
            note = f", {100 * cam.share_inside(one[None], [boxes[place]]).item():.0f} % inside" if boxes else ""
        texts.append(f"p {probability:.2f}{note}")
    return texts


def peaks_inside(maps, boxes):
    """Return how many of maps [n, S, S] have their highest place inside one of their boxes [n]."""
    count, size = 0, maps.shape[-1]
    for one, sides in zip(maps, boxes, strict=True):
        # A pixel's centre; a map that is the same everywhere has no highest place.
        y, x = (place + 0.5 for place in divmod(int(one.argmax()), size))
        inside = any(left <= x < right and top <= y < bottom for left, top, right, bottom in sides)
        count += inside and not _is_flat(one)
    return count


def _is_flat(one):
    # One place enlarged to an image is the same everywhere but for rounding.
    return bool(one.max() - one.min() <= 1e-5 * one.max())
