"""How long each layer takes at several widths, in the network where it runs: measured by ONNX Runtime, not counted.

Networks of one architecture, pruned more and more, are profiled; a layer's row says its time over the share of its
work that is left. A layer alone in a graph of its own would be timed with layout conversions that it does not pay
for in its place. Latency tables instead of multiply-accumulates: NetAdapt (arXiv:1804.03230), HALP
(arXiv:2110.10811).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from toolchain import graph
from toolchain.runtime.session import Session
from toolchain.runtime.timing import time_calls
from toolchain.runtime.trace import TracedSession

Floats = NDArray[np.float32]
_ROUNDS, _DROP = 3, 3
_SECONDS, _FEWEST, _MOST = 0.5, 10, 200  # one profile: about so long, and at least and at most so many runs
_LEAST = 0.1  # of a node's time that is left whatever profiling is said to have added
_KEPT = 0.75  # share of a node's times that is averaged: the slow rest met a busy machine
_OWN = re.compile(r"^fused |(_token_\d+|_nchwc)+$")  # what ONNX Runtime adds to the names of what it fuses
_ACTIVATIONS = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid", "LeakyRelu", "Tanh"})


@dataclass(frozen=True)
class LayerTimes:
    """A convolution's time in ns over how wide it is left (see `left`).

    left: ascending, the last is 1.0 (nothing pruned). ns: of the same length, never falling.
    """

    name: str
    left: tuple[float, ...]
    ns: tuple[float, ...]

    def at(self, left: float) -> float:
        """The time at another share: between neighbours on a line, below the least in proportion."""
        if left <= self.left[0]:
            return self.ns[0] * max(left, 0.0) / self.left[0]
        return float(np.interp(left, self.left, self.ns))


@dataclass(frozen=True)
class LayerTable:
    """The layers' times, and those of all other nodes together, over the mean of the layers' `left`."""

    layers: tuple[LayerTimes, ...]
    others: LayerTimes


def left(outputs: float, inputs: float) -> float:
    """How wide a layer is of whose outputs and inputs these shares are left: 1 when nothing was pruned.

    Work falls with the product, so that a layer half as wide on both sides is at 0.5.
    """
    return float(np.sqrt(max(outputs, 0.0) * max(inputs, 0.0)))


def time_layers(
    models: Sequence[Path], picture: Floats, provider: str = "cpu", threads: int = 1
) -> LayerTable:
    """Profile plain files of one architecture, all in float or all in int8; of the first nothing was pruned.

    picture: their input, float32 [1, 3, h, w]. Raises as Session and `trace.read` do.
    """
    protos = [graph.read(path) for path in models]
    shapes = [_shapes(proto) for proto in protos]
    whole = shapes[0]
    lefts = [{name: _left(whole[name], own[name]) for name in whole if name in own} for own in shapes]
    times = [
        _times(path, proto, picture, provider, threads) for path, proto in zip(models, protos, strict=True)
    ]
    rows = [
        _row(
            name,
            [
                (own[name], found[name])
                for own, found in zip(lefts, times, strict=True)
                if name in own and name in found
            ],
        )
        for name in whole
        if name in times[0]
    ]
    rest = [
        (round(float(np.mean([*own.values()])), 4), found[""])
        for own, found in zip(lefts, times, strict=True)
    ]
    return LayerTable(tuple(rows), _row("", rest))


def _row(name: str, points: Sequence[tuple[float, float]]) -> LayerTimes:
    """One layer's points, in order, the faster of two at the same width; wider never counts as faster."""
    fastest: dict[float, float] = {}
    for share, ns in points:
        fastest[share] = min(ns, fastest.get(share, ns))
    shares = sorted(fastest)
    rising = np.maximum.accumulate([fastest[share] for share in shares])
    return LayerTimes(name, tuple(shares), tuple(rising.tolist()))


def _shapes(model: ModelProto) -> dict[str, tuple[int, int, bool]]:
    """{convolution: (outputs, inputs a group, whether it has groups)}."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    return {
        node.name: (shapes[node.input[1]][0], shapes[node.input[1]][1], graph.attribute(node, "group", 1) > 1)
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in shapes
    }


def _left(whole: tuple[int, int, bool], now: tuple[int, int, bool]) -> float:
    outputs = now[0] / whole[0]
    return round(left(outputs, outputs if whole[2] else now[1] / whole[1]), 4)


def _times(path: Path, model: ModelProto, picture: Floats, provider: str, threads: int) -> dict[str, float]:
    """ns by convolution; under "" those of everything else. The least of some profiles of each.

    What profiling adds to each node (most of a small layer's time) is the excess over runs without it, in equal parts.
    """
    feed, owners = {graph.INPUT: picture}, _owners(model)
    session = Session(path, provider=provider, threads=threads)
    session.run(feed)
    runs = int(np.clip(_SECONDS * 1e9 / max(time_calls(partial(session.run, feed), 1)[0], 1), _FEWEST, _MOST))
    found: dict[str, float] = {}
    for _ in range(_ROUNDS):
        bare = _center(time_calls(partial(session.run, feed), runs))
        once: dict[str, float] = {"": 0.0}
        with tempfile.TemporaryDirectory() as folder:
            traced = TracedSession(path, Path(folder), provider=provider, threads=threads)
            for _ in range(_DROP + runs):
                traced.run(feed)
            nodes = traced.finish(_DROP, _center).nodes
        added = max(0.0, sum(node.ns for node in nodes) - bare) / max(len(nodes), 1)
        for node in nodes:
            name = owners.get(_OWN.sub("", node.name), "")
            once[name] = once.get(name, 0.0) + max(node.ns - added, _LEAST * node.ns)
        found = {name: min(ns, found.get(name, ns)) for name, ns in once.items()}
    return found


def _owners(model: ModelProto) -> Mapping[str, str]:
    """The convolution behind each name that ONNX Runtime may give it: its own, its output's, its activation's."""
    readers = graph.consumers(model.graph)
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        output = node.output[0]
        found |= {node.name: node.name, output: node.name}
        after = readers.get(output, [])
        if len(after) == 1 and after[0].op_type in _ACTIVATIONS:
            found |= {after[0].name: node.name, after[0].output[0]: node.name}
    return found


def _center(times: Sequence[int]) -> float:
    """The mean of the faster part: profiles count in whole microseconds, too coarse for a median of small layers."""
    ordered = sorted(times)
    return float(np.mean(ordered[: max(1, int(_KEPT * len(ordered)))]))
