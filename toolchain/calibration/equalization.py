"""Scales moved from one layer's channels into the next layer's weights, so that all channels fill one range.

M. Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019 (arXiv 1906.04721),
section 4.1. A ReLU lets a positive scale through. A Clip from 0 to c does so only for what stays below c before and
after; which channels do, calibration pictures say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_empty_tensor_value_info, make_node

from toolchain.calibration.chains import put
from toolchain.calibration.weights import Floats, layers
from toolchain.graph import INPUT, consumers, weights
from toolchain.runtime.session import Session

_ROUNDS, _SETTLED = 30, 1e-3
_HEADROOM = 0.8  # of a Clip's limit, on the pictures seen; others may go further
_LEAST = 1e-8  # of a range, below which a channel is left alone


@dataclass(frozen=True)
class Pair:
    """A convolution `writer` and the one `reader` of its channels, over `tensor` (behind the activation, if any).

    limit: where a Clip cuts; infinite for a ReLU or nothing between.
    """

    writer: NodeProto
    reader: NodeProto
    tensor: str
    depthwise: bool
    limit: float


def pairs(model: ModelProto) -> Iterator[Pair]:
    """Convolutions of pictures in a row with a ReLU, a Clip from 0 or nothing between, in the graph's order."""
    readers, known = consumers(model.graph), weights(model)
    found = {layer.node.name: layer for layer in layers(model) if layer.rows.ndim == 4}
    outputs = {value.name for value in model.graph.output}
    for layer in found.values():
        tensor, limit = layer.node.output[0], np.inf
        after = readers.get(tensor, [])
        if len(after) == 1 and after[0].op_type in ("Relu", "Clip") and tensor not in outputs:
            limit = _limit(after[0], known)
            tensor = after[0].output[0]
            after = readers.get(tensor, [])
        reader = found.get(after[0].name) if len(after) == 1 and tensor not in outputs else None
        shared = reader is None or any(
            len(readers[name]) > 1 for node in (layer.node, reader.node) for name in node.input[1:] if name
        )
        if reader is None or shared or np.isnan(limit) or not (reader.depthwise or reader.groups == 1):
            continue
        yield Pair(layer.node, reader.node, tensor, reader.depthwise, limit)


def greatest(
    model: ModelProto,
    found: Iterable[Pair],
    inputs: Iterable[Floats],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Floats]:
    """The greatest value of each channel of the pairs' tensors over pictures, [C] by tensor."""
    names = [pair.tensor for pair in found]
    shown = ModelProto()
    shown.CopyFrom(model)
    axes = numpy_helper.from_array(np.array([0, 2, 3]), "equalization/axes")
    shown.graph.initializer.append(axes)
    for name in names:
        top = f"equalization/{name}"
        shown.graph.node.append(make_node("ReduceMax", [name, axes.name], [top], keepdims=0))
        shown.graph.output.append(make_empty_tensor_value_info(top))
    session, tops = Session(shown.SerializeToString()), dict[str, Floats]()
    for picture in inputs:
        given = session.run({INPUT: picture})[len(model.graph.output) :]
        for name, values in zip(names, given, strict=True):
            tops[name] = np.maximum(tops.get(name, values), values)
        advance()
    return tops


def equalize(
    model: ModelProto, found: Iterable[Pair], tops: Mapping[str, Floats]
) -> dict[str, NDArray[np.float64]]:
    """Scale the pairs' channels until they settle, in place; returns what each tensor was multiplied by, [C].

    tops: the greatest value of each channel, by tensor; needed for pairs with a Clip only.
    """
    settled, known, pairs_ = _Scales(model), weights(model), list(found)
    scales = {pair.tensor: np.ones(len(known[pair.writer.input[1]])) for pair in pairs_}
    for _ in range(_ROUNDS):
        change = 0.0
        for pair in pairs_:
            factor = settled.factor(pair, scales[pair.tensor], tops.get(pair.tensor))
            settled.scale(pair, factor)
            scales[pair.tensor] *= factor
            change = max(change, float(np.abs(np.log(factor)).max()))
        if change < _SETTLED:
            break
    put(model, {name: value.astype(np.float32) for name, value in settled.values.items()})
    return scales


class _Scales:
    """The weights of the pairs while they are scaled, in double precision."""

    def __init__(self, model: ModelProto) -> None:
        self._known = weights(model)
        self.values: dict[str, NDArray[np.float64]] = {}

    def factor(self, pair: Pair, scaled: NDArray[np.float64], tops: Floats | None) -> NDArray[np.float64]:
        """What each channel is to be multiplied by (the paper's 1 / s): both sides get the same range."""
        rows = np.abs(self._of(pair.writer.input[1])).reshape(len(scaled), -1).max(axis=1)
        read = np.abs(self._of(pair.reader.input[1]))
        columns = read.reshape(len(read), -1).max(axis=1) if pair.depthwise else _per_column(read)
        usable = (rows > _LEAST * rows.max()) & (columns > _LEAST * columns.max())
        wanted = np.ones(len(scaled))
        # Of a whole layer the geometric mean stays: only the channels' relations matter.
        wanted[usable] = np.sqrt(columns[usable] / rows[usable])
        if usable.any():
            wanted[usable] /= np.exp(np.log(wanted[usable]).mean())
        if np.isfinite(pair.limit) and tops is not None:
            reached = tops * scaled
            near = tops >= _HEADROOM * pair.limit
            wanted = np.where(
                near, 1.0, np.minimum(wanted, _HEADROOM * pair.limit / np.maximum(reached, 1e-12))
            )
        return wanted

    def scale(self, pair: Pair, factor: NDArray[np.float64]) -> None:
        """Multiply the writer's rows and biases, divide the reader's columns."""
        for name in [name for name in pair.writer.input[1:] if name]:
            value = self._of(name)
            self.values[name] = value * factor.reshape(-1, *[1] * (value.ndim - 1))
        value = self._of(pair.reader.input[1])
        shape = (-1, 1) if pair.depthwise else (1, -1)
        self.values[pair.reader.input[1]] = value / factor.reshape(*shape, *[1] * (value.ndim - 2))

    def _of(self, name: str) -> NDArray[np.float64]:
        found = self.values.get(name)
        return found if found is not None else np.asarray(self._known[name], np.float64)


def _per_column(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.moveaxis(weight, 1, 0).reshape(weight.shape[1], -1).max(axis=1))


def _limit(node: NodeProto, known: Mapping[str, NDArray[np.float32]]) -> float:
    """Where a Clip from 0 cuts, infinite for a ReLU; no number for a Clip that a scale does not pass."""
    if node.op_type == "Relu":
        return float(np.inf)
    ends = [known.get(name) if name else None for name in [*node.input[1:], "", ""][:2]]
    low = ends[0]
    if low is None or float(low) != 0:
        return float(np.nan)
    return float(ends[1]) if ends[1] is not None else float(np.inf)
