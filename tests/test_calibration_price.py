"""How many times the latency grew: which side is which."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto
from onnx.helper import make_node
from onnx_helpers import convolution, model

from toolchain.calibration.price import latency_ratio


def chain(layers: int) -> ModelProto:
    """So many equal convolutions in a row."""
    rng, constants = np.random.default_rng(0), dict[str, Any]()
    nodes = convolution("input", "layer0", rng.normal(size=(16, 3, 3, 3)).astype(np.float32), constants)
    for number in range(1, layers):
        weight = rng.normal(size=(16, 16, 3, 3)).astype(np.float32) / 12
        nodes += convolution(f"layer{number - 1}", f"layer{number}", weight, constants)
    nodes.append(make_node("GlobalAveragePool", [f"layer{layers - 1}"], ["pooled"], name="pool"))
    nodes.append(make_node("Flatten", ["pooled"], ["logits"], name="flat"))
    return model(nodes, constants, shape=("N", 3, 64, 64), classes=16)


def test_ten_times_the_layers_take_longer_and_a_tenth_takes_less() -> None:
    """By a wide margin, so that a busy machine decides nothing."""
    one = np.zeros((1, 3, 64, 64), np.float32)
    assert latency_ratio(chain(2), chain(20), one) > 2
    assert latency_ratio(chain(20), chain(2), one) < 0.5
