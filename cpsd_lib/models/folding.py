"""Batch norm of frozen models folded into the convolutions before it: the same answers for fewer passes over memory."""

import copy
from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cpsd_lib.models.classifier import trial_images
from cpsd_lib.models.trunk import Tail
from cpsd_lib.teachers import PartTeachers


@torch.no_grad()
def fold_batch_norm(model, size):
    """Return a copy of an eval-mode model whose batch norms are part of the convolutions that feed them.

    It is tried on random pixels, size x size of them, to see which convolution feeds which norm. A norm that something else
    feeds, or whose convolution feeds something else too, stays; a model that would not answer the same is copied as it is.
    """
    folded, images = _copied(model), trial_images(size, next(model.parameters()).device)
    names = {module: name for name, module in folded.named_modules()}
    for conv, norm in _pairs(folded, images):
        folded.set_submodule(names[conv], fuse_conv_bn_eval(conv, norm))
        # timm's norms bring their activation along.
        after = nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))
        folded.set_submodule(names[norm], after)
    # A sum reads a convolution's output without a module that a hook could see: then the answers differ.
    again = images.clone()  # a trunk would not look at the same tensor twice
    same = all(
        torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
        for one, other in zip(_tensors(model(again)), _tensors(folded(again)), strict=True)
    )
    return (folded if same else _copied(model)).requires_grad_(False).eval()


def fold_models(models, size):
    """Return {name: folded copy} of Classifiers or PartTeachers, for images of size x size pixels; a trunk of many stays one."""
    found, trunks = {}, {}
    for name, model in models.items():
        experts = [fold_batch_norm(expert, size) for expert in getattr(model, "experts", [model])]
        for expert in experts:
            if isinstance(expert, Tail):
                (trunk,) = expert.shared
                if trunk not in trunks:
                    trunks[trunk] = fold_batch_norm(trunk, size)
                expert.shared = (trunks[trunk],)
        whole = PartTeachers(experts, model.partition) if isinstance(model, PartTeachers) else experts[0]
        found[name] = whole.requires_grad_(False).eval()
    return found


def _copied(model):
    # A tail's trunk is not its own: the copy has the same one.
    return copy.deepcopy(model, {id(trunk): trunk for trunk in getattr(model, "shared", ())})


def _tensors(output):
    return [x for x in output if x is not None] if isinstance(output, tuple) else [output]


def _pairs(model, images):
    """Return [(convolution, the batch norm that alone reads what it makes)]."""
    made, readers, ran, alive = {}, {}, Counter(), []

    def look(module, inputs, output):
        ran[module] += 1
        alive.extend((*inputs, output))  # or another tensor could get the id of one of them
        for tensor in inputs:
            readers.setdefault(id(tensor), []).append(module)
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module

    leaves = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d) or not list(module.children())]
    hooks = [module.register_forward_hook(look) for module in leaves]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for name, conv in made.items():
        reading = [module for module in readers.get(name, []) if not isinstance(module, nn.Identity)]
        if len(reading) == 1 and isinstance(reading[0], nn.BatchNorm2d) and ran[conv] == ran[reading[0]] == 1:
            found.append((conv, reading[0]))
    return found
