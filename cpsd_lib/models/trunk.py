"""Teachers that start from the trained baseline, and may share its first stages: one frozen trunk, many tails."""

import copy

import torch
from torch import nn

from cpsd_lib.models.classifier import Classifier, trial_images


class Trunk(nn.Module):
    """The first stages of a trained Classifier, frozen in eval mode; images [B, 3, S, S] -> what the next stage reads.

    It keeps what it made of the last batch, so that all the tails that see this batch cost one forward pass of the trunk.
    """

    def __init__(self, backbone, mean, std):
        super().__init__()
        Trunk.forward = torch.compiler.disable(Trunk.remembered)  # it remembers: no graph. Imports Dynamo, 2 s
        self.backbone = backbone
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())
        self.requires_grad_(False)
        self.eval()
        self._last = None, None, None

    def train(self, mode=True):
        """Stay in eval mode: frozen weights with moving batch-norm statistics would be another trunk at every step."""
        return super().train(False)

    def remembered(self, images):
        """Return the features of a batch; the very same tensor again, under the same precision, is not computed again."""
        device = images.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        mode = torch.is_inference_mode_enabled(), torch.get_autocast_dtype(device) if autocast else None
        if self._last[0] is not images or self._last[1] != mode:
            with torch.no_grad():
                self._last = images, mode, self.features(images)
        return self._last[2]

    def features(self, images):
        """Return what `remembered` does, and remember nothing."""
        return self.backbone.forward_features((images - self.mean) / self.std)


class Tail(Classifier):
    """A Classifier that owns its last stages and its head alone; the stages before are a Trunk it shares with others.

    The trunk is no part of its weights: they are not trained, not averaged and not saved with it.
    """

    def __init__(self, trunk, backbone, head, stride):
        super().__init__(backbone, head, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), stride)
        self.mean, self.std = trunk.mean.clone(), trunk.std.clone()  # for the record: the trunk is what normalises
        self.shared = (trunk,)  # in a tuple, which nn.Module does not look into

    def forward_features(self, images):
        """Return the last features of images [B, 3, S, S]."""
        return self.backbone.forward_features(self.shared[0](images))

    def _apply(self, fn, recurse=True):
        # `.to(device)` takes the trunk along. Shared by many, it is moved by the first and found there by the others.
        self.shared[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)


def stages_of(backbone):
    """Return the names of a timm backbone's stages, in order; each halves the image's sides but for a few."""
    return [stage["module"] for stage in backbone.feature_info]


def make_trunk(model, frozen_stages):
    """Return the Trunk of the first `frozen_stages` stages (stages_of) of a Classifier, a copy; ValueError where it has no such.

    A negative `frozen_stages` counts from the end, here and below: -1 is all stages but the last.
    """
    backbone = copy.deepcopy(model.backbone)
    for name in _units(backbone)[_cut(backbone, frozen_stages) :]:
        backbone.set_submodule(name, nn.Identity())
    return Trunk(backbone, model.mean, model.std)


def make_tail(model, trunk, frozen_stages):
    """Turn a Classifier, which is used up, into the Tail that goes on after `trunk`, the first `frozen_stages` stages."""
    for name in _units(model.backbone)[: _cut(model.backbone, frozen_stages)]:
        model.backbone.set_submodule(name, nn.Identity())
    return Tail(trunk, model.backbone, model.head, model.stride)


@torch.no_grad()
def check_split(model, frozen_stages, size):
    """Raise ValueError unless trunk and tail of a Classifier do together what it does, on an image of `size` pixels.

    Only a plain sequence of stages can be cut: a transformer that adds its position code between two of them cannot.
    """
    images = trial_images(size, model.mean.device)
    model.eval()
    tail = make_tail(copy.deepcopy(model), make_trunk(model, frozen_stages), frozen_stages).eval()
    try:
        same = torch.equal(tail(images).logits, model(images).logits)
    except (RuntimeError, ValueError, TypeError, AttributeError):
        same = False
    if not same:
        raise ValueError(
            f"{type(model.backbone).__name__} cannot be cut at teachers.frozen_stages={frozen_stages}: its stages are no plain "
            "sequence; set teachers.frozen_stages=0 (each teacher a whole model from the trained baseline), or take a backbone "
            "such as a ResNet"
        )


@torch.no_grad()
def start_from(model, trained, columns):
    """Copy the weights of a Classifier over all classes into one over the classes `columns` [P], row by row where they differ."""
    source, columns = trained.state_dict(), torch.as_tensor(columns)
    state = {name: (source[name], own.shape) for name, own in model.state_dict().items()}
    # Another shape: one row a class, the head's.
    model.load_state_dict({name: x if x.shape == shape else x[columns] for name, (x, shape) in state.items()})


def _cut(backbone, frozen_stages):
    """Return how many units the first `frozen_stages` stages are."""
    names, stages = _units(backbone), stages_of(backbone)
    first = frozen_stages if frozen_stages >= 0 else len(stages) + frozen_stages
    if not 1 <= first <= len(stages):
        raise ValueError(
            f"this backbone has {len(stages)} stages ({', '.join(stages)}); freeze 1 to {len(stages)}, or -1 for "
            f"all but the last, got {frozen_stages}"
        )
    module = stages[first - 1]
    # A stage is a unit, lies in one, or is a sequence that was opened up.
    found = [
        number
        for number, name in enumerate(names)
        if f"{module}.".startswith(f"{name}.") or name.startswith(f"{module}.")
    ]
    if not found:
        raise ValueError(f"stage {frozen_stages} is no part of this backbone; take another teachers.frozen_stages")
    return found[-1] + 1


def _units(backbone):
    """Return the names of the parts a backbone runs one after another, sequences opened up."""
    names = []
    for name, child in backbone.named_children():
        inner = [f"{name}.{part}" for part, _ in child.named_children()]
        names += inner if isinstance(child, nn.Sequential) else [name]
    return names
