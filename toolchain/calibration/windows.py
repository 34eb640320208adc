"""What the rows of a layer's weight are multiplied by: for convolutions, the windows of their input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from toolchain.calibration.weights import Floats, Layer
from toolchain.graph import attribute


def windows(layer: Layer, value: Floats, random: np.random.Generator, most: int) -> Floats:
    """What the layer's rows are multiplied by at `most` places of one picture's tensor, [groups, places, K].

    value: the layer's input [1, C, h, w], or [..., K] of a product. Convolutions that pad by name (auto_pad) are not for it.
    """
    if layer.node.op_type != "Conv":
        rows = value.reshape(-1, value.shape[-1])
        return rows[_places(len(rows), random, most)][None]
    strides, spread, _ = _geometry(layer)
    seen = _seen(layer, value)
    shape = tuple((side - 1) // stride + 1 for side, stride in zip(seen.shape[1:], strides, strict=False))
    places = np.unravel_index(_places(int(np.prod(shape)), random, most), shape)
    index: tuple[Any, ...] = (
        slice(None),
        *(place * stride for place, stride in zip(places, strides, strict=True)),
    )
    taken = seen[index][(..., *(slice(None, None, apart) for apart in spread))]  # [C, places, kernel]
    grouped = taken.reshape(layer.groups, -1, *taken.shape[1:])
    moved = np.moveaxis(grouped, 2, 1)  # [groups, places, C / groups, kernel]
    return np.ascontiguousarray(moved.reshape(*moved.shape[:2], -1))


def _seen(layer: Layer, value: Floats) -> Floats:
    """All windows of stride 1 of the padded input, [C, places down, places across, window]."""
    kernel = layer.rows.shape[2:]
    _, spread, pads = _geometry(layer)
    around = [(0, 0), *zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)]
    window = tuple((side - 1) * apart + 1 for side, apart in zip(kernel, spread, strict=True))
    return sliding_window_view(np.pad(value[0], around), window, axis=tuple(range(1, 1 + len(kernel))))


def _geometry(layer: Layer) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations and pads of a convolution."""
    sides = layer.rows.ndim - 2
    defaults = {"strides": [1] * sides, "dilations": [1] * sides, "pads": [0] * (2 * sides)}
    strides, spread, pads = (list(attribute(layer.node, name, usual)) for name, usual in defaults.items())
    return strides, spread, pads


def _places(count: int, random: np.random.Generator, most: int) -> NDArray[np.int64]:
    return np.sort(random.choice(count, min(count, most), replace=False))
