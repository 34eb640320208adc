"""Fold gates: a hard-sigmoid behind a convolution becomes a clip, which integer kernels do for nothing. Exact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_node

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.graph import attribute
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step
from toolchain.steps.quantize import int8_price

_LOW, _HIGH = "gate.low", "gate.high"


class FoldGates(Step):
    """Before `quantize`: the slope and the offset of hard-sigmoids go into the layer before, a clip to 0..1 is left.

    onnxruntime has no integer kernel for HardSigmoid, which stands in every squeeze-excite block of MobileNetV3; a Clip
    vanishes in the rounding that follows. The function stays, but for rounding of float32.
    timed: measure what that gained, which takes two quantizations.
    Measures `gates` that were folded, none where there are none; those behind anything but a convolution or product
    are left alone. And, if timed, `price`: how many times the latency of the file before, both in int8.
    """

    step: Literal["fold_gates"] = "fold_gates"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train"})
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "numpy", *host.onnxruntimes())
    timed: bool = True

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Fold the gates of inputs["model"]'s plain network. Raises ModelError for a network that is quantized."""
        source = inputs["model"].folder
        model = graph.read(source / graph.PLAIN)
        graph.require_float(model)
        before = ModelProto()
        before.CopyFrom(model)
        folded = fold(model)
        hand_on(self, source, model, context.out)
        price = int8_price(before, model, source / graph.PREPROCESS, context) if folded and self.timed else ()
        return (Measurement(name="gates", value=len(folded)), *price, *graph.sizes(context.out))


def fold(model: ModelProto) -> list[str]:
    """Fold hard-sigmoids into the Conv or Gemm before them, in place; returns the names of the gates."""
    known = graph.weights(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = graph.consumers(model.graph)
    ends = {value.name for value in model.graph.output}
    folded = []
    for gate in [node for node in model.graph.node if node.op_type == "HardSigmoid"]:
        layer = makers.get(gate.input[0])
        if layer is None or not _foldable(layer, known):
            continue
        if len(readers[layer.output[0]]) > 1 or layer.output[0] in ends:
            continue
        slope, offset = attribute(gate, "alpha", 0.2), attribute(gate, "beta", 0.5)
        _rescale(model, layer, known, slope, offset)
        gate.CopyFrom(make_node("Clip", [gate.input[0], _LOW, _HIGH], list(gate.output), name=gate.name))
        folded.append(gate.name)
    if folded:
        model.graph.initializer.extend(
            numpy_helper.from_array(np.array(value, np.float32), name)
            for name, value in ((_LOW, 0.0), (_HIGH, 1.0))
        )
    return folded


def _foldable(layer: NodeProto, known: Mapping[str, NDArray[Any]]) -> bool:
    """Whether a node is a layer whose weight and bias, if it has one, are constants with an entry an output."""
    if layer.op_type not in ("Conv", "Gemm") or layer.input[1] not in known:
        return False
    if len(layer.input) < 3 or not layer.input[2]:
        return True
    return layer.input[2] in known and known[layer.input[2]].shape == (_outputs(layer, known),)


def _outputs(layer: NodeProto, known: Mapping[str, NDArray[Any]]) -> int:
    columns = layer.op_type == "Gemm" and not attribute(layer, "transB", 0)
    return int(known[layer.input[1]].shape[1 if columns else 0])


def _rescale(
    model: ModelProto, layer: NodeProto, known: Mapping[str, NDArray[Any]], slope: float, offset: float
) -> None:
    """Make a layer answer slope * y + offset where it answered y, in new tensors: others may read the old ones."""
    has_bias = len(layer.input) > 2 and layer.input[2]
    bias = known[layer.input[2]] if has_bias else np.zeros(_outputs(layer, known), np.float32)
    beta = attribute(layer, "beta", 1.0) if layer.op_type == "Gemm" else 1.0
    made = {
        f"{layer.name}.gate_weight": known[layer.input[1]] * np.float32(slope),
        f"{layer.name}.gate_bias": bias * np.float32(slope) + np.float32(offset / beta),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items())
    layer.input[:] = [layer.input[0], *made]
