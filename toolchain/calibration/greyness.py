"""A stem that reads one channel: where pictures are grey, all three say the same, and their weights can be summed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.helper import make_node

from toolchain.calibration.weights import first_convolution
from toolchain.graph import INPUT

CHANNEL = 1  # green: of a picture with colours the channel nearest to its brightness
_SAME = 1e-5  # of the input's values, which are of the order of 1


def is_grey(prepared: NDArray[np.float32]) -> bool:
    """Whether the channels of prepared pictures [n, C, h, w] say the same."""
    return bool(np.all(np.abs(prepared - prepared[:, :1]) <= _SAME * max(1.0, float(np.abs(prepared).max()))))


def read_one(model: ModelProto) -> int:
    """Let the first convolution read the green channel alone, in place; returns how many channels it reads less.

    Its weights are summed over the channels, in double precision. 0 where something else than one dense convolution
    reads the input.
    """
    stem = first_convolution(model)
    if stem is None:
        return 0
    channels = int(stem.rows.shape[1])
    if channels <= CHANNEL:
        return 0
    name = stem.node.name
    summed = stem.rows.astype(np.float64).sum(axis=1, keepdims=True).astype(np.float32)
    given = {"first": [CHANNEL], "last": [CHANNEL + 1], "axis": [1]}
    model.graph.initializer.append(numpy_helper.from_array(summed, f"{name}.weight_summed"))
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), f"{name}.{part}") for part, value in given.items()
    )
    stem.node.input[0], stem.node.input[1] = f"{name}/grey", f"{name}.weight_summed"
    ends = [f"{name}.{part}" for part in given]
    model.graph.node.insert(0, make_node("Slice", [INPUT, *ends], [f"{name}/grey"], name=f"{name}/Slice"))
    return channels - 1
