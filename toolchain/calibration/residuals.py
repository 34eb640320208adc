"""Residual blocks, and a network without one of them whose readers make up for it by least squares.

A block adds what its branch computes to what came in: y = x + f(x). Without the branch the nearest linear y' = A x + c
takes its place: where a pointwise convolution reads y, A and c go into its weights and bias; where only a constant can
go (the addition of the next block), it goes into the bias of that block's last layer. (Depth pruning; the least squares
are those of B. Hassibi and D. Stork, Second Order Derivatives for Network Pruning, 1992, for all of a branch at once.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_node

from toolchain.calibration import elimination
from toolchain.calibration.chains import pointwise
from toolchain.calibration.elimination import Doubles
from toolchain.calibration.weights import Floats, Layer, layers
from toolchain.calibration.weights import bias as bias_of
from toolchain.graph import consumers


@dataclass(frozen=True)
class Residual:
    """One block: the name of its Add, the tensors that this adds (what came in, and the branch's), and its output."""

    name: str
    stream: str
    branch: str
    output: str


@dataclass(frozen=True)
class _Wiring:
    """Who makes and who reads each tensor; constants, and the tensors that are handed out."""

    makers: Mapping[str, NodeProto]
    readers: Mapping[str, list[NodeProto]]
    constants: frozenset[str]
    outside: frozenset[str]

    @classmethod
    def of(cls, model: ModelProto) -> _Wiring:
        return cls(
            {name: node for node in model.graph.node for name in node.output},
            consumers(model.graph),
            frozenset(tensor.name for tensor in model.graph.initializer),
            frozenset(value.name for value in model.graph.output),
        )


def residuals(model: ModelProto) -> Iterator[Residual]:
    """The blocks whose branch reads nothing but the stream, is read by its Add alone and ends in a convolution."""
    wiring = _Wiring.of(model)
    for node in model.graph.node:
        if node.op_type != "Add" or wiring.outside.intersection(node.output):
            continue
        for stream, branch in (tuple(node.input), tuple(reversed(node.input))):
            last = wiring.makers.get(branch)
            if last is not None and last.op_type == "Conv" and _closed(branch, stream, node.name, wiring):
                yield Residual(node.name, stream, branch, node.output[0])
                break


def moments(
    model: ModelProto, found: Sequence[Residual], inputs: Iterable[Floats],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Doubles]:  # fmt: skip
    """Second moment of (stream, output, 1) of every block, [2 C + 1, 2 C + 1] by its name; inputs [1, 3, h, w] each."""
    both = ModelProto()
    both.CopyFrom(model)
    pairs = {f"{one.name}/both": one for one in found}
    for name, one in pairs.items():
        both.graph.node.append(make_node("Concat", [one.stream, one.output], [name], name=name, axis=1))
    seen = elimination.moments(both, list(pairs), inputs, advance)
    return {one.name: seen[name].second for name, one in pairs.items()}


def without(model: ModelProto, block: Residual, second: Doubles) -> ModelProto:
    """A copy of the network without the block's branch. second: the block's moments."""
    changed = ModelProto()
    changed.CopyFrom(model)
    channels = len(second) // 2
    slope, constant = _nearest(second)
    shift = second[-1, channels:-1] - second[-1, :channels]
    wiring, left = _Wiring.of(changed), []
    for reader in wiring.readers.get(block.output, []):
        # Anew each time: the next block's branch may be the very convolution that has just been refitted.
        linear = {layer.node.name: layer for layer in layers(changed)}
        layer = linear.get(reader.name)
        if layer is not None and pointwise(layer):
            rows = layer.rows.reshape(len(layer.rows), -1).astype(np.float64)
            _set(changed, layer, rows @ slope, bias_of(changed, reader) + rows @ constant)
            reader.input[0] = block.stream
        elif (last := _next_branch(reader, block.output, wiring, linear)) is not None:
            _set(changed, last, last.rows, bias_of(changed, last.node) + shift)
            reader.input[:] = [block.stream if name == block.output else name for name in reader.input]
        else:
            left.append(reader)
    if left:
        _add_constant(changed, block, shift, left)
    _without_dead_ends(changed)
    return changed


def _nearest(second: Doubles) -> tuple[Doubles, Doubles]:
    """The slope [C, C] and constant [C] of the linear function of the stream that comes closest to the output."""
    channels = len(second) // 2
    places = [*range(channels), len(second) - 1]
    given = second[np.ix_(places, places)]
    ridge = np.full(len(given), 1e-4 * max(float(given.diagonal()[:-1].mean()), 1e-12))
    ridge[-1] = 0
    wanted = second[places, channels:-1].copy()
    # Towards the stream itself, which is what is left of the output where nothing is known.
    wanted[:-1] += np.diag(ridge[:-1])
    solved = np.linalg.solve(given + np.diag(ridge), wanted)
    return np.ascontiguousarray(solved[:-1].T), np.asarray(solved[-1])


def _closed(branch: str, stream: str, add: str, graph: _Wiring) -> bool:
    """Whether all that `branch` is made from is the stream and constants, and nobody else reads what is between."""
    inside, between, waiting, reached = {add}, list[str](), [branch], False
    while waiting:
        name = waiting.pop()
        if name == stream:
            reached = True
        elif name in graph.makers and name not in graph.outside:
            node = graph.makers[name]
            between.append(name)
            if node.name not in inside:
                inside.add(node.name)
                waiting += [source for source in node.input if source]
        elif name not in graph.constants:
            return False
    return reached and all(reader.name in inside for name in between for reader in graph.readers[name])


def _next_branch(
    reader: NodeProto, output: str, wiring: _Wiring, linear: Mapping[str, Layer]
) -> Layer | None:
    """The convolution that an Add adds to `output`, if its bias can take a constant."""
    if reader.op_type != "Add":
        return None
    other = next((name for name in reader.input if name != output), None)
    maker = wiring.makers.get(other) if other is not None and len(wiring.readers[other]) == 1 else None
    return linear.get(maker.name) if maker is not None and maker.op_type == "Conv" else None


def _set(model: ModelProto, layer: Layer, rows: Doubles | Floats, bias: Doubles) -> None:
    """Give a convolution a weight and a bias of its own, in place."""
    node = layer.node
    values = {f"{node.name}.refitted": rows.reshape(layer.rows.shape), f"{node.name}.refitted_bias": bias}
    for tensor in [old for old in model.graph.initializer if old.name in values]:
        model.graph.initializer.remove(tensor)
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    node.input[:] = [node.input[0], *values]


def _add_constant(model: ModelProto, block: Residual, shift: Doubles, left: Sequence[NodeProto]) -> None:
    """What reads the output then reads the stream plus a constant, in the place where the block's Add was."""
    name, made = f"{block.name}/mean", f"{block.name}/shifted"
    value = shift.astype(np.float32).reshape(1, -1, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    at = next(i for i, node in enumerate(model.graph.node) if node.name == block.name)
    model.graph.node.insert(at, make_node("Add", [block.stream, name], [made], name=made))
    for reader in left:
        reader.input[:] = [made if source == block.output else source for source in reader.input]


def _without_dead_ends(model: ModelProto) -> None:
    """Remove nodes whose output nobody reads, in place."""
    while True:
        read = {name for node in model.graph.node for name in node.input}
        read |= {value.name for value in model.graph.output}
        dead = [node for node in model.graph.node if not read.intersection(node.output)]
        if not dead:
            return
        for node in dead:
            model.graph.node.remove(node)
