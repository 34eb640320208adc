"""Scales of signed 8-bit weights, and the biases that make up for what rounding them moved.

x86 without VNNI multiplies u8 activations by s8 weights with `vpmaddubsw`, which adds two neighbouring products in
16 bits and saturates: an 8-bit file then answers otherwise than on other processors, and worse. A pair is safe
while 255 (w1 + w2) stays within 16 bits, that is |w1 + w2| <= 128 for weights of one sign.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from toolchain.graph import INPUT, attribute, consumers, weights

Bits = Literal[8, 7, "pairwise"]
Floats = NDArray[np.float32]

GREATEST: dict[Bits, int] = {8: 127, 7: 64, "pairwise": 127}
_PAIR = 128


@dataclass(frozen=True)
class Layer:
    """A node with a constant weight. rows: the weight as [M, ...], one row an output channel; axis: of these."""

    node: NodeProto
    weight: str
    axis: int
    rows: Floats
    groups: int = 1

    @property
    def depthwise(self) -> bool:
        """One input and one output channel a group: a kernel of its own, which adds in 32 bits."""
        return self.groups > 1 and self.rows.shape[0] == self.groups and self.rows.shape[1] == 1


def layers(model: ModelProto) -> Iterator[Layer]:
    """The convolutions and matrix products with a constant weight, in the graph's order."""
    known = weights(model)
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in known:
            continue
        value = known[node.input[1]]
        if node.op_type == "Conv":
            yield Layer(node, node.input[1], 0, value, attribute(node, "group", 1))
        elif value.ndim == 2:
            axis = 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1
            yield Layer(node, node.input[1], axis, value if axis == 0 else value.T)


def first_convolution(model: ModelProto) -> Layer | None:
    """The dense convolution over pictures that alone reads the input; None where something else does."""
    reading = consumers(model.graph).get(INPUT, [])
    found = next((layer for layer in layers(model) if len(reading) == 1 and layer.node == reading[0]), None)
    dense = found is not None and found.node.op_type == "Conv" and found.groups == 1 and found.rows.ndim == 4
    return found if dense else None


def bias(model: ModelProto, node: NodeProto) -> NDArray[np.float64]:
    """A convolution's bias [M], zeros where it has none."""
    known = weights(model)
    if len(node.input) > 2 and node.input[2]:
        return np.asarray(known[node.input[2]], np.float64)
    return np.zeros(known[node.input[1]].shape[0])


def scales(layer: Layer, bits: Bits, per_channel: bool = True) -> Floats:
    """The width of one step of the integer weights, float32 [M], or [1] when not per channel.

    8 uses the whole range -127..127; 7 half of it, with which no pair of products can saturate; "pairwise"
    shrinks only the channels in which a pair of neighbours could, and only as far as needed, which costs much
    less accuracy than 7. Depthwise kernels don't add in pairs and keep 8 bits.
    """
    rows = layer.rows.reshape(len(layer.rows), -1)
    greatest = np.abs(rows).max(axis=1).astype(np.float64)
    if layer.depthwise:
        steps = greatest / GREATEST[8]
    else:
        steps = greatest / GREATEST[bits]
        if bits == "pairwise":
            steps = _without_saturation(layer.rows, steps)
    # A channel of zeros takes any step but zero.
    steps[steps < np.finfo(np.float32).tiny] = 1e-6
    if not per_channel:
        # One step for all: 1 % more keeps every pair clear of the limit, whichever way its two weights round.
        steps = steps.max(keepdims=True) * (1.01 if bits == "pairwise" else 1.0)
    return np.asarray(steps, dtype=np.float32)


def correct_biases(
    model: ModelProto, steps: Mapping[str, Floats], means: Mapping[str, NDArray[np.float64]],
    integers: Mapping[str, Floats] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Take from each bias what rounding the weights adds to the mean output, in place.

    steps: of each weight that will be rounded, by its name; means: of each such node's input, by tensor,
    [channels]; integers: of weights that are not rounded to the nearest ones, shaped as their layer's rows.
    M. Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction (2019), section 4.2,
    with means that were measured. Matrix products without a bias are left alone.
    """
    known = weights(model)
    for layer in list(layers(model)):
        node = layer.node
        if layer.weight not in steps or node.op_type == "MatMul" or attribute(node, "transA", 0):
            continue
        shift = _mean_shift(layer, steps[layer.weight], means[node.input[0]], integers.get(layer.weight))
        old = known[node.input[2]] if len(node.input) > 2 and node.input[2] in known else None
        if old is None and len(node.input) > 2:
            continue
        # A new tensor, because equal biases of several nodes may be one tensor.
        name = f"{node.name}.bias_corrected"
        beta = attribute(node, "beta", 1.0)
        new = (0.0 if old is None else old) - shift / beta
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(new, np.float32), name))
        node.input[:] = [*node.input[:2], name]


def _without_saturation(weight: Floats, steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Widen the steps of those rows in which two neighbouring integers of one sign could exceed _PAIR."""
    orders = list(_orders(weight))
    widened = np.maximum(steps, np.max([_pairs(rows) for rows in orders], axis=0) / _PAIR)
    shape = (-1, *[1] * (weight.ndim - 1))
    while True:
        safe = np.maximum(widened, np.finfo(np.float32).tiny).astype(np.float32).reshape(shape)
        wrong = saturating(np.rint(weight / safe))
        if not wrong.any():
            return np.asarray(widened)
        # Rounding up took a pair over the limit.
        widened[wrong] *= 1.002


def saturating(integers: Floats) -> NDArray[np.bool_]:
    """Which rows [M, ...] of integer weights hold neighbours of one sign whose sum exceeds _PAIR."""
    return np.asarray(np.max([_pairs(rows) for rows in _orders(integers)], axis=0) > _PAIR)


def _orders(weight: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The orders [M, K] in which kernels may walk a row: planes first, channels first, channels padded to pairs."""
    yield weight.reshape(len(weight), -1)
    if weight.ndim > 2:
        last = np.moveaxis(weight, 1, -1)
        yield last.reshape(len(weight), -1)
        if last.shape[-1] % 2:
            padded = np.concatenate([last, np.zeros_like(last[..., :1])], axis=-1)
            yield padded.reshape(len(weight), -1)


def _pairs(rows: NDArray[Any]) -> NDArray[Any]:
    """The greatest sum of two neighbours of one sign in each row, [M]."""
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    pairs = rows.reshape(len(rows), -1, 2)
    above, below = np.maximum(pairs, 0).sum(axis=2), np.maximum(-pairs, 0).sum(axis=2)
    return np.asarray(np.maximum(above, below).max(axis=1))


def _mean_shift(
    layer: Layer, steps: Floats, means: NDArray[np.float64], integers: Floats | None
) -> NDArray[np.float64]:
    """What the rounding error of the weights adds to each output channel for the mean input, [M]."""
    rows = layer.rows.astype(np.float64)
    step = steps.astype(np.float64).reshape(-1, *[1] * (rows.ndim - 1))
    whole = np.rint(rows / step).clip(-127, 127) if integers is None else integers
    error = whole * step - rows
    per_input = error.reshape(*error.shape[:2], -1).sum(axis=2)
    groups = layer.groups
    grouped = per_input.reshape(groups, -1, per_input.shape[1]) * means.reshape(groups, 1, -1)
    alpha = attribute(layer.node, "alpha", 1.0) if layer.node.op_type == "Gemm" else 1.0
    return np.asarray(grouped.sum(axis=2).reshape(-1) * alpha)
