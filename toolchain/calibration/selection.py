"""Which nodes of a network stay in float because integers would make them slower or wrong."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from onnx import ModelProto, NodeProto

from toolchain.calibration.weights import Layer, layers
from toolchain.errors import ModelError
from toolchain.graph import INPUT, consumers, products_of_activations

_SHALLOW = 64  # products an output value: below it, an integer convolution can't earn back its conversions
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu")


def attention(model: ModelProto) -> bool:
    """Whether the network multiplies activations by activations, as transformers do."""
    return bool(products_of_activations(model))


def stem(model: ModelProto) -> list[str]:
    """The first convolution, where it is shallow, and what cheaply shrinks the tensor after it.

    A 3x3 convolution of RGB has 27 products an output value: too few for integer kernels, on the largest
    tensors of the network. Depthwise convolutions behind it, and then a pointwise one that narrows
    (MobileNetV2: 32 -> 16 channels), stay in float too, so that the conversion happens where it is smallest.
    Measured on MobileNetV2 at 224 (see benchmarks/imagenet_sample): faster and more accurate than int8 all over.
    """
    by_name = {layer.node.name: layer for layer in layers(model)}
    readers = consumers(model.graph)
    found: list[str] = []
    before: Layer | None = None
    node = _only(readers.get(INPUT, []))
    if node is not None and node.op_type in (
        "Pad",
        "Slice",
    ):  # channels of zeros, or one: padding.py, greyness.py
        found.append(node.name)
        node = _only(readers.get(node.output[0], []))
    while node is not None:
        if not (before and node.op_type in _ACTIVATIONS):
            layer = by_name.get(node.name)
            if layer is None or node.op_type != "Conv" or not _cheaper_in_float(layer, before):
                break
            before = layer
        found.append(node.name)
        node = _only(readers.get(node.output[0], []))
    return found if before else []


def matching(model: ModelProto, patterns: Sequence[str], setting: str = "exclude") -> list[str]:
    """Names of the nodes that match one of the patterns (`blocks.0.*`) which a step's `setting` gives.

    Raises ModelError for a pattern without a match.
    """
    names = [node.name for node in model.graph.node]
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            some = ", ".join(layer.node.name for layer in list(layers(model))[:4])
            raise ModelError(
                f"{setting} {pattern!r}: the network has no node of that name (it has {some}, ...)"
            )
        found |= matched
    return [name for name in names if name in found]


def require_operators(model: ModelProto, operators: Sequence[str]) -> None:
    """Raise ModelError for an operator that the network does not have."""
    known = {node.op_type for node in model.graph.node}
    if unknown := sorted(set(operators) - known):
        raise ModelError(
            f"operators {', '.join(map(repr, unknown))}: the network has none (it has {', '.join(sorted(known))})"
        )


def _cheaper_in_float(layer: Layer, before: Layer | None) -> bool:
    if before is None:
        return not layer.depthwise and layer.rows[0].size < _SHALLOW
    narrows = before.depthwise and len(layer.rows) < layer.rows.shape[1] * layer.groups
    return layer.depthwise or narrows


def _only(nodes: Sequence[NodeProto]) -> NodeProto | None:
    return nodes[0] if len(nodes) == 1 else None
