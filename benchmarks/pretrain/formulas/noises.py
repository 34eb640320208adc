"""More textures: octaves of lattice noise, dead leaves, and small random programs over the coordinates.

Shaped as those of textures.py. Which processes teach most: Baradad et al., Learning to See by Looking at Noise
(2106.05963) and Procedural Image Programs (2211.16412): many varied programs, and edges at all scales.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.pretrain.formulas.draw import Draw, column, grid, rotation


def turned(labels: Tensor, angle: Tensor, aspect: Tensor, size: int, draw: Draw) -> Tensor:
    """Pixel grids [n, 2, size, size], turned and stretched as the class wants them, jittered a little."""
    n = len(labels)
    turn = rotation(angle[labels] + draw.normal(n) * 0.12)
    points = torch.einsum("nij,jhw->nihw", turn, grid(size, draw.device))
    stretch = aspect[labels] * torch.exp(draw.normal(n) * 0.08)
    return points * torch.stack([stretch, 1 / stretch], 1)[..., None, None]


class Octaves:
    """Lattice noise in up to four octaves (Perlin, SIGGRAPH 1985), its lattice bent by the lowest one; plain,
    folded (turbulence), ridged, stepped or as veins."""

    def __init__(self, count: int, draw: Draw) -> None:
        self.count = count
        self.zoom = draw.log_uniform(0.25, 0.9, count)  # share of the lattice that is seen
        self.persistence = draw.uniform(0.25, 0.9, count)
        self.octaves = draw.integers(1, 5, count)
        self.bend = draw.uniform(0, 0.35, count) * draw.chance(0.5, count)
        self.kind = draw.integers(0, 5, count)
        self.gain = draw.log_uniform(0.6, 2.5, count)
        self.angle = draw.uniform(0, math.pi, count)
        self.aspect = draw.log_uniform(0.4, 1.0, count)

    def field(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        n = len(labels)
        points = turned(labels, self.angle, self.aspect, size, draw) * self.zoom[labels].view(-1, 1, 1, 1)
        where = points.permute(0, 2, 3, 1) * 0.7
        total = torch.zeros(n, size, size, device=draw.device)
        weight = torch.ones(n, device=draw.device)
        for octave in range(4):
            lattice = draw.normal(n, 1, 6 << octave, 6 << octave)
            noise = F.grid_sample(lattice, where, "bilinear", "reflection", align_corners=False)[:, 0]
            folded = torch.where(column(self.kind[labels] == 1), noise.abs() * 1.6 - 0.8, noise)
            total = total + folded * column(weight * (octave < self.octaves[labels]))
            weight = weight * self.persistence[labels]
            if octave == 0:
                where = where + (noise * column(self.bend[labels]))[..., None]
        total = total / total.std((1, 2), keepdim=True).clamp_min(1e-6) * column(self.gain[labels])
        return self._shaped(total, column(self.kind[labels]))

    @staticmethod
    def _shaped(total: Tensor, kind: Tensor) -> Tensor:
        smooth = torch.tanh(total * 0.6) * 0.5 + 0.5
        ridged = 1 - (total.abs() * 0.8).clamp(0, 1)
        stepped = (smooth * 4).round() / 4
        veins = torch.sin(total * 3) * 0.5 + 0.5
        ends = torch.where(kind == 3, stepped, torch.where(kind == 4, veins, smooth))
        return torch.where(kind == 2, ridged, ends)


class Leaves:
    """Dead leaves: shapes of one kind that hide one another, their sizes following a power law (Lee, Mumford
    and Huang, IJCV 2001). Kinds lie between diamonds, discs and squares."""

    def __init__(self, count: int, draw: Draw) -> None:
        self.count = count
        self.shapes = 16
        self.least = draw.log_uniform(0.1, 0.35, count)
        self.most = self.least * draw.log_uniform(1.1, 6.0, count)
        self.law = draw.uniform(0.5, 3.0, count)
        self.square = draw.uniform(0, 1, count) * draw.chance(0.6, count)
        self.diamond = draw.uniform(0, 1, count) * draw.chance(0.5, count)
        self.aspect = draw.log_uniform(1.0, 3.0, count)
        self.angle = draw.uniform(0, math.pi, count)
        self.spread = draw.uniform(0, math.pi, count) * draw.chance(0.5, count)
        self.slope = draw.uniform(-0.4, 0.4, count)

    def field(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        n, shapes = len(labels), self.shapes
        centre = draw.uniform(-1.15, 1.15, n, 2, shapes, 1, 1)
        axis = grid(size, draw.device)[0, 0]
        right, down = (
            axis - centre[:, 0],
            axis[:, None] - centre[:, 1],
        )  # [n, shapes, 1, w] and [n, shapes, h, 1]
        angle = self.angle[labels, None] + self.spread[labels, None] * draw.normal(n, shapes) * 0.5
        cos, sin = angle.cos()[..., None, None], angle.sin()[..., None, None]
        aspect, square, diamond = (
            part[labels].view(-1, 1, 1, 1) for part in (self.aspect.sqrt(), self.square, self.diamond)
        )
        across = right * (cos / aspect) + down * (sin / aspect)  # [n, shapes, h, w], as all that follow
        x, y = across.abs(), (down * (cos * aspect) - right * (sin * aspect)).abs_()
        distance = (x * x).add_(y * y).sqrt_().mul_(1 - square - diamond * 0.5)
        distance += torch.maximum(x, y).mul_(square)
        distance += x.add_(y).mul_(diamond * 0.5)
        share = draw.uniform(0, 1, n, shapes) ** self.law[labels, None]
        radius = self.least[labels, None] + (self.most - self.least)[labels, None] * share
        # The front is the largest number among the shapes that cover a pixel; shape 0 covers all.
        front = torch.arange(shapes, device=draw.device, dtype=torch.float32).view(1, -1, 1, 1)
        which = ((distance < radius[..., None, None]) * front).amax(1, keepdim=True).long()
        value = draw.uniform(0, 1, n, shapes)[..., None, None].expand_as(distance).gather(1, which)
        lit = across.gather(1, which) * (aspect * self.slope[labels].view(-1, 1, 1, 1))
        return (value + lit)[:, 0].clamp(0, 1)


class Programs:
    """Random programs over the coordinates: two layers of two sines, steps, bumps and folds each, with drawn weights
    (compositional pattern-producing networks, Stanley 2007), of which the flat and the noisy ones are left out."""

    def __init__(self, count: int, draw: Draw) -> None:
        self.count = count
        tries, self.units = 3 * count, 8
        gain = draw.log_uniform(1.0, 5.0, tries, 1, 1)
        self.first = draw.normal(tries, self.units, 4) * gain
        self.second = draw.normal(tries, self.units, self.units) * draw.log_uniform(0.4, 1.6, tries, 1, 1)
        self.last = draw.normal(tries, 1, self.units)
        self.angle, self.aspect = (
            torch.zeros(tries, device=draw.device),
            torch.ones(tries, device=draw.device),
        )
        self._keep(self._chosen(tries, draw))

    def field(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        n = len(labels)
        zoom = torch.exp(draw.normal(n, 1, 1, 1) * 0.2)
        points = turned(labels, self.angle, self.aspect, size, draw) * zoom + draw.normal(n, 2, 1, 1) * 0.25
        flat = points.flatten(2)
        radius = flat.square().sum(1, keepdim=True).sqrt()
        given = torch.cat([flat, radius, torch.ones_like(radius)], 1)  # [n, 4, pixels]
        first = self.first[labels] + draw.normal(n, self.units, 4) * 0.05
        hidden = self._act(first @ given)
        hidden = self._act(self.second[labels] @ hidden)
        out = (self.last[labels] @ hidden).view(n, size, size)
        out = out - out.mean((1, 2), keepdim=True)
        return torch.sigmoid(out * 1.5 / out.std((1, 2), keepdim=True).clamp_min(0.15))

    @staticmethod
    def _act(values: Tensor) -> Tensor:
        """A quarter of the units each: sines, steps, bumps, folds; in place."""
        wave, step, bump, fold = values.chunk(4, 1)
        wave.sin_()
        step.mul_(2).tanh_()
        bump.square_().neg_().exp_().mul_(2).sub_(1)
        fold.remainder_(2).sub_(1).abs_().mul_(2).sub_(1)
        return values

    def _chosen(self, tries: int, draw: Draw) -> Tensor:
        """The `count` programs with most contrast among those that are no noise."""
        if not self.count:
            return torch.empty(0, dtype=torch.int64, device=draw.device)
        field = self.field(torch.arange(tries, device=draw.device), 32, draw)
        rough = (field[:, :, 1:] - field[:, :, :-1]).abs().mean((1, 2))
        fit = field.std((1, 2)) - (rough - 0.13).clamp_min(0) * 10 - (0.02 - rough).clamp_min(0) * 10
        return fit.topk(self.count).indices

    def _keep(self, chosen: Tensor) -> None:
        self.first, self.second, self.last = self.first[chosen], self.second[chosen], self.last[chosen]
        self.angle, self.aspect = self.angle[chosen], self.aspect[chosen]
