"""What an ONNX network costs is counted as torch counts it."""

from __future__ import annotations

import pytest
import torch

from toolchain.backbones.architecture import deployable
from toolchain.backbones.counts import macs, parameters
from toolchain.backbones.network import build
from toolchain.backbones.settings import Backbone
from toolchain.calibration.costs import measured
from toolchain.steps.export import export_network


@pytest.mark.parametrize("name", ["mobilenetv2_035", "resnet10t"])
def test_products_and_weights_are_those_of_the_network(name: str) -> None:
    kinds = {"timm": name, "weights": "random", "preprocess": {"size": 32}}
    model, network = build(Backbone.model_validate(kinds), ("a", "b", "c"))
    for number, value in enumerate(p for p in model.parameters() if p.ndim == 1):
        torch.nn.init.uniform_(value, 0.1, 0.2 + 0.01 * number)  # biases of zeros would not be exported
    shipped = deployable(model)
    products, values = measured(export_network(shipped, network))
    assert products.value == macs(shipped, network.preprocess)
    norms = [m for m in shipped.modules() if hasattr(m, "running_mean")]
    folded = sum(m.weight.numel() for m in norms)  # of a norm's two values a channel, one becomes a bias
    assert values.value == parameters(shipped) - folded
