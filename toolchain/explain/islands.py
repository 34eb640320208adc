"""Float nodes between int8 ones: each island pays for its float arithmetic and for both ways across."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from toolchain.explain.view import DEQUANTIZE, QUANTIZE, Node, View


@dataclass(frozen=True)
class Island:
    """Connected float nodes (`inner`) that are dequantized into and quantized out of (`shore`)."""

    inner: tuple[Node, ...]
    shore: tuple[Node, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All its nodes."""
        return self.inner + self.shore

    @property
    def operators(self) -> tuple[str, ...]:
        """The operator types inside, the costliest first."""
        cost: dict[str, float] = {}
        for node in self.inner:
            cost[node.operator] = cost.get(node.operator, 0.0) + node.ns
        return tuple(sorted(cost, key=lambda name: -cost[name]))


def islands(view: View) -> Iterator[Island]:
    """Every island: parts of the graph that begin or end in float (stem, logits) are none."""
    seen: set[Node] = set()
    for start in view.nodes:
        if start in seen or not _is_float(view, start):
            continue
        inner = _connected(view, start)
        seen |= set(inner)
        ways_in = [n for node in inner for n in view.before(node) if _is_way_in(view, n)]
        weights = [n for node in inner for n in view.before(node) if _is_weight(view, n)]
        ways_out = [n for node in inner for n in view.after(node) if n.operator == QUANTIZE]
        if ways_in and ways_out:
            yield Island(tuple(inner), tuple(dict.fromkeys(ways_in + weights + ways_out)))


def _is_float(view: View, node: Node) -> bool:
    return (
        node.operator not in (QUANTIZE, DEQUANTIZE) and not view.is_int8(node) and not view.is_constant(node)
    )


def _is_way_in(view: View, node: Node) -> bool:
    return node.operator == DEQUANTIZE and not view.is_constant(node)


def _is_weight(view: View, node: Node) -> bool:
    return node.operator == DEQUANTIZE and view.is_constant(node)


def _connected(view: View, start: Node) -> list[Node]:
    found, waiting = {start: None}, [start]
    while waiting:
        node = waiting.pop()
        for other in (*view.before(node), *view.after(node)):
            if other not in found and _is_float(view, other):
                found[other] = None
                waiting.append(other)
    return list(found)
