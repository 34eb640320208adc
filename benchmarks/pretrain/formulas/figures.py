"""Figures: filled outlines, radial contours, fractals and strokes.

Every kind gives `mask(labels, size, draw)`: float32 [n, size, size], 1 where the figure is.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.pretrain.formulas.draw import Draw, column, enlarge, grid, rotation


class Figure(Protocol):
    """A family of figures."""

    count: int

    def mask(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        ...


def placement(n: int, draw: Draw, turn: float) -> tuple[Tensor, Tensor]:
    """Where figures stand: matrices [n, 2, 2] from picture to figure coordinates, and centres [n, 2].

    `turn` is the spread of the rotation in radians; scale, aspect and shear jitter a little.
    """
    scale = draw.uniform(0.5, 0.95, n)
    aspect = torch.exp(draw.normal(n) * 0.1)
    stretch = torch.diag_embed(torch.stack([1 / (scale * aspect), aspect / scale], 1))
    stretch[:, 0, 1] += draw.normal(n) * 0.12
    centre = draw.uniform(-1, 1, n, 2) * (1 - scale)[:, None]
    return stretch @ rotation(draw.normal(n) * turn), centre


def placed(size: int, n: int, draw: Draw, turn: float) -> Tensor:
    """Pixel grids in figure coordinates, [n, 2, size, size]."""
    matrix, centre = placement(n, draw, turn)
    return torch.einsum("nij,njhw->nihw", matrix, grid(size, draw.device) - centre[..., None, None])


class Outlines:
    """Filled closed curves r(angle): smooth Fourier outlines, polygons and stars; some are hollow."""

    def __init__(self, count: int, draw: Draw) -> None:
        self.count = count
        waves = 4
        self.order = draw.integers(1, 8, count, waves)
        self.size = draw.uniform(0, 0.45, count, waves) / self.order.float().sqrt()
        self.phase = draw.uniform(0, 2 * math.pi, count, waves)
        self.corners = draw.integers(3, 9, count)
        self.polygon = draw.chance(0.5, count)
        self.star = draw.uniform(0.0, 0.5, count) * draw.chance(0.5, count)
        self.hole = draw.uniform(0.3, 0.7, count) * draw.chance(0.35, count)
        self.aspect = draw.log_uniform(0.6, 1.6, count)
        self.angle = draw.uniform(0, 2 * math.pi, count)

    def radius(self, labels: Tensor, angle: Tensor, draw: Draw) -> Tensor:
        """The outline's radius at `angle` [n, h, w]."""
        size = self.size[labels] * torch.exp(draw.normal(len(labels), self.size.shape[1]) * 0.2)
        waved = torch.ones_like(angle)
        for i in range(self.size.shape[1]):
            order, phase = column(self.order[labels][:, i]), column(self.phase[labels][:, i])
            waved = waved + column(size[:, i]) * torch.cos(order * angle + phase)
        sector = 2 * math.pi / column(self.corners[labels]).float()
        within = torch.remainder(angle, sector) - sector / 2
        straight = torch.cos(sector / 2) / torch.cos(within)
        pointed = straight * (1 - column(self.star[labels]) * (1 - within.abs() / (sector / 2)))
        return torch.where(column(self.polygon[labels]), pointed, waved * 0.7).clamp_min(0.05)

    def mask(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        points = placed(size, len(labels), draw, 0.2)
        aspect = column(self.aspect[labels])
        x, y = points[:, 0] * aspect, points[:, 1] / aspect
        angle = torch.atan2(y, x) + column(self.angle[labels])
        distance = (x * x + y * y).sqrt() / self.radius(labels, angle, draw)
        soft = size / 3
        outer = torch.sigmoid((1 - distance) * soft)
        return outer * torch.sigmoid((distance - column(self.hole[labels])) * soft)


class Contours(Outlines):
    """Nested lines of one waved outline (Visual Atoms, 2303.01112)."""

    def __init__(self, count: int, draw: Draw) -> None:
        super().__init__(count, draw)
        self.order = draw.integers(2, 16, *self.order.shape)
        self.polygon = draw.chance(0.2, count)
        self.rings = draw.integers(1, 7, count)
        self.fill = draw.uniform(0.2, 0.6, count)

    def mask(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        points = placed(size, len(labels), draw, 0.2)
        x, y = points[:, 0], points[:, 1]
        angle = torch.atan2(y, x) + column(self.angle[labels])
        distance = (x * x + y * y).sqrt() / self.radius(labels, angle, draw)
        rings = column(self.rings[labels])
        line = torch.cos(2 * math.pi * (distance * rings - 0.5)) - torch.cos(
            math.pi * column(self.fill[labels])
        )
        inside = torch.sigmoid((1 - distance) * size / 3)
        return torch.sigmoid(line * size / 5 / rings.float().sqrt()) * inside


class Fractals:
    """Attractors of two to five affine maps, drawn by the chaos game once a class (2101.08515)."""

    def __init__(self, count: int, draw: Draw, points: int = 4096) -> None:
        self.count = count
        self.cloud = self._select(count, points, draw)

    def mask(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]: hit pixels, softened by their density."""
        n, shown = len(labels), min(self.cloud.shape[1], 3 * size * size // 2)
        start = int(draw.integers(0, self.cloud.shape[1] - shown + 1, 1))
        matrix, centre = placement(n, draw, 0.15)
        points = self.cloud[labels, start : start + shown] @ torch.linalg.inv(matrix).transpose(1, 2)
        points = points + centre[:, None]
        pixel = ((points + 1) * (size / 2)).long().clamp_(0, size - 1)
        index = pixel[..., 1] * size + pixel[..., 0]
        density = torch.zeros(n, size * size, device=draw.device)
        density.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float32))
        return (1 - torch.exp(-density * (0.5 * size * size / shown))).view(n, size, size) ** 0.5

    @staticmethod
    def _clouds(count: int, points: int, draw: Draw) -> Tensor:
        """Chaos games of `count` random systems: [count, points, 2]."""
        maps = draw.integers(2, 6, count)
        large, small = draw.uniform(0.45, 0.95, count, 5), draw.uniform(0.1, 0.75, count, 5)
        angles = draw.uniform(-math.pi, math.pi, 2, count * 5)
        mirror = torch.where(draw.chance(0.5, count * 5), -1.0, 1.0)
        turns = torch.stack([rotation(angles[0]), rotation(angles[1])])
        core = torch.diag_embed(torch.stack([large.flatten(), small.flatten() * mirror], 1))
        linear = (turns[0] @ core @ turns[1]).view(count, 5, 2, 2)
        shift = draw.uniform(-1, 1, count, 5, 2)
        weight = torch.linalg.det(linear).abs() + 0.05
        weight = weight * (torch.arange(5, device=draw.device) < maps[:, None])
        share = (weight.cumsum(1) / weight.sum(1, keepdim=True)).contiguous()
        at = draw.uniform(-1, 1, count, points, 2)
        rows = torch.arange(count, device=draw.device)[:, None]
        for _ in range(24):  # from anywhere, 24 contractions lead into the attractor
            chosen = torch.searchsorted(share, draw.uniform(0, 0.9999, count, points))
            at = (linear[rows, chosen] @ at[..., None])[..., 0] + shift[rows, chosen]
        return at

    @classmethod
    def _select(cls, count: int, points: int, draw: Draw) -> Tensor:
        """Clouds scaled to [-1, 1], of the systems that fill neither too little nor all of their square."""
        kept: list[Tensor] = []
        found = 0
        while found < count:
            cloud = cls._clouds(64, points, draw)
            low, high = torch.quantile(cloud, 0.01, dim=1), torch.quantile(cloud, 0.99, dim=1)
            span = (high - low).amax(1, keepdim=True)
            cloud = (cloud - (low + high)[:, None] / 2) * (2 / span[:, None])
            cell = ((cloud.clamp(-1, 0.999) + 1) * 16).long()
            hit = torch.zeros(64, 1024, device=draw.device)
            hit.scatter_(1, cell[..., 1] * 32 + cell[..., 0], 1.0)
            share = hit.mean(1)
            good = cloud[torch.isfinite(cloud).all(2).all(1) & (share > 0.12) & (share < 0.65)]
            kept.append(good)
            found += len(good)
        return torch.cat(kept)[:count]


class Strokes:
    """One or two smooth pen strokes through a class's control points, as handwriting has them."""

    def __init__(self, count: int, draw: Draw) -> None:
        self.count = count
        control, segments = 5, 10
        # Two strokes of control points each; closed ones return to their start.
        self.control = draw.uniform(-0.9, 0.9, count, 2, control, 2)
        closed = draw.chance(0.4, 2 * count).view(count, 2)
        self.control[:, :, -1] = torch.where(closed[..., None], self.control[:, :, 0], self.control[:, :, -1])
        self.double = draw.chance(0.5, count)
        at = torch.linspace(0, 1, segments + 1, device=draw.device)
        self.basis = _spline(at, control)  # [segments + 1, control]
        self.straight = draw.chance(0.25, count)

    def mask(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        n = len(labels)
        control = self.control[labels]
        control = control + draw.normal(*control.shape) * 0.07
        knots = self.basis @ control  # [n, 2, segments + 1, 2]
        knots = torch.where(
            self.straight[labels].view(-1, 1, 1, 1), _polyline(control, knots.shape[2]), knots
        )
        coarse = size // 2  # a distance is smooth: half of the resolution does
        points = placed(coarse, n, draw, 0.12).flatten(2)  # [n, 2, pixels]
        start, step = knots[:, :, :-1].flatten(1, 2), (knots[:, :, 1:] - knots[:, :, :-1]).flatten(1, 2)
        distance = _distance(points, start, step, self.double[labels])
        distance = enlarge(distance.view(n, coarse, coarse), size)
        return torch.sigmoid((column(draw.uniform(0.07, 0.22, n)) - distance) * (size / 2.5))


def _spline(at: Tensor, control: int) -> Tensor:
    """Catmull-Rom weights, [len(at), control], of control points at even distances."""
    position = (at * (control - 1)).clamp(max=control - 1 - 1e-4)
    first, t = position.long(), position.frac()
    weights = torch.stack(
        [
            (-(t**3) + 2 * t**2 - t) / 2,
            (3 * t**3 - 5 * t**2 + 2) / 2,
            (-3 * t**3 + 4 * t**2 + t) / 2,
            (t**3 - t**2) / 2,
        ],
        1,
    )
    basis = torch.zeros(len(at), control, device=at.device)
    for offset in range(4):
        index = (first + offset - 1).clamp(0, control - 1)
        basis.scatter_add_(1, index[:, None], weights[:, offset : offset + 1])
    return basis


def _polyline(control: Tensor, knots: int) -> Tensor:
    """The straight lines between the first three control points, as `knots` points: [n, 2, knots, 2]."""
    at = torch.linspace(0, 2 - 1e-4, knots, device=control.device)
    first, t = at.long(), at.frac()[:, None]
    return control[:, :, first] * (1 - t) + control[:, :, first + 1] * t


def _distance(points: Tensor, start: Tensor, step: Tensor, double: Tensor) -> Tensor:
    """Distance of points [n, 2, p] to the segments start + [0, 1] step, [n, s, 2] each: [n, p].

    The second half of the segments belongs to the second stroke and counts where `double` [n].
    """
    segments = start.shape[1]
    length = (step * step).sum(2).clamp_min(1e-6)  # [n, s]
    along = (step @ points - (start * step).sum(2)[..., None]) / length[..., None]
    along = along.clamp_(0, 1)
    dx = points[:, :1] - start[..., 0, None] - along * step[..., 0, None]
    dy = points[:, 1:] - start[..., 1, None] - along * step[..., 1, None]
    square = dx.mul_(dx).add_(dy.mul_(dy))  # [n, s, p]
    single = square[:, : segments // 2].amin(1)
    both = torch.minimum(single, square[:, segments // 2 :].amin(1))
    return torch.where(double[:, None], both, single).sqrt()
