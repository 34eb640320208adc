"""Small models and short samplings for the tests of benchmarks; figures themselves are never tested."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime_helpers import fused_model, plain_model

from toolchain.runtime import timing
from toolchain.runtime.bench import Asked, Sampling
from toolchain.runtime.warm_up import Steadiness

QUICK = Sampling(
    blocks=3, calls=8, cold_starts=0, traced=2, warm_up=Steadiness(seconds=0.0, window_seconds=0.001)
)


def quick(**asked: Any) -> Asked:
    """A bench of a few milliseconds, without fresh processes."""
    return Asked(sampling=replace(QUICK, **asked.pop("sampling", {})), **asked)


def hearing_ctrl_c() -> None:
    """For Popen's preexec_fn: a shell that starts the tests in the background lets them, and their children, ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def second_timing_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[int]:
    """Let blocks be timed but for the second time; an item a time, and cleared it counts anew."""
    real, times = timing.repeat, list[int]()

    def repeat(*given: Any) -> list[list[int]]:
        times.append(1)
        if len(times) == 2:
            raise error
        return real(*given)

    monkeypatch.setattr(timing, "repeat", repeat)
    return times


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def plain(folder: Path) -> Path:
    """float32 `input` [N, 3, 4, 4]."""
    return saved(plain_model(), folder / "plain.onnx")


def fused(folder: Path) -> Path:
    """uint8 `pictures` [N, H, W, 3]."""
    return saved(fused_model(), folder / "fused.onnx")


def elementwise(operator: str, shape: list[Any], dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """One node from `x` to `y` of the same shape."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], name="only")], "g",
        [helper.make_tensor_value_info("x", dtype, shape)], [helper.make_tensor_value_info("y", dtype, shape)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def identity() -> onnx.ModelProto:
    """The model with nothing in it: what remains is the harness and onnxruntime's own entry."""
    return elementwise("Identity", [1])


def not_a_number(shape: tuple[int, ...] | list[int] = (1,)) -> onnx.ModelProto:
    """float32 of `shape` -> its input divided by nought, times nought."""
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    nodes = [helper.make_node("Mul", ["x", "zero"], ["m"]), helper.make_node("Div", ["m", "zero"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))], [zero],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
