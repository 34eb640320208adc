"""What training minimises: cross-entropy, for mixed labels and rare classes too, and a teacher's answers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from toolchain.learn.settings import Distillation


def class_weights(labels: Tensor, classes: int, power: float = 1.0) -> Tensor:
    """Weights [C] of classes, their count ** -power, such that the mean over `labels` int64 [n] is 1.

    A class without pictures has weight 0.
    """
    counts = torch.bincount(labels, minlength=classes).double()
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -power, 0.0)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def class_offsets(labels: Tensor, classes: int, power: float = 1.0) -> Tensor:
    """What the loss adds to logits [C] so that rare classes are learnt with a margin: power times the logarithm
    of each class's share of `labels` int64 [n] (Menon et al., arXiv:2007.07314, eq. 10). No pictures: as one.
    """
    counts = torch.bincount(labels, minlength=classes).clamp(min=1).double()
    return (power * (counts / len(labels)).log()).float()


def cross_entropy(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Mean over the batch: logits [N, C], targets int64 [N] or float [N, C], weights [C] -> scalar.

    Divided by N, not by the batch's sum of weights, so that a batch of rare classes counts more.
    """
    summed = F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing)
    return summed / len(logits)


def distilled(loss: Tensor, logits: Tensor, teacher: Tensor, distillation: Distillation) -> Tensor:
    """Blend the labels' loss with the divergence from the teacher's logits [N, C], times temperature squared."""
    heat = distillation.temperature
    divergence = F.kl_div(
        F.log_softmax(logits / heat, dim=1),
        F.log_softmax(teacher / heat, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return torch.lerp(loss, divergence * heat**2, distillation.alpha)
