"""Compose pictures: a textured or plain ground, and on most of them a figure; both are to be named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.pretrain.formulas.camera import shoot
from benchmarks.pretrain.formulas.draw import Draw
from benchmarks.pretrain.formulas.figures import Contours, Figure, Fractals, Outlines, Strokes
from benchmarks.pretrain.formulas.noises import Leaves, Octaves, Programs
from benchmarks.pretrain.formulas.scene import in_front, shaded, shadowed
from benchmarks.pretrain.formulas.textures import Cells, Palettes, Spectra, Texture, Waves
from benchmarks.pretrain.formulas.views import glimpse

NONE = -100  # what cross_entropy ignores

F = TypeVar("F", Texture, Figure)


@dataclass(frozen=True)
class Sizes:
    """How many classes each family has, and whether figures are objects in a `scene`: with relief and shadow,
    other things before them, and their fill to be named as well.

    A family without classes takes no random numbers.
    """

    waves: int = 160
    spectra: int = 160
    cells: int = 100
    outlines: int = 130
    contours: int = 70
    fractals: int = 80
    strokes: int = 160
    octaves: int = 0
    leaves: int = 0
    programs: int = 0
    scene: bool = False

    @property
    def textures(self) -> int:
        """Classes of grounds."""
        return self.waves + self.spectra + self.cells + self.octaves + self.leaves + self.programs

    @property
    def figures(self) -> int:
        """Classes of figures."""
        return self.outlines + self.contours + self.fractals + self.strokes

    @property
    def questions(self) -> tuple[int, ...]:
        """How many answers each question has: the ground's texture, the figure and, in scenes, its fill."""
        return (self.textures, self.figures, *([self.textures] if self.scene else []))


@dataclass(frozen=True)
class Batch:
    """Pictures float32 [views * n, 3, size, size] normalised to [-1, 1] (mean = std = 0.5), first the first views of all n
    scenes, with three labels a scene: texture and fill int64 [n] in [0, textures), figure int64 [n] in [0, figures),
    NONE where there is none."""

    pictures: Tensor
    texture: Tensor
    figure: Tensor
    fill: Tensor

    @property
    def views(self) -> int:
        """How many pictures there are of a scene."""
        return len(self.pictures) // len(self.texture)

    def part(self, start: int, stop: int) -> Batch:
        """The scenes from `start` to `stop`, with all of their views."""
        by_view = self.pictures.unflatten(0, (self.views, -1))
        labels = (labels[start:stop] for labels in (self.texture, self.figure, self.fill))
        return Batch(by_view[:, start:stop].flatten(0, 1), *labels)


