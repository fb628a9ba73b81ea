"""Where a model looks for a class: activation maps, the queries' attention, and how much of a map lies on the thing.

Boxes are (left, top, right, bottom) in pixels of the map; a positive is a pair (image index, class).
"""

from operator import index

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from cpsd_lib.data import test_view
from cpsd_lib.evaluation.bootstrap import bootstrap_mean
from cpsd_lib.models import LabelTransformer, LinearHead, feature_map, trial_images
from cpsd_lib.support import bar
from cpsd_lib.teachers import PartTeachers, in_mode

ACTIVATION, GRADIENT, ATTENTION = "activation", "gradient", "attention"  # exact; Grad-CAM; of class queries
BATCH = 32  # maps of 448 pixels at once: 26 MB, and twice that while they are compared with boxes


def class_activation(model, images, classes):
    """Return a map [B, K, H, W] float32 in [0, 1] for each of K `classes` in images [B, 3, H, W], H = W, float in [0, 1].

    model: a Classifier, or PartTeachers, whose map of a class is that of the expert of its part; it is run in eval mode.
    The positive part of `gradient_map` is enlarged to the image (bilinear) and divided by its own maximum: maps of two
    classes or two models compare in place, not in height, and a map that is nowhere positive is all 0.
    Raises ValueError for a class the model does not have, and for other images.
    """
    maps = _by_class(model, images, classes, gradient_map).relu()
    maps = functional.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
    highest = maps.amax((2, 3), keepdim=True)
    return torch.where(highest > 0, maps / highest, 0.0)


def gradient_map(expert, images, column):
    """Return Grad-CAM before its ReLU, [B, h, w], of a column of a Classifier in eval mode.

    The last features weighed by the mean over the places of the logit's gradient (Selvaraju et al. 2017), which is what each
    place adds to the logit where `map_kinds` says "activation" (Zhou et al. 2016). A classifier that reads a class token
    alone gives the places of the last features no gradient: then it is what the last block reads that is weighed.
    """
    # Maps are small and their gradients smaller: the caller's bfloat16 is not for them.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        result = _weighed(expert, images, column, expert.last)
        if getattr(expert.backbone, "num_prefix_tokens", 0) and not result.any():
            last_block = expert.backbone.get_submodule(expert.backbone.feature_info[-1]["module"])
            result = _weighed(expert, images, column, last_block)
    return result


def _weighed(expert, images, column, layer):
    """Return `gradient_map` of what a layer of the expert reads."""
    read = []

    def keep(module, inputs):
        place = [torch.is_tensor(x) and x.ndim > 2 and len(x) == len(images) for x in inputs].index(True)
        read.append(inputs[place].detach().clone().requires_grad_())
        # A copy: what comes next may change it in place, which a tensor without a history does not allow.
        return *inputs[:place], read[0].clone(), *inputs[place + 1 :]

    # Out of the graph, so that nothing but what the layer reads has a gradient. Clones, because teachers that filled a
    # store were moved to the GPU in inference mode, and autograd takes no tensor from there.
    state = dict(expert.named_parameters()) | dict(expert.named_buffers())
    state = {name: value.detach().clone() if value.is_inference() else value.detach() for name, value in state.items()}
    with layer.register_forward_pre_hook(keep):
        output = functional_call(expert, state, (images,))
    # In eval mode no image sees another, so one sum has the gradients of all.
    gradients = torch.autograd.grad(output.logits[:, column].sum(), read)
    features, gradient = (_places(expert, x, images, output.features) for x in (read[0].detach(), *gradients))
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1)


def _places(expert, x, images, features):
    if x.ndim == 3:  # tokens: the places are the last of them
        return x[:, -features[0, 0].numel() :].transpose(1, 2).unflatten(2, features.shape[2:])
    return feature_map(expert.backbone, x, images)


def attention_maps(model, images, classes):
    """Return the attention [B, K, h, w] of K `classes` over the places of images [B, 3, H, W], summing to 1 in each map.

    That of Query2Label's last decoder layer and of ML-Decoder's one, the mean over the heads of attention; float32.
    Raises ValueError for a head without class queries, a class the model does not have, and images of another form.
    """

    def map_of(expert, images, column):
        layer, weights = _class_attention(expert.head), []
        if layer is None:
            raise ValueError(
                f"the head {type(expert.head).__name__} has no class queries that look at places; attention_maps is for "
                "query2label and ml_decoder, class_activation for every head"
            )
        wanted = {"need_weights": True}
        with (
            layer.register_forward_pre_hook(lambda _, args, options: (args, options | wanted), with_kwargs=True),
            layer.register_forward_hook(lambda module, inputs, output: weights.append(output[1])),
        ):
            features = expert(images).features
        return weights[0][:, column].unflatten(1, features.shape[2:]).float()

    return _by_class(model, images, classes, map_of)


def _class_attention(head):
    """Return the layer of a head in which class queries look at places last; None where it has no class queries."""
    return next((layer for layer in reversed(list(head.modules())) if isinstance(layer, nn.MultiheadAttention)), None)


