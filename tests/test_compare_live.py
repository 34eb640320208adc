"""Two models timed in turns of fresh processes: what comes out, and what happens when something dies meanwhile."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import pytest
from onnx_helpers import mobile
from runtime_helpers import fused_model, make_bundle

from toolchain.compare import judge, live, sides
from toolchain.compare.gates import Gates
from toolchain.compare.live import Half, Series, Timing, Turn
from toolchain.compare.sides import Side
from toolchain.compare.workers import WorkerProcess
from toolchain.errors import HostError, ModelError, StoppedError, VerificationError
from toolchain.progress import Silent
from toolchain.runtime import worker
from toolchain.runtime.bench_input import Wish
from toolchain.runtime.fresh import Setup, write_feed

QUICK = Timing(max_seconds=60, pairs=2, block_seconds=0.002, seed=1)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Side, Side]:
    paths = [tmp_path / "base.onnx", tmp_path / "candidate.onnx"]
    onnx.save(mobile(), paths[0])
    onnx.save(mobile(seed=1, side=8), paths[1])
    return both(*paths)


def both(base: Path, candidate: Path, wish: Wish = Wish()) -> tuple[Side, Side]:  # noqa: B008
    (first, _), (second, _) = sides.find(base, candidate, "fused", Setup(), wish)
    return first, second


def stop_after(count: int) -> live.Done:
    def done(turns: Sequence[Turn]) -> Mapping[str, float | str] | None:
        return None if len(turns) == count else {"ratio": 1.0}

    return done


def run(pair: tuple[Side, Side], done: live.Done, timing: Timing = QUICK) -> Series:
    return live.run(*pair, timing, done, Silent())


def test_turns_keep_raw_samples_of_both_sides_from_fresh_processes(pair: tuple[Side, Side]) -> None:
    series = run(pair, stop_after(2))
    assert len(series.turns) == 2
    assert series.failure is None
    for turn in series.turns:
        for half in (turn.base, turn.candidate):
            assert np.shape(half.samples_ns) == (2, series.calls)
            assert min(map(min, half.samples_ns)) > 0
            assert all(isinstance(value, int) for value in half.samples_ns[0])
            assert half.first_answer_ns > half.session_ns > 0
            assert half.peak_bytes > 1 << 20
        assert 1 <= turn.dropped < series.calls
        assert turn.blocks.shape == (2, 2, series.calls - turn.dropped)
        assert math.isfinite(turn.log_ratio)


def test_no_turn_is_begun_that_would_end_too_late_but_one_always_is(pair: tuple[Side, Side]) -> None:
    series = run(pair, stop_after(99), Timing(max_seconds=0.01, pairs=2, block_seconds=0.002))
    assert len(series.turns) == 1


def turn_of(base: list[list[int]], candidate: list[list[int]]) -> Turn:
    halves = [Half(tuple(map(tuple, s)), 1_000_000, 200_000_000, 50_000_000) for s in (base, candidate)]
    return Turn(halves[0], halves[1], 1)


def test_a_turns_figures_are_of_the_fastest_and_the_median_calls_of_its_middle_pair() -> None:
    base = [[900, 100, 120], [900, 100, 100], [900, 400, 500]]
    candidate = [[9, 110, 900], [9, 105, 130], [9, 500, 520]]
    turn = turn_of(base, candidate)
    assert turn.log_ratio == pytest.approx(math.log(1.10))  # of 1.10, 1.05, 1.25; first calls do not count
    assert turn.typical_log_ratio == pytest.approx(math.log(117.5 / 100))


def test_a_slowdown_of_most_calls_is_seen_by_the_typical_ratio() -> None:
    turns = [turn_of([[9, 100, 100, 100]] * 2, [[9, 100, 120, 120]] * 2)] * 12
    latency, typical = judge.latency_checks(turns, 5.0, 15.0)
    assert latency.verdict == "pass"
    assert typical.verdict == "regression"
    assert "above latency's bound" not in typical.note
    some = [turn_of([[9, 100, 100, 100]] * 2, [[9, 100, 110, 110]] * 2)] * 12
    typical = judge.latency_checks(some, 5.0, 15.0)[1]
    assert (typical.verdict, typical.bound) == ("regression", 1.15)
    assert "above latency's bound of 1.050 for certain" in typical.note  # else a red stands within its bound
    assert judge.latency_checks(turns, 5.0, None)[1].verdict == "not judged"
    assert judge.latency_checks(turns, None, 15.0)[1].verdict == "regression"
    assert judge.latency_checks(turns, None, 30.0)[1].verdict == "pass"


def test_ctrl_c_keeps_the_turns_that_were_finished(pair: tuple[Side, Side]) -> None:
    def done(turns: Sequence[Turn]) -> Mapping[str, float | str] | None:
        if len(turns) == 2:
            raise KeyboardInterrupt
        return {}

    series = live.run(*pair, replace(QUICK, max_seconds=3600), done, Silent())
    assert len(series.turns) == 2
    assert isinstance(series.failure, StoppedError)
    assert series.failure.exit_code == 130


def test_ctrl_c_before_the_first_turn_is_just_that(
    pair: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(live.WorkerProcess, "answer", stopped)
    with pytest.raises(KeyboardInterrupt):
        live.run(*pair, QUICK, lambda turns: {}, Silent())


def test_turns_end_when_more_would_not_change_the_outcome() -> None:
    same = [turn_of([[9, 100, 100]] * 2, [[9, 100, 100]] * 2)]
    slower = [turn_of([[9, 100, 100]] * 2, [[9, 120, 120]] * 2)]
    gates = Gates()
    assert not judge.settled(judge.turn_checks(same * 3, gates))
    assert judge.settled(judge.turn_checks(same * 12, gates))
    assert judge.settled(judge.turn_checks(slower * 12, gates))
    assert [c.verdict for c in judge.turn_checks(slower * 12, gates)] == [
        "regression",
        "regression",
        "pass",
        "pass",
    ]


def test_a_typical_regression_ends_the_turns_though_latency_is_open() -> None:
    rng = np.random.default_rng(0)
    fastest = (1e6 * (1 + 0.05 * rng.normal(1, 1, 14))).astype(int)
    turns = [turn_of([[9, 10**6, 3 * 10**6]] * 2, [[9, int(f), 4 * 10**6]] * 2) for f in fastest]
    checks = judge.turn_checks(turns, Gates())
    assert [check.verdict for check in checks[:2]] == ["inconclusive", "regression"]
    assert judge.settled(checks)


def test_a_kernel_that_does_not_tell_memory_leaves_its_check_out(
    pair: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "memory", dict)
    onnx.save(mobile(), pair[0].file)
    write_feed(pair[0].file.with_suffix(".npz"), pair[0].prepared.feed)
    job = {
        "model": str(pair[0].file), "inputs": str(pair[0].file.with_suffix(".npz")),
        "setup": Setup().as_json(), "started_ns": 0,
    }  # fmt: skip
    said = io.StringIO()
    worker.serve(io.StringIO(f"{json.dumps(job)}\n{{}}\n"), said)
    assert json.loads(said.getvalue().splitlines()[-1]) == {"peak_bytes": 0, "steady_bytes": 0}
    unknown = Half(((9, 100, 100),) * 2, 1, 1, 0)
    assert "memory" not in {c.name for c in judge.turn_checks([Turn(unknown, unknown, 1)], Gates())}


def test_a_model_that_is_replaced_ends_the_series_and_loses_no_turn(pair: tuple[Side, Side]) -> None:
    def replace_it(turns: Sequence[Turn]) -> Mapping[str, float | str]:
        onnx.save(mobile(seed=3), pair[1].file)
        return {}

    series = run(pair, replace_it)
    assert len(series.turns) == 1
    assert isinstance(series.failure, ModelError)
    assert "candidate.onnx: was replaced, cut short or deleted while it was being compared" in str(
        series.failure
    )


def test_a_worker_that_is_killed_ends_the_series_and_loses_no_turn(
    pair: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, ask = [], WorkerProcess.ask

    def killing(self: WorkerProcess, question: Mapping[str, object]) -> Mapping[str, object]:
        asked.append(question)
        if len(asked) == 8:  # six a turn: the second turn
            os.kill(self._process.pid, signal.SIGKILL)
        return ask(self, question)

    monkeypatch.setattr(WorkerProcess, "ask", killing)
    series = run(pair, stop_after(5))
    assert len(series.turns) == 1
    assert isinstance(series.failure, HostError)
    assert "was ended by SIGKILL" in str(series.failure)


def test_a_worker_that_dies_in_the_first_turn_is_an_error(
    pair: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr("toolchain.compare.workers.sys.executable", "/bin/false")
    with pytest.raises(HostError, match=r"the process of the (base|candidate) .* ended by itself"):
        run(pair, stop_after(2))


def test_a_process_that_cannot_be_started_is_told(
    pair: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolchain.compare.workers.sys.executable", "/no/such/python")
    with pytest.raises(HostError, match=r"no process can be started for the (base|candidate) \(No such file"):
        run(pair, stop_after(2))


def test_a_disk_that_is_full_in_the_second_turn_loses_no_turn(
    pair: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> BinaryIO:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(turns: Sequence[Turn]) -> Mapping[str, float]:
        monkeypatch.setattr("toolchain.compare.workers.tempfile.TemporaryFile", full)
        return {}

    series = run(pair, fill)
    assert len(series.turns) == 1
    assert isinstance(series.failure, HostError)
    assert "No space left on device" in str(series.failure)


def test_a_silent_worker_is_given_up(pair: tuple[Side, Side]) -> None:
    with pytest.raises(HostError, match="gave no answer for 0 s"):
        run(pair, stop_after(2), Timing(pairs=2, patience=0.001))


def test_what_a_worker_says_is_told_with_its_side(tmp_path: Path, pair: tuple[Side, Side]) -> None:
    inputs = tmp_path / "input.npz"
    write_feed(inputs, {"wrong": np.zeros(3, np.float32)})
    with (
        WorkerProcess("base", pair[0].file, inputs, Setup(), 60) as worker,
        pytest.raises(ModelError, match=r"the base: .*base.onnx: cannot run on wrong float32"),
    ):
        worker.answer()


def test_both_sides_get_the_same_input(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    onnx.save(fused_model(), tmp_path / "fused.onnx")
    first, second = both(tmp_path / "fused.onnx", bundle)
    assert second.bundle == bundle
    assert first.bundle is None
    assert np.array_equal(first.prepared.feed["pictures"], second.prepared.feed["pictures"])
    assert first.prepared.input.source == "pictures"


def test_a_bundle_changed_on_disk_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    shutil.copy(bundle / "model.onnx", tmp_path / "other.onnx")
    onnx.save(fused_model(0.06), bundle / "model.onnx")
    with pytest.raises(VerificationError, match=r"model\.onnx"):
        both(tmp_path / "other.onnx", bundle)