class Formulas:
    """All classes of one seed. `batch` renders pictures that depend on (seed, step, n, size, views) only."""

    def __init__(self, sizes: Sizes, seed: int, device: torch.device) -> None:
        self.sizes, self.seed, self.device = sizes, seed, device
        draw = Draw(seed, device)
        self._textures: tuple[Texture, ...] = (
            Waves(sizes.waves, draw),
            Spectra(sizes.spectra, draw),
            Cells(sizes.cells, draw),
            Octaves(sizes.octaves, draw),
            Leaves(sizes.leaves, draw),
            Programs(sizes.programs, draw),
        )
        self._figures: tuple[Figure, ...] = (
            Outlines(sizes.outlines, draw),
            Contours(sizes.contours, draw),
            Fractals(sizes.fractals, draw),
            Strokes(sizes.strokes, draw),
        )
        self._palettes = Palettes(sizes.textures, draw)

    @torch.no_grad()
    def batch(self, step: int, n: int, size: int, views: int = 1) -> Batch:
        """Render `n` scenes of `size` pixels a side for training step `step`, and take `views` pictures of each: of
        several, each shows a part only, in other colours."""
        draw = Draw((self.seed + 1) * 1_000_003 + step, self.device)
        texture = draw.integers(0, self.sizes.textures, n)
        figure = draw.integers(0, self.sizes.figures, n)
        fill = torch.full_like(texture, NONE)
        plain = n // 4  # the first quarter has a plain ground, the last third no figure
        drawn = n - n // 3
        pictures = torch.empty(n, 3, size, size, device=self.device)
        rendered = plain if self.sizes.scene else 0
        pictures[rendered:] = self._textured(texture[rendered:], size, draw)
        pictures[:plain] = draw.colours(plain)
        pictures[:drawn], fill[:drawn] = self._figured(pictures[:drawn], figure[:drawn], draw)
        texture[:plain] = NONE
        figure[drawn:] = NONE
        order = torch.argsort(draw.uniform(0, 1, n))
        pictures = pictures[order]
        if self.sizes.scene:
            pictures[: n // 6] = self._hidden(pictures[: n // 6], draw)
        texture, figure, fill = texture[order], figure[order], fill[order]
        if views == 1:
            taken = self._taken(pictures, figure, draw)
        else:
            taken = torch.cat([self._taken(glimpse(pictures, draw), figure, draw) for _ in range(views)])
        return Batch(taken * 2 - 1, texture, figure, fill)

    def _taken(self, pictures: Tensor, figure: Tensor, draw: Draw) -> Tensor:
        """The pictures photographed; of those without a figure half are mirrored."""
        pictures = shoot(pictures, draw)
        flip = draw.chance(0.5, len(pictures)) & (figure == NONE)
        return torch.where(flip.view(-1, 1, 1, 1), pictures.flip(3), pictures)

    def _textured(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """Grounds [n, 3, size, size] in [0, 1]; a fifth wears another class's palette, so that form counts."""
        field = torch.empty(len(labels), size, size, device=self.device)
        for where, local, family in _families(labels, self._textures):
            field[where] = family.field(local, size, draw)
        foreign = draw.integers(0, self.sizes.textures, len(labels))
        palette = torch.where(draw.chance(0.2, len(labels)), foreign, labels)
        return self._palettes.colour(field, palette, draw)

    def _figured(self, ground: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Draw a figure on each ground: half plain, half filled with a texture, apart in lightness.

        Gives the pictures and the textures of their fills, NONE where plain.
        """
        n, size = len(labels), ground.shape[-1]
        mask = self._masks(labels, size, draw)
        plain = n // 2
        order = torch.argsort(draw.uniform(0, 1, n))
        fill = torch.empty_like(ground)
        fill[order[:plain]] = draw.colours(plain).expand(-1, -1, size, size)
        other = draw.integers(0, self.sizes.textures, n - plain)
        fill[order[plain:]] = self._textured(other, size, draw)
        filled = torch.full_like(labels, NONE)
        filled[order[plain:]] = other
        fill = _apart(fill, ground, draw)
        if self.sizes.scene:
            fill, ground = shaded(fill, mask, draw), shadowed(ground, mask, draw)
        return ground + mask[:, None] * (fill - ground), filled

    def _hidden(self, pictures: Tensor, draw: Draw) -> Tensor:
        """Put a small figure, plain or with a texture, before each picture."""
        n, size = len(pictures), pictures.shape[-1]
        outlines = draw.integers(0, self.sizes.outlines, n)
        mask = self._masks(outlines, size, draw)
        fill = self._textured(draw.integers(0, self.sizes.textures, n), size, draw)
        fill = torch.where(draw.chance(0.5, n).view(-1, 1, 1, 1), draw.colours(n), fill)
        return in_front(pictures, mask, shaded(fill, mask, draw), draw)

    def _masks(self, labels: Tensor, size: int, draw: Draw) -> Tensor:
        """The figures' masks, float32 [n, size, size]."""
        mask = torch.empty(len(labels), size, size, device=self.device)
        for where, local, family in _families(labels, self._figures):
            mask[where] = family.mask(local, size, draw)
        return mask


def _apart(fill: Tensor, ground: Tensor, draw: Draw) -> Tensor:
    """Shift the lightness of fills, so that each is at least 0.2 to 0.6 from its ground's mean."""
    low, high = ground.mean((1, 2, 3), keepdim=True), fill.mean((1, 2, 3), keepdim=True)
    gap = draw.uniform(0.2, 0.6, len(fill), 1, 1, 1)
    side = torch.where(low > 0.5, -1.0, 1.0)
    near = (high - low).abs() < gap
    return torch.where(near, (fill - high + low + side * gap), fill).clamp(0, 1)


def _families(labels: Tensor, families: Sequence[F]) -> list[tuple[Tensor, Tensor, F]]:
    """Split labels [n] among families: positions, labels within the family, the family; empty ones left out."""
    parts, start = [], 0
    for family in families:
        where = ((labels >= start) & (labels < start + family.count)).nonzero()[:, 0]
        if len(where):
            parts.append((where, labels[where] - start, family))
        start += family.count
    return parts
