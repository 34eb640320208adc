"""Mixup (Zhang et al., arXiv:1710.09412) and CutMix (Yun et al., arXiv:1905.04899) of whole batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.learn.settings import Training

Generator = np.random.Generator


def mix(
    pictures: Tensor, labels: Tensor, classes: int, training: Training, generator: Generator
) -> tuple[Tensor, Tensor]:
    """float [N, 3, h, w], int64 [N] -> pictures mixed with others of the batch, float [N, C] label shares.

    Without mixup and cutmix, what came in goes out.
    """
    if not (training.mixup or training.cutmix):
        return pictures, labels
    cut = bool(training.cutmix) and (not training.mixup or generator.random() < 0.5)
    partner = torch.from_numpy(generator.permutation(len(pictures))).to(pictures.device)
    if cut:
        pictures, kept = _cut(pictures, pictures[partner], training.cutmix, generator)
    else:
        kept = float(generator.beta(training.mixup, training.mixup))
        pictures = torch.lerp(pictures[partner], pictures, kept)
    shares = F.one_hot(labels, classes).float()
    return pictures, torch.lerp(shares[partner], shares, kept)


def _cut(pictures: Tensor, others: Tensor, alpha: float, generator: Generator) -> tuple[Tensor, float]:
    """Paste one box of `others` into `pictures`; returns also the share of the area that was kept."""
    height, width = pictures.shape[2:]
    side = (1 - generator.beta(alpha, alpha)) ** 0.5
    middle_y, middle_x = generator.random() * height, generator.random() * width
    top, bottom = _span(middle_y, side * height, height)
    left, right = _span(middle_x, side * width, width)
    mixed = pictures.clone()
    mixed[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _span(middle: float, length: float, limit: int) -> tuple[int, int]:
    return max(0, round(middle - length / 2)), min(limit, round(middle + length / 2))
