"""What network families need besides the dependency graph, so that they prune and still run.

1. Attention: the channels of q, k and v are pruned alike in every head (torch-pruning's num_heads), and the
   module's own counts (head_dim, attn_dim, scale) are written back after each step.
2. MobileOne and RepVGG blocks keep the number of groups of their convolutions: written back as well.
3. EfficientViT: convolutions inside LiteMLA stay, their channels are split by position.
4. Swin: only mlp.fc1; windows and patch merging fix the width of everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.byobnet import MobileOneBlock, RepVggBlock
from timm.models.efficientvit_mit import LiteMLA
from timm.models.swin_transformer import WindowAttention
from timm.models.swin_transformer_v2 import WindowAttention as WindowAttentionV2
from torch import nn

_WINDOWS = (WindowAttention, WindowAttentionV2)
_WIDE = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class Arrangement:
    """heads: each layer that makes q, k and v together -> number of heads. fixed: layers to leave alone."""

    heads: dict[nn.Module, int]
    fixed: tuple[nn.Module, ...]


def arrangement(model: nn.Module) -> Arrangement:
    """Find out what a network needs."""
    if any(isinstance(module, _WINDOWS) for module in model.modules()):
        layers = {name: m for name, m in model.named_modules() if isinstance(m, _WIDE)}
        return Arrangement({}, tuple(m for name, m in layers.items() if not name.endswith("mlp.fc1")))
    fixed = tuple(module for module in model.modules() if isinstance(module, LiteMLA))
    heads = {attention.qkv: int(attention.num_heads) for attention in _attentions(model)}  # type: ignore[arg-type]
    return Arrangement(heads, fixed)  # type: ignore[arg-type]


def write_back(model: nn.Module) -> None:
    """Make the counts that modules keep of themselves agree with their pruned layers."""
    for attention in _attentions(model):
        _write_back_heads(attention)
    for module in model.modules():
        if isinstance(module, MobileOneBlock | RepVggBlock) and module.groups > 1:
            layers = module.conv_kxk.modules()
            module.groups = next(layer.groups for layer in layers if isinstance(layer, nn.Conv2d))


def width(layer: nn.Module) -> int:
    """Output channels of a convolution or linear layer."""
    return int(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)  # type: ignore[arg-type]


def _attentions(model: nn.Module) -> list[nn.Module]:
    """Modules that make q, k and v by one layer `qkv` for `num_heads` heads."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "qkv", None), _WIDE)
        and isinstance(getattr(module, "num_heads", None), int)
    ]


def _write_back_heads(attention: nn.Module) -> None:
    own = vars(attention)
    heads = own["num_heads"]
    dim = width(attention.qkv) // (3 * heads)  # type: ignore[arg-type]
    was = own.get("head_dim")
    if was is None or was == dim:
        return
    attention.head_dim = dim
    if own.get("attn_dim") == was * heads:
        attention.attn_dim = dim * heads
    if own.get("scale") == was**-0.5:
        attention.scale = dim**-0.5  # what fused attention divides by, so that both ways agree
