"""Plain fine-tuning and linear probing for transfer tables: one schedule for every start, in a page of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.data.dataset import PictureSet
from toolchain.data.preprocess import Preprocess, Preprocessing

Metric = Literal["top1", "balanced"]


@dataclass(frozen=True)
class Schedule:
    """AdamW with a warm-up over a tenth of the steps, then a cosine to zero.

    even: draw as many pictures of each class, for uneven ones.
    """

    steps: int
    batch: int = 32
    weight_decay: float = 0.05
    turn: float = 0.15  # radians, spread of the rotations
    shift: float = 0.08  # of half a side, spread of the translations
    scale: float = 0.08  # spread of the logarithm
    even: bool = False

    def rate(self, step: int, lr: float) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / max(1.0, self.steps / 10))
        return lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Pictures:
    """Normalised pictures float32 [n, 3, size, size] and labels int64 [n]."""

    pictures: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Pictures:
        """The same on a device."""
        return Pictures(self.pictures.to(device), self.labels.to(device))


def prepare(pictures: PictureSet, size: int) -> Pictures:
    """Decode and resize whole pictures of any size to `size` pixels a side, mean = std = 0.5."""
    settings = Preprocess(height=size, width=size, crop_mode="squash", mean=(0.5,) * 3, std=(0.5,) * 3)
    module = Preprocessing(settings)
    made = [module(torch.from_numpy(pictures.picture(i))[None]) for i in range(len(pictures))]
    return Pictures(torch.cat(made), torch.from_numpy(pictures.labels))


def mirrored(data: Pictures) -> Pictures:
    """The pictures and their mirror images."""
    return Pictures(torch.cat([data.pictures, data.pictures.flip(3)]), data.labels.repeat(2))


def tune(model: nn.Module, data: Pictures, schedule: Schedule, lr: float, seed: int) -> None:
    """Fine-tune all parameters in place, on the device where the model is."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    data = data.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=schedule.weight_decay, fused=True)
    order = torch.empty(0, dtype=torch.int64)
    model.train()
    for step in range(schedule.steps):
        while len(order) < schedule.batch:
            order = torch.cat([order, _epoch(data.labels.cpu(), schedule.even, generator)])
        chosen, order = order[: schedule.batch].to(device), order[schedule.batch :]
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, lr)
        pictures = jitter(data.pictures[chosen], schedule, generator)
        loss = F.cross_entropy(model(pictures), data.labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def _epoch(labels: Tensor, even: bool, generator: torch.Generator) -> Tensor:
    """An order of the pictures; with `even`, drawn with repetition, each class as often as another."""
    if not even:
        return torch.randperm(len(labels), generator=generator)
    weight = 1 / torch.bincount(labels)[labels].double()
    return torch.multinomial(weight, len(labels), replacement=True, generator=generator)


def jitter(pictures: Tensor, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift a little; borders repeat."""
    n = len(pictures)
    angle, size, dx, dy = torch.randn(4, n, generator=generator)
    size = torch.exp(size * schedule.scale)
    cos, sin = (angle * schedule.turn).cos() * size, (angle * schedule.turn).sin() * size
    rows = [torch.stack([cos, -sin, dx * schedule.shift], 1), torch.stack([sin, cos, dy * schedule.shift], 1)]
    matrix = torch.stack(rows, 1).to(pictures.device)
    where = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, where, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def evaluate(model: nn.Module, data: Pictures, metric: Metric = "top1") -> tuple[float, float]:
    """Accuracy in percent, top-1 or the mean of the classes' recalls, and mean cross-entropy."""
    model.eval()
    device = next(model.parameters()).device
    logits = torch.cat([model(part.to(device)) for part in torch.split(data.pictures, 256)]).cpu()
    return accuracy(logits.argmax(1), data.labels, metric), F.cross_entropy(logits, data.labels).item()


def accuracy(predicted: Tensor, labels: Tensor, metric: Metric) -> float:
    """Percent right, of all or as the mean over classes."""
    right = (predicted == labels).double()
    if metric == "top1":
        return right.mean().item() * 100
    return float(np.mean([right[labels == k].mean().item() for k in labels.unique()])) * 100


@torch.no_grad()
def features(model: nn.Module, data: Pictures) -> np.ndarray:
    """What the classifier would see of each picture, float32 [n, features]."""
    model.eval()
    device = next(model.parameters()).device
    parts = (part.to(device) for part in torch.split(data.pictures, 256))
    seen = [model.forward_head(model.forward_features(part), pre_logits=True) for part in parts]  # type: ignore[operator]
    return torch.cat(seen).cpu().numpy()


class Probe:
    """Logistic regression on a frozen network's standardised features, with strength `c` (scikit-learn's C)."""

    def __init__(self, model: nn.Module, data: Pictures, c: float) -> None:
        seen = features(model, data)
        self._scaler = StandardScaler().fit(seen)
        self._fit = LogisticRegression(C=c, max_iter=1000, class_weight="balanced")
        self._fit.fit(self._scaler.transform(seen), data.labels.numpy())
        self._model = model

    def evaluate(self, data: Pictures, metric: Metric) -> tuple[float, float]:
        """Accuracy in percent and mean cross-entropy."""
        chances = self._fit.predict_proba(self._scaler.transform(features(self._model, data)))
        labels = data.labels.numpy()
        loss = -np.log(np.clip(chances[np.arange(len(labels)), labels], 1e-12, 1)).mean()
        return accuracy(torch.from_numpy(chances.argmax(1)), data.labels, metric), float(loss)
