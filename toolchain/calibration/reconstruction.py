"""Layers fitted anew, one after another, so that what they hand on is again what another network has in that place.

A network made smaller layer by layer errs a little more at each; a layer fitted on what really reaches it takes back
what those before it lost (Y. He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, arXiv
1707.06168, section 3.2). Ridge regression towards the weights that are there; how much of it, pictures tell that were
left out. No label is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, numpy_helper
from onnx.helper import make_empty_tensor_value_info

from toolchain.calibration.chains import pointwise
from toolchain.calibration.elimination import Doubles
from toolchain.calibration.weights import Floats, Layer, layers
from toolchain.calibration.weights import bias as bias_of
from toolchain.graph import INPUT, consumers, drop_unread
from toolchain.runtime.session import Session

_POSITIONS = 392  # of each picture
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of an input's mean power
_WORTH = 0.99  # of the error, on pictures left out, must be left at most
_NOTHING = 1e-6  # an error that small, of the power, is rounding
_LEFT_OUT = 4  # every fourth picture tells how much ridge helps


@dataclass(frozen=True)
class Place:
    """A pointwise convolution and the tensor that it shall bring back, alone or by an Add to `beside`."""

    layer: Layer
    target: str
    beside: str | None


@dataclass
class Sums:
    """Of x x', x y' and y y, over pictures each one's mean.

    x [C + 1]: the layer's input and a one; y [M]: what it should make of it.
    """

    inputs: Doubles
    both: Doubles
    power: float = 0.0

    @classmethod
    def of(cls, places: int, outputs: int) -> Sums:
        """Nothing yet."""
        return cls(np.zeros((places, places)), np.zeros((places, outputs)))

    def add(self, x: Doubles, y: Doubles) -> None:
        """Take in the positions of a picture, [C + 1, n] and [M, n]."""
        self.inputs += x @ x.T / x.shape[1]
        self.both += x @ y.T / x.shape[1]
        self.power += float((y**2).sum()) / x.shape[1]

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.inputs + other.inputs, self.both + other.both, self.power + other.power)

    def towards(self, weight: Doubles, ridge: float) -> Doubles:
        """The weights [M, C + 1] that fit best, drawn to `weight`; the bias (the last column) is free."""
        pull = np.full(len(self.inputs), ridge * max(float(self.inputs.diagonal()[:-1].mean()), 1e-12))
        pull[-1] = 0
        drawn = self.both + pull[:, None] * weight.T
        return np.asarray(np.linalg.solve(self.inputs + np.diag(pull), drawn).T)

    def error(self, weight: Doubles) -> float:
        """The squares of what `weight` [M, C + 1] makes less what it should, summed in the same way."""
        return (
            float(np.einsum("mc,cd,md->", weight, self.inputs, weight) - 2 * (weight.T * self.both).sum())
            + self.power
        )


def places(model: ModelProto, teacher: ModelProto) -> Iterator[Place]:
    """The pointwise convolutions that no activation follows, where the teacher has the tensor: their sum with the stream,
    or their own output."""
    readers = consumers(model.graph)
    constant = {tensor.name for tensor in model.graph.initializer}
    known = {name for node in teacher.graph.node for name in node.output}
    for layer in layers(model):
        made = layer.node.output[0]
        reading = readers.get(made, [])
        if not pointwise(layer) or any(node.op_type not in ("Conv", "Add") for node in reading):
            continue
        add = reading[0] if len(reading) == 1 and reading[0].op_type == "Add" else None
        add = None if add and constant.intersection(add.input) else add
        target = add.output[0] if add else made
        if target in known:
            yield Place(
                layer, target, next((name for name in add.input if name != made), None) if add else None
            )


def reconstruct(
    model: ModelProto, teacher: ModelProto, inputs: Sequence[Floats], advance: Callable[[], None] = lambda: None
) -> tuple[ModelProto, list[str]]:  # fmt: skip
    """A copy of `model` with its layers fitted to the teacher's tensors in turn, and the names of those that changed.

    inputs: float32 [1, 3, h, w] each, at least _LEFT_OUT of them. advance: called after each place.
    """
    changed = ModelProto()
    changed.CopyFrom(model)
    done: list[str] = []
    for place in list(places(changed, teacher)):
        fitted = _fitted(changed, teacher, place, inputs)
        if fitted is not None:
            _put(changed, place.layer, fitted)
            done.append(place.layer.node.name)
        advance()
    return changed, done


def _fitted(model: ModelProto, teacher: ModelProto, place: Place, inputs: Sequence[Floats]) -> Doubles | None:
    """Weights and bias [M, C + 1]; None where those that are there are as good, or the tensors' sizes differ (strides).

    Pictures are left out while the ridge of this layer is chosen, and counted in afterwards.
    """
    layer = place.layer
    rows = layer.rows.reshape(len(layer.rows), -1).astype(np.float64)
    now = np.concatenate([rows, bias_of(model, layer.node)[:, None]], axis=1)
    seen, left_out = (Sums.of(now.shape[1], len(now)) for _ in range(2))
    given = _up_to(model, [layer.node.input[0], *([place.beside] if place.beside else [])])
    wanted = _up_to(teacher, [place.target])
    random = np.random.default_rng(0)
    for number, picture in enumerate(inputs):
        own = [_flat(tensor) for tensor in given.run({INPUT: picture})]
        y = _flat(wanted.run({INPUT: picture})[0])
        if y.shape != (len(now), own[0].shape[1]):
            return None
        if place.beside:
            y = y - own[1]
        count = y.shape[1]
        chosen = random.choice(count, min(count, _POSITIONS), replace=False)
        x = np.concatenate([own[0][:, chosen], np.ones((1, len(chosen)))])
        (left_out if number % _LEFT_OUT == _LEFT_OUT - 1 else seen).add(x, y[:, chosen])
    ridge = min(_RIDGES, key=lambda one: left_out.error(seen.towards(now, one)))
    lost = left_out.error(now)
    if lost <= _NOTHING * left_out.power or left_out.error(seen.towards(now, ridge)) > _WORTH * lost:
        return None
    return (seen + left_out).towards(now, ridge)


def _flat(tensor: Floats) -> Doubles:
    """[1, C, h, w] as [C, h w]."""
    return tensor.reshape(tensor.shape[1], -1).astype(np.float64)


def _up_to(model: ModelProto, tensors: Sequence[str]) -> Session:
    """The network as far as these tensors, which it answers with, in this order."""
    part = ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.extend(make_empty_tensor_value_info(name) for name in tensors)
    needed, kept = set(tensors), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del part.graph.node[:]
    part.graph.node.extend(reversed(kept))
    return Session(part.SerializeToString())


def _put(model: ModelProto, layer: Layer, fitted: Doubles) -> None:
    """Give a convolution weights and a bias of its own, in place; what nobody reads any more goes."""
    node = layer.node
    values = {
        f"{node.name}.fitted": fitted[:, :-1].reshape(layer.rows.shape),
        f"{node.name}.fitted_bias": fitted[:, -1],
    }
    del node.input[1:]
    drop_unread(model)
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()
    )
    node.input.extend(values)
