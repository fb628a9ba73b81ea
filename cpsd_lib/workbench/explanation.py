"""Where do the models of a run look? Test pictures their teachers disagree about, and the share of maps inside the boxes."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from torch.nn import functional

from cpsd_lib.data import boxes_of, in_pixels, test_view
from cpsd_lib.evaluation import cam
from cpsd_lib.models import MLDecoder, Query2Label
from cpsd_lib.support import derive_seed, pick_precision
from cpsd_lib.teachers import PartTeachers, logits_of
from cpsd_lib.training import predict_logits
from cpsd_lib.workbench.distill import load_student
from cpsd_lib.workbench.evidence import scores_of
from cpsd_lib.workbench.rows import TITLES, baseline_of, branches_of
from cpsd_lib.workbench.teaching import load_teachers

TEACHERS = {
    "co": "co teachers",
    "dis": "dis teachers",
    "whole": "teacher",
    "random": "random teachers",
    "equal_compute": "teacher, CPSD's compute",
    "continued": "teacher, continued",
}
ACTIVATION, ATTENTION = "activation", "attention"
BATCH = 32  # maps of 448 pixels at once: 26 MB, and twice that while they are held against boxes


# ---- who looks -------------------------------------------------------------------------------------------------------


def strategies(run):
    """Return {name of its saved scores: title} of all models of a run: the baseline, merged teachers, students."""
    rows = run.params.student.rows
    branches = [b for b in TEACHERS if b in branches_of(rows) and (b != "whole" or run.params.teacher_model)]
    first = [baseline_of(rows)] if baseline_of(rows) else []  # else a teacher of all classes is the baseline itself
    students = [row for row in TITLES if row in rows and row not in first]
    found = {row: TITLES[row] for row in first} | {f"teachers_{b}": TEACHERS[b] for b in branches}
    return found | {row: TITLES[row] for row in students}


def load_models(run, seed):
    """Return {title: Classifier or Teachers} of `strategies`, in eval mode on the run's device; MissingStage as they load."""
    models = {}
    for name, title in strategies(run).items():
        branch = name.removeprefix("teachers_")
        model = load_student(run, seed, name)[0] if branch == name else load_teachers(run, seed, [branch])[branch]
        models[title] = model.to(run.device).eval()
    return models


def kinds_of(model):
    """Return the kinds of map a model has: activation, and attention where all its heads have class queries."""
    experts = model.experts if isinstance(model, PartTeachers) else [model]
    queries = all(isinstance(expert.head, (Query2Label, MLDecoder)) for expert in experts)
    return [ACTIVATION, ATTENTION] if queries else [ACTIVATION]


def pointing(models, size):
    """Return those of {title: model} whose maps of size x size pixels have more than one place: one cannot point anywhere."""
    return {title: model for title, model in models.items() if places_of(model, size) != (1, 1)}


def places_of(model, size):
    """Return (h, w), the places of the features that a model's maps of size x size pixels are enlarged from."""
    expert = model.experts[0] if isinstance(model, PartTeachers) else model
    with torch.no_grad():
        return tuple(expert(torch.zeros(1, 3, size, size, device=_device(model))).features.shape[2:])


# ---- where -----------------------------------------------------------------------------------------------------------


def disagreements(run, seed, count):
    """Return up to `count` (row of the table, class): test positives whose co and dis probabilities differ most.

    At most one an image, the largest difference first; MissingStage when 05_evaluation has not scored those teachers.
    """
    rows = run.dataset.table.indices("test")
    said = [scores_of(run, seed, f"teachers_{branch}", "test") for branch in ("co", "dis")]
    return [(int(rows[i]), c) for i, c in cam.most_disagreeing(*said, run.dataset.table.targets[rows], count)]


def probabilities(run, seed, pairs):
    """Return {title: probabilities [n]} for `pairs` [n] of (row of test, class), as 05_evaluation scored them."""
    rows, classes = np.array(pairs).T
    places = np.searchsorted(run.dataset.table.indices("test"), rows)
    names = strategies(run).items()
    return {title: expit(scores_of(run, seed, name, "test")[places, classes].astype(float)) for name, title in names}


def maps_of(model, images, pairs, kind=ACTIVATION):
    """Yield (places in `pairs` [b], maps [b, S, S] >= 0 float32 on the CPU) until each pair (row, class) had its map.

    images: uint8 [N, 3, S, S]. kind: "activation", or "attention", enlarged to the image (bilinear) as the other is.
    """
    rows, classes = np.array(pairs).reshape(-1, 2).T
    for c in np.unique(classes):  # one class at a time: of merged teachers, its own expert alone is asked
        places = np.flatnonzero(classes == c)
        for start in range(0, len(places), BATCH):
            part = places[start : start + BATCH]
            view = test_view(torch.from_numpy(np.array(images[rows[part]])).to(_device(model)))
            if kind == ACTIVATION:
                maps = cam.class_activation(model, view, [c])
            else:
                maps = cam.attention_maps(model, view, [c])
                maps = functional.interpolate(maps, view.shape[2:], mode="bilinear", align_corners=False)
            yield part, maps[:, 0].cpu()


