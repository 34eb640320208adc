"""ResNet-56 for pictures of 32 x 32 (He et al., arXiv:1512.03385, section 4.2), registered with timm as `resnet56_cifar`.

Importing this module is enough for `backbone: {timm: resnet56_cifar, weights: random}`. As in the pruning tables of the
field, shortcuts between stages are 1 x 1 convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models._builder import build_model_with_cfg
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training pictures
default_cfgs = generate_default_cfgs(
    {
        "resnet56_cifar.none": {
            "num_classes": 10, "input_size": (3, 32, 32), "pool_size": (8, 8), "crop_pct": 1.0, "interpolation": "bilinear",
            "mean": MEAN, "std": STD, "first_conv": "conv1", "classifier": "fc",
        }
    }
)  # fmt: skip


class ThreeStages(ResNet):
    """timm's ResNet behind a 3 x 3 stem at full size, without the pool and the fourth stage."""

    def __init__(self, channels: Sequence[int] = (16, 32, 64), **options: Any) -> None:
        """channels: of the three stages; the first one's are the stem's as well, and even."""
        first = channels[0]
        super().__init__(
            BasicBlock,
            (9, 9, 9),
            channels=tuple(channels),
            stem_type="deep",
            stem_width=first // 2,
            **options,
        )
        self.conv1 = nn.Conv2d(self.in_chans, first, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        self.layer4 = nn.Identity()


@register_model
def resnet56_cifar(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-56: 3 stages of 9 basic blocks of 16, 32 and 64 channels, 125 million multiplications a picture."""
    model: nn.Module = build_model_with_cfg(ThreeStages, "resnet56_cifar", pretrained, **options)
    return model
