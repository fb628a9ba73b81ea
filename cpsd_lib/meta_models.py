"""Models without a byte of weights, on the meta device: their FLOP and the memory of a training, from shapes alone."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from cpsd_lib.models import build_model
from cpsd_lib.trunk import make_tail, make_trunk


class MetaModel:
    """A model on the meta device, which has shapes and not a byte of weights, and its FLOP an image."""

    def __init__(self, made, size):
        self.made, self.size = made, size
        self.parameters = sum(p.numel() for p in self.made.parameters())
        self.weights = sum(tensor.nbytes for tensor in self.made.state_dict().values())  # bytes, with buffers
        self.flop = forward_flop(made, torch.empty(1, 3, size, size, device="meta"))


def forward_flop(model, images):
    """Return the FLOP of one forward pass of `images` in eval mode, a multiply-add being 2."""
    # In eval mode: batch norm cannot train on one image whose last map is one pixel.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    return counter.get_total_flops()


def own_share(settings, num_classes, size, share):
    """Return the share of a forward pass of ModelParams `settings` that comes after its first `share` stages, by FLOP."""
    made, images = on_meta(settings, num_classes), torch.empty(1, 3, size, size, device="meta")
    return 1 - forward_flop(make_trunk(made, share), images) / forward_flop(made, images)


def tail_on_meta(settings, num_classes, size, share):
    """Return the MetaModel of the Tail that ModelParams `settings` leave a teacher after `share` shared stages."""
    made = on_meta(settings, num_classes)
    return MetaModel(make_tail(made, make_trunk(made, share), share), size)


def on_meta(settings, num_classes):
    """Build the model of ModelParams `settings` on the meta device; no file of weights or vectors is read."""
    vectors = settings.label_vectors
    if vectors not in (None, "learned"):
        vectors = torch.zeros(num_classes, 300)  # a stand-in of GloVe's width: the file may not be here
    options = {"head": settings.head, "head_width": settings.head_width, "label_vectors": vectors}
    with torch.device("meta"):
        return build_model(settings.name, num_classes, **options, **settings.options)


def activation_bytes(model, images, half):
    """Return the bytes that autograd keeps of a training forward, weights and buffers left out; half: floats of 2 bytes."""
    own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    found = {}

    def keep(tensor):
        # Kept in the dictionary, or the next storage could get the same address.
        found[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(images)
    return sum(
        tensor.untyped_storage().nbytes() // (2 if half and tensor.is_floating_point() else 1)
        for storage, tensor in found.items()
        if storage not in own
    )


def _storage(tensor):
    return tensor.untyped_storage()._cdata  # data_ptr() is 0 for all on the meta device
