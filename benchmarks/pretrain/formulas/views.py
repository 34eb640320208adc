"""Two pictures of one scene that share little but what they show: crops in other colours (SimCLR, 2002.05709)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.pretrain.formulas.draw import Draw

LEAST = 0.45  # of a side that a crop shows


def glimpse(pictures: Tensor, draw: Draw) -> Tensor:
    """A crop of each picture [n, 3, h, w] in [0, 1], in other colours: the same shape, in [0, 1]."""
    return _recoloured(_cropped(pictures, draw), draw)


def _cropped(pictures: Tensor, draw: Draw) -> Tensor:
    n = len(pictures)
    side = draw.log_uniform(LEAST, 1.0, n)
    stretch = torch.exp(draw.normal(n) * 0.1)
    sides = torch.stack([side * stretch, side / stretch], 1).clamp_max(1)
    centre = draw.uniform(-1, 1, n, 2) * (1 - sides)
    matrix = torch.cat([torch.diag_embed(sides), centre[..., None]], 2)
    where = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, where, "bilinear", "border", align_corners=False)


def _recoloured(pictures: Tensor, draw: Draw) -> Tensor:
    """Hues turned about the grey axis and saturation changed, of four in five."""
    n = len(pictures)
    angle = draw.normal(n, 1, 1) * 0.6
    grey = torch.full((3, 3), 1 / 3, device=draw.device)
    across = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=draw.device) / math.sqrt(3)
    apart = torch.eye(3, device=draw.device) - grey
    turned = apart * angle.cos() + across * angle.sin()
    mixed = grey + turned * draw.uniform(0.3, 1.6, n, 1, 1)
    asked = draw.chance(0.8, n).view(-1, 1, 1)
    mixed = torch.where(asked, mixed, torch.eye(3, device=draw.device))
    return torch.einsum("nij,njhw->nihw", mixed, pictures).clamp(0, 1)
