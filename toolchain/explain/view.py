"""The optimized graph as a web of nodes that know their time and whether they work on 8-bit integers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

from toolchain.runtime.trace import TracedNode

_BYTES = frozenset({TensorProto.UINT8, TensorProto.INT8})
# Operators that give what they take: their type is that of their first input.
_PASS_ON = frozenset({
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "NhwcMaxPool", "Concat",
    "Slice", "Gather", "Pad", "Resize", "Split", "DepthToSpace", "SpaceToDepth", "Expand", "Tile",
})  # fmt: skip
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True, eq=False)
class Node:
    """A node of the graph that ran. ns: its median time in a run; provider: where; compared by identity."""

    proto: NodeProto
    ns: float
    provider: str

    @property
    def operator(self) -> str:
        """The operator's type."""
        return self.proto.op_type

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that it takes; left-out optional ones are not among them."""
        return tuple(name for name in self.proto.input if name)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that it gives."""
        return tuple(name for name in self.proto.output if name)

    def integers(self, attribute: str) -> tuple[int, ...]:
        """A list attribute of whole numbers; empty when it has none."""
        found = [a for a in self.proto.attribute if a.name == attribute and a.type == AttributeProto.INTS]
        return tuple(found[0].ints) if found else ()


class View:
    """All nodes of a graph with their times.

    Times are laid on by name and operator. Nodes without a name share what the profile has of their operator
    under no name of the graph, in equal parts; so do nodes of the same name.
    """

    def __init__(self, graph: GraphProto, traced: Sequence[TracedNode]) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self._given = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        named = {(node.name, node.op_type) for node in graph.node if node.name}
        buckets: dict[tuple[str, str], list[TracedNode]] = defaultdict(list)
        for one in traced:
            key = (one.name, one.operator)
            buckets[key if key in named else ("", one.operator)].append(one)
        sizes: dict[tuple[str, str], int] = defaultdict(int)
        for node in graph.node:
            sizes[node.name, node.op_type] += 1
        self.nodes = tuple(_timed(node, buckets[node.name, node.op_type], sizes) for node in graph.node)
        self.total = sum(node.ns for node in self.nodes) or 1.0

    @cached_property
    def producers(self) -> dict[str, Node]:
        """{tensor: the node that gives it}."""
        return {name: node for node in self.nodes for name in node.outputs}

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        """{tensor: the nodes that take it}."""
        found: dict[str, list[Node]] = defaultdict(list)
        for node in self.nodes:
            for name in node.inputs:
                found[name].append(node)
        return found

    @cached_property
    def types(self) -> dict[str, int]:
        """{tensor: ONNX element type}; what no rule knows counts as float."""
        found = dict(self._given)
        found |= {name: tensor.data_type for name, tensor in self.constants.items()}
        for node in self.nodes:  # a saved graph is in topological order
            kind = self._output_type(node, found)
            found |= dict.fromkeys(node.outputs, kind)
        return found

    def _output_type(self, node: Node, known: dict[str, int]) -> int:
        operator = node.operator
        if operator == DEQUANTIZE:
            return int(TensorProto.FLOAT)
        if operator == QUANTIZE:
            zero = node.proto.input[2] if len(node.proto.input) > 2 else ""
            return known.get(zero, int(TensorProto.UINT8))
        if operator.startswith("QLinear") or operator == "QGemm":
            last = [known[name] for name in node.inputs if name in self.constants and known[name] in _BYTES]
            return last[-1] if last else int(TensorProto.FLOAT)
        if operator in _PASS_ON and node.inputs:
            return known.get(node.inputs[0], int(TensorProto.FLOAT))
        return int(TensorProto.FLOAT)

    def is_int8(self, node: Node) -> bool:
        """Whether a node works on 8-bit integers: an integer kernel, or one that passes them on."""
        if node.operator in (QUANTIZE, DEQUANTIZE):
            return False
        return node.operator.startswith(("QLinear", "QGemm")) or any(
            self.types.get(name) in _BYTES for name in node.inputs if name not in self.constants
        )

    def is_constant(self, node: Node) -> bool:
        """Whether a node depends on no input: a weight that is dequantized in every run."""
        return all(name in self.constants for name in node.inputs)

    def after(self, node: Node) -> Iterator[Node]:
        """The nodes that take what a node gives."""
        for name in node.outputs:
            yield from self.consumers.get(name, [])

    def before(self, node: Node) -> Iterator[Node]:
        """The nodes whose results a node takes."""
        for name in node.inputs:
            if name in self.producers:
                yield self.producers[name]

    def root(self, tensor: str) -> str:
        """The tensor behind quantizing and dequantizing it again."""
        while (node := self.producers.get(tensor)) is not None and node.operator in (QUANTIZE, DEQUANTIZE):
            tensor = node.inputs[0]
        return tensor


def _timed(node: NodeProto, bucket: Sequence[TracedNode], sizes: dict[tuple[str, str], int]) -> Node:
    share = sum(one.ns for one in bucket) / sizes[node.name, node.op_type]
    return Node(node, share, bucket[0].provider if bucket else "")
