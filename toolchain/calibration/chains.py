"""Chains: channels that one convolution makes, depthwise ones and activations pass on, and another one mixes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from onnx import ModelProto, NodeProto, numpy_helper

from toolchain.calibration.weights import Floats, Layer, layers
from toolchain.graph import attribute, consumers

# Each value of the output depends on its own value of the input alone.
_PASSING = frozenset(
    {"Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Gelu"}
)


@dataclass(frozen=True)
class Chain:
    """The channels between `writer` (one a row) and `reader` (one a column).

    depthwise: the layers between, in the graph's order. hidden: the tensor that the reader reads.
    """

    writer: Layer
    depthwise: tuple[Layer, ...]
    reader: Layer
    hidden: str

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.writer.rows)


def chains(model: ModelProto, *, wide: bool = False) -> Iterator[Chain]:
    """Every chain whose channels nothing else reads, in the order of the readers.

    wide: with those whose reader looks at more than a pixel.
    """
    found = list(layers(model))
    by_name = {layer.node.name: layer for layer in found}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers = consumers(model.graph)
    private = _private(model, readers)
    for reader in found:
        mixes = _dense(reader) if wide else pointwise(reader)
        if not mixes or not private.issuperset(_constants(reader)):
            continue
        passed: list[Layer] = []
        node = _maker(reader.node.input[0], makers, readers, private)
        while node is not None and (node.op_type in _PASSING or _is_depthwise(by_name.get(node.name))):
            if node.op_type == "Conv":
                passed.insert(0, by_name[node.name])
            node = _maker(node.input[0], makers, readers, private)
        writer = by_name.get(node.name) if node is not None and node.op_type == "Conv" else None
        whole = writer is not None and all(private.issuperset(_constants(part)) for part in (writer, *passed))
        if writer is not None and whole and writer.groups == 1:
            yield Chain(writer, tuple(passed), reader, reader.node.input[0])


def pointwise(layer: Layer) -> bool:
    """Whether a layer is a 1x1 convolution over all channels that pads nothing."""
    node = layer.node
    ungrouped = node.op_type == "Conv" and layer.groups == 1
    unpadded = attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID") and not any(
        attribute(node, "pads", [])
    )
    return ungrouped and unpadded and layer.rows[0, 0].size == 1


def _dense(layer: Layer) -> bool:
    """Whether a layer is a convolution over all channels whose padding stands in numbers."""
    named = attribute(layer.node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    return layer.node.op_type == "Conv" and layer.groups == 1 and layer.rows.ndim == 4 and named


def put(
    model: ModelProto, values: Mapping[str, Floats], groups: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Give constant tensors new values (and shapes), in place. groups: of depthwise convolutions, by name."""
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    for node in model.graph.node:
        for setting in node.attribute:
            if node.name in groups and setting.name == "group":
                setting.i = groups[node.name]


def _constants(layer: Layer) -> list[str]:
    return [name for name in layer.node.input[1:] if name]


def _private(model: ModelProto, readers: Mapping[str, list[NodeProto]]) -> set[str]:
    """Tensors that one node reads and nobody outside."""
    outputs: Collection[str] = {value.name for value in model.graph.output}
    return {name for name, nodes in readers.items() if len(nodes) == 1 and name not in outputs}


def _maker(
    name: str, makers: Mapping[str, NodeProto], readers: Mapping[str, list[NodeProto]], private: set[str]
) -> NodeProto | None:
    return makers.get(name) if name in private else None


def _is_depthwise(layer: Layer | None) -> bool:
    return layer is not None and layer.node.op_type == "Conv" and layer.depthwise