def map_kinds(model, size):
    """Return the kinds of map a model has, tried on images of size x size pixels.

    First that of its class activation: "activation" where a logit is the mean over the places of a linear map of the last
    features, as it is for LinearHead where timm has nothing but a mean before its classifier. A map is then what its places
    add to the logit (Zhou et al. 2016), else "gradient", what the logit's gradient says they do (Selvaraju et al. 2017).
    Then "attention" where all its heads have class queries.
    """
    expert, _ = _experts(model)[0]
    if not isinstance(expert.head, LinearHead):
        attention = all(_class_attention(expert.head) for expert, _ in _experts(model))
        return [GRADIENT, ATTENTION] if attention else [GRADIENT]
    images = trial_images(size, expert.mean.device)
    with in_mode(expert, training=False), torch.no_grad():
        last = expert.forward_features(images)
        pooled = expert.backbone.forward_head(last, pre_logits=True)
        mean = feature_map(expert.backbone, last, images).mean((2, 3))
    exact = pooled.shape == mean.shape and torch.allclose(pooled, mean, rtol=1e-4, atol=1e-4 * float(mean.abs().max()))
    return [ACTIVATION if exact else GRADIENT]


def _by_class(model, images, classes, map_of):
    """Return the maps [B, K, h, w] of map_of(expert, images, its column), each class from who knows it, or their mean."""
    if not (torch.is_tensor(images) and images.is_floating_point()):
        raise ValueError("images must be a float tensor in [0, 1]; make one with cpsd_lib.data.test_view")
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not len(images):
        raise ValueError(f"images must be [B, 3, S, S], not {list(images.shape)}")
    experts = {}
    for expert, part in _experts(model):
        for column, c in enumerate(part):
            experts.setdefault(c, []).append((expert, column))
    classes, maps = [index(c) for c in classes], []
    outside = [c for c in classes if c not in experts]
    if outside or not classes:
        raise ValueError(f"classes {outside or classes} are not there; give some of 0..{len(experts) - 1}")
    with in_mode(model, training=False), torch.no_grad():
        for c in classes:
            maps.append(torch.stack([map_of(expert, images, column) for expert, column in experts[c]]).mean(0))
    return torch.stack(maps, 1)


def _experts(model):
    if isinstance(model, PartTeachers):
        return list(zip(model.experts, model.partition.parts, strict=True))
    head = model.head
    if isinstance(head, LinearHead):
        return [(model, range(head.linear.out_features))]
    return [(model, range(len(head.label_vectors if isinstance(head, LabelTransformer) else head.queries)))]


# ---- maps of many positives ------------------------------------------------------------------------------------------


def map_places(model, size):
    """Return (h, w), the places of the features that a model's maps of size x size pixels are enlarged from."""
    expert, _ = _experts(model)[0]
    with in_mode(expert, training=False), torch.no_grad():
        return tuple(expert(trial_images(size, expert.mean.device)).features.shape[2:])


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
        maps = (attention_maps if kind == ATTENTION else class_activation)(model, view, [c])
        # A class activation has the image's size already.
        stacked[places] = functional.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0].cpu()
    return stacked


# ---- maps against boxes ----------------------------------------------------------------------------------------------


def share_inside(maps, boxes):
    """Return the share [n] float64 of each of maps [n, H, W], >= 0, that lies inside its boxes (taken together).

    boxes [n]: lists of (left, top, right, bottom) in pixels of the map, right and bottom exclusive. A pixel that a box
    covers in part counts in part. NaN where there is no box or the map is all 0. Of a map that is the same everywhere it is
    the area of the boxes: chance.
    """
    maps = torch.as_tensor(maps).detach().cpu().double()
    covered = torch.stack([covered_by(sides, *maps.shape[1:]) for sides in boxes])
    shares = (maps * covered).sum((1, 2)) / maps.sum((1, 2))  # 0 / 0 is NaN
    return torch.where(covered.any(2).any(1), shares, torch.nan)


def covered_by(boxes, height, width):
    """Return how much of each pixel some boxes cover, [height, width] in [0, 1]."""
    rows, columns = (torch.arange(count, dtype=torch.float64) for count in (height, width))
    covered = torch.zeros(height, width, dtype=torch.float64)
    for left, top, right, bottom in boxes:
        down = ((rows + 1).clamp(max=bottom) - rows.clamp(min=top)).clamp(min=0)
        across = ((columns + 1).clamp(max=right) - columns.clamp(min=left)).clamp(min=0)
        # Exact but for a pixel that two boxes cover in part.
        covered = torch.maximum(covered, torch.outer(down, across))
    return covered


def best_share(boxes, places, size):
    """Return the largest share inside [P] that any map >= 0 of places (h, w), enlarged to size x size pixels, could have.

    boxes [P]: a list of boxes each. The share of a sum of maps lies between theirs: the best map has one single place lit.
    """
    place = torch.zeros(1, 1, *places, dtype=torch.float64, requires_grad=True)
    large = functional.interpolate(place, (size, size), mode="bilinear", align_corners=False)[0, 0]

    def reached(weights):  # enlarging is linear: its gradient is what each place lights of the weights
        return torch.autograd.grad(large, place, weights, retain_graph=True)[0]

    total = reached(torch.ones_like(large))
    return np.array([(reached(covered_by(one, size, size)) / total).max().item() for one in boxes])


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
            with bar(len(sample), f"{strategy}: maps of {kind}", "map") as shown:
                for start in range(0, len(sample), BATCH):
                    batch = by_class[start : start + BATCH]
                    maps = stack_maps(model, images, batch[["image", "class"]], kind)
                    shares.append(pd.Series(share_inside(maps, batch["boxes"]), batch.index))
                    shown.update(len(batch))
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
    notes = [f", {100 * share:.0f} % inside" for share in share_inside(maps, boxes)] if boxes else [""] * len(maps)
    for place, one in enumerate(maps):
        if _is_flat(one):
            notes[place] = ", map flat" if one.any() else ", map all 0"
    return [f"p {probability:.2f}{note}" for probability, note in zip(probabilities, notes, strict=True)]


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
