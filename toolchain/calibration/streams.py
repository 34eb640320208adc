"""Residual streams: channels that convolutions write, additions and ReLUs pass on, and convolutions read.

One positive scale a channel moves through all of these unseen, as between two layers (M. Nagel et al., Data-Free
Quantization through Weight Equalization and Bias Correction, ICCV 2019, arXiv 1906.04721, section 4.1, which stops at
additions). An activation has one step for all its channels, so that a channel with a small range gets coarse integers;
scaled to one range, each has the whole 8 bits. Here ranges of activations decide (as in SmoothQuant, arXiv 2211.10438,
with alpha 1): weights keep a step a channel, and theirs is the smaller noise. But where they lie on a grid of 8 bits
already, and rounding them costs nothing, the stream is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_empty_tensor_value_info, make_node

from toolchain.calibration.chains import put
from toolchain.calibration.float_layers import drop_unread
from toolchain.calibration.weights import Floats, Layer, layers, scales
from toolchain.graph import INPUT, consumers
from toolchain.runtime.session import Session

_PASSING = ("Add", "Relu")
_POOLING = ("GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "ReduceMean", "ReduceMax")
_ON_GRID = 0.02  # of a step: errors of 0.29 are usual
_LEAST = 1e-6  # of the widest channel's range, below which a channel is left alone


@dataclass(frozen=True)
class Stream:
    """tensors: those that a convolution or an addition reads; all [n, C, h, w] with the same scale a channel."""

    writers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    tensors: tuple[str, ...]


def streams(model: ModelProto) -> Iterator[Stream]:
    """Every stream whose channels only convolutions with weights of their own write and read, in the graph's order."""
    readers = consumers(model.graph)
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {layer.node.name: layer for layer in layers(model) if layer.rows.ndim == 4}
    seen: set[str] = set()
    for layer in found.values():
        if layer.node.output[0] in seen:
            continue
        tensors = _connected(layer.node.output[0], makers, readers)
        seen.update(tensors)
        stream = _whole(tensors, model, makers, readers, found)
        if stream is not None and not any(_on_grid(reader) for reader in stream.readers):
            yield stream


def _connected(
    start: str, makers: Mapping[str, NodeProto], readers: Mapping[str, list[NodeProto]]
) -> dict[str, None]:
    """The tensors that additions and ReLUs tie to `start`, and itself."""
    tensors, waiting = dict[str, None](), [start]
    while waiting:
        name = waiting.pop()
        if name in tensors:
            continue
        tensors[name] = None
        around = [node for node in (makers.get(name), *readers.get(name, ())) if node is not None]
        for node in around:
            if node.op_type in _PASSING:
                waiting.extend((*node.input, *node.output))
    return tensors


def _whole(
    tensors: Iterable[str],
    model: ModelProto,
    makers: Mapping[str, NodeProto],
    readers: Mapping[str, list[NodeProto]],
    found: Mapping[str, Layer],
) -> Stream | None:  # fmt: skip
    """The stream of these tensors, or None when something else than convolutions and _PASSING has a part in it."""
    outputs = {value.name for value in model.graph.output}
    written: dict[str, Layer] = {}
    read: dict[str, Layer] = {}
    for name in tensors:
        if name in outputs or name not in makers:
            return None
        for node, part in ((makers[name], written), *((node, read) for node in readers.get(name, ()))):
            layer = found.get(node.name)
            if node.op_type in _PASSING:
                continue
            if layer is None or not (layer.groups == 1 or layer.depthwise) or _shared(layer, readers):
                return None
            part[node.name] = layer
    kept = [name for name in tensors if any(node.op_type != "Relu" for node in readers.get(name, ()))]
    channels = {len(layer.rows) for layer in written.values()}
    if len(channels) != 1 or not read or written.keys() & read.keys():
        return None
    in_order = [tuple(layer for name, layer in found.items() if name in part) for part in (written, read)]
    return Stream(in_order[0], in_order[1], tuple(kept))


def _shared(layer: Layer, readers: Mapping[str, list[NodeProto]]) -> bool:
    return any(len(readers[name]) > 1 for name in layer.node.input[1:] if name)


def _on_grid(layer: Layer) -> bool:
    """Whether the weights are whole numbers of their steps already."""
    exact = layer.rows / scales(layer, 8).reshape(-1, *[1] * (layer.rows.ndim - 1))
    return float(np.sqrt(np.mean((exact - np.rint(exact)) ** 2))) < _ON_GRID


