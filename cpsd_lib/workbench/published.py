"""The figures of the CPSD paper (IJCAI 2022), and of CAP (NeurIPS 2023) with few labels, to stand beside ours; percent."""

from pathlib import Path

import pandas as pd

# A line a data kind, model, pixels, share of training images with labels (1: CPSD's paper) and row; blank: not published.
_FIGURES = pd.read_csv(Path(__file__).with_name("published.csv"))
_SETTING = ["data", "model", "pixels", "labelled"]


def no_figure(params):
    """Return in a sentence why `published` has nothing for a model of the paper; None where it has, or for others."""
    kind, name, size = params.data.kind, params.evaluation.released or params.model.name, params.data.size
    of_model = _FIGURES[(_FIGURES["model"] == name) & (_FIGURES["labelled"] == 1)]
    if len(published(params)) or of_model.empty:
        return None
    text = f"the paper has no figure of {name} on {kind}"
    sizes = of_model.loc[of_model["data"] == kind, "pixels"].unique()
    if size in sizes:
        return f"{text} with {' and '.join(_unlike_the_paper(params))}"
    return f"{text} at {size} px, only at {' and '.join(map(str, sizes))} px" if len(sizes) else text


def _unlike_the_paper(params):
    """Return what makes another run than the paper's of these parameters, a word or two each."""
    cut, alpha, limit = params.partition, params.student.alpha, params.data.limit
    unlike = [] if limit is None else [f"data.limit = {limit}"]
    unlike += [] if params.data.labelled is None else [f"data.labelled = {params.data.labelled:g}"]
    if not params.evaluation.released:  # a checkpoint has the paper's own
        unlike += [f"partition.k = {cut.k} (only 5)"] if cut.k != 5 and not cut.use_released else []
        unlike += [f"student.alpha = {alpha} (only 0.5)"] if alpha != 0.5 else []
    return unlike


def published(params):
    """Return the paper's figures for this data set as a whole, model, size, k and alpha, a line a row; none for others.

    A released checkpoint (params.evaluation.released) is the paper's student, so its row is "released".
    """
    data, name = params.data, params.evaluation.released or params.model.name
    setting = [data.kind, name, data.size, data.labelled or 1]
    found = _FIGURES[(_FIGURES[_SETTING] == setting).all(axis=1)].drop(columns=_SETTING).set_index("row")
    if found.empty or (data.limit is not None if data.labelled else _unlike_the_paper(params)):  # CAP cuts nothing
        return found.iloc[:0]
    return found.loc[["cpsd"]].rename({"cpsd": "released"}) if params.evaluation.released else found
