"""A stem that reads a multiple of 4 channels: onnxruntime's kernels for symmetric int8 weights multiply them in fours."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_node

from toolchain.calibration.weights import first_convolution
from toolchain.graph import INPUT, consumers, weights

_FOUR = 4


def pad(model: ModelProto) -> int:
    """Give the first convolution a multiple of 4 input channels, in place; returns how many were added."""
    stem = first_convolution(model)
    if stem is None:
        return 0
    missing = int(-stem.rows.shape[1] % _FOUR)
    if not missing:
        return 0
    name = stem.node.name
    wider = np.pad(stem.rows, ((0, 0), (0, missing), (0, 0), (0, 0)))
    ends = np.array([0, 0, 0, 0, 0, missing, 0, 0])
    model.graph.initializer.append(numpy_helper.from_array(wider, f"{name}.weight_padded"))
    model.graph.initializer.append(numpy_helper.from_array(ends, f"{name}.ends"))
    stem.node.input[0], stem.node.input[1] = f"{name}/padded", f"{name}.weight_padded"
    model.graph.node.insert(
        0, make_node("Pad", [INPUT, f"{name}.ends"], [f"{name}/padded"], name=f"{name}/Pad")
    )
    return missing


def round_first(model: ModelProto) -> int:
    """Let every Pad of a QDQ network pad integers, in place; returns how many do now.

    The quantizer leaves a Pad in float between a rounding before and one after. Where both have the same step and
    zero, the second goes, and the Pad writes the first one's zero.
    """
    moved = 0
    for node in [node for node in model.graph.node if node.op_type == "Pad"]:
        makers = {name: other for other in model.graph.node for name in other.output}
        back = makers.get(node.input[0])
        first = makers.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
        after = consumers(model.graph).get(node.output[0], [])
        if first is None or first.op_type != "QuantizeLinear" or len(after) != 1 or len(node.input) != 2:
            continue
        if after[0].op_type == "QuantizeLinear" and _alike(model, first, after[0]):
            node.input[:] = [first.output[0], node.input[1], first.input[2]]
            node.output[0] = after[0].output[0]
            model.graph.node.remove(after[0])
            moved += 1
    return moved


def _alike(model: ModelProto, one: NodeProto, other: NodeProto) -> bool:
    known = weights(model)
    pairs = zip(one.input[1:], other.input[1:], strict=True)
    return all(a in known and b in known and np.array_equal(known[a], known[b]) for a, b in pairs)
