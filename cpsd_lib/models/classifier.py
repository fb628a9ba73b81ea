"""image -> Output(logits, label_embeddings, features): a timm backbone and a head."""

import copy
import difflib
import math
import re
from pathlib import Path
from unittest.mock import patch

import safetensors.torch
import torch
from huggingface_hub import constants, get_session
from torch import nn

from cpsd_lib.models.heads import LabelTransformer, LinearHead, MLDecoder, Query2Label
from cpsd_lib.support import listed
from cpsd_lib.teachers import Output

MODELS_VERSION = 2  # of this room: raised when a change of its code changes what a model computes or how it starts


class Classifier(nn.Module):
    """A timm model without its classifier, then a head over C classes; the input's normalisation is part of the model."""

    def __init__(self, backbone, head, mean, std, stride=1):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.last = nn.Identity()  # a place where a hook gets and may replace the last features
        self.stride = stride  # pixels; both sides of an image are a multiple of it
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images):
        """Return the Output for images [B, 3, S, S], float in [0, 1] (ValueError for a size the model does not take)."""
        if any(side % self.stride for side in images.shape[2:]):
            size = "x".join(map(str, images.shape[2:]))
            raise ValueError(f"images of {size} pixels do not fit: both sides must be a multiple of {self.stride}")
        return self.read(self.forward_features(images), images)

    def read(self, last, images):
        """Return the Output for the last features of images [B, 3, S, S], as forward_features gives them."""
        last = self.last(last)
        features = feature_map(self.backbone, last, images)
        read = self.backbone.forward_head(last, pre_logits=True) if isinstance(self.head, LinearHead) else features
        logits, label_embeddings = self.head(read)
        return Output(logits, label_embeddings, features)

    def forward_features(self, images):
        """Return the last features of images [B, 3, S, S], in whatever layout the timm model has inside."""
        return self.backbone.forward_features((images - self.mean) / self.std)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that keeps its statistics, and whose weights are not trained, as in DETR (which has the same eps)."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode=True):
        """Stay in eval mode."""
        return super().train(False)


# The paper's models by their names: backbone with the weights the release starts from, head, timm's options.
# The weights of resnext50_swsl are licensed CC-BY-NC-4.0: not for commercial use.
PRESETS = {
    "resnet101": ("resnet101.tv_in1k", "gap", {}),
    "resnet101_tf": ("resnet101.tv_in1k", "label_transformer", {}),
    # zero_init_last: a last norm that starts at zero and is frozen would switch off each block of a random backbone.
    "q2l_resnet101": ("resnet101.tv_in1k", "query2label", {"norm_layer": FrozenBatchNorm2d, "zero_init_last": False}),
    "tresnet_l": ("tresnet_l.miil_in1k_448", "gap", {}),  # its own pool is the mean
    "resnext50_swsl": ("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", "gap", {}),
}
HEADS = {"gap": LinearHead, "label_transformer": LabelTransformer, "query2label": Query2Label, "ml_decoder": MLDecoder}


def feature_map(backbone, features, images):
    """Return what `forward_features` of a timm model made of images [B, 3, S, S] as [B, F, h, w], whatever its layout.

    Raises ValueError for one of the few models that give no such map (coat, crossvit, volo in timm 1.0).
    """
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


def trial_images(size, device=None):
    """Return the same two images of random pixels [2, 3, size, size] each time, to try a model on.

    Never a black one: what is wrong in a layer's weights shows only where its input is not 0.
    """
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0), device="cpu").to(device)


