"""image -> Output(logits, label_embeddings, features): a timm backbone and a head."""

import difflib
import math
import pickle
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import timm
import torch
from torch import nn


class Output(NamedTuple):
    """What a model says of a batch."""

    logits: torch.Tensor  # [B, C]
    label_embeddings: torch.Tensor | None  # [B, C, D], heads with one embedding a class; None for gap
    features: torch.Tensor  # [B, F, h, w], the backbone's last map


class Classifier(nn.Module):
    """A backbone without its head, then a head over C classes; the input's normalisation is part of the model."""

    def __init__(self, backbone, head, mean, std):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images):
        """Return the Output for images [B, 3, S, S], float in [0, 1]."""
        features = feature_map(self.backbone, (images - self.mean) / self.std)
        logits, label_embeddings = self.head(features)
        return Output(logits, label_embeddings, features)


class GapHead(nn.Module):
    """Global average pooling and one linear layer (METHOD 1, R101)."""

    def __init__(self, features, num_classes, prior=0.12):
        super().__init__()
        self.linear = nn.Linear(features, num_classes)
        # timm's own init gives logits of std 7 on MobileNet and the first epochs only unlearn them: mAP 26 after two
        # epochs on 18 classes of COCO at 96 px, against 42 with small weights and a low prior.
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.constant_(self.linear.bias, math.log(prior / (1 - prior)))

    def forward(self, features):
        """Return (logits [B, C], None) for features [B, F, h, w]."""
        return self.linear(features.mean((2, 3))), None


def feature_map(backbone, images):
    """Return the last features of a timm model as [B, F, h, w], whatever layout the model uses inside.

    Raises ValueError for one of the few models that give no such map (coat, crossvit, volo in timm 1.0).
    """
    features = backbone.forward_features(images)
    found = tuple(features.shape) if torch.is_tensor(features) else type(features).__name__
    if len(found) == 3:  # transformers: [B, prefix + h * w, F]
        features = features[:, getattr(backbone, "num_prefix_tokens", 0) :].transpose(1, 2)
        rows = max(1, round(math.sqrt(features.shape[2] * images.shape[2] / images.shape[3])))
        columns = round(rows * images.shape[3] / images.shape[2])
        if rows * columns == features.shape[2]:
            features = features.unflatten(2, (rows, columns))
    elif getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        features = features.permute(0, 3, 1, 2)
    if not torch.is_tensor(features) or features.ndim != 4 or features.shape[1] != backbone.num_features:
        raise ValueError(f"{type(backbone).__name__} gives {found}, no map of its features; take another backbone")
    return features


def build_model(name, num_classes, weights=None, head="gap", normalize="auto", prior=0.12, **options):
    """Return a Classifier over any timm backbone, its new head drawn small with bias log(prior / (1 - prior)).

    weights: None (random), "imagenet" (timm's own, from the hub), or a local .safetensors / .pth file of the timm model.
    normalize: "auto" uses the mean and std of those weights, [0, 1] as it is for random ones; "none"; "imagenet".
    Raises ValueError for an unknown name or option, FileNotFoundError or ConnectionError when weights cannot be had.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    if head != "gap":
        raise ValueError(f"head {head!r} is not there; expected gap")
    backbone = _backbone(name, weights == "imagenet", options)
    if weights not in (None, "imagenet"):
        load_backbone(backbone, weights)
    mean, std = _normalization(backbone, normalize, weights)
    return Classifier(backbone, GapHead(backbone.num_features, num_classes, prior), mean, std)


def _backbone(name, pretrained, options):
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0].lower(), timm.list_models(), 5)
        raise ValueError(f"timm has no model {name!r}" + (f"; near names: {', '.join(near)}" if near else ""))
    architecture, _, tag = name.partition(".")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise ValueError(f"timm has no weights {tag!r} of {architecture}; it has: {', '.join(tagged) or 'none'}")
    if pretrained and not tagged:
        raise ValueError(f"timm has no ImageNet weights of {name}; leave model.weights out to start from random ones")
    try:
        # Built once without weights first, so that a wrong option is not taken for a failed download.
        backbone = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except Exception as error:
        raise ValueError(f"{name} cannot be built with model.options {options}: {error}") from error
    if not pretrained:
        return backbone
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **options)
    except Exception as error:
        raise ConnectionError(
            f"the ImageNet weights of {name} could not be fetched ({type(error).__name__}: {error}); set model.weights "
            "to a local .safetensors or .pth file of this timm model, or leave it out to start from random weights"
        ) from error


def load_backbone(backbone, path):
    """Read a local file of the full timm model into `backbone`; every backbone tensor must be there in its shape.

    Raises FileNotFoundError for no file, ValueError that lists what is missing, foreign or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; give a .safetensors or .pth file of the timm model")
    state = _read_state(path)
    own = backbone.state_dict()
    # The file's own classifier is the one thing that may stay unread.
    classifier = backbone.pretrained_cfg.get("classifier") or "classifier"
    # Its first name only: where timm says `head.fc2`, all of `head.` goes when there are no classes.
    heads = tuple(f"{part.split('.')[0]}." for part in ([classifier] if isinstance(classifier, str) else classifier))
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in own and not key.startswith(heads)]
    shapes = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or foreign or shapes:
        raise ValueError(
            f"{path.name} does not fit this backbone: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(foreign)} foreign {foreign[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )
    backbone.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def _read_state(path):
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is no readable file of weights ({type(error).__name__})") from error
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: names with a tensor each")
    return state


def _normalization(backbone, normalize, weights):
    config = backbone.pretrained_cfg
    if normalize == "imagenet":
        return timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    if normalize == "auto" and weights is not None:
        return config["mean"], config["std"]
    if normalize in ("auto", "none"):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    raise ValueError(f"normalize must be auto, none or imagenet, not {normalize!r}")


def preprocessing(model):
    """Return how `model` wants its input, as it is written beside its weights."""
    return {
        "range": [0, 1],
        "mean": model.mean.flatten().tolist(),
        "std": model.std.flatten().tolist(),
        "resize": "both sides, no crop",
    }
