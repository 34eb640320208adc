"""The reference that takes turns with a model: what it is, and what a machine that slows both down leaves of the ratio."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from toolchain.runtime import reference
from toolchain.runtime.fresh import Setup


def test_the_network_is_three_convolutions_and_never_another() -> None:
    model = onnx.load_from_string(reference.NETWORK)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == [
        "ConstantOfShape", *("Conv", "Relu") * 3, "GlobalAveragePool",
    ]  # fmt: skip
    (shape,) = model.graph.initializer
    assert onnx.numpy_helper.to_array(shape).tolist() == [32, 32, 3, 3]
    (answer,) = reference.reference(Setup().session)()
    assert answer.shape == (1, 32, 1, 1)
    assert np.ptp(answer) < 1e-6, "all channels have the same weights"
    assert 0.4 < answer.ravel()[0] < 0.5


@pytest.mark.parametrize("load", [1.0, 3.0])
def test_a_load_on_both_sides_cancels(monkeypatch: pytest.MonkeyPatch, load: float) -> None:
    times = {"model": 4_000_000, "unit": 500_000}
    rng = np.random.default_rng(0)

    def time_calls(side: str, calls: int) -> list[int]:
        burst = 1 if rng.random() < 0.9 else 3  # a neighbour comes and goes
        return [round(times[side] * load * burst)] * calls

    monkeypatch.setattr(reference, "time_calls", time_calls)
    monkeypatch.setattr(reference, "warm_up", lambda *_: None)
    typical, ratio = reference.paced("model", "unit")
    assert typical == round(times["model"] * load)
    assert ratio == pytest.approx(8.0)


@pytest.mark.parametrize(("call_ns", "turns"), [(100_000, 8), (40_000_000, 8), (1_000_000_000, 3)])
def test_slow_models_have_fewer_turns(monkeypatch: pytest.MonkeyPatch, call_ns: int, turns: int) -> None:
    asked: list[str] = []

    def time_calls(side: str, calls: int) -> list[int]:
        asked.append(side)
        return [call_ns if side == "model" else 500_000] * calls

    monkeypatch.setattr(reference, "time_calls", time_calls)
    monkeypatch.setattr(reference, "warm_up", lambda *_: None)
    reference.paced("model", "unit")
    assert asked[2:] == ["model", "unit"] * turns  # after three calls of each to size them
