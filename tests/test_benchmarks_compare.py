"""The scripts behind the bars of `compare`: they go on where they were, and replays judge as the live ones do."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from test_compare_forms import record

from toolchain.runtime.bench_record import BenchRecord
from toolchain.runtime.session import Session

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks" / "compare"))
import planted
import replay
import saved


def row(ratio: float, turns: int = 10, seed: int = 0) -> replay.Row:
    """A comparison with blocks around 1 ms and a candidate that takes `ratio` times as long."""
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(turns):
        fast = 1e6 * (1 + 0.002 * rng.random((2, 8)))
        fast[1] *= ratio
        blocks.append([fast.astype(int).tolist(), (1.02 * fast).astype(int).tolist()])
    return {"seconds": 10.0, "turns": turns, "blocks": blocks, "verdicts": {"2": ("pass", 10)}}


def test_a_log_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    log, made = tmp_path / "runs" / "log.jsonl", list[int]()

    def one(number: int) -> replay.Row:
        made.append(number)
        return row(1.0)

    replay.resume(log, 2, one)
    log.write_text(log.read_text() + '{"number": 2, "seco')
    rows = replay.resume(log, 4, one)
    assert made == [0, 1, 2, 3]
    assert [r["number"] for r in rows] == [0, 1, 2, 3]
    assert [json.loads(line)["number"] for line in log.read_text().splitlines()] == [0, 1, 2, 3]
    assert len(replay.resume(log, 3, one)) == 3


@pytest.mark.parametrize(("ratio", "verdict"), [(1.0, "pass"), (1.05, "regression")])
def test_replays_say_what_their_blocks_say(ratio: float, verdict: str) -> None:
    found = replay.replay([row(ratio), row(ratio, turns=12, seed=1)], (2.0,), seconds=30, count=50)["2"]
    assert found[verdict] == 1.0
    assert found["turns_most"] >= 25


def test_a_planted_layer_costs_its_share_of_multiplications(tmp_path: Path) -> None:
    assert planted.macs(21) / planted.macs(20) == pytest.approx(1.05, abs=0.001)
    assert planted.macs(51) / planted.macs(50) == pytest.approx(1.02, abs=0.001)
    path = planted.chain(3, tmp_path / "chain.onnx")
    model = onnx.load(path)
    assert sum(node.op_type == "Conv" for node in model.graph.node) == 4
    answer = Session(path).run({"input": np.ones((2, 3, 32, 32), np.float32)})[0]
    assert answer.shape == (2, 10)
    assert np.isfinite(answer).all()


def paced(scale: float, seed: int, load: float) -> BenchRecord:
    """A record of a machine that was `load` times as slow."""
    relative = tuple(8 * scale * np.random.default_rng(seed).normal(1, 0.01, 6))
    one = record(scale)
    cold = replace(
        one.cases[0].cold_start_ns, relative=relative, call=tuple(round(1e6 * load * r) for r in relative)
    )
    blocks = tuple(tuple(round(load * ns) for ns in block) for block in one.cases[0].samples_ns)
    return replace(one, cases=(replace(one.cases[0], cold_start_ns=cold, samples_ns=blocks),))


def test_saved_records_are_paired_with_all_others() -> None:
    records = {
        layers: [paced(layers / 20, 10 * layers + number, load) for number, load in enumerate((1, 3, 1, 2))]
        for layers in (20, 22)
    }
    same, slower = (saved.row(records, 20, layers) for layers in (20, 22))
    assert (same["pairs"], same["pass"], same["regression"]) == (12, 12, 0)
    assert same["ratios of their p50"][1] > 2.9
    assert (slower["candidate"], slower["pairs"], slower["regression"]) == ("10 % more work", 16, 16)
    assert [row["beside"] for row in saved.kept(records)][:4] == [list(saved.beside(k)) for k in range(4)]
