"""The FLOP of a model and the memory of its training, from shapes alone: models on the meta device have no byte of weights."""

import torch
from torch.utils.flop_counter import FlopCounterMode


class MetaModel:
    """A model on the meta device, its weights in numbers and bytes, and its FLOP an image of size x size pixels."""

    def __init__(self, made, size):
        self.made, self.size = made, size
        self.parameters = sum(p.numel() for p in self.made.parameters())
        self.weights = sum(tensor.nbytes for tensor in self.made.state_dict().values())  # bytes, with buffers
        # In eval mode: batch norm cannot train on one image whose last map is one pixel.
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            made.eval()(torch.empty(1, 3, size, size, device="meta"))
        self.flop = counter.get_total_flops()  # of a forward pass, a multiply-add being 2


def activation_bytes(model, images, half):
    """Return the bytes that autograd keeps of a training forward, weights and buffers left out; half: floats of 2 bytes."""
    own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
    saved = {}

    def keep(tensor):
        # Kept in the dictionary, or the next storage could get the same address.
        saved[_storage(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(images)
    return sum(
        tensor.untyped_storage().nbytes() // (2 if half and tensor.is_floating_point() else 1)
        for storage, tensor in saved.items()
        if storage not in own
    )


def _storage(tensor):
    return tensor.untyped_storage()._cdata  # data_ptr() is 0 for all on the meta device
