"""What a change of a network costs or gains in time, as a first impression: on a busy machine it is noise."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from toolchain.graph import INPUT
from toolchain.runtime.session import Session
from toolchain.runtime.timing import interleave


def latency_ratio(before: ModelProto, after: ModelProto, one: NDArray[np.float32]) -> float:
    """How many times the latency grew: medians of interleaved blocks, one thread. one: an input [1, 3, h, w]."""
    files = {"before": before, "after": after}
    sides = {
        name: partial(Session(model.SerializeToString()).run, {INPUT: one}) for name, model in files.items()
    }
    times = {name: float(np.median(taken)) for name, taken in interleave(sides, blocks=6, calls=15).items()}
    return times["after"] / times["before"]