def stack_maps(model, images, pairs, kind=ACTIVATION):
    """Return the maps [n, S, S] of `maps_of` in the order of `pairs`."""
    found = torch.zeros(len(pairs), *images.shape[2:])
    for places, maps in maps_of(model, images, pairs, kind):
        found[places] = maps
    return found


def ask(run, model, pairs):
    """Return the model's probabilities [n] for `pairs` [n] of (row, class), in the precision that 05_evaluation uses."""
    rows, classes = np.array(pairs).T
    precision = pick_precision(run.params.student.precision, run.device)
    logits = predict_logits(
        lambda view: logits_of(model(view)), run.dataset.need_images(), rows, _device(model), BATCH, precision
    )
    return expit(logits[np.arange(len(rows)), classes].astype(float))


def _device(model):
    return next(model.parameters()).device


# ---- inside the box? -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sample:
    """P positives of one split, all of those images that have boxes."""

    pairs: np.ndarray  # [P, 2]: row of the table, class
    boxes: list  # of each positive [(left, top, right, bottom) in pixels, ...]
    size: int  # side of the images in pixels


def pixel_boxes(run, pairs):
    """Return [(left, top, right, bottom) in pixels, ...] of each of `pairs` [n] of (row, class); None without boxes."""
    found, size = (
        boxes_of(run.dataset, dict.fromkeys(int(row) for row, _ in pairs)),
        run.params.data.size,
    )
    return found and [in_pixels(found, [int(row)], [int(c)], size, size)[0][0] for row, c in pairs]


def sample_positives(run, split, count):
    """Return a Sample of about `count` positives: the images that come first when the split is shuffled by the run's seed.

    None where no box is known. Whole images, so that the bootstrap can draw images.
    """
    table, size = run.dataset.table, run.params.data.size
    rows = np.random.default_rng(derive_seed(run.params.seed, "explained", split)).permutation(table.indices(split))
    positives = (table.targets[rows] == 1).sum(1).cumsum()
    rows = np.sort(rows[: np.searchsorted(positives, count) + 1])
    pairs = np.argwhere(table.targets[rows] == 1)
    pairs[:, 0] = rows[pairs[:, 0]]
    boxes = pixel_boxes(run, pairs)
    known = np.array([bool(its) for its in boxes or []])
    return Sample(pairs[known], [its for its in boxes if its], size) if known.any() else None


def best_share(boxes, places, size):
    """Return the largest share inside [P] that any map >= 0 of places (h, w), enlarged to size x size pixels, could have.

    boxes: a Sample's. The share of a sum of maps lies between theirs, so that the best map has one single place lit.
    """
    rows, columns = (_enlarging(n, size) for n in places)
    total = torch.outer(rows.sum(0), columns.sum(0))
    covered = (cam.covered_by([[its]], 1, 1, size, size)[0, 0] for its in boxes)
    return np.array([(rows.T @ one @ columns / total).max().item() for one in covered])


def _enlarging(count, size):
    """Return the matrix [size, count] that enlarges one side of a map (bilinear is linear in both)."""
    eye = torch.eye(count, dtype=torch.float64)[None]
    return functional.interpolate(eye, size, mode="linear", align_corners=False)[0].T


def inside_boxes(run, models, sample):
    """Return a line a positive, model and kind of map: image, class, strategy, map, share, chance, best (shares 0..1).

    share: what of the map lies inside the boxes of its class, NaN for a map that is all 0; chance: the area of the boxes;
    best: `best_share` for this model's places.
    """
    size = sample.size
    # One at a time: 400 at once are 640 MB at 448 pixels.
    chance = np.array([cam.area_share([[its]], size, size).item() for its in sample.boxes])
    best, lines = {}, []
    for title, model in models.items():
        places = places_of(model, size)
        if places not in best:
            best[places] = best_share(sample.boxes, places, size)
        for kind in kinds_of(model):
            share = np.full(len(sample.pairs), np.nan)
            for part, maps in maps_of(model, run.dataset.need_images(), sample.pairs, kind):
                share[part] = cam.share_inside(maps[:, None], [[sample.boxes[place]] for place in part])[:, 0]
            about = {"image": sample.pairs[:, 0], "class": sample.pairs[:, 1], "strategy": title, "map": kind}
            lines.append(pd.DataFrame(about | {"share": share, "chance": chance, "best": best[places]}))
    return pd.concat(lines, ignore_index=True)


# ---- in a table, with intervals --------------------------------------------------------------------------------------


