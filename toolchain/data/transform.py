"""Changes of whole batches of pictures, each picture with its own numbers. Values stay in 0..255."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.data.augmentation import Fill

_PADDING = {"reflect": "reflection", "edge": "border", "black": "zeros"}
_GREY = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
# ITU-R / NTSC: rows are Y, I and Q of (R, G, B).
_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def flip(pictures: Tensor, horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Mirror those pictures [N, C, h, w] whose masks [N] say so, in place."""
    for mask, axis in ((horizontal, 3), (vertical, 2)):
        chosen = mask.nonzero(as_tuple=True)[0]
        pictures[chosen] = pictures[chosen].flip(axis)
    return pictures


def turn(pictures: Tensor, quarters: Tensor) -> Tensor:
    """Turn square pictures [N, C, s, s] by `quarters` [N] (0..3) of a circle, in place."""
    for quarter in (1, 2, 3):
        chosen = (quarters == quarter).nonzero(as_tuple=True)[0]
        pictures[chosen] = pictures[chosen].rot90(quarter, (2, 3))
    return pictures


def warp(pictures: Tensor, degrees: Tensor, shifts: Tensor, zooms: Tensor, fill: Fill) -> Tensor:
    """Rotate float [N, C, h, w] by `degrees` [N], enlarge by `zooms` [N], move by `shifts` [N, 2] (y, x pixels).

    Bilinear sampling about the centre, without antialiasing: for zooms near 1.
    """
    height, width = pictures.shape[2:]
    angle = degrees * (math.pi / 180)
    cos, sin = torch.cos(angle) / zooms, torch.sin(angle) / zooms
    down, right = shifts[:, 0], shifts[:, 1]
    # Where a pixel of the result comes from: move back, then turn back, in pixels about the centre; then
    # in grid_sample's units, where each side runs from -1 to 1.
    theta = torch.stack(
        [
            torch.stack([cos, sin * (height / width), -(cos * right + sin * down) * (2 / width)], dim=1),
            torch.stack([-sin * (width / height), cos, (sin * right - cos * down) * (2 / height)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode=_PADDING[fill], align_corners=False)


def recolour(
    pictures: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Change float [N, 3, h, w] by factors [N] and by `hue` turns [N]; clipped to 0..255 once, at the end.

    All four are one 3 x 3 matrix and an offset a picture, in this order: brightness, contrast, saturation, hue.
    """
    count = len(pictures)
    flat = pictures.flatten(2)  # [N, 3, h w]
    grey = pictures.new_tensor(_GREY)
    unit = torch.eye(3, device=pictures.device)
    saturate = saturation.view(-1, 1, 1) * unit + (1 - saturation).view(-1, 1, 1) * grey.expand(3, 3)
    matrix = _turn_hue(hue) @ saturate * (contrast * brightness).view(-1, 1, 1)
    mean = flat.mean(dim=2) @ grey * brightness  # [N], of the brightened picture
    offset = ((1 - contrast) * mean).view(-1, 1, 1).expand(count, 3, 1)
    return torch.baddbmm(offset, matrix, flat).clamp_(0, 255).view_as(pictures)


def erase(pictures: Tensor, boxes: Tensor, value: float) -> Tensor:
    """Fill the box (top, left, bottom, right) of `boxes` [N, 4] in [N, C, h, w] with `value`, in place."""
    height, width = pictures.shape[2:]
    rows = torch.arange(height, device=pictures.device).view(1, 1, -1, 1)
    columns = torch.arange(width, device=pictures.device).view(1, 1, 1, -1)
    top, left, bottom, right = (boxes[:, i].view(-1, 1, 1, 1) for i in range(4))
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return pictures.masked_fill_(inside, value)


def _turn_hue(turns: Tensor) -> Tensor:
    """[N] -> [N, 3, 3]: rotate the I-Q plane, which leaves grey as it is."""
    cos, sin = torch.cos(turns * math.tau), torch.sin(turns * math.tau)
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = [torch.stack(row, dim=1) for row in ((one, zero, zero), (zero, cos, -sin), (zero, sin, cos))]
    to_yiq = turns.new_tensor(_YIQ)
    return torch.linalg.inv(to_yiq) @ torch.stack(rows, dim=1) @ to_yiq
