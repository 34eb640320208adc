"""A classifier that reads several levels of a network instead of its end.

The end of an ImageNet network knows objects; small defects and textures show in the middle, as in hypercolumns
(Hariharan et al., arXiv:1411.5752) and in anomaly detection (Roth et al., PatchCore, arXiv:2106.08265).
Measured on magnetic tiles: see benchmarks/magnetic_tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from toolchain.errors import BackboneError


class MultiLevel(nn.Module):
    """A timm network cut behind its last wanted level; mean and maximum of each level go to one linear layer.

    body: a timm model, an nn.Module; it is changed: what lies behind the last level is dropped.
    out_indices: the levels, as timm's `feature_info` counts them from 0.
    float32 [N, 3, h, w] -> logits [N, classes]. Raises BackboneError for a level that is not there.
    """

    def __init__(self, body: Any, out_indices: Sequence[int], classes: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.body = body
        self.levels = list(out_indices)
        info = body.feature_info
        if max(self.levels) >= len(info):
            raise BackboneError(
                f"out_indices: this network has levels 0 to {len(info) - 1}, not {max(self.levels)}"
            )
        body.prune_intermediate_layers(self.levels, prune_norm=True, prune_head=True)
        width = 2 * sum(int(info[level]["num_chs"]) for level in self.levels)
        self.norm: nn.Module = nn.BatchNorm1d(width)
        self.drop_rate = drop_rate
        self.fc = nn.Linear(width, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of a batch."""
        levels = self.body.forward_intermediates(pictures, indices=self.levels, intermediates_only=True)
        pooled = [part for level in levels for part in (level.mean((2, 3)), level.amax((2, 3)))]
        features = self.norm(torch.cat(pooled, dim=1))
        # By a function, as timm does: whoever trains only the head switches this module's flag and the head's.
        logits: Tensor = self.fc(F.dropout(features, self.drop_rate, self.training))
        return logits

    @torch.no_grad()
    def fold(self) -> None:
        """Put the norm into the linear layer, in place: the same answers in eval mode, one operator less to ship."""
        norm, fc = self.norm, self.fc
        if (
            isinstance(norm, nn.BatchNorm1d)
            and norm.running_var is not None
            and norm.running_mean is not None
        ):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            fc.bias.add_(fc.weight @ (norm.bias - norm.running_mean * scale))
            fc.weight.mul_(scale)
            self.norm = nn.Identity()

    def get_classifier(self) -> nn.Linear:
        """The layer with one output a label, as timm's models give it."""
        return self.fc
