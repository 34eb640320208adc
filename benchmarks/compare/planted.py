"""Models with a known slowdown: a chain of equal convolutions, and the same chain with one more of them.

Every layer has the same shape, so a layer's share of the multiplications is its share of the work. The share
by time is confirmed by a long run (ab.py --confirm).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIDE = 32, 32
LAYER = SIDE * SIDE * 9 * CHANNELS * CHANNELS  # multiplications of one layer
STEM = SIDE * SIDE * 9 * 3 * CHANNELS


def macs(layers: int) -> int:
    """Multiplications of a chain."""
    return STEM + layers * LAYER + 10 * CHANNELS


def chain(layers: int, path: Path) -> Path:
    """float32 `input` [N, 3, 32, 32] -> `logits` [N, 10]: stem, equal 3x3 convolutions with ReLU, pool, classify."""
    rng = np.random.default_rng(0)
    weights = {"fc.weight": rng.normal(size=(10, CHANNELS)), "fc.bias": np.zeros(10)}
    nodes, last = [], "input"
    for index in range(layers + 1):
        name, taken = f"conv{index}", 3 if index == 0 else CHANNELS
        weights[f"{name}.weight"] = rng.normal(size=(CHANNELS, taken, 3, 3)) * np.sqrt(2 / (9 * taken))
        weights[f"{name}.bias"] = np.zeros(CHANNELS)
        ends = ([last, f"{name}.weight", f"{name}.bias"], [f"{name}.linear"])
        nodes.append(helper.make_node("Conv", *ends, name=name, kernel_shape=[3, 3], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", ends[1], [name], name=f"{name}.relu"))
        last = name
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
