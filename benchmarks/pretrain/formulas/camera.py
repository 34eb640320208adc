"""What a camera does to a picture: light, colour, blur, noise, occlusion, low resolution. Batched on the device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.pretrain.formulas.draw import Draw

_BLUR = (0.25, 0.5, 0.25)


def shoot(pictures: Tensor, draw: Draw) -> Tensor:
    """Pictures [n, 3, h, w] in [0, 1], photographed: the same shape, in [0, 1]."""
    pictures = _light(pictures, draw)
    pictures = _tone(pictures, draw)
    pictures = _soften(pictures, draw)
    pictures = _occlude(pictures, draw)
    n = len(pictures)
    level = draw.uniform(0, 0.06, n, 1, 1, 1) * draw.chance(0.5, n).view(-1, 1, 1, 1)
    return pictures.add_(draw.normal(*pictures.shape).mul_(level)).clamp_(0, 1)


def _light(pictures: Tensor, draw: Draw) -> Tensor:
    """Light that falls off across the picture."""
    n, _, height, width = pictures.shape
    coarse = draw.normal(n, 1, 2, 2) * draw.uniform(0, 0.3, n, 1, 1, 1)
    return pictures * torch.exp(F.interpolate(coarse, [height, width], mode="bilinear", align_corners=True))


def _tone(pictures: Tensor, draw: Draw) -> Tensor:
    """Contrast, brightness, gamma, a colour cast; some grey, some inverted."""
    n = len(pictures)
    shape = (n, 1, 1, 1)
    pictures = pictures.clamp(1e-3, 1).pow_(torch.exp(draw.normal(*shape) * 0.2))
    contrast, brightness = draw.uniform(0.6, 1.3, *shape), draw.normal(*shape) * 0.08
    pictures.mul_(contrast).add_(0.5 + brightness - 0.5 * contrast).mul_(1 + draw.normal(n, 3, 1, 1) * 0.06)
    grey = draw.chance(0.2, n).view(shape)
    pictures = torch.where(grey, pictures.mean(1, keepdim=True), pictures)
    return torch.where(draw.chance(0.08, n).view(shape), 1 - pictures, pictures)


def _soften(pictures: Tensor, draw: Draw) -> Tensor:
    """A third of the batch is blurred or was taken at a lower resolution."""
    n, _, height, width = pictures.shape
    blurred, coarse = n // 5, n // 8
    kernel = torch.tensor(_BLUR, device=pictures.device)
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    soft = F.conv2d(F.pad(pictures[:blurred], (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    part = pictures[blurred : blurred + coarse]
    low = int(draw.integers(max(6, height // 4), height, 1))
    small = F.interpolate(part, [low, low], mode="bilinear", antialias=True)
    large = F.interpolate(small, [height, width], mode="bilinear")
    return torch.cat([soft, large, pictures[blurred + coarse :]])


def _occlude(pictures: Tensor, draw: Draw) -> Tensor:
    """A box of one colour hides a part of every fifth picture."""
    n, _, height, width = pictures.shape
    centre, half = draw.uniform(0, 1, 2, n, 1, 1), draw.uniform(0.08, 0.22, 2, n, 1, 1)
    y = (torch.arange(height, device=draw.device) + 0.5).view(1, -1, 1) / height
    x = (torch.arange(width, device=draw.device) + 0.5).view(1, 1, -1) / width
    box = ((y - centre[0]).abs() < half[0]) & ((x - centre[1]).abs() < half[1])
    box = box & draw.chance(0.2, n).view(-1, 1, 1)
    return torch.where(box[:, None], draw.uniform(0, 1, n, 3, 1, 1), pictures)