def summarise(shares, against=None, resamples=1000, seed=0):
    """Return one line a strategy and kind of map: mean share, what it is above chance, and over `against`'s, in percent.

    shares: DataFrame of `inside_boxes`. *_low, *_high: 95 % bootstrap intervals over images, the same draws for every line;
    differences are taken positive by positive, `over` where both have a map. NaN for what is not there. empty: how many
    maps are all 0 and left out, of chance and best as well.
    """
    wide = shares.pivot(index=["image", "class"], columns=["strategy", "map"])
    draws = _Draws(wide.index.get_level_values("image"), resamples, seed)
    lines = []
    for strategy, kind in shares[["strategy", "map"]].drop_duplicates().itertuples(index=False):
        share, chance, best = (wide[name, strategy, kind] for name in ("share", "chance", "best"))
        other = None if strategy == against else wide["share"].get((against, kind))
        line = {"strategy": strategy, "map": kind} | draws.interval(share, "share")
        line |= draws.interval(share - chance, "above")
        line |= draws.interval(share * np.nan if other is None else share - other, "over")
        # Of the positives that have a map: share minus above is chance then.
        line |= {name: 100 * values[share.notna()].mean() for name, values in (("chance", chance), ("best", best))}
        lines.append(line | {"positives": len(share), "images": draws.images, "empty": int(share.isna().sum())})
    return pd.DataFrame(lines).set_index(["strategy", "map"])


class _Draws:
    """Images drawn again with replacement, `resamples` times, and what means become under them."""

    def __init__(self, images, resamples, seed):
        found, self._place = np.unique(images, return_inverse=True)
        self.images = len(found)
        even = np.full(self.images, 1 / max(self.images, 1))
        self._counts = np.random.default_rng(seed).multinomial(self.images, even, resamples)

    def interval(self, values, name):
        """Return {name: mean, name_low, name_high: ends} of values [P] in percent; NaN are left out."""
        known = values.notna().to_numpy()
        place, values = self._place[known], values.to_numpy()[known]
        sums, number = (self._counts @ np.bincount(place, weights, self.images) for weights in (values, None))
        means = sums[number > 0] / number[number > 0]
        found = [values.mean(), *np.quantile(means, [0.025, 0.975])] if len(means) else [np.nan] * 3
        return {f"{name}{end}": 100 * float(value) for end, value in zip(("", "_low", "_high"), found, strict=True)}


def summary(table, against=None):
    """Return the sentences that say what a split's table shows, one a strategy and kind of map; against: a title.

    table: DataFrame of `summarise`, a line a (seed, strategy, map).
    """
    lines = []
    for (strategy, kind), its in table.groupby(level=["strategy", "map"], sort=False):
        empty, maps = its[["empty", "positives"]].sum()
        text = f"{strategy}{'' if kind == ACTIVATION else f', {kind}'}: "
        if empty == maps:
            lines.append(f"{text}all {maps:.0f} maps are 0.")
            continue
        text += f"{its['share'].mean():.1f} %, {_told(its, 'above', 'chance')}"
        if its["over"].notna().all():
            text += f"; {_told(its, 'over', f'the {against}')}"
        lines.append(f"{text}; {empty:.0f} of {maps:.0f} maps are all 0, left out." if empty else f"{text}.")
    return "\n".join(lines)


def _told(its, name, against):
    """Say a difference in points with its interval, or of several seeds how many intervals leave out zero."""
    if len(its) == 1:
        interval = " to ".join(_signed(its[f"{name}{end}"].iloc[0]) for end in ("_low", "_high"))
    else:
        sure = ((its[f"{name}_low"] > 0) | (its[f"{name}_high"] < 0)).sum()
        interval = f"the interval leaves out zero in {sure} of {len(its)} seeds"
    return f"{_signed(its[name].mean())} points against {against} ({interval})"


def _signed(value):
    return f"{round(value, 2) + 0:+.2f}"  # + 0: no -0.00


def captions(maps, probabilities, boxes=None):
    """Return what stands above each of maps [n, S, S]: its probability, and with boxes [n] its share inside them.

    A map that is the same everywhere points nowhere, and has no share.
    """
    found = []
    for place, (one, probability) in enumerate(zip(maps, probabilities, strict=True)):
        if not one.any():
            told = ", map all 0"
        elif one.min() == one.max():
            told = ", map flat"
        else:
            told = f", {100 * cam.share_inside(one[None, None], [[boxes[place]]]).item():.0f} % inside" if boxes else ""
        found.append(f"p {probability:.2f}{told}")
    return found


def peaks_inside(maps, boxes):
    """Return how many of maps [n, S, S] have their highest place inside one of their boxes [n] (in pixels)."""
    count, size = 0, maps.shape[-1]
    for one, its in zip(maps, boxes, strict=True):
        # A pixel's centre; a map that is the same everywhere has no highest place.
        y, x = (place + 0.5 for place in divmod(int(one.argmax()), size))
        count += bool(one.min() < one.max()) and any(
            left <= x < right and top <= y < bottom for left, top, right, bottom in its
        )
    return count
