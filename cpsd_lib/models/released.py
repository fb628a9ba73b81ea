"""The checkpoints released with CPSD, read into our models: their names are a table here, their code is not used."""

import json
from difflib import get_close_matches
from pathlib import Path

import torch

from cpsd_lib.data import COCO_CLASSES
from cpsd_lib.models.classifier import build_model, normalization, preprocessing, read_state, state_faults
from cpsd_lib.models.heads import sine_position
from cpsd_lib.models.label_vectors import read_label_vectors

_RESNET = {"features.0.": "backbone.conv1.", "features.1.": "backbone.bn1."}
_RESNET |= {f"features.{stage + 3}.": f"backbone.layer{stage}." for stage in (1, 2, 3, 4)}
_GAP = _RESNET | {"classify.": "head.linear."}
_TF = _RESNET | {"fc.0.": "head.image_tokens.", "label_emb.0.": "head.label_tokens.", "classify.0.": "head.linear."}
_BLOCK = {"0.fn.norm": "norm1", "0.fn.fn.to_qkv": "qkv", "0.fn.fn.to_out.0": "out"}
_BLOCK |= {"1.fn.norm": "norm2", "1.fn.fn.net.0": "linear1", "1.fn.fn.net.3": "linear2"}
for _layer in (0, 1, 2):
    _there, _here = f"transformer.layers.{_layer}.", f"head.layers.{_layer}."
    _TF |= {f"{_there}{theirs}.": f"{_here}{ours}." for theirs, ours in _BLOCK.items()}
_Q2L = {"backbone.0.body.": "backbone.", "backbone.1.pe": "head.position", "input_proj.": "head.project."}
_Q2L |= {"transformer.decoder.norm.": "head.norm.", "query_embed.weight": "head.queries"}
_Q2L |= {"fc.W": "head.linear.weight", "fc.b": "head.linear.bias"}
for _theirs, _ours, _attention, _norms in (
    ("encoder.layers.0", "encoder", "self_attn", ("norm1", "norm2")),
    ("decoder.layers.0", "decoder.0", "multihead_attn", ("norm2", "norm3")),
    ("decoder.layers.1", "decoder.1", "multihead_attn", ("norm2", "norm3")),
):
    _block = {_attention: "attention", "linear1": "feed_forward.linear1", "linear2": "feed_forward.linear2"}
    _block |= {_norms[0]: "norm", _norms[1]: "feed_forward.norm"}
    _Q2L |= {f"transformer.{_theirs}.{theirs}.": f"head.{_ours}.{ours}." for theirs, ours in _block.items()}
# Beginning of their name -> beginning of ours.
LAYOUTS = {"resnet101": _GAP, "resnet101_tf": _TF, "q2l_resnet101": _Q2L, "resnext50_swsl": _GAP}
LAYOUTS["tresnet_l"] = {"body.": "backbone.body.", "head.fc.": "head.linear."}  # after timm's own renaming
# Frozen and in-place batch norms count no batches.
_NO_COUNTERS = ("q2l_resnet101", "tresnet_l")


def load_released(name, path, num_classes=80, label_vectors=None, class_names=None):
    """Return a released checkpoint as a Classifier in eval mode, with `.class_names` and `.input_size` (None: nobody said).

    name: a key of LAYOUTS. Class names are `class_names`, else those of the JSON beside the file (F.json for F.ckpt), else
    COCO's in alphabetical order for 80 classes. Inputs are in [0, 1], not normalised, unless that JSON has a
    `preprocessing` as our own weights have. resnet101_tf needs its label_vectors: [C, 300], or a file of them.
    Raises FileNotFoundError for no file, ValueError that lists every name that is missing, unknown or of another shape.
    """
    if name not in LAYOUTS:
        raise ValueError(f"no released model {name!r}; there are: {', '.join(LAYOUTS)}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    sidecar = _read_sidecar(Path(path).with_suffix(".json"))
    class_names = _class_names(class_names, sidecar, num_classes, path)
    if isinstance(label_vectors, (str, Path)):
        if class_names is None:
            raise ValueError(f"class_names are needed to look vectors up in {label_vectors}")
        label_vectors = read_label_vectors(label_vectors, class_names)
    if name == "resnet101_tf" and (label_vectors is None or isinstance(label_vectors, str)):
        raise ValueError("resnet101_tf needs label_vectors, [C, 300]: the release keeps them outside its checkpoints")
    model = build_model(name, num_classes, label_vectors=label_vectors)
    _load(model, name, read_state(Path(path)), path)
    for buffer in ("mean", "std"):
        getattr(model, buffer).copy_(torch.tensor(sidecar["preprocessing"][buffer]).view(1, -1, 1, 1))
    model.class_names = class_names
    model.input_size = sidecar["preprocessing"].get("size")
    return model.eval()


def check_class_names(model_names, data_names):
    """Raise ValueError unless a model's class names are the data's in the same order; it names the first difference."""
    if model_names is None:
        raise ValueError("nobody said which classes these weights know: give class_names, or a JSON beside the file")
    model_names, data_names = list(model_names), list(data_names)
    if model_names == data_names:
        return
    pairs = zip([*model_names, None], [*data_names, None], strict=False)
    place, (ours, theirs) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    known, had = ("no class" if name is None else repr(name) for name in (ours, theirs))
    order = "in another order" if sorted(model_names) == sorted(data_names) else "not the same"
    raise ValueError(
        f"the classes of the model ({len(model_names)}) and of the data ({len(data_names)}) are {order}: "
        f"number {place} is {known} for the model and {had} in the data"
    )


def check_preprocessing(model, normalize, size):
    """Raise ValueError unless a released model wants its input as a run would give it.

    normalize, size: model.normalize ("auto" takes what the checkpoint wants) and data.size, in pixels, of the run.
    """
    mean, std = (preprocessing(model)[name] for name in ("mean", "std"))
    given = torch.tensor(normalization(normalize))
    if normalize != "auto" and not torch.allclose(given, torch.tensor((mean, std)), atol=1e-3):
        raise ValueError(
            f"the checkpoint wants inputs of mean {mean} and std {std}, but model.normalize is {normalize}; with auto it "
            "gets what it wants"
        )
    if model.input_size not in (None, size):
        raise ValueError(f"the checkpoint was made for {model.input_size} pixels, but data.size is {size}")


_YOURS = (
    "it is a file of your own beside the checkpoint, and may hold class_names (a list) and preprocessing (mean, std, size); "
    "mend it, or take it away: without it the checkpoint has COCO's 80 classes and inputs in [0, 1]"
)


def _read_sidecar(path):
    try:
        sidecar = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path} is not valid JSON ({error}); {_YOURS}") from None
    if not isinstance(sidecar, dict):
        raise ValueError(f"{path} must hold names and values; {_YOURS}")
    for name in set(sidecar) - {"class_names", "preprocessing"}:
        meant = get_close_matches(name, ["class_names", "preprocessing"], 1, cutoff=0.75)
        if meant:
            raise ValueError(f"{path}: unknown name {name!r}; did you mean {meant[0]}?")
    wanted = sidecar.setdefault("preprocessing", {"mean": [0, 0, 0], "std": [1, 1, 1]})
    rows = [wanted.get(name) for name in ("mean", "std")] if isinstance(wanted, dict) else [None]
    numbers = all(isinstance(row, list) and len(row) == 3 and all(type(x) in (int, float) for x in row) for row in rows)
    if not numbers or min(rows[1]) <= 0:
        raise ValueError(f"{path}: preprocessing must have mean and std > 0, three numbers each")
    for name, ours in (("range", [0, 1]), ("resize", "both sides, no crop")):
        if wanted.get(name, ours) != ours:
            raise ValueError(f"{path}: preprocessing.{name} is {wanted[name]!r}; inputs here have {ours!r}")
    return sidecar


