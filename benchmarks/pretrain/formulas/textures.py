"""Textures: plane waves, random-phase spectra and cells, coloured by cosine palettes.

Every kind has a constructor that draws the parameters of its classes and a `field(labels, size, draw)` that
gives float32 [n, size, size] in [0, 1] for classes `labels` [n].
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.pretrain.formulas.draw import Draw, column, enlarge, grid, rotation


class Texture(Protocol):
    """A family of textures."""

    count: int

    def field(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        ...


class Waves:
    """Sums of up to five plane waves, bent by a smooth warp, through a gain that makes edges."""

    def __init__(self, count: int, draw: Draw) -> None:
        self.count = count
        waves = 5
        frequency = draw.log_uniform(0.6, 7.0, count, waves)  # periods per half picture
        angle = draw.uniform(0, math.pi, count, waves)
        # Half of the classes are lattices: their waves share two directions.
        lattice = draw.chance(0.5, count)
        paired = angle[:, :1] + torch.arange(waves, device=draw.device) % 2 * draw.uniform(0.7, 1.6, count, 1)
        angle = torch.where(lattice[:, None], paired, angle)
        self.k = torch.stack([angle.cos(), angle.sin()], 2) * frequency[..., None] * math.pi
        used = torch.arange(waves, device=draw.device) < draw.integers(1, waves + 1, count, 1)
        self.amplitude = draw.uniform(0.3, 1.0, count, waves) * used
        self.warp = draw.uniform(0, 0.25, count)
        self.gain = draw.log_uniform(0.5, 6.0, count)
        self.product = draw.chance(0.25, count)

    def field(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        n = len(labels)
        turn = rotation(draw.normal(n) * 0.12) * column(torch.exp(draw.normal(n) * 0.15))
        k = self.k[labels] @ turn  # [n, waves, 2]
        warp = F.interpolate(draw.normal(n, 2, 4, 4), [size, size], mode="bicubic", align_corners=True)
        points = grid(size, draw.device) + warp * self.warp[labels].view(-1, 1, 1, 1)
        phase = torch.einsum("nwc,nchv->nwhv", k, points) + draw.uniform(0, 2 * math.pi, n, k.shape[1], 1, 1)
        waves = phase.sin_().mul_(self.amplitude[labels][..., None, None])
        total = waves.sum(1)
        product = waves[:, 0] * (1 + waves[:, 1:].sum(1))
        total = torch.where(column(self.product[labels]), product, total)
        return torch.tanh(total * column(self.gain[labels])) * 0.5 + 0.5


class Spectra:
    """Random-phase textures: white noise filtered by a class's spectrum (slope, band, direction), then bent."""

    def __init__(self, count: int, draw: Draw) -> None:
        self.count = count
        self.slope = draw.uniform(0.3, 2.6, count)
        self.centre = draw.log_uniform(0.8, 9.0, count)  # cycles per picture
        self.width = draw.uniform(0.15, 0.9, count)
        self.band = draw.chance(0.6, count)
        self.angle = draw.uniform(0, math.pi, count)
        self.spread = draw.uniform(0.0, 3.0, count) * draw.chance(0.65, count)
        self.bend = draw.integers(0, 4, count)
        self.gain = draw.log_uniform(0.8, 3.0, count)

    def field(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        n, device = len(labels), draw.device
        ky = torch.fft.fftfreq(size, 1 / size, device=device)[:, None]
        kx = torch.fft.rfftfreq(size, 1 / size, device=device)[None]
        radius = (kx**2 + ky**2).sqrt().clamp_min(0.5) * column(torch.exp(draw.normal(n) * 0.12))
        angle = torch.atan2(ky, kx) - column(self.angle[labels] + draw.normal(n) * 0.12)
        band = torch.exp(
            -0.5 * ((radius.log() - column(self.centre[labels].log())) / column(self.width[labels])) ** 2
        )
        filtered = torch.where(column(self.band[labels]), band, radius ** -column(self.slope[labels]))
        filtered = filtered * torch.exp(column(self.spread[labels]) * (torch.cos(2 * angle) - 1))
        noise = torch.fft.rfft2(draw.normal(n, size, size)) * filtered
        noise[:, 0, 0] = 0
        field = torch.fft.irfft2(noise, s=(size, size))
        field = field / field.std((1, 2), keepdim=True).clamp_min(1e-6)
        return self._bent(field, labels)

    def _bent(self, field: Tensor, labels: Tensor) -> Tensor:
        gain, bend = column(self.gain[labels]), column(self.bend[labels])
        smooth = (field * 0.22 + 0.5).clamp(0, 1)
        hard = torch.sigmoid(field * gain * 2)
        ridged = 1 - (field.abs() * gain * 0.6).clamp(0, 1)
        marbled = torch.sin(field * gain * 2) * 0.5 + 0.5
        return torch.where(
            bend == 0, smooth, torch.where(bend == 1, hard, torch.where(bend == 2, ridged, marbled))
        )


class Cells:
    """Worley's cellular textures: distances to the nearest of scattered points (SIGGRAPH 1996)."""

    def __init__(self, count: int, draw: Draw) -> None:
        self.count = count
        self.points = 18
        self.used = draw.integers(5, self.points + 1, count)
        self.regular = draw.chance(0.4, count)
        self.taxi = draw.uniform(0, 1, count)
        self.aspect = draw.log_uniform(0.5, 2.0, count)
        self.mode = draw.integers(0, 3, count)
        self.gain = draw.log_uniform(0.7, 2.5, count)
        self.angle = draw.uniform(0, math.pi, count)

    def field(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """float32 [n, size, size] in [0, 1]."""
        n = len(labels)
        turn = rotation(self.angle[labels] + draw.normal(n) * 0.12)
        aspect = self.aspect[labels]
        coarse = size * 5 // 8  # the distances cost most of all formulas and are smooth
        points = torch.einsum("nij,jhw->nihw", turn, grid(coarse, draw.device))
        points = points * torch.stack([aspect, 1 / aspect], 1)[..., None, None]
        centre = self._centres(labels, draw)[..., None, None]  # [n, 2, points, 1, 1]
        x, y = (points[:, i, None] - centre[:, i] for i in (0, 1))  # [n, points, h, w], as all that follow
        taxi = self.taxi[labels].view(-1, 1, 1, 1)
        distance = (x * x).add_(y * y).sqrt_().mul_(1 - taxi)
        distance += torch.maximum(x.abs_(), y.abs_()).mul_(taxi)
        used = torch.arange(self.points, device=draw.device) < self.used[labels][:, None]
        distance += (~used)[..., None, None] * 9.0
        nearest, which = distance.min(1)
        distance.scatter_(1, which[:, None], 9.0)
        gap = distance.amin(1) - nearest
        spacing = column((self.used[labels].float() / 5).sqrt() * self.gain[labels])
        value = draw.uniform(0, 1, n, self.points).gather(1, which.flatten(1)).view_as(nearest)
        mode = column(self.mode[labels])
        chosen = torch.where(mode == 0, nearest * spacing, torch.where(mode == 1, gap * spacing * 2, value))
        return enlarge(chosen.clamp(0, 1), size)

    def _centres(self, labels: Tensor, draw: Draw) -> Tensor:
        n = len(labels)
        free = draw.uniform(-1.3, 1.3, n, 2, self.points)
        # A lattice with as many rows as the class has points per side, jittered.
        side = self.used[labels].float().sqrt().ceil()[:, None]
        index = torch.arange(self.points, device=draw.device)[None]
        lattice = torch.stack([index % side, (index / side).floor()], 1)
        lattice = (lattice + 0.5 + draw.normal(n, 2, self.points) * 0.12) * (2.6 / side[:, None]) - 1.3
        return torch.where(self.regular[labels].view(-1, 1, 1), lattice, free)


class Palettes:
    """Cosine palettes, colour(t) = a + b cos(2 pi (c t + d)) for each of R, G, B (I. Quilez)."""

    def __init__(self, count: int, draw: Draw) -> None:
        self.count = count
        self.a = draw.uniform(0.3, 0.7, count, 1) + draw.uniform(-0.12, 0.12, count, 3)
        self.b = draw.uniform(0.1, 0.5, count, 3)
        self.c = draw.uniform(0.25, 1.0, count, 1).expand(count, 3) + draw.uniform(-0.15, 0.15, count, 3)
        # Most natural colours are weakly saturated: the three phases lie near one another for most classes.
        apart = torch.where(draw.chance(0.65, count)[:, None], 0.06, 0.35)
        self.d = draw.uniform(0, 1, count, 1) + draw.uniform(-1, 1, count, 3) * apart

    def colour(self, field: Tensor, labels: Tensor, draw: Draw) -> Tensor:
        """Fields [n, h, w] in [0, 1] -> pictures [n, 3, h, w] in [0, 1]."""
        a, b, c, d = (part[labels][..., None, None] for part in (self.a, self.b, self.c, self.d))
        n = len(labels)
        d = d + draw.normal(n, 3, 1, 1) * 0.03
        a = a + draw.normal(n, 3, 1, 1) * 0.05
        wave = (field[:, None] * (2 * math.pi * c)).add_(2 * math.pi * d).cos_()
        return wave.mul_(b).add_(a).clamp_(0, 1)
