"""The figures of the CPSD paper (IJCAI 2022), and of CAP (NeurIPS 2023) with few labels, to stand beside ours; percent."""

_COLUMNS = [("baseline", name) for name in ("mAP", "CP", "CR", "CF1", "OP", "OR", "OF1")]
_COLUMNS += [(row, "mAP") for row in ("sd", "cgpd", "dgpd")]  # from the ablation, which gives nothing else
_COLUMNS += [("cpsd", name) for _, name in _COLUMNS[:7]]

# Data kind, model and pixels, then the figures in the order of _COLUMNS; "-" where the paper gives none.
#                           baseline                              +SD  +CGPD +DGPD +CPSD
#                           mAP  CP   CR   CF1  OP   OR   OF1     mAP  mAP  mAP    mAP  CP   CR   CF1  OP   OR   OF1
_TABLE = """
coco2014 resnet101 448      81.6 80.6 72.7 76.4 83.7 76.7 80.0    81.9 82.4 82.7   83.1 83.5 73.6 78.2 84.8 77.3 80.9
coco2014 resnet101_tf 448   84.3 87.4 71.6 78.7 87.9 75.2 81.0    84.4 84.7 84.5   85.2 84.9 75.5 79.9 85.6 78.5 81.9
coco2014 q2l_resnet101 448  84.0 82.0 75.8 78.8 83.3 78.8 81.0    84.2 84.6 84.3   84.9 88.4 71.7 79.2 89.3 74.8 81.4
coco2014 resnet101_tf 576   85.9 88.6 73.4 80.3 88.8 76.8 82.4    -    -    -      86.7 83.5 79.0 81.2 84.5 81.4 82.9
coco2014 tresnet_l 448      86.2 85.0 77.5 81.1 85.6 80.4 82.9    86.5 86.6 86.8   87.3 85.5 78.9 82.1 85.7 81.5 83.7
coco2014 resnext50_swsl 448 86.7 85.8 77.8 81.6 86.9 80.3 83.5    86.9 87.3 87.4   87.7 86.9 78.6 82.5 87.6 80.9 84.1
nuswide resnet101_tf 448    64.1 -    -    62.8 -    -    74.9    -    -    -      65.8 -    -    64.0 -    -    75.3
nuswide tresnet_l 448       64.7 -    -    63.7 -    -    75.0    -    -    -      66.5 -    -    64.6 -    -    75.5
"""


# CAP: data kind, model and pixels, {share of training images with labels: mAP of (labels alone, pseudo-labels)}
_FEW = {("coco2014", "resnet50", 224): {0.05: (58.3, 62.4), 0.1: (63.5, 65.2), 0.15: (66.2, 69.1), 0.2: (67.6, 70.4)}}

_PUBLISHED = {}  # {(kind, model, pixels): {row: {name: percent}}}
for _kind, _model, _pixels, *_cells in map(str.split, _TABLE.strip().splitlines()):
    _rows = _PUBLISHED[_kind, _model, int(_pixels)] = {}
    for (_row, _name), _cell in zip(_COLUMNS, _cells, strict=True):
        if _cell != "-":
            _rows.setdefault(_row, {})[_name] = float(_cell)


def no_figure(params):
    """Return in a sentence why `published` has nothing for a model of the paper; None where it has, or for others."""
    kind, name, size = params.data.kind, params.evaluation.released or params.model.name, params.data.size
    if published(params) or name not in {model for _, model, _ in _PUBLISHED}:
        return None
    text = f"the paper has no figure of {name} on {kind}"
    sizes = [pixels for other, model, pixels in _PUBLISHED if (other, model) == (kind, name)]
    if size in sizes:
        return f"{text} with {' and '.join(_unlike_the_paper(params))}"
    return f"{text} at {size} px, only at {' and '.join(map(str, sizes))} px" if sizes else text


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
    """Return {row: {"mAP": ..., "CF1": ...}} of the paper for this data set as a whole, model, size, k and alpha; else {}.

    A released checkpoint (params.evaluation.released) is the paper's student, so its row is "released".
    """
    name = params.evaluation.released or params.model.name
    few = _FEW.get((params.data.kind, name, params.data.size), {}).get(params.data.labelled)
    if few and params.data.limit is None:
        return {"baseline": {"mAP": few[0]}, "cap": {"mAP": few[1]}}
    rows = _PUBLISHED.get((params.data.kind, name, params.data.size), {})
    if not rows or _unlike_the_paper(params):
        return {}
    return {"released": rows["cpsd"]} if params.evaluation.released else rows