def _class_names(given, sidecar, num_classes, path):
    names = given if given is not None else sidecar.get("class_names")
    if names is None:
        return list(COCO_CLASSES) if num_classes == len(COCO_CLASSES) else None
    if not isinstance(names, (list, tuple)) or len(set(map(str, names))) != num_classes or len(names) != num_classes:
        raise ValueError(f"{path} has {num_classes} classes; its class_names must be as many different names")
    if given is not None and sidecar.get("class_names") is not None:
        check_class_names(sidecar["class_names"], given)
    return [str(name) for name in names]


def _load(model, name, state, path):
    if name == "q2l_resnet101":
        # As large as the image was in the release's training: its places are the file's own, all else must fit.
        given = state.get("backbone.1.pe", torch.empty(0))
        places = given.shape[2:] if given.ndim == 4 else (14, 14)
        model.head.position = sine_position(model.head.queries.shape[1], *places)
    own, plain, state = _own(name, model), state, _converted(name, state)
    if name in _NO_COUNTERS:
        state = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")} | state
    faults = state_faults(own, state)
    if faults:
        hint = _looks_like(name, plain, own.keys() != state.keys())
        raise ValueError(f"{hint}{path} does not fit the released {name} with these classes; {faults}")
    for key, value in own.items():
        value.copy_(state[key])
    if name == "q2l_resnet101":
        code = sine_position(*model.head.position.shape[1:])
        # The usual code is computed for any size; only one of another kind is kept, for the one size it has.
        if torch.allclose(model.head.position, code, atol=1e-4):
            model.head.position = None


def _looks_like(name, state, other_names):
    """Return the beginning of a message: which released model has most of these names, "" when none has nine in ten."""
    if not other_names:
        return f"this is a {name} for another number of classes, or of other sizes: "
    shares = {other: _share(other, state) for other in LAYOUTS}
    best = max(shares, key=shares.get)
    if best == name or shares[best] < 0.9:
        return ""
    return f"this looks like {best}, not {name} (give --released {best} and a parameter file of that model): "


def _share(name, state):
    """Return how many of the names of a released model and of a state dict are in both, as a share of those in either."""
    vectors = torch.zeros(2, 300) if name == "resnet101_tf" else None
    with torch.device("meta"):  # its names alone; the number of classes does not change them
        model = build_model(name, 2, label_vectors=vectors)
    names = (_own(name, model), _converted(name, state))
    # Not every release counts its batches (_NO_COUNTERS).
    own, theirs = ({key for key in keys if not key.endswith("num_batches_tracked")} for keys in names)
    return len(own & theirs) / len(own | theirs)


def _own(name, model):
    """Return {the release's name of it: tensor} of all that a release has of our model."""
    own = {key: value for key, value in model.state_dict().items() if key not in ("mean", "std", "head.label_vectors")}
    layout = {ours: theirs for theirs, ours in LAYOUTS[name].items()}
    beginning = {key: next(ours for ours in layout if key.startswith(ours)) for key in own}
    return {layout[ours] + key[len(ours) :]: own[key] for key, ours in beginning.items()}


def _converted(name, state):
    """Return a release's state dict with its tensors as ours are; timm renames those of tresnet_l."""
    if name == "tresnet_l":
        from timm.models.tresnet import checkpoint_filter_fn

        state = checkpoint_filter_fn(state, None)
    # Q2L has all classes in one tensor with a batch axis.
    batched = {key for key in ("fc.W", "fc.b") if key in state and state[key].shape[:1] == (1,)}
    return {key: value[0] if key in batched else value for key, value in state.items()}
