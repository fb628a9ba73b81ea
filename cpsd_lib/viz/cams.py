"""The CAM browser: where a model looks for the classes of an image."""

from functools import lru_cache, partial
from textwrap import fill

import ipywidgets
import numpy as np
import torch
from matplotlib.cm import ScalarMappable

from cpsd_lib.data import test_view
from cpsd_lib.evaluation import class_activation, map_kinds
from cpsd_lib.training import predict
from cpsd_lib.viz.explorer import Explorer
from cpsd_lib.viz.plots import MAP, overlay, panels, short

NOTHING = "\nmap all 0"
LABEL = {1: "label", 0: "no label", -1: "unknown"}


def cam_browser(models, images, indices, targets, names, start=None):
    """Return an Explorer of class activation maps: image, class, model.

    models {name: Classifier or PartTeachers}; images uint8 [N, 3, S, S]; indices: of the images
    to browse; targets [N, C] of 1, 0, -1; names [C]. start: {"image": 0 (its place in indices), "shown": "", "model": name},
    shown: the name of a class, or "" for the labels of the image (the most probable class where it has none).
    Its numbers: "classes" shown, their "probabilities", and "labels" of the image. Raises ValueError for what does not fit.
    """
    names, words = list(names), short(names, 18)

    kind_of = lru_cache(lambda model: map_kinds(models[model], images.shape[-1])[0])

    def draw(image, shown, model):
        if model not in models or shown not in ("", *names) or not 0 <= image < len(indices):
            raise ValueError(f"there is no image {image}, class {shown!r} or model {model!r} to browse")
        labels = np.flatnonzero(targets[indices[image]] == 1).tolist()
        pixels = np.array(images[indices[image]])
        probabilities = predict(models[model], pixels[None])[0]
        classes = labels or [int(probabilities.argmax())]
        classes = classes if not shown else [names.index(shown)]
        numbers = {"classes": [names[c] for c in classes], "probabilities": [float(probabilities[c]) for c in classes]}
        numbers["labels"] = [names[c] for c in labels]
        view = test_view(torch.from_numpy(pixels[None]).to(next(models[model].parameters()).device))
        maps = class_activation(models[model], view, classes)[0].cpu().numpy()
        captions = [
            f"{words[c]}\n{probabilities[c]:.2f}, {LABEL[int(targets[indices[image], c])]}{'' if m.any() else NOTHING}"
            for c, m in zip(classes, maps, strict=True)
        ]
        headline = f"model {model}, its maps of {kind_of(model)}; image {indices[image]}, its labels: "
        headline += ", ".join(words[c] for c in labels) or "none"
        return draw_maps(pixels, maps, captions, fill(headline, 115)), numbers

    classes = [("labels of the image", ""), *zip(names, names, strict=True)]
    controls = {
        "image": partial(ipywidgets.IntSlider, min=0, max=len(indices) - 1, description="image"),
        "shown": partial(ipywidgets.Dropdown, options=classes, description="class"),
        "model": partial(ipywidgets.Dropdown, options=list(models), description="model"),
    }
    return Explorer(draw, {"image": 0, "shown": "", "model": next(iter(models))}, start, controls)


def draw_maps(image, maps, captions, headline):
    """Return the figure of an image uint8 [3, S, S] and of maps [K, S, S] in [0, 1] over its grey copy, captions [K]."""
    rows, columns = (1, 4) if len(maps) < 4 else (2, max(4, len(maps) // 2 + 1))
    figure, axes = panels(rows, columns, 11, 2.75 if rows == 1 else 5, headline)
    shown = [np.moveaxis(np.asarray(image), 0, -1), *(overlay(image, heat, 0.75) for heat in maps)]
    for axis, pixels, caption in zip(axes.flat, shown, ["the picture", *captions], strict=False):
        axis.imshow(pixels)
        axis.set_title(caption, loc="left", fontsize=11)
    for axis in axes.flat:
        axis.axis("off")
    figure.colorbar(ScalarMappable(cmap=MAP), ax=axes, shrink=0.85, aspect=30, label="map")
    return figure