def build_model(
    name,
    num_classes,
    weights=None,
    head="gap",
    normalize="auto",
    prior=0.12,
    label_vectors=None,
    head_width=None,
    **options,
):
    """Return a Classifier: a model of the paper (PRESETS), or any timm backbone with a head (HEADS).

    A new head starts with small output weights and bias log(prior / (1 - prior)); gap with such a name means its own head.
    gap is timm's own way from the last features to the classifier, whatever it pools, and a linear layer; the other heads
    read the last map, and what timm has behind it is left out.
    weights: None (random), "imagenet" (timm's own, from the hub), or a local .safetensors / .pth file of the timm model.
    normalize: "auto" uses the mean and std of those weights, [0, 1] as it is for random ones; "none"; "imagenet".
    label_vectors, for label_transformer: [C, V], fixed; None or "learned". head_width: None is the papers' own, per head.
    Raises ValueError for an unknown name or option, FileNotFoundError or ConnectionError when weights cannot be had.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    timm_name, own_head, preset = PRESETS.get(name, (name, "gap", {}))
    if own_head != "gap" and head not in ("gap", own_head):
        raise ValueError(f"{name} has the head {own_head}; name its backbone, {timm_name}, to give it another")
    head = own_head if head == "gap" else head
    backbone = _backbone(timm_name, weights == "imagenet", preset | options)
    if weights not in (None, "imagenet"):
        load_backbone(backbone, weights)
    if name == "q2l_resnet101":
        for part in (backbone.conv1, backbone.bn1, backbone.layer1):
            part.requires_grad_(False)
    mean, std = normalization(normalize, weights and backbone.pretrained_cfg)
    if head == "gap" and type(backbone).__name__.endswith("Encoder"):
        raise ValueError(f"timm gives {timm_name} no classifier; take a head that reads its map, such as ml_decoder")
    width = getattr(backbone, "head_hidden_size", backbone.num_features) if head == "gap" else backbone.num_features
    made = _head(head, width, num_classes, prior, label_vectors, head_width)
    if head != "gap":  # after the weights were read: their file has these layers
        _drop_unused(backbone, options.get("img_size") or backbone.pretrained_cfg["input_size"][1:])
    # A plain backbone takes what it takes; TResNet's stem cuts the image into blocks and fails inside timm.
    strict = name in PRESETS or head != "gap" or type(backbone).__name__ == "TResNet"
    return Classifier(backbone, made, mean, std, backbone.feature_info[-1]["reduction"] if strict else 1)


def _head(head, features, num_classes, prior, label_vectors, width):
    if head not in HEADS:
        raise ValueError(f"head {head!r} is not there; expected one of {', '.join(HEADS)}")
    options = {}
    if width is not None:
        if head == "gap" or width < 8 or width % 8:
            raise ValueError(f"head_width must be a multiple of 8, for a head with tokens; not {width} for {head}")
        options["dim"] = width
    if label_vectors is not None and head != "label_transformer":
        raise ValueError(f"the head {head} takes no label vectors; only label_transformer does")
    if label_vectors is not None and not isinstance(label_vectors, str):
        # On the CPU first: on the meta device there are no values to look at.
        vectors = torch.as_tensor(label_vectors, dtype=torch.float32, device="cpu").clone()
        if vectors.ndim != 2 or len(vectors) != num_classes or not vectors.isfinite().all():
            raise ValueError(f"label_vectors must be finite [{num_classes}, V], not {list(vectors.shape)}")
        options["label_vectors"] = vectors.to(torch.get_default_device())
    elif label_vectors not in (None, "learned"):
        raise ValueError(f'label_vectors must be "learned" or an array; read {label_vectors!r} with read_label_vectors')
    return HEADS[head](features, num_classes, prior, **options)


def _backbone(name, pretrained, options):
    import timm  # with torchvision 2 s, which those that build no model do not wait for

    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0].lower(), dict.fromkeys([*timm.list_models(), *PRESETS]), 5)
        raise ValueError(f"timm has no model {name!r}" + (f"; near names: {', '.join(near)}" if near else ""))
    architecture, _, tag = name.partition(".")
    tagged = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tagged:
        raise ValueError(f"timm has no weights {tag!r} of {architecture}; it has: {', '.join(tagged) or 'none'}")
    if pretrained and not tagged:
        raise ValueError(f"timm has no ImageNet weights of {name}; model.weights=null starts from random ones")
    try:
        # Built once without weights first, so that a wrong option is not taken for a failed download.
        backbone = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except Exception as error:
        raise ValueError(f"{name} cannot be built with model.options {options}: {error}") from error
    if not pretrained:
        return backbone
    unreachable = _why_unreachable()
    try:
        with patch.object(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE or unreachable is not None):
            return timm.create_model(name, pretrained=True, num_classes=0, **options)
    except Exception as error:
        why = unreachable or error
        raise ConnectionError(
            f"the ImageNet weights of {name} could not be fetched ({type(why).__name__}: {why}); set model.weights "
            "to a local .safetensors or .pth file of this timm model, or model.weights=null to start from random weights"
        ) from error


def _why_unreachable():
    """Return the error of one attempt to reach the hub, None where it answers: by itself it tries for more than a minute."""
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:
        return error


def _drop_unused(backbone, size):
    """Take out of a backbone the layers that its last map does not depend on: nothing would train them.

    size: the side, or both sides, in pixels of images that it takes.
    """
    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        shapes = copy.deepcopy(backbone).to("meta").eval().requires_grad_(True)
        images = torch.empty(1, 3, *(size if isinstance(size, (tuple, list)) else (size, size)))
        last = feature_map(shapes, shapes.forward_features(images), images)
        names, parameters = zip(*shapes.named_parameters(), strict=True)
        gradients = torch.autograd.grad(last.sum(), parameters, allow_unused=True)
    used = {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    for name, module in reversed(list(backbone.named_modules())[1:]):
        own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
        if own and not own & used:
            backbone.set_submodule(name, nn.Identity())


def load_backbone(backbone, path):
    """Read a local file of the full timm model into `backbone`; every backbone tensor must be there in its shape.

    Raises FileNotFoundError for no file, ValueError that lists what is missing, foreign or of another shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; give a .safetensors or .pth file of the timm model")
    state, own = read_state(path), backbone.state_dict()
    # The file's own classifier may stay unread, and a file need not count batches.
    classifier = backbone.pretrained_cfg.get("classifier") or "classifier"
    # Its first name only: where timm says `head.fc2`, all of `head.` goes when there are no classes.
    heads = tuple(f"{part.split('.')[0]}." for part in ([classifier] if isinstance(classifier, str) else classifier))
    state = {key: value for key, value in state.items() if key in own or not key.startswith(heads)}
    state = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")} | state
    faults = state_faults(own, state)
    if faults:
        raise ValueError(f"{path.name} does not fit this backbone; {faults}")
    backbone.load_state_dict(state)


