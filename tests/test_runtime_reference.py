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


class Machine:
    """A clock of the wall and one of the processor; `away` of the time others have the processor, 8 ms at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: dict[str, int], away: float) -> None:
        self.times, self.away, self.worked, self.waited = times, away, 0, 0
        self.asked: list[str] = []
        monkeypatch.setattr(reference, "time_calls", self.time_calls)
        monkeypatch.setattr(reference, "perf_counter_ns", lambda: self.worked + self.waited)
        monkeypatch.setattr(reference, "thread_time_ns", lambda: self.worked)
        monkeypatch.setattr(reference, "warm_up", lambda *_: None)

    def time_calls(self, side: str, calls: int) -> list[int]:
        self.asked.append(side)
        found = []
        for _ in range(calls):
            before = self.waited
            self.worked += self.times[side]
            self.waited = int(self.worked * self.away / (1 - self.away) // 8_000_000) * 8_000_000
            found.append(self.times[side] + self.waited - before)
        return found


@pytest.mark.parametrize("away", [0.0, 0.6])
def test_waiting_for_a_processor_is_told_and_not_in_the_ratio(
    monkeypatch: pytest.MonkeyPatch, away: float
) -> None:
    machine = Machine(monkeypatch, {"model": 4_000_000, "unit": 500_000}, away)
    found = reference.paced("model", "unit")
    assert found.relative == pytest.approx(8.0)
    assert found.share == pytest.approx(1 - away, abs=0.02)
    assert (found.call_ns > 4_000_000) == (away > 0), "the wall's time has it"
    walls = np.mean(machine.time_calls("model", 99)), np.median(machine.time_calls("unit", 99))
    assert (walls[0] / walls[1] > 12) == (away > 0)


@pytest.mark.parametrize(("call_ns", "turns"), [(100_000, 8), (40_000_000, 8), (1_000_000_000, 3)])
def test_slow_models_have_fewer_turns(monkeypatch: pytest.MonkeyPatch, call_ns: int, turns: int) -> None:
    machine = Machine(monkeypatch, {"model": call_ns, "unit": 500_000}, 0.0)
    reference.paced("model", "unit")
    assert machine.asked[2:] == ["model", "unit"] * turns  # after three calls of each to size them
    assert reference.typical("model") == call_ns
