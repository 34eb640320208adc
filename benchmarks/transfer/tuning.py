"""Plain fine-tuning for transfer tables: one schedule for every start, in about fifty lines of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.backbones import bundled, files
from toolchain.data.dataset import PictureSet
from toolchain.data.preprocess import Preprocess, Preprocessing

State = dict[str, Tensor]


@dataclass(frozen=True)
class Schedule:
    """AdamW with a warm-up over a tenth of the steps, then a cosine to zero; pictures of `size` pixels a side."""

    steps: int
    batch: int = 32
    size: int = 32
    weight_decay: float = 0.05
    turn: float = 0.15  # radians, spread of the rotations
    shift: float = 0.08  # of half a side, spread of the translations
    scale: float = 0.08  # spread of the logarithm

    def rate(self, step: int, lr: float) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / max(1.0, self.steps / 10))
        return lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Pictures:
    """Normalised pictures float32 [n, 3, size, size] and labels int64 [n]."""

    pictures: Tensor
    labels: Tensor


def prepare(pictures: PictureSet, size: int) -> Pictures:
    """Decode and resize pictures of one size, as a bundled backbone expects them."""
    module = Preprocessing(Preprocess(height=size, width=size, mean=(0.5,) * 3, std=(0.5,) * 3))
    decoded = torch.from_numpy(np.stack([pictures.picture(i) for i in range(len(pictures))]))
    return Pictures(module(decoded), torch.from_numpy(pictures.labels))


def weights(path: Path) -> State:
    """The backbone's tensors of a .safetensors file or of a checkpoint of the pretraining."""
    if path.suffix == ".safetensors":
        return files.read(path)
    state: State = torch.load(path, map_location="cpu", weights_only=True)["average"]
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


def start(pretrained: State | None, classes: int, seed: int) -> nn.Module:
    """nano's architecture with a fresh head; the rest from `pretrained`, or random as well."""
    card = bundled.card("nano")
    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(card.architecture, num_classes=classes, **card.options)
    if pretrained is not None:
        told = model.load_state_dict(pretrained, strict=False)
        if told.unexpected_keys or any(not name.startswith("fc.") for name in told.missing_keys):
            raise SystemExit(f"the weights do not fit {card.architecture}: {told}")
    return model.to(memory_format=torch.channels_last)


def tune(model: nn.Module, data: Pictures, schedule: Schedule, lr: float, seed: int) -> None:
    """Fine-tune all parameters in place."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=schedule.weight_decay, fused=True)
    order = torch.empty(0, dtype=torch.int64)
    model.train()
    for step in range(schedule.steps):
        if len(order) < schedule.batch:
            order = torch.cat([order, torch.randperm(len(data.labels), generator=generator)])
        chosen, order = order[: schedule.batch], order[schedule.batch :]
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, lr)
        pictures = jitter(data.pictures[chosen], schedule, generator)
        loss = F.cross_entropy(model(pictures), data.labels[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def jitter(pictures: Tensor, schedule: Schedule, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift a little; borders repeat."""
    n = len(pictures)
    angle, size, dx, dy = torch.randn(4, n, generator=generator)
    size = torch.exp(size * schedule.scale)
    cos, sin = (angle * schedule.turn).cos() * size, (angle * schedule.turn).sin() * size
    rows = [torch.stack([cos, -sin, dx * schedule.shift], 1), torch.stack([sin, cos, dy * schedule.shift], 1)]
    where = F.affine_grid(torch.stack(rows, 1), list(pictures.shape), align_corners=False)
    moved = F.grid_sample(pictures, where, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def evaluate(model: nn.Module, data: Pictures) -> tuple[float, float]:
    """Top-1 accuracy in percent, and mean cross-entropy."""
    model.eval()
    logits = torch.cat([model(part) for part in torch.split(data.pictures, 256)])
    top1 = (logits.argmax(1) == data.labels).float().mean().item() * 100
    return top1, F.cross_entropy(logits, data.labels).item()
