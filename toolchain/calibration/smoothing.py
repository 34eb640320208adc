"""Great activations moved into weights, where a layer norm stands before products (transformers).

G. Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, 2023
(arXiv 2211.10438): channel j is divided by max|X_j|^alpha / max|W_j|^(1 - alpha). The layer norm's own scale and bias
take the division in, so that nothing is left to do while running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_empty_tensor_value_info, make_node

from toolchain.calibration.weights import Floats, layers
from toolchain.graph import INPUT, consumers, weights
from toolchain.runtime.session import Session


@dataclass(frozen=True)
class Site:
    """A layer norm that only products with constant weights read. axes: that of each product's weight it meets."""

    norm: NodeProto
    products: tuple[NodeProto, ...]
    axes: tuple[int, ...]


def sites(model: ModelProto) -> Iterator[Site]:
    """Every layer norm whose output goes into products alone, in the graph's order."""
    readers, known = consumers(model.graph), weights(model)
    found = {layer.node.name: layer for layer in layers(model) if layer.node.op_type in ("Gemm", "MatMul")}
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        if node.op_type != "LayerNormalization" or node.output[0] in outputs:
            continue
        reading = readers.get(node.output[0], [])
        products = [found.get(reader.name) for reader in reading]
        constants = [name for name in node.input[1:] if name]
        constants += [reader.input[1] for reader in reading if len(reader.input) > 1]
        constant = all(name in known for name in constants)
        leading = all(reader.input[0] == node.output[0] for reader in reading)
        if reading and constant and leading and all(product is not None for product in products):
            axes = tuple(1 - product.axis for product in products if product is not None)
            yield Site(node, tuple(reading), axes)


def greatest(
    model: ModelProto,
    found: Iterable[Site],
    inputs: Iterable[Floats],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Floats]:
    """The greatest size of each channel (last axis) of the norms' outputs over pictures, [C] by tensor."""
    known, constants = weights(model), {"smoothing/axis": np.array([0])}
    widths = {site.norm.output[0]: len(known[site.norm.input[1]]) for site in found}
    shown = ModelProto()
    shown.CopyFrom(model)
    for name, width in widths.items():
        size, flat, top, shape = (f"smoothing/{part}/{name}" for part in ("size", "flat", "top", "shape"))
        constants[shape] = np.array([-1, width])
        shown.graph.node.append(make_node("Abs", [name], [size]))
        shown.graph.node.append(make_node("Reshape", [size, shape], [flat]))
        shown.graph.node.append(make_node("ReduceMax", [flat, "smoothing/axis"], [top], keepdims=0))
        shown.graph.output.append(make_empty_tensor_value_info(top))
    shown.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    session, tops = Session(shown.SerializeToString()), dict[str, Floats]()
    for picture in inputs:
        given = session.run({INPUT: picture})[len(model.graph.output) :]
        for name, values in zip(widths, given, strict=True):
            tops[name] = np.maximum(tops.get(name, values), values)
        advance()
    return tops


def smooth(model: ModelProto, found: Iterable[Site], tops: Mapping[str, Floats], alpha: float) -> None:
    """Divide the norms' outputs and multiply the weights that read them, in place. tops: see `greatest`."""
    known = weights(model)
    for site in found:
        read = [
            np.moveaxis(known[node.input[1]], axis, 0)
            for node, axis in zip(site.products, site.axes, strict=True)
        ]
        heights = np.max([np.abs(weight).reshape(len(weight), -1).max(axis=1) for weight in read], axis=0)
        scale = _scale(tops[site.norm.output[0]].astype(np.float64), heights.astype(np.float64), alpha)
        for place in range(1, len(site.norm.input)):
            _renew(model, site.norm, place, known[site.norm.input[place]] / scale)
        for node, axis in zip(site.products, site.axes, strict=True):
            _renew(model, node, 1, known[node.input[1]] * scale.reshape((-1, 1) if axis == 0 else (1, -1)))


def _renew(model: ModelProto, node: NodeProto, place: int, value: NDArray[np.float64]) -> None:
    """Give one node a constant of its own: exporters make one tensor of equal ones."""
    name = f"{node.name}.smooth.{place}"
    model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    node.input[place] = name


def _scale(tops: NDArray[np.float64], heights: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    usable = (tops > 1e-6 * tops.max()) & (heights > 1e-6 * heights.max())
    scale = np.ones(len(tops))
    scale[usable] = tops[usable] ** alpha / heights[usable] ** (1 - alpha)
    return np.asarray(scale)
