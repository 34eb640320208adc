"""Join: two linear layers in a row become one where that saves products. The function stays the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import numpy as np
from onnx import ModelProto, numpy_helper

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import costs, pictures, weights
from toolchain.calibration.chains import Chain, chains, pointwise
from toolchain.calibration.price import latency_ratio
from toolchain.calibration.weights import Layer
from toolchain.graph import attribute
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step


class Join(Step):
    """A convolution and a pointwise one that alone reads it, with nothing between, become one convolution.

    MobileNetV2's first block narrows 32 channels to 16 and the next widens them again: once `narrow` has left 16,
    narrowing them to 16 is for nothing. Pairs whose product would take longer, in multiplications and values written,
    stay.
    Measures `joined` (layers that went) and `price`, how many times the latency of the file before, where a
    validation picture is at hand; and what is left of `macs` and `parameters`.
    """

    step: Literal["join"] = "join"
    version: ClassVar[int] = 3
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "numpy", *host.onnxruntimes(),
    )  # fmt: skip

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Join what can be joined in inputs["model"]'s plain network.

        Raises ModelError for a network that is quantized.
        """
        source, val = inputs["model"].folder, context.data.val
        original = graph.read(source / graph.PLAIN)
        graph.require_float(original)
        changed = ModelProto()
        changed.CopyFrom(original)
        joined = join(changed)
        hand_on(self, source, changed, context.out)
        price = []
        if joined and len(val):
            one = next(pictures.prepared(source / graph.PREPROCESS, val, [0]))
            price = [Measurement(name="price", value=round(latency_ratio(original, changed, one), 3))]
        return (
            Measurement(name="joined", value=len(joined)), *price, *costs.measured(changed), *graph.sizes(context.out),
        )  # fmt: skip


def join(model: ModelProto) -> list[str]:
    """Join pairs until none is left, in place; returns the names of the layers that went."""
    gone: list[str] = []
    while pair := next(_pairs(model), None):
        first, second = pair.writer, pair.reader
        _put_product(model, first, second)
        net = model.graph
        before = next(node for node in net.node if node.name == first.node.name)
        before.output[0] = second.node.output[0]
        before.input[:] = [before.input[0], f"{second.node.name}.joined", f"{second.node.name}.joined_bias"]
        net.node.remove(next(node for node in net.node if node.name == second.node.name))
        gone.append(first.node.name)
        before.name = second.node.name
        graph.drop_unread(model)
    return gone


def _pairs(model: ModelProto) -> Iterator[Chain]:
    for chain in chains(model):
        first, second = chain.writer, chain.reader
        direct = second.node.input[0] == first.node.output[0]
        steady = pointwise(second) and all(
            stride == 1 for stride in attribute(second.node, "strides", [1, 1])
        )
        outs, middle, ins = len(second.rows), len(first.rows), first.rows[0].size
        apart = middle * (ins + outs + costs.CONVERTED)
        if direct and steady and outs * ins <= apart:
            yield chain


def _put_product(model: ModelProto, first: Layer, second: Layer) -> None:
    outer = second.rows.reshape(len(second.rows), -1).astype(np.float64)
    weight = np.tensordot(outer, first.rows.astype(np.float64), axes=1)
    shift = outer @ weights.bias(model, first.node) + weights.bias(model, second.node)
    for name, value in (("joined", weight), ("joined_bias", shift)):
        tensor = numpy_helper.from_array(value.astype(np.float32), f"{second.node.name}.{name}")
        for old in [other for other in model.graph.initializer if other.name == tensor.name]:
            model.graph.initializer.remove(old)
        model.graph.initializer.append(tensor)
