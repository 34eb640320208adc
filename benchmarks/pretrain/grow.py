"""A wider network that begins as a narrower one did end: Net2WiderNet (Chen, Goodfellow, Shlens, 1511.05641)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

NOISE = 0.05  # of a kernel's standard deviation, so that the copies of a channel part ways


def widen(model: nn.Module, narrow: Mapping[str, Tensor], seed: int, noise: float = NOISE) -> None:
    """Fill `model` in place with `narrow`, the tensors of the same network with fewer channels.

    Channels are repeated until the wider layer is full, and whoever reads copies shares the weight out among them,
    so that but for the noise the function stays. Tensors that `narrow` lacks (the classifier) stay as they are.
    Raises ValueError when the networks differ in more than width.
    """
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, value in narrow.items():
        if name not in state or state[name].ndim != value.ndim:
            raise ValueError(f"{name}: only the narrower network has it")
        state[name] = _widened(value.to(state[name].dtype), state[name].shape)
        if value.ndim > 1:
            spread = torch.randn(state[name].shape, generator=generator) * state[name].std()
            state[name] = state[name] + spread * noise
    model.load_state_dict(state)


def _widened(value: Tensor, shape: torch.Size) -> Tensor:
    for axis in range(min(2, value.ndim)):
        old, new = value.shape[axis], shape[axis]
        if old == new:
            continue
        which = torch.arange(new) % old
        value = value.index_select(axis, which)
        if axis == 1:
            copies = torch.bincount(which, minlength=old)[which]
            value = value / copies.view(1, -1, *[1] * (value.ndim - 2))
    return value
