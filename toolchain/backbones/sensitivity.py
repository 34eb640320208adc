"""What a network answers when one of its parts alone has given up channels, and the rest is whole.

H. Li et al., Pruning Filters for Efficient ConvNets (arXiv:1608.08710), section 3.1, prune each layer alone and look at the
accuracy. Here nothing is rebuilt: the layers that read the channels are given weights of zero for them, which comes to the
same, but for norms over the channels (LayerNorm), which still see them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from toolchain.backbones.pruning import Readers

SHARES = (0.25, 0.5, 0.75)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Alone:
    """Logits [n, C] with `share` of the part's channels, the least important ones, unread; [] for the whole network."""

    part: str
    share: float
    logits: Floats


def alone(
    model: nn.Module, parts: Sequence[Readers], batches: Sequence[Tensor], shares: Sequence[float] = SHARES
) -> Iterator[Alone]:
    """The whole network's logits first (part "", share 0), then those of every part with every share.

    parts: as `pruning.readers` finds them. batches: prepared pictures [n, 3, h, w], on the model's device.
    """
    model.eval()
    yield Alone("", 0.0, _logits(model, {}, batches))
    for part in parts:
        for share in shares:
            yield Alone(part.name, share, _logits(model, _deaf(model, part, share), batches))


def _deaf(model: nn.Module, part: Readers, share: float) -> dict[str, Tensor]:
    """The weights of the part's readers with zeros for its least important channels."""
    gone = set(part.order[: int(share * len(part.order))])
    changed = {}
    for layer, pairs in part.inputs.items():
        name = f"{layer}.weight"
        weight = model.get_parameter(name).detach().clone()
        weight[:, [own for channel, own in pairs.tolist() if channel in gone]] = 0.0
        changed[name] = weight
    return changed


@torch.inference_mode()
def _logits(model: nn.Module, changed: dict[str, Tensor], batches: Sequence[Tensor]) -> Floats:
    answers = [functional_call(model, changed, (pictures,)) for pictures in batches]
    return np.asarray(torch.cat(answers).float().cpu().numpy())
