"""Which channels a linear layer can do without, when its other weights and its bias make up for them.

Removing input j of y = W x + b, with all other weights chosen anew by least squares, costs |W_j|^2 / (H^-1)_jj, where
H is the second moment of x (B. Hassibi and D. Stork, Second Order Derivatives for Network Pruning: Optimal Brain
Surgeon, 1992; for channels: E. Kurtic et al., ZipLM, 2023, arXiv 2302.04089). A constant one among the inputs stands
for the bias, so that a channel which never changes costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.helper import make_empty_tensor_value_info

from toolchain.calibration.weights import Floats
from toolchain.graph import INPUT
from toolchain.runtime.session import Session

Doubles = NDArray[np.float64]
_POSITIONS = 196  # of each picture; more neighbours tell little more
_RIDGE = 1e-4  # of the mean power, for channels that say the same


@dataclass(frozen=True)
class Moments:
    """second: mean of the outer product of (channels, 1), [C + 1, C + 1]; positions: pixels a picture."""

    second: Doubles
    positions: int


@dataclass(frozen=True)
class Order:
    """order: all channels, the first to go first; noise[i]: error after i + 1 have gone, over the output's variance."""

    order: tuple[int, ...]
    noise: Doubles


def moments(
    model: ModelProto, tensors: Sequence[str], inputs: Iterable[Floats],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Moments]:  # fmt: skip
    """Second moments of tensors [1, C, h, w] over pictures; of each, the same _POSITIONS pixels anywhere."""
    shown = ModelProto()
    shown.CopyFrom(model)
    present = {value.name for value in model.graph.output}
    shown.graph.output.extend(make_empty_tensor_value_info(n) for n in tensors if n not in present)
    session = Session(shown.SerializeToString())
    names = [value.name for value in session.outputs]
    sums: dict[str, Doubles] = {}
    positions: dict[str, int] = {}
    random, count = np.random.default_rng(0), 0
    for picture in inputs:
        given = dict(zip(names, session.run({INPUT: picture}), strict=True))
        for name in tensors:
            values = given[name].reshape(given[name].shape[1], -1)
            positions[name] = values.shape[1]
            sums[name] = sums.get(name, np.zeros(())) + _second(values, random)
        count += 1
        advance()
    return {name: Moments(sums[name] / count, positions[name]) for name in sums}


def order(moments: Moments, weight: Doubles) -> Order:
    """Greedy elimination of the inputs of `weight` [out, C], each with all that stay refitted."""
    channels = weight.shape[1]
    inverse = np.linalg.inv(_stiff(moments.second))
    rows = np.concatenate([weight.T, np.zeros((1, len(weight)))])
    mean = moments.second[:-1, -1]
    spread = moments.second[:-1, :-1] - np.outer(mean, mean)
    power = max(float(np.einsum("oc,cd,od->", weight, spread, weight)), 1e-20)
    here = np.ones(channels, bool)
    gone: list[int] = []
    costs: list[float] = []
    for _ in range(channels):
        cost = np.where(here, (rows[:-1] ** 2).sum(axis=1) / inverse.diagonal()[:-1], np.inf)
        j = int(cost.argmin())
        gone.append(j)
        costs.append(float(cost[j]))
        rows -= np.outer(inverse[:, j], rows[j] / inverse[j, j])
        inverse -= np.outer(inverse[:, j], inverse[j] / inverse[j, j])
        rows[j], inverse[j], inverse[:, j], inverse[j, j] = 0, 0, 0, 1
        here[j] = False
    return Order(tuple(gone), np.cumsum(costs) / power)


def refit(moments: Moments, weight: Doubles, kept: Sequence[int]) -> tuple[Doubles, Doubles]:
    """The weights [out, kept] of the channels that stay and what the bias gains [out], by least squares."""
    second = _stiff(moments.second)
    places = [*kept, len(second) - 1]
    solved = np.linalg.solve(second[np.ix_(places, places)], second[places, :-1] @ weight.T).T
    return np.asarray(solved[:, :-1], np.float64), np.asarray(solved[:, -1], np.float64)


def _second(values: Floats, random: np.random.Generator) -> Doubles:
    if values.shape[1] > _POSITIONS:
        values = values[:, np.sort(random.choice(values.shape[1], _POSITIONS, replace=False))]
    extended = np.concatenate([values, np.ones((1, values.shape[1]), values.dtype)]).astype(np.float64)
    return np.asarray(extended @ extended.T / values.shape[1])


def _stiff(second: Doubles) -> Doubles:
    """The second moment with a little on its diagonal (not for the constant), so that it can be inverted."""
    ridge = np.full(len(second), _RIDGE * max(float(second.diagonal()[:-1].mean()), 1e-12))
    ridge[-1] = 0
    return np.asarray(second + np.diag(ridge))
