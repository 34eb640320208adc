"""What a network costs: multiply-accumulates and parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from toolchain.data.preprocess import Preprocess


def macs(model: nn.Module, preprocess: Preprocess) -> int:
    """Multiply-accumulates for one picture of preprocess.height x preprocess.width.

    Counts convolutions, matrix products and attention as they run (grouped convolutions by their groups);
    normalisation, activations and pooling are not counted, as is usual.
    """
    # Detached tensors, because the counter trips over parameters that are expanded without gradients.
    tensors = {name: value.detach() for name, value in model.named_parameters()} | dict(model.named_buffers())
    device = next(iter(tensors.values())).device
    picture = torch.zeros(1, 3, preprocess.height, preprocess.width, device=device)
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(model.eval(), tensors, (picture,))
    model.train(training)
    return int(counter.get_total_flops()) // 2


def parameters(model: nn.Module) -> int:
    """Number of trained values; a tensor used twice counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
