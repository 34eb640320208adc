"""What a network answers on val, in full precision, as it would be exported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain import stats


@dataclass(frozen=True)
class Scores:
    """Mean cross-entropy in nats; accuracies as fractions."""

    loss: float
    top1: float
    balanced: float


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Scores:
    """Score a network in eval mode on batches of float [N, 3, h, w] and int64 [N]."""
    model.eval()
    answered, labelled = [], []
    for pictures, labels in batches:
        answered.append(model(pictures.to(device, non_blocking=True)).float().cpu())
        labelled.append(labels.cpu())
    logits, labels = torch.cat(answered), torch.cat(labelled)
    probabilities, wanted = logits.softmax(dim=1).numpy(), labels.numpy()
    return Scores(
        loss=F.cross_entropy(logits, labels).item(),
        top1=stats.top1(probabilities, wanted),
        balanced=stats.balanced(probabilities, wanted),
    )
