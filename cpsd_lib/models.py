"""image -> Output(logits, label_embeddings, features): a timm backbone and a head."""

import math
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
    """Return the last features of a timm model as [B, F, h, w], whatever layout the model uses inside."""
    features = backbone.forward_features(images)
    if features.ndim == 3:  # transformers: [B, prefix + h * w, F]
        features = features[:, getattr(backbone, "num_prefix_tokens", 0) :].transpose(1, 2)
        rows = round(math.sqrt(features.shape[2] * images.shape[2] / images.shape[3]))
        return features.unflatten(2, (rows, -1))
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return features.permute(0, 3, 1, 2)
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
        near = timm.list_models(f"*{name.split('.')[0]}*")[:5]
        raise ValueError(f"timm has no model {name!r}" + (f"; near names: {', '.join(near)}" if near else ""))
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except TypeError as error:
        raise ValueError(f"model.options {options} do not fit {name}: {error}") from error
    except Exception as error:
        if pretrained:
            raise ConnectionError(
                f"the ImageNet weights of {name} could not be fetched ({type(error).__name__}); set model.weights to a "
                "local .safetensors or .pth file of this timm model, or leave it out to start from random weights"
            ) from error
        raise


def load_backbone(backbone, path):
    """Read a local file of the full timm model into `backbone`; every backbone tensor must be there in its shape.

    Raises FileNotFoundError for no file, ValueError that lists what is missing, foreign or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; give a .safetensors or .pth file of the timm model")
    if path.suffix == ".safetensors":
        state = safetensors.torch.load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state.get("model", state))
    own = backbone.state_dict()
    # The file's own classifier is the one thing that may stay unread.
    classifier = backbone.pretrained_cfg.get("classifier") or "classifier"
    heads = tuple(f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier))
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    foreign = [key for key in state if key not in own and not key.startswith(heads)]
    shapes = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or foreign or shapes:
        raise ValueError(
            f"{path.name} does not fit this backbone: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(foreign)} foreign {foreign[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )
    backbone.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


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
