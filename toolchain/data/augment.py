"""Training's way from a decoded picture to the network's input: crop, change at random, normalise.

Three stages, so that the dear one is done once and the cheap one for whole batches:
`keep` (depends on the picture alone and may be cached), `draw` (a random crop and a policy, a picture at a
time) and `finish` (everything else, a batch at a time, on the training device).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from toolchain.data.augmentation import Augment, RandAugment
from toolchain.data.dataset import Picture
from toolchain.data.policy import vary
from toolchain.data.preprocess import Preprocess, Preprocessing
from toolchain.data.randomness import Purpose, Seeds, symmetric, uniform
from toolchain.data.transform import erase, flip, recolour, relight, turn, warp
from toolchain.errors import TrainingError

__all__ = ["Augment", "Augmenter", "RandAugment"]

_ERASED = (0.02, 0.2)  # share of the area, least and most
_ERASED_ASPECT = 0.3  # the flattest box; the tallest is its inverse


class Augmenter:
    """Changes pictures at random, each by its own seed: the same seed gives the same result.

    Without a random crop the geometry is that of `Preprocessing`, rounded to whole grey levels.
    """

    def __init__(self, augment: Augment, preprocess: Preprocess, device: torch.device | None = None) -> None:
        """Raises TrainingError when the augmentation does not fit the target size."""
        if augment.quarter_turns and preprocess.height != preprocess.width:
            raise TrainingError(
                f"augment.quarter_turns needs square pictures, not {preprocess.height} x {preprocess.width}: "
                f"take flips, or another preprocess size"
            )
        self.augment = augment
        self.preprocess = preprocess
        self.device = device or torch.device("cpu")
        self._prepare = Preprocessing(preprocess).eval()
        self._finish = Preprocessing(preprocess).eval().to(self.device)
        self._outside = [255 * value for value in preprocess.mean]

    def __call__(self, picture: Picture, seed: int) -> Tensor:
        """uint8 [H, W, 3] -> float32 [3, h, w], normalised."""
        seeds = np.array([seed], dtype=np.uint64)
        return self.finish(self.draw(self.keep(picture), seeds[0])[None], seeds)[0]

    @torch.no_grad()
    def keep(self, picture: Picture) -> Tensor:
        """What of uint8 [H, W, 3] is needed for any seed: uint8 [3, h, w], or larger where crops are random."""
        augment, target = self.augment, self.preprocess
        if augment.crop_scale is None:
            resized = self._prepare.resize(torch.from_numpy(picture)[None])[0]
            return resized.round_().clamp_(0, 255).to(torch.uint8)
        # Halve (third, …) pictures so large that even the smallest crop would still be shrunk.
        height, width = picture.shape[:2]
        side = min(height / target.height, width / target.width) * math.sqrt(augment.crop_scale[0])
        if side >= 2:
            picture = np.array(Image.fromarray(picture).reduce(int(side)))
        planes = torch.from_numpy(picture).permute(2, 0, 1)
        return self._prepare.pad(planes[None])[0] if target.crop_mode == "border" else planes

    def draw(self, kept: Tensor, seed: np.uint64) -> Tensor:
        """What `keep` gave -> uint8 [3, h, w]: the random crop, then the policy."""
        augment = self.augment
        if augment.crop_scale is not None:
            kept = self._crop(kept, augment.crop_scale, seed)
        if augment.trivial_augment or augment.rand_augment is not None:
            kept = vary(kept, augment, seed, self._outside)
        return kept

    @torch.no_grad()
    def finish(self, pictures: Tensor, seeds: Seeds) -> Tensor:
        """uint8 [N, 3, h, w], overwritten, with a seed [N] each -> float32 [N, 3, h, w], normalised."""
        augment = self.augment
        pictures = pictures.to(self.device, non_blocking=True)
        if augment.flip_horizontal or augment.flip_vertical:
            coins = (
                uniform(seeds, Purpose.FLIP, 2)
                < np.array([augment.flip_horizontal, augment.flip_vertical]) / 2
            )
            pictures = flip(pictures, *self._tensors(coins))
        if augment.quarter_turns:
            pictures = turn(pictures, *self._tensors(np.floor(uniform(seeds, Purpose.TURN) * 4)))
        values = pictures.float()
        if augment.moves:
            values = self._warp(values, seeds)
        if augment.recolours:
            values = self._recolour(values, seeds)
        if augment.noise:
            values = self._add_noise(values, seeds)
        values = self._finish.normalize(values)
        return self._erase(values, seeds) if augment.erase else values

    def _tensors(self, columns: NDArray[np.generic]) -> tuple[Tensor, ...]:
        """[n, k] -> k tensors [n] on the device."""
        return torch.from_numpy(columns).to(self.device).unbind(1)

    def _crop(self, kept: Tensor, scale: tuple[float, float], seed: np.uint64) -> Tensor:
        """uint8 [3, H, W] -> [3, h, w]. A box too wide or too high for the picture is shrunk, not redrawn."""
        target = self.preprocess
        height, width = kept.shape[1:]
        area, ratio, down, right = uniform(np.array([seed], dtype=np.uint64), Purpose.CROP, 4)[0]
        low, high = self.augment.crop_ratio
        aspect = low * (high / low) ** ratio
        aspect *= width / height if target.crop_mode == "squash" else target.width / target.height
        pixels = (scale[0] + (scale[1] - scale[0]) * area) * height * width
        box_h, box_w = math.sqrt(pixels / aspect), math.sqrt(pixels * aspect)
        fit = min(1.0, height / box_h, width / box_w)
        rows, columns = max(1, round(box_h * fit)), max(1, round(box_w * fit))
        top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
        box = kept[None, :, top : top + rows, left : left + columns]
        size = [target.height, target.width]
        return F.interpolate(box, size, mode=target.interpolation, align_corners=False, antialias=True)[0]

    def _warp(self, values: Tensor, seeds: Seeds) -> Tensor:
        augment = self.augment
        degrees = symmetric(seeds, Purpose.ROTATE) * augment.rotate
        sides = [augment.translate * side for side in values.shape[2:]]
        shifts = np.rint(symmetric(seeds, Purpose.TRANSLATE, 2) * sides)
        zooms = (1 + augment.zoom) ** symmetric(seeds, Purpose.ZOOM)
        columns = np.concatenate([degrees, zooms, shifts], axis=1).astype(np.float32)
        numbers = torch.from_numpy(columns).to(self.device)
        return warp(values, numbers[:, 0], numbers[:, 2:], numbers[:, 1], augment.fill)

    def _recolour(self, values: Tensor, seeds: Seeds) -> Tensor:
        augment = self.augment
        spread = [augment.brightness, augment.contrast, augment.saturation, augment.hue]
        draws = symmetric(seeds, Purpose.COLOUR, 4) * spread + [1, 1, 1, 0]
        brightness, contrast, saturation, hue = self._tensors(draws.astype(np.float32))
        values = relight(values, brightness, contrast)
        if augment.saturation or augment.hue:
            values = recolour(values, saturation, hue)
        return values.clamp_(0, 255)

    def _add_noise(self, values: Tensor, seeds: Seeds) -> Tensor:
        strengths = uniform(seeds, Purpose.NOISE)[:, 0]
        for picture, seed, strength in zip(values, seeds, strengths, strict=True):
            source = torch.Generator(self.device).manual_seed(int(seed >> np.uint64(1)))
            noise = torch.randn(picture.shape, generator=source, device=self.device)
            picture.add_(noise, alpha=255 * self.augment.noise * float(strength))
        return values.clamp_(0, 255)

    def _erase(self, values: Tensor, seeds: Seeds) -> Tensor:
        height, width = values.shape[2:]
        happens, area, aspect, down, right = uniform(seeds, Purpose.ERASE, 5).T
        pixels = (_ERASED[0] + (_ERASED[1] - _ERASED[0]) * area) * height * width
        ratio = _ERASED_ASPECT ** (2 * aspect - 1)
        rows = np.minimum(np.rint(np.sqrt(pixels * ratio)), height)
        columns = np.minimum(np.rint(np.sqrt(pixels / ratio)), width)
        top, left = np.floor(down * (height - rows + 1)), np.floor(right * (width - columns + 1))
        boxes = np.stack([top, left, top + rows, left + columns], axis=1)
        boxes[happens >= self.augment.erase] = 0
        return erase(values, torch.from_numpy(boxes).to(self.device), 0.0)
