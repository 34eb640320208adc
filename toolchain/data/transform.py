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
    count, _, height, width = pictures.shape
    angle = degrees * (math.pi / 180)
    cos, sin = torch.cos(angle) / zooms, torch.sin(angle) / zooms
    # Pixel centres about the picture's centre, moved back: [N, 1, w] and [N, h, 1].
    x = (torch.arange(width, device=pictures.device) - (width - 1) / 2) - shifts[:, 1].view(-1, 1, 1)
    y = (torch.arange(height, device=pictures.device).view(-1, 1) - (height - 1) / 2) - shifts[:, 0].view(
        -1, 1, 1
    )
    cos, sin = cos.view(-1, 1, 1), sin.view(-1, 1, 1)
    # grid_sample's units: each side runs from -1 to 1. F.affine_grid takes as long as the sampling itself.
    grid = pictures.new_empty(count, height, width, 2)
    torch.add(x * cos * (2 / width), y * sin * (2 / width), out=grid[..., 0])
    torch.add(x * -sin * (2 / height), y * cos * (2 / height), out=grid[..., 1])
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode=_PADDING[fill], align_corners=False)


def relight(pictures: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Scale float [N, 3, h, w] by `brightness` [N], then its distance from its mean grey by `contrast` [N], in place."""
    mean = pictures.mean(dim=(2, 3)) @ pictures.new_tensor(_GREY) * brightness
    offset = (1 - contrast) * mean
    return pictures.mul_((contrast * brightness).view(-1, 1, 1, 1)).add_(offset.view(-1, 1, 1, 1))


def recolour(pictures: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Scale the distance of float [N, 3, h, w] from its grey by `saturation` [N], then turn by `hue` [N] turns.

    Both are one 3 x 3 matrix a picture. Values may leave 0..255 and are not clipped.
    """
    grey = pictures.new_tensor(_GREY).expand(3, 3)
    share = saturation.view(-1, 1, 1)
    saturate = share * torch.eye(3, device=pictures.device) + (1 - share) * grey
    return torch.bmm(_turn_hue(hue) @ saturate, pictures.flatten(2)).view_as(pictures)


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
    turned: Tensor = torch.linalg.inv(to_yiq) @ torch.stack(rows, dim=1) @ to_yiq
    return turned
