"""How much a group of channels matters, on torch-pruning's groups (https://arxiv.org/abs/2301.12900).

A group is every slice of every layer that must go together with one channel. Scores are averaged over the
layers of a group and divided by the group's mean, so that groups compare under global pruning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

Importance = Literal["l1", "l2", "taylor", "lamp", "bn_scale", "random"]
Score = Callable[[tp.dependency.Group], Tensor | None]

_LAYERS = (_ConvNd, nn.Linear, _BatchNorm, nn.LayerNorm)
_INPUTS = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)


def scorer(importance: Importance) -> Score:
    """The score of each channel of a group, [channels]; None for a group it says nothing about.

    l1, l2: sum of |w| or w² of the group's slices (https://arxiv.org/abs/1608.08710, grouped).
    taylor: |w · gradient| (https://arxiv.org/abs/1906.10771); the gradients must have been computed.
    lamp: squared magnitude over that of all larger channels (https://arxiv.org/abs/2010.07611); within one
    layer its order is that of l2. bn_scale: batch normalisation's |gamma| (https://arxiv.org/abs/1708.06519).
    random: the control, from torch's random numbers.
    """
    kinds = list(_LAYERS)
    found: dict[Importance, Callable[[], Score]] = {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1, target_types=kinds),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2, target_types=kinds),
        "taylor": GroupTaylor,
        "lamp": tp.importance.LAMPImportance,
        "bn_scale": tp.importance.BNScaleImportance,
        "random": tp.importance.RandomImportance,
    }
    return found[importance]()


class GroupTaylor(tp.importance.GroupMagnitudeImportance):  # type: ignore[misc]
    """First-order Taylor importance, batch normalisation included.

    torch-pruning's own leaves batch normalisation out and sorts a group's indices without the root
    indices that belong to them, which mixes up the channels of attention.
    """

    def __init__(self) -> None:
        super().__init__(p=1, target_types=list(_LAYERS))

    @torch.no_grad()
    def __call__(self, group: tp.dependency.Group) -> Tensor | None:
        """Score a group's channels."""
        scores, roots = [], []
        for item in group:
            layer, prune = item.dep.layer, item.dep.pruning_fn
            if not isinstance(layer, _LAYERS) or getattr(layer, "weight", None) is None:
                continue
            if layer.weight.grad is None:
                continue
            scores.append(_sensitivity(layer, prune in _INPUTS)[item.idxs])
            roots.append(item.root_idxs)
        if not scores:
            return None
        reduced: Tensor = self._normalize(self._reduce(scores, roots), self.normalizer)
        return reduced


def _sensitivity(layer: nn.Module, of_inputs: bool) -> Tensor:
    """sum |w · dw| a channel, over the input channels or over the output channels of a layer."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    gradient: Tensor = weight.grad  # type: ignore[assignment]
    product = (weight * gradient).abs()
    if product.dim() == 1:
        return product
    if not of_inputs:
        return product.flatten(1).sum(1)
    score = product.transpose(0, 1).flatten(1).sum(1)
    groups = getattr(layer, "groups", 1)
    return score.repeat(groups) if groups > 1 else score
