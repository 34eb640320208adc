"""Seeded random numbers on one device, and the affine jitter and grids that all formulas share."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class Draw:
    """Random tensors of one generator, so that a picture depends on (seed, step) and nothing else."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """float32 of `shape` in [low, high)."""
        return torch.rand(shape, generator=self._generator, device=self.device) * (high - low) + low

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """float32 of `shape`, uniform in the logarithm between low and high."""
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float32 of `shape`."""
        return torch.randn(shape, generator=self._generator, device=self.device)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """int64 of `shape` in [low, high)."""
        return torch.randint(low, high, shape, generator=self._generator, device=self.device)

    def colours(self, count: int) -> Tensor:
        """RGB in [0, 1], [count, 3, 1, 1]: any lightness, mostly weak saturation, a third grey."""
        lightness, hue = self.uniform(0, 1, count, 1, 1, 1), self.uniform(-1, 1, count, 3, 1, 1)
        saturation = self.uniform(-0.25, 0.5, count, 1, 1, 1).clamp_min(0)
        return (lightness + saturation * hue).clamp(0, 1)

    def chance(self, probability: float, count: int) -> Tensor:
        """bool [count], each True with `probability`."""
        return torch.rand(count, generator=self._generator, device=self.device) < probability


def grid(size: int, device: torch.device) -> Tensor:
    """Pixel centres of a square picture, float32 [2, size, size] as (x, y) in [-1, 1]."""
    axis = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y])


def rotation(angle: Tensor) -> Tensor:
    """Rotation matrices [n, 2, 2] of the angles [n] in radians."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def enlarge(field: Tensor, size: int) -> Tensor:
    """Fields [n, h, w] interpolated to [n, size, size]."""
    return F.interpolate(field[:, None], [size, size], mode="bilinear")[:, 0]


def column(values: Tensor) -> Tensor:
    """[n] -> [n, 1, 1], to be combined with fields [n, h, w]."""
    return values.view(-1, 1, 1)
