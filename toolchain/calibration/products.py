"""Pointwise convolutions that hand additions their integer sums scaled to float, and not rounded to 8 bits.

A residual stream in int8 is rounded twice a block: what the block's last convolution adds to it, and the sum. Where no
ReLU bounds these tensors, as in MobileNetV2, nearly all noise of the logits is from there. onnxruntime's QLinearConv
can only round; its MatMulIntegerToFloat (domain com.microsoft, of its dynamic quantization) has the same integer sums
and scales them to float. A pointwise convolution is such a product over channels-last tensors, which onnxruntime keeps
between its integer convolutions anyway: the transpositions around it cancel. CUDA has no such kernel, processors have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_node, make_opsetid

from toolchain.calibration.float_layers import DEQUANTIZE, QUANTIZE, drop_unread
from toolchain.calibration.streams import in_float, made_by
from toolchain.graph import attribute, consumers, weights

PRODUCT = "MatMulIntegerToFloat"
_DOMAIN = "com.microsoft"
_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # channels


@dataclass(frozen=True)
class _Pointwise:
    """A QDQ convolution over one pixel. weight: int8 [M, C]; steps: [M] or a scalar; bias: float32 [M] or None."""

    node: NodeProto
    given: NodeProto
    weight: NDArray[Any]
    steps: NDArray[Any]
    bias: NDArray[np.float32] | None


def unrounded(model: ModelProto, original: ModelProto, names: Collection[str]) -> set[str]:
    """Let additions, and pooling in float, read pointwise convolutions before their rounding, in place; returns which.

    model: QuantizeLinear and DequantizeLinear in pairs; original: the network in float; names: of convolutions that may.
    Others go on reading 8 bits, and so do additions behind a ReLU, which is left to the rounding. `lower` has to
    follow, or onnxruntime computes these convolutions in float.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    named = {one.node.output[0] for one in _pointwise(model) if one.node.name in names}
    found = named & made_by("Conv", original)
    changed: set[str] = set()
    for node in in_float(model):
        for place, name in enumerate(node.input):
            back = makers.get(name)
            rounding = makers.get(back.input[0]) if back is not None and back.op_type == DEQUANTIZE else None
            if rounding is not None and rounding.op_type == QUANTIZE and rounding.input[0] in found:
                node.input[place] = rounding.input[0]
                changed.add(makers[rounding.input[0]].name)
    drop_unread(model.graph)
    return changed


def lower(model: ModelProto) -> int:
    """Make pointwise convolutions whose float result is read MatMulIntegerToFloat, in place; how many are now."""
    readers = consumers(model.graph)
    chosen = {
        one.node.name: one for one in _pointwise(model)
        if any(node.op_type != QUANTIZE for node in readers.get(one.node.output[0], ()))
    }  # fmt: skip
    if not chosen:
        return 0
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes += _product(model, chosen[node.name]) if node.name in chosen else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if all(entry.domain != _DOMAIN for entry in model.opset_import):
        model.opset_import.append(make_opsetid(_DOMAIN, 1))
    drop_unread(model.graph)
    return len(chosen)


def _pointwise(model: ModelProto) -> Iterator[_Pointwise]:
    """Convolutions over one pixel, of 8-bit activations and signed weights without a zero point."""
    known = weights(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.op_type != "Conv" or node.output[0] in outputs:
            continue
        given, weight = makers.get(node.input[0]), makers.get(node.input[1])
        if given is None or weight is None or {given.op_type, weight.op_type} != {DEQUANTIZE}:
            continue
        integers = known.get(weight.input[0])
        if integers is None or integers.dtype != np.int8 or not _over_one_pixel(node, integers):
            continue
        zero = known[weight.input[2]] if len(weight.input) > 2 else np.zeros(1)
        step = known.get(given.input[1])
        if np.any(zero) or step is None or step.size != 1 or given.input[0] in known:
            continue
        bias = _bias(node, known, makers)
        yield _Pointwise(node, given, integers[:, :, 0, 0], known[weight.input[1]].reshape(-1), bias)


def _over_one_pixel(node: NodeProto, weight: NDArray[Any]) -> bool:
    return (
        weight.shape[2:] == (1, 1) and attribute(node, "group", 1) == 1
        and set(attribute(node, "strides", [1])) == {1} and not any(attribute(node, "pads", [0]))
    )  # fmt: skip


def _bias(
    node: NodeProto, known: Mapping[str, NDArray[Any]], makers: Mapping[str, NodeProto]
) -> NDArray[np.float32] | None:
    if len(node.input) < 3 or not node.input[2]:
        return None
    back = makers.get(node.input[2])
    if back is None:
        return np.asarray(known[node.input[2]], np.float32)
    value = known[back.input[0]].astype(np.float64) * known[back.input[1]]
    return np.asarray(value, np.float32)


def _product(model: ModelProto, one: _Pointwise) -> list[NodeProto]:
    name, (_, step, zero) = one.node.name, one.given.input
    constants: dict[str, NDArray[Any]] = {
        "weight": np.ascontiguousarray(one.weight.T),
        "steps": one.steps.astype(np.float32),
        "zero": np.zeros(one.steps.shape, np.int8),
    } | ({} if one.bias is None else {"bias": one.bias})
    model.graph.initializer.extend(
        numpy_helper.from_array(value, f"{name}/{part}") for part, value in constants.items()
    )
    last, sums = f"{name}/last", f"{name}/sums"
    given = [last, f"{name}/weight", step, f"{name}/steps", zero, f"{name}/zero"]
    given += [f"{name}/bias"] if one.bias is not None else []
    return [
        make_node("Transpose", [one.given.input[0]], [last], name=f"{name}/Last", perm=_LAST),
        make_node(PRODUCT, given, [sums], name=name, domain=_DOMAIN),
        make_node("Transpose", [sums], list(one.node.output), name=f"{name}/First", perm=_FIRST),
    ]
