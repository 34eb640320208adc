"""Which channels a linear layer can do without, when its other weights and its bias make up for them.

Removing input j of y = W x + b, with all other weights chosen anew by least squares, costs |W_j|^2 / (H^-1)_jj, where
H is the second moment of x (B. Hassibi and D. Stork, Second Order Derivatives for Network Pruning: Optimal Brain
Surgeon, 1992; for channels: E. Kurtic et al., ZipLM, 2023, arXiv 2302.04089). A constant one among the inputs stands
for the bias, so that a channel which never changes costs nothing. Where a convolution looks at a window, a channel is as
many inputs as the window has pixels, which go together: W_j^T ((H^-1)_jj)^-1 W_j with blocks in place of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.helper import make_empty_tensor_value_info

from toolchain.calibration.weights import Floats, Layer
from toolchain.calibration.windows import windows
from toolchain.graph import INPUT
from toolchain.runtime.session import Session

Doubles = NDArray[np.float64]
_POSITIONS = 196  # of each picture; more neighbours tell little more
_WINDOWS = 64  # the same where each tells of several pixels
_RIDGE = 1e-4  # of the mean power, for channels that say the same


@dataclass(frozen=True)
class Moments:
    """second: mean of the outer product of (inputs, 1), [C * window + 1, C * window + 1], a channel's inputs side by side;
    positions: pixels a picture; window: of how many a channel's inputs come."""

    second: Doubles
    positions: int
    window: int = 1


@dataclass(frozen=True)
class Order:
    """order: all channels, the first to go first; noise[i]: error after i + 1 have gone, over the output's variance."""

    order: tuple[int, ...]
    noise: Doubles


def moments(
    model: ModelProto, tensors: Sequence[str], inputs: Iterable[Floats],
    advance: Callable[[], None] = lambda: None, readers: Mapping[str, Layer] = MappingProxyType({}),
) -> dict[str, Moments]:  # fmt: skip
    """Second moments of tensors [1, C, h, w] over pictures; of each, at most _POSITIONS pixels, drawn anew for each picture.

    readers: of some tensors, convolutions whose windows of them are taken instead, _WINDOWS a picture.
    """
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
            read = readers.get(name)
            seen = windows(read, given[name], random, _WINDOWS)[0].T if read else _some(values, random)
            sums[name] = sums.get(name, np.zeros(())) + _second(seen)
        count += 1
        advance()
    return {
        name: Moments(
            sums[name] / count, positions[name], readers[name].rows[0, 0].size if name in readers else 1
        )
        for name in sums
    }


def order(moments: Moments, weight: Doubles) -> Order:
    """Greedy elimination of the channels that `weight` [out, C * window] reads, each with all that stay refitted."""
    window = moments.window
    channels = weight.shape[1] // window
    inverse = np.asarray(np.linalg.inv(_stiff(moments.second)), np.float64)
    rows: Doubles = np.concatenate([weight.T, np.zeros((1, len(weight)))])
    mean = moments.second[:-1, -1]
    spread = moments.second[:-1, :-1] - np.outer(mean, mean)
    power = max(float(np.einsum("oc,cd,od->", weight, spread, weight)), 1e-20)
    here = np.ones(channels, bool)
    gone: list[int] = []
    costs: list[float] = []
    for _ in range(channels):
        cost = np.where(here, _costs(inverse, rows, window), np.inf)
        j = int(cost.argmin())
        gone.append(j)
        costs.append(float(cost[j]))
        its = slice(j * window, (j + 1) * window)
        own = inverse[its, its].copy()
        rows -= inverse[:, its] @ np.linalg.solve(own, rows[its])
        inverse -= inverse[:, its] @ np.linalg.solve(own, inverse[its])
        rows[its], inverse[its], inverse[:, its], inverse[its, its] = 0, 0, 0, np.eye(window)
        here[j] = False
    return Order(tuple(gone), np.cumsum(costs) / power)


def refit(moments: Moments, weight: Doubles, kept: Sequence[int]) -> tuple[Doubles, Doubles]:
    """The weights [out, kept * window] of the channels that stay and what the bias gains [out], by least squares."""
    second, window = _stiff(moments.second), moments.window
    places = [*(window * channel + pixel for channel in kept for pixel in range(window)), len(second) - 1]
    solved = np.linalg.solve(second[np.ix_(places, places)], second[places, :-1] @ weight.T).T
    return np.asarray(solved[:, :-1], np.float64), np.asarray(solved[:, -1], np.float64)


def _costs(inverse: Doubles, rows: Doubles, window: int) -> Doubles:
    """What each channel costs now, [C]; `rows` and `inverse` end with the constant."""
    if window == 1:
        return np.asarray((rows[:-1] ** 2).sum(axis=1) / inverse.diagonal()[:-1])
    count = len(rows) // window
    own = rows[:-1].reshape(count, window, -1)
    places = np.arange(count * window).reshape(count, window)
    blocks = inverse[places[:, :, None], places[:, None, :]]
    return np.asarray((own * np.linalg.solve(blocks, own)).sum(axis=(1, 2)))


def _some(values: Floats, random: np.random.Generator) -> Floats:
    """At most _POSITIONS columns of [C, n]."""
    if values.shape[1] <= _POSITIONS:
        return values
    return values[:, np.sort(random.choice(values.shape[1], _POSITIONS, replace=False))]


def _second(values: Floats) -> Doubles:
    extended = np.concatenate([values, np.ones((1, values.shape[1]), values.dtype)]).astype(np.float64)
    return np.asarray(extended @ extended.T / values.shape[1])


def _stiff(second: Doubles) -> Doubles:
    """The second moment with a little on its diagonal (not for the constant), so that it can be inverted."""
    ridge = np.full(len(second), _RIDGE * max(float(second.diagonal()[:-1].mean()), 1e-12))
    ridge[-1] = 0
    return np.asarray(second + np.diag(ridge))
