"""An exponential moving average of a network's weights, batch statistics included."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Average:
    """Averaged weights, in `model`. Early on the decay is lower, (1 + n) / (10 + n) after n updates, so that the
    random start is soon forgotten; integer buffers are copied."""

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(source).eval().requires_grad_(False)
        self.updates = 0
        self._decay = decay
        self._own, self._own_counts = _tensors(self.model)
        self._theirs, self._their_counts = _tensors(source)

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the source's weights of now."""
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._own, self._theirs, 1 - decay)
        for own, theirs in zip(self._own_counts, self._their_counts, strict=True):
            own.copy_(theirs)


def _tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The floating-point tensors of a model's state, and the others."""
    state = list(model.state_dict().values())
    return [t for t in state if t.is_floating_point()], [t for t in state if not t.is_floating_point()]
