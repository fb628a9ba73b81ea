"""The CAM browser: where a model looks for the classes of an image."""

from functools import lru_cache

import ipywidgets
import numpy as np
import torch
from matplotlib.cm import ScalarMappable

from cpsd_lib.data import test_view
from cpsd_lib.evaluation import class_activation, map_kinds
from cpsd_lib.teachers import logits_of
from cpsd_lib.viz.explorer import Explorer, Picture, check_start
from cpsd_lib.viz.plots_evidence import MAP, overlay

MOST_MAPS = 3  # beside the picture; more would be too small to see
LABEL = {1: "label", 0: "no label", -1: "unknown"}


def cam_browser(models, images, indices, targets, names, start=None):
    """Return an Explorer of class activation maps: image, class, model.

    models {name: Classifier or PartTeachers}, which are put into eval mode; images uint8 [N, 3, S, S]; indices: of the images
    to browse; targets [N, C] of 1, 0, -1; names [C]. start: {"image": 0 (its place in indices), "shown": None, "model": name},
    shown: the name of a class, or None for the labels of the image (the first three; the most probable class where it has none).
    Its numbers: "classes" shown, their "probabilities", and "labels" of the image. Raises ValueError for what does not fit.
    """
    if not models or not len(indices):
        raise ValueError(
            f"there are {len(models)} models and {len(indices)} images to browse; give one of each at least"
        )
    if targets.shape != (len(images), len(names)):
        raise ValueError(f"targets are {targets.shape} for {len(images)} images and {len(names)} names")
    settings = check_start(start, {"image": 0, "shown": None, "model": next(iter(models))})
    figure, names = MapFigure(), list(names)
    for model in models.values():
        model.eval()

    def view(image, model):
        device = next(models[model].parameters()).device
        return test_view(torch.from_numpy(np.array(images[indices[image]])[None]).to(device))

    # What was there before costs a drawing only; 64 times three maps of 448 pixels are 150 MB.
    @lru_cache(512)
    def probabilities_of(image, model):
        with torch.inference_mode():
            logits = logits_of(models[model](view(image, model)))
        return logits[0].float().sigmoid().cpu().numpy()

    @lru_cache
    def kind_of(model):
        return map_kinds(models[model], images.shape[-1])[0]

    @lru_cache(64)
    def maps_of(image, model, classes):
        return class_activation(models[model], view(image, model), classes)[0].cpu().numpy()

    def draw(image, shown, model):
        if model not in models or shown not in (None, *names) or not 0 <= image < len(indices):
            raise ValueError(
                f"there is no image {image}, class {shown!r} or model {model!r}; images are 0..{len(indices) - 1}, "
                f"models {', '.join(models)}, classes {', '.join(names[:10])} ..."
            )
        labels = np.flatnonzero(targets[indices[image]] == 1).tolist()
        probabilities = probabilities_of(image, model)
        classes = labels[:MOST_MAPS] or [int(probabilities.argmax())]
        classes = classes if shown is None else [names.index(shown)]
        numbers = {"classes": [names[c] for c in classes], "probabilities": [float(probabilities[c]) for c in classes]}
        numbers["labels"] = [names[c] for c in labels]
        maps = maps_of(image, model, tuple(classes))
        captions = [
            f"{names[c]}: {probabilities[c]:.2f}, {LABEL[int(targets[indices[image], c])]}{'' if m.any() else ', map all 0'}"
            for c, m in zip(classes, maps, strict=True)
        ]
        headline = f"model {model}, its maps of {kind_of(model)}; image {indices[image]}, its labels: "
        headline += ", ".join(numbers["labels"]) or "none"
        return figure.show(images[indices[image]], maps, captions, headline), numbers

    def controls():
        return {
            "image": ipywidgets.IntSlider(min=0, max=len(indices) - 1, description="image"),
            "shown": ipywidgets.Dropdown(
                options=[("labels of the image", None), *zip(names, names, strict=True)], description="class"
            ),
            "model": ipywidgets.Dropdown(options=list(models), description="model"),
        }

    return Explorer(draw, settings, controls)


class MapFigure:
    """A picture and up to three maps over its grey copy, each with a caption."""

    def __init__(self):
        self._picture = Picture(13.5, 4.2)
        figure = self._picture.figure
        self._axes = [figure.add_axes((0.01 + 0.235 * place, 0.02, 0.225, 0.77)) for place in range(1 + MOST_MAPS)]
        bar = figure.add_axes((0.952, 0.02, 0.012, 0.77))
        figure.colorbar(ScalarMappable(cmap=MAP), cax=bar).ax.set_title("map", fontsize=11)
        self._headline = figure.text(0.01, 0.94, "", fontsize=13, va="center")
        for axis in self._axes:
            axis.axis("off")

    def show(self, image, maps, captions, headline):
        """Draw an image uint8 [3, S, S], its maps [K, S, S] in [0, 1] and their captions [K]; return the PNG."""
        shown = [np.moveaxis(np.asarray(image), 0, -1), *(overlay(image, heat, 0.75) for heat in maps)]
        artists = [self._headline]
        for axis, pixels, caption in zip(self._axes, shown, ["the picture", *captions], strict=False):
            axis.clear()
            axis.axis("off")
            artists += [axis.imshow(pixels), axis.set_title(caption, loc="left", fontsize=10)]
            axis.apply_aspect()  # else only a drawing of the whole figure would make it square
        self._headline.set_text(headline)
        return self._picture.png(artists)