def state_faults(own, state):
    """Return in words how the names and shapes of a state dict differ from `own` {name: tensor}, "" where they do not."""
    faults = {
        "missing": [name for name in own if name not in state],
        "unknown": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {list(state[name].shape)}, expected {list(value.shape)}"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in faults.items() if names)


def read_state(path):
    """Return the state dict {name: tensor} in a .safetensors or torch file, as it is or in a training's checkpoint.

    Nothing is unpickled but tensors. What wrappers put before every name (`module.`, `_orig_mod.`) is taken off. Raises
    ValueError for another file, or one that holds objects of some class, which it names.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # other bytes make an unpickler raise anything
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if foreign:
            raise ValueError(
                f"{path} is no readable file of weights: it holds a {foreign[1]}, and nothing but tensors is unpickled here; "
                "where you trust the file, keep its weights alone: "
                'torch.save(torch.load(file, weights_only=False)["state_dict"], "weights.pth")'
            ) from None
        raise ValueError(f"{path} is no readable file of weights ({type(error).__name__})") from error
    for wrapper in ("state_dict", "model", "state_dict_ema", "model_ema", "ema"):
        inner = state.get(wrapper) if isinstance(state, dict) else None
        state = inner if isinstance(inner, dict) else state
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise ValueError(f"{path} holds no state dict: names with a tensor each")
    from timm.models import clean_state_dict

    plain = clean_state_dict(state)
    if len(plain) < len(state):
        raise ValueError(f"{path} has the same names with and without the prefix `module.`")
    return plain


def normalization(normalize, config=None):
    """Return (mean, std) of model.normalize; config: of the weights that "auto" goes by, None where there are none."""
    if normalize == "imagenet":
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if normalize == "auto" and config:
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