def spans(
    model: ModelProto,
    found: Iterable[Stream],
    inputs: Iterable[Floats],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, NDArray[np.float64]]:
    """How far each channel of the streams' tensors reaches from zero, the mean over pictures, [C] by tensor."""
    names = [name for stream in found for name in stream.tensors]
    shown = ModelProto()
    shown.CopyFrom(model)
    axes = numpy_helper.from_array(np.array([0, 2, 3]), "streams/axes")
    shown.graph.initializer.append(axes)
    for name in names:
        size, top = f"streams/{name}/size", f"streams/{name}/top"
        shown.graph.node.append(make_node("Abs", [name], [size]))
        shown.graph.node.append(make_node("ReduceMax", [size, axes.name], [top], keepdims=0))
        shown.graph.output.append(make_empty_tensor_value_info(top))
    session, sums, count = Session(shown.SerializeToString()), dict[str, NDArray[np.float64]](), 0
    for picture in inputs:
        given = session.run({INPUT: picture})[len(model.graph.output) :]
        for name, values in zip(names, given, strict=True):
            sums[name] = sums.get(name, np.zeros(len(values))) + values
        count += 1
        advance()
    return {name: total / max(count, 1) for name, total in sums.items()}


def equalize(
    model: ModelProto, found: Iterable[Stream], reached: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """Scale the streams' channels in place to one range; returns what each stream was, [C] by its first tensor.

    Where a stream has several tensors, it is the geometric mean of a channel's shares in their ranges that is
    made the same.
    """
    scales: dict[str, NDArray[np.float64]] = {}
    changed: dict[str, NDArray[np.float64]] = {}
    for stream in found:
        shares = np.stack([reached[name] / max(float(reached[name].max()), 1e-30) for name in stream.tensors])
        usable = (shares > _LEAST).all(axis=0)
        factor = np.ones(shares.shape[1])
        if usable.any():
            factor[usable] = np.exp(-np.log(shares[:, usable]).mean(axis=0))
            factor[usable] /= np.exp(np.log(factor[usable]).mean())
        _scale(model, stream, factor, changed)
        scales[stream.tensors[0]] = factor
    put(model, {name: value.astype(np.float32) for name, value in changed.items()})
    return scales


def float_sums(model: ModelProto, original: ModelProto) -> int:
    """Let additions, and pooling in float, read the sums of others before these are rounded, in place; how many inputs
    changed.

    Rounding a residual stream for the layer that reads it then adds nothing to what goes on. model: with
    QuantizeLinear and DequantizeLinear in pairs; original: the network in float. Where a ReLU follows a sum, which the
    quantizer leaves to the rounding, the rounding stays.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    sums = made_by("Add", original)
    changed = 0
    for node in in_float(model):
        for place, name in enumerate(node.input):
            exact = _before(_before(name, "DequantizeLinear", makers), "QuantizeLinear", makers)
            if exact in sums and makers[exact].op_type == "Add":
                node.input[place] = exact
                changed += 1
    drop_unread(model.graph)
    return changed


def in_float(model: ModelProto) -> list[NodeProto]:
    """What takes floats as well as rounded values: additions, and pooling whose result is not rounded again."""
    readers = consumers(model.graph)
    return [
        node for node in model.graph.node
        if node.op_type == "Add" or (
            node.op_type in _POOLING and all(one.op_type != "QuantizeLinear" for one in readers.get(node.output[0], ()))
        )
    ]  # fmt: skip


def made_by(kind: str, model: ModelProto) -> set[str]:
    """The tensors that nodes of a kind make."""
    return {name for node in model.graph.node if node.op_type == kind for name in node.output}


def _before(name: str, kind: str, makers: Mapping[str, NodeProto]) -> str:
    """What the node of this kind that makes a tensor reads; "" where another makes it."""
    maker = makers.get(name)
    return maker.input[0] if maker is not None and maker.op_type == kind else ""


def _scale(
    model: ModelProto, stream: Stream, factor: NDArray[np.float64], changed: dict[str, NDArray[np.float64]]
) -> None:
    """Multiply the writers' rows and biases, divide the readers' columns."""
    known = {tensor.name: tensor for tensor in model.graph.initializer}

    def of(name: str) -> NDArray[np.float64]:
        return changed[name] if name in changed else numpy_helper.to_array(known[name]).astype(np.float64)

    for layer in stream.writers:
        for name in [name for name in layer.node.input[1:] if name]:
            value = of(name)
            changed[name] = value * factor.reshape(-1, *[1] * (value.ndim - 1))
    for layer in stream.readers:
        value = of(layer.weight)
        shape = (-1, 1) if layer.depthwise else (1, -1)
        changed[layer.weight] = value / factor.reshape(*shape, *[1] * (value.ndim - 2))
