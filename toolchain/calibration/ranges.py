"""Ranges of a network's activations over calibration pictures, in memory that does not grow with their number.

ONNX Runtime's own percentile and entropy calibrators keep every activation of every picture (116 MB a picture
for ResNet-50). Here minima, maxima and means are reduced inside the graph, picture by picture; where a method
needs more, a second pass fills one fixed histogram a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.helper import make_empty_tensor_value_info, make_node, make_tensor

from toolchain.errors import ModelError
from toolchain.graph import INPUT, consumers
from toolchain.runtime.session import Session

Method = Literal["minmax", "percentile", "entropy", "mse"]
Inputs = Callable[[], Iterable[NDArray[np.float32]]]
Range = tuple[float, float]

BINS = 8192
_NARROWEST, _SHARES = 0.2, 161  # how far "mse" may cut an end, and in how many steps
_LEVELS = 128  # what is left for one sign of a value in 8 bits


@dataclass(frozen=True)
class Statistics:
    """ranges: lowest and highest value to be told apart, by tensor; means: by tensor, [channels] (axis 1)."""

    ranges: Mapping[str, Range]
    means: Mapping[str, NDArray[np.float64]]


def observe(
    model: ModelProto, inputs: Inputs, method: Method = "minmax", *, percentile: float = 99.99,
    means_of: Iterable[str] = (),
) -> Statistics:  # fmt: skip
    """Run the pictures through the network and return the range of every float activation.

    inputs: gives the network's inputs, float32 [1, 3, h, w] each, anew for every pass (one for minmax, two else).
    method: "minmax" keeps the extremes; "percentile" cuts what lies outside that percentage, half at each
    end; "entropy" cuts where the histogram loses least information in 8 bits (S. Migacz, 8-bit inference with
    TensorRT, GTC 2017); "mse" cuts where clipping and rounding together move the values least.
    means_of: tensors of at least two axes whose channel means are wanted as well.
    Raises ModelError when there is no picture or an activation is not finite.
    """
    tensors = _float_tensors(model)
    followed = _followed(model, tensors)
    watched = [name for name in tensors if name not in followed]
    extremes, means = _extremes(model, inputs, watched, list(means_of))
    if method != "minmax":
        extremes = _cut(model, inputs, extremes, method, percentile)
    ranges = dict(extremes)
    for name in reversed(tensors):
        if name in followed:
            ranges[name] = ranges[followed[name]]
    return Statistics(ranges, means)


def _float_tensors(model: ModelProto) -> list[str]:
    """The input and every float output of a node, in the graph's order."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        value.name
        for value in (*inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    return [INPUT, *(name for node in model.graph.node for name in node.output if name in floats)]


def _followed(model: ModelProto, tensors: list[str]) -> dict[str, str]:
    """Tensors that only a Relu or Clip reads, with its output: int8 does the clipping by the range alone."""
    readers = consumers(model.graph)
    outputs = {value.name for value in model.graph.output}
    found = {}
    for name in tensors:
        reading = readers.get(name, [])
        if name not in outputs and len(reading) == 1 and reading[0].op_type in ("Relu", "Clip"):
            found[name] = reading[0].output[0]
    return found


def _extremes(
    model: ModelProto, inputs: Inputs, tensors: list[str], means_of: list[str]
) -> tuple[dict[str, Range], dict[str, NDArray[np.float64]]]:
    session = Session(_reducing(model, tensors, means_of).SerializeToString())
    low, high = np.full(len(tensors), np.inf), np.full(len(tensors), -np.inf)
    sums: list[Any] = [0.0] * len(means_of)
    count = 0
    for picture in inputs():
        found = session.run({INPUT: picture})[len(model.graph.output) :]
        low = np.minimum(low, np.array(found[: len(tensors)], dtype=np.float64))
        high = np.maximum(high, np.array(found[len(tensors) : 2 * len(tensors)], dtype=np.float64))
        sums = [
            old + new.astype(np.float64) for old, new in zip(sums, found[2 * len(tensors) :], strict=True)
        ]
        count += 1
    if not count:
        raise ModelError("no picture to calibrate with")
    # np.minimum passes NaN on, so one look at the end is enough.
    for name, bottom, top in zip(tensors, low, high, strict=True):
        if not np.isfinite(bottom) or not np.isfinite(top):
            raise ModelError(f"the network's activation {name!r} is not finite on the calibration pictures")
    means = {name: total / count for name, total in zip(means_of, sums, strict=True)}
    return dict(zip(tensors, zip(low.tolist(), high.tolist(), strict=True), strict=True)), means


def _reducing(model: ModelProto, tensors: list[str], means_of: list[str]) -> ModelProto:
    """The network with the minima and maxima of `tensors`, then channel means, as further outputs."""
    extended = ModelProto()
    extended.CopyFrom(model)
    graph = extended.graph
    for kind in ("ReduceMin", "ReduceMax"):
        for name in tensors:
            graph.node.append(make_node(kind, [name], [f"{kind}/{name}"], keepdims=0))
            graph.output.append(make_empty_tensor_value_info(f"{kind}/{name}"))
    ranks = _ranks(model, means_of)
    for name in means_of:
        axes = [axis for axis in range(ranks[name]) if axis != 1]
        graph.initializer.append(make_tensor(f"axes/{name}", TensorProto.INT64, [len(axes)], axes))
        graph.node.append(make_node("ReduceMean", [name, f"axes/{name}"], [f"mean/{name}"], keepdims=0))
        graph.output.append(make_empty_tensor_value_info(f"mean/{name}"))
    return extended


def _ranks(model: ModelProto, names: Iterable[str]) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = {v.name: v for v in (*inferred.input, *inferred.value_info, *inferred.output)}
    return {name: len(values[name].type.tensor_type.shape.dim) for name in names}


def _cut(
    model: ModelProto, inputs: Inputs, extremes: Mapping[str, Range], method: Method, percentile: float
) -> dict[str, Range]:
    """Narrow the extremes by histograms that are filled in a second pass."""
    shown = ModelProto()
    shown.CopyFrom(model)
    present = {value.name for value in (*model.graph.output, *model.graph.input)}
    varying = [name for name, (low, high) in extremes.items() if high > low]
    shown.graph.output.extend(make_empty_tensor_value_info(n) for n in varying if n not in present)
    session = Session(shown.SerializeToString())
    names = [value.name for value in session.outputs]
    counts = {name: np.zeros(BINS, np.int64) for name in varying}
    for picture in inputs():
        arrays = dict(zip(names, session.run({INPUT: picture}), strict=True)) | {INPUT: picture}
        for name in varying:
            counts[name] += _histogram(arrays.pop(name), extremes[name])
    narrowed = dict(extremes)
    for name in varying:
        if method == "percentile":
            narrowed[name] = _percentile(counts[name], extremes[name], percentile)
        elif method == "entropy":
            narrowed[name] = _entropy(counts[name], extremes[name])
        else:
            narrowed[name] = _least_error(counts[name], extremes[name])
    return narrowed


def _histogram(values: NDArray[np.float32], limits: Range) -> NDArray[np.int64]:
    """Counts of `values` in BINS bins of equal width over `limits`."""
    low, high = limits
    places = (values.reshape(-1) - np.float32(low)) * np.float32(BINS / (high - low))
    return np.bincount(places.astype(np.int32).clip(0, BINS - 1), minlength=BINS)


def _percentile(counts: NDArray[np.int64], limits: Range, percentile: float) -> Range:
    low, high = limits
    edges = np.linspace(low, high, BINS + 1)
    share = np.cumsum(counts) / counts.sum()
    outside = (100 - percentile) / 200
    first = int(np.searchsorted(share, outside, side="right"))
    last = int(np.searchsorted(share, 1 - outside))
    return float(edges[first]), float(edges[last + 1])


def _entropy(counts: NDArray[np.int64], limits: Range) -> Range:
    """Cut where |x|, clipped and put into _LEVELS levels (twice as many for one sign), differs least from x."""
    low, high = limits
    levels = _LEVELS if low < 0 < high else 2 * _LEVELS
    centres = np.linspace(low, high, BINS + 1)[:-1] + (high - low) / BINS / 2
    size = max(abs(low), abs(high))
    places = (np.abs(centres) * (BINS / size)).astype(np.int64).clip(0, BINS - 1)
    sizes = np.bincount(places, weights=counts, minlength=BINS).astype(np.float64)
    # The zeros that a ReLU makes are exact in any range, and would drown what is not.
    sizes[0] = min(sizes[0], sizes[1])
    # Whole multiples, because levels of unequal width look like lost information.
    stops = np.arange(levels, BINS + 1, levels)
    losses = [_divergence(sizes, int(stop), levels) for stop in stops]
    # The widest of equals: nothing is clipped without need.
    best = len(losses) - 1 - int(np.argmin(losses[::-1]))
    limit = size * float(stops[best]) / BINS
    return max(low, -limit), min(high, limit)


def _divergence(sizes: NDArray[np.float64], stop: int, levels: int) -> float:
    """Kullback-Leibler divergence of the histogram clipped at bin `stop` from its version in `levels` levels."""
    kept = sizes[:stop].copy()
    clipped = kept.copy()
    clipped[-1] += sizes[stop:].sum()
    level = np.arange(stop) * levels // stop
    filled = clipped > 0
    per_level = np.bincount(level, weights=kept, minlength=levels)
    spread = per_level / np.maximum(np.bincount(level, weights=filled, minlength=levels), 1)
    rounded = np.where(filled, spread[level], 0.0)
    tiny = 1e-9 * clipped.sum()
    p = (clipped + tiny) / (clipped + tiny).sum()
    q = (rounded + tiny) / (rounded + tiny).sum()
    return float(np.sum(p * np.log(p / q)))


def _least_error(counts: NDArray[np.int64], limits: Range) -> Range:
    """Cut where the squared error of clipping and of rounding in 8 bits is least, over a grid of both ends.

    A rounded value is off by a twelfth of the step squared on average; values in zero's bin are exact in any range.
    """
    low, high = limits
    edges = np.linspace(low, high, BINS + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    moved = np.where((edges[:-1] <= 0) & (edges[1:] >= 0), 0, counts).astype(np.float64)
    shares = np.linspace(1.0, _NARROWEST, _SHARES)
    lows = low * shares if low < 0 else np.array([0.0])
    highs = high * shares if high > 0 else np.array([0.0])
    below, above = _clipped(moved, centres, lows), _clipped(moved[::-1], -centres[::-1], -highs)
    steps = (highs[None, :] - lows[:, None]) / (2 * _LEVELS - 1)
    errors = below[:, None] + above[None, :] + moved.sum() * steps**2 / 12
    row, column = np.unravel_index(int(np.argmin(errors)), errors.shape)
    return float(lows[row]), float(highs[column])


def _clipped(
    counts: NDArray[np.float64], centres: NDArray[np.float64], ends: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The squared error of raising everything below each of `ends` to it."""
    places = np.searchsorted(centres, ends)
    sums = [np.concatenate([[0.0], np.cumsum(counts * centres**power)])[places] for power in range(3)]
    return np.asarray(sums[2] - 2 * ends * sums[1] + ends**2 * sums[0])
