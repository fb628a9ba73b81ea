"""A moving average of a model's weights, the model that is kept."""

import torch


class Ema:
    """A moving average of a model's whole state, buffers too."""

    def __init__(self, model, decay, warmup):
        self.decay, self.warmup = decay, warmup
        self.names = list(model.state_dict())
        self._live = list(model.state_dict().values())
        self.shadow = [tensor.detach().clone() for tensor in self._live]
        floats = [i for i, tensor in enumerate(self._live) if tensor.is_floating_point()]
        self._floats = [self.shadow[i] for i in floats], [self._live[i] for i in floats]
        self._counts = [(self.shadow[i], self._live[i]) for i in range(len(self._live)) if i not in set(floats)]

    @torch.no_grad()
    def update(self, step):
        """Move the average towards the live weights after `step` (from 1) updates."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(*self._floats, 1 - decay)
        for shadow, live in self._counts:
            shadow.copy_(live)

    def state(self):
        """Return {name: tensor} of the average."""
        return dict(zip(self.names, self.shadow, strict=True))
