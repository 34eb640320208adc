"""What is trained, and by which optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from toolchain.backbones.architecture import blocks, head, head_names, is_below
from toolchain.errors import TrainingError
from toolchain.learn.settings import Training


class Scope:
    """The part of a network that is trained; the rest is frozen and stays in eval mode, batch norm included."""

    def __init__(self, model: nn.Module, train: str | int, *, statistics_kept: bool = False) -> None:
        """Freeze all else. Raises TrainingError for more blocks than there are.

        statistics_kept: batch norms before the head normalise by the statistics they came with.
        """
        self._model = model
        self._parts = _parts(model, train)
        own = {module for part in head(model) for module in part.modules()}
        self._kept = [
            module for module in model.modules()
            if statistics_kept and isinstance(module, nn.modules.batchnorm._BatchNorm) and module not in own
        ]  # fmt: skip
        model.requires_grad_(False)
        for part in self._parts:
            part.requires_grad_(True)

    def train(self) -> None:
        """Switch the trained part to train mode and the rest to eval mode."""
        self._model.eval()
        # The root's own flag governs the dropout that timm does before the classifier by a function call.
        self._model.training = True
        for part in self._parts:
            part.train()
        for norm in self._kept:
            norm.eval()


def make(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer of what is not frozen. Each group's "share" is its part of the learning rate."""
    heads = head_names(model)
    spared = _undecayed(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name in spared else training.decay
            share = training.head_lr_factor if is_below(name, heads) else 1.0
            groups.setdefault((decay, share), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "share": share}
        for (decay, share), parameters in groups.items()
    ]
    if training.optimizer == "adamw":
        return torch.optim.AdamW(listed, lr=training.lr, fused=True)
    return torch.optim.SGD(
        listed, lr=training.lr, momentum=training.momentum, nesterov=training.nesterov, fused=True
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]


def _parts(model: nn.Module, train: str | int) -> tuple[nn.Module, ...]:
    if train == "full":
        return (model,)
    if train == "head":
        return head(model)
    found = blocks(model)
    if int(train) > len(found):
        raise TrainingError(
            f"train: {train} blocks asked for, the network has {len(found)}; take 'full' for all"
        )
    return (*head(model), *(module for block in found[-int(train) :] for module in block))


def _undecayed(model: nn.Module) -> frozenset[str]:
    """Parameters that timm says should not decay (position embeddings)."""
    listed = getattr(model, "no_weight_decay", None)
    return frozenset(listed()) if callable(listed) else frozenset()
