"""Simplify: batch norms and constants into weights, nothing computed that no output needs. The function stays the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
import onnxscript.optimizer
import onnxscript.rewriter
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnxscript.rewriter.rules.common import materialize_reshape_shape_rule

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import pictures
from toolchain.calibration.price import latency_ratio
from toolchain.errors import ModelError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.runtime.session import Session
from toolchain.runtime.timing import interleave
from toolchain.step import Context, Step

_OUTPUTS = {"Conv": 0, "ConvTranspose": 1}  # which axis of its weight counts an operator's outputs
_TOLERANCE = 1e-3


class Simplify(Step):
    """`export: {fold: false}`, then this: what `export` does by itself, one by one and with what each brings.

    dead: nodes go whose results no output needs. constants: what can be computed now is (shapes, casts, reshaped weights),
    and becomes a weight; dead nodes go along. batch_norms: a batch norm behind a convolution that nothing else reads goes
    into its weight and bias. Each can be switched off.
    Measures, for each that is on, `nodes` that went; `load`, how long a session takes to be ready before and after;
    `price`, how many times the latency of the file before (ONNX Runtime folds some of it itself, at every start).
    """

    step: Literal["simplify"] = "simplify"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "onnxscript", "numpy", *host.onnxruntimes(),
    )  # fmt: skip
    dead: bool = True
    constants: bool = True
    batch_norms: bool = True

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Simplify inputs["model"]'s plain network.

        Raises ModelError for a network that is quantized, or whose answer to a validation picture changes.
        """
        source, val = inputs["model"].folder, context.data.val
        original = graph.read(source / graph.PLAIN)
        graph.require_float(original)
        changed = ModelProto()
        changed.CopyFrom(original)
        gone = [
            Measurement(name="nodes", value=count, where={"gone": name})
            for name, count in self._simplify(changed)
        ]
        hand_on(self, source, changed, context.out)
        price = []
        if len(val):
            one = next(pictures.prepared(source / graph.PREPROCESS, val, [0]))
            _require_same(original, changed, one)
            price = [Measurement(name="price", value=round(latency_ratio(original, changed, one), 3))]
        return (*gone, *_loads(source, context.out), *price, *graph.sizes(context.out))

    def _simplify(self, model: ModelProto) -> Iterator[tuple[str, int]]:
        passes = {"dead": remove_dead, "constants": fold_constants, "batch_norms": fold_batch_norms}
        for name, change in passes.items():
            if getattr(self, name):
                before = len(model.graph.node)
                change(model)
                yield name, before - len(model.graph.node)


def fold_constants(model: ModelProto) -> None:
    """Compute now what depends on weights, settings and known sizes alone, in place; constants become weights."""
    names = {node.output[0]: node.name for node in model.graph.node if node.output}
    folded = onnx.shape_inference.infer_shapes(model, data_prop=True)
    onnxscript.optimizer.fold_constants(folded)
    folded = onnxscript.rewriter.rewrite(folded, [materialize_reshape_shape_rule])
    model.CopyFrom(folded)
    kept = []
    for node in folded.graph.node:
        if node.op_type == "Constant" and (value := _value(node)) is not None:
            model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        else:
            node.name = names.get(node.output[0], node.name)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    graph.pool(model)


def _value(constant: NodeProto) -> NDArray[np.generic] | None:
    """What a Constant holds; None for texts and sparse tensors."""
    given = constant.attribute[0]
    if given.name == "value":
        return numpy_helper.to_array(given.t)
    kinds = {"int": np.int64, "ints": np.int64, "float": np.float32, "floats": np.float32}
    kind = kinds.get(given.name.removeprefix("value_"))
    return None if kind is None else np.array(onnx.helper.get_attribute_value(given), kind)


def fold_batch_norms(model: ModelProto) -> None:
    """Let convolutions multiply and add what the batch norms behind them would, in place.

    y = (w x + b - mean) s + beta with s = gamma / sqrt(variance + epsilon) is a convolution of weight w s and bias
    (b - mean) s + beta. Stays: a norm behind something else, behind a convolution that has other readers, or in a graph
    with graphs inside.
    """
    while True:  # a norm may stand behind another
        known = graph.weights(model)
        constant = [
            (layer, norm)
            for layer, norm in _normed(model)
            if all(name in known for name in (*layer.input[1:], *norm.input[1:]) if name)
        ]
        if not constant:
            return
        for layer, norm in constant:
            _fold_norm(model, layer, norm, known)
            model.graph.node.remove(norm)


def require_folded(model: ModelProto) -> None:
    """Raise ModelError when batch norms stand behind convolutions: in integers each would round once more."""
    if pairs := _normed(model):
        raise ModelError(
            f"{len(pairs)} batch norms stand behind convolutions: put simplify before this step, or leave out "
            "export's fold: false"
        )


def _normed(model: ModelProto) -> list[tuple[NodeProto, NodeProto]]:
    """Convolutions and the batch norms that alone read them and could go into them; none in a graph with graphs inside."""
    net = model.graph
    if graph.nested(model):
        return []
    layers = {
        name: node
        for node in net.node
        if node.op_type in _OUTPUTS and (node.op_type == "Conv" or graph.attribute(node, "group", 1) == 1)
        for name in node.output
    }
    readers, ends = graph.consumers(net), {value.name for value in net.output}
    return [
        (layer, node)
        for node in net.node
        if node.op_type == "BatchNormalization" and (layer := layers.get(node.input[0])) is not None
        and len(readers[node.input[0]]) == 1 and node.input[0] not in ends
        and not graph.attribute(node, "training_mode", 0)
    ]  # fmt: skip


def _fold_norm(
    model: ModelProto, layer: NodeProto, norm: NodeProto, known: Mapping[str, NDArray[np.generic]]
) -> None:
    """New weights under the layer's name: another layer may share the old ones."""
    gamma, beta, mean, variance = (known[name].astype(np.float64) for name in norm.input[1:5])
    scale = gamma / np.sqrt(variance + graph.attribute(norm, "epsilon", 1e-5))
    weight = known[layer.input[1]].astype(np.float64)
    shape = [1] * weight.ndim
    shape[_OUTPUTS[layer.op_type]] = -1
    bias = known[layer.input[2]].astype(np.float64) if len(layer.input) > 2 and layer.input[2] else 0.0
    new = {"weight": weight * scale.reshape(shape), "bias": (bias - mean) * scale + beta}
    made = {f"{layer.name}.{role}_folded": value.astype(np.float32) for role, value in new.items()}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name in made]:
        model.graph.initializer.remove(tensor)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items())
    layer.input[1:] = list(made)
    layer.output[0] = norm.output[0]


def remove_dead(model: ModelProto) -> None:
    """Remove nodes whose results no output needs, in place; not in a graph with graphs inside."""
    if graph.nested(model):
        return
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))


def _require_same(before: ModelProto, after: ModelProto, one: NDArray[np.float32]) -> None:
    given, found = (
        Session(model.SerializeToString()).run({graph.INPUT: one})[0] for model in (before, after)
    )
    if not np.allclose(found, given, rtol=_TOLERANCE, atol=_TOLERANCE):
        raise ModelError(
            "simplified it answers differently: switch constants or batch_norms off, and report this"
        )


def _loads(before: Path, after: Path) -> tuple[Measurement, ...]:
    sides = {
        state: partial(Session, folder / graph.FUSED)
        for state, folder in (("before", before), ("after", after))
    }
    times = interleave(sides, blocks=5, calls=3, drop=1)
    return tuple(
        Measurement(name="load", value=float(np.median(taken)) / 1e6, unit="ms", where={"state": state})
        for state, taken in times.items()
    )
