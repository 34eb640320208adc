"""Forms of quantizing that have no kernel to gain by: convolutions whose ranges are found anew, weights alone, 16 bits."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto

from toolchain.explain.islands import islands
from toolchain.explain.view import DEQUANTIZE, QUANTIZE, Node, View

_WIDE = frozenset({TensorProto.INT16, TensorProto.UINT16})
_SCALING = frozenset({"Cast", "Mul", "Add"})  # what dynamic quantization puts behind an integer convolution


def dynamic_convolutions(view: View) -> list[Node]:
    """ConvInteger, what finds its ranges, and the passes that scale what it gives."""
    found: dict[Node, None] = {}
    for node in view.nodes:
        if node.operator == "ConvInteger":
            found[node] = None
            found |= dict.fromkeys(
                one for one in view.before(node) if one.operator == "DynamicQuantizeLinear"
            )
            found |= dict.fromkeys(_behind(view, node))
    return list(found)


def _behind(view: View, node: Node) -> Iterator[Node]:
    waiting, seen = list(view.after(node)), set[Node]()
    while waiting:
        one = waiting.pop()
        if one.operator in _SCALING and one not in seen:
            seen.add(one)
            yield one
            waiting += view.after(one) if one.operator != "Add" else ()


def weights_alone(view: View) -> list[Node]:
    """Weights that every run turns into floats, for layers that take float activations."""
    return [
        node
        for node in view.nodes
        if node.operator == DEQUANTIZE
        and view.is_constant(node)
        and not any(
            other.operator == DEQUANTIZE and not view.is_constant(other)
            for reader in view.after(node)
            for other in view.before(reader)
        )
    ]


def wide(view: View) -> list[Node]:
    """The float islands between 16-bit integers."""

    def is_wide(node: Node) -> bool:
        tensors = node.outputs if node.operator == QUANTIZE else node.inputs[:1]
        return node.operator in (QUANTIZE, DEQUANTIZE) and any(
            view.types.get(name) in _WIDE for name in tensors
        )

    return [node for island in islands(view) if any(map(is_wide, island.shore)) for node in island.nodes]
