"""What makes a flat figure an object: relief, a shadow on its ground, another thing in front. On the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.pretrain.formulas.draw import Draw


def shaded(fill: Tensor, mask: Tensor, draw: Draw) -> Tensor:
    """Fills [n, 3, h, w] lit as if their masks [n, h, w] were rounded bodies; every third stays flat."""
    n = len(fill)
    height = _softened(mask)
    down = F.pad(height[:, :, 2:] - height[:, :, :-2], (0, 0, 1, 1))
    right = F.pad(height[..., 2:] - height[..., :-2], (1, 1))
    angle = draw.uniform(0, 2 * torch.pi, n, 1, 1, 1)
    strength = draw.uniform(0, 1.6, n, 1, 1, 1) * draw.chance(2 / 3, n).view(-1, 1, 1, 1)
    light = (down * angle.sin() + right * angle.cos()) * strength
    return (fill * (1 + light) + 0.3 * light).clamp(0, 1)


def shadowed(ground: Tensor, mask: Tensor, draw: Draw) -> Tensor:
    """Grounds [n, 3, h, w] with the soft shadows of masks [n, h, w]; half of them have none."""
    n = len(ground)
    depth = draw.uniform(0.2, 0.7, n, 1, 1, 1) * draw.chance(0.5, n).view(-1, 1, 1, 1)
    moved = _moved(_softened(mask), torch.ones(n, device=mask.device), draw, 0.16)
    return ground * (1 - depth * moved)


def in_front(pictures: Tensor, mask: Tensor, fill: Tensor, draw: Draw) -> Tensor:
    """Pictures [n, 3, h, w] with a smaller thing of masks [n, h, w] before them, anywhere, partly outside."""
    small = _moved(mask[:, None], draw.uniform(0.25, 0.55, len(mask)), draw, 0.85)
    return pictures + small * (fill - pictures)


def _softened(mask: Tensor) -> Tensor:
    """Masks [n, h, w] blurred over about four pixels, [n, 1, h, w]."""
    return F.interpolate(F.avg_pool2d(mask[:, None], 4), mask.shape[1:], mode="bilinear")


def _moved(mask: Tensor, scale: Tensor, draw: Draw, far: float) -> Tensor:
    """Masks [n, 1, h, w] at `scale` [n] of their size, shifted by up to `far` half pictures."""
    n = len(mask)
    shift = draw.uniform(-far, far, n, 2) / scale[:, None]
    matrix = torch.cat([torch.diag_embed((1 / scale)[:, None].expand(n, 2)), -shift[..., None]], 2)
    where = F.affine_grid(matrix, list(mask.shape), align_corners=False)
    return F.grid_sample(mask, where, "bilinear", "zeros", align_corners=False)
