"""Does the bench say what is true: against a bare loop, against LoadGen, and against onnxruntime's own profile?

    python -m benchmarks.bench.fidelity [--rounds 60] [--seconds 0.7] [--models resnet18 …]

Three networks of timm with random weights at 224 x 224, fp32, batch 1, one thread. A machine's pace changes by a tenth from
one half second to the next, so what is compared shares it: a bare loop of ten lines takes a turn after every ten calls of
`runtime.bench.bench`, and after every ten queries of a shortened SingleStream test (whose clock has stopped by then; its
VALID or INVALID is kept). A round does both for `seconds` a side with new sessions, whose place in memory alone decides 3 %
of a small network's time. *of bare loop* is the median over rounds of the bench's p50 over the bare loop's; *of LoadGen*
that of this ratio over the one of LoadGen's own p50; *of profile* is our loop's p50 under profiling over that of `model_run`
in onnxruntime's profile of the same runs. Intervals draw rounds. A network with an interval that reaches across the bound
goes on, up to three times the rounds; an interval has 98.3 % at each of these looks, so that all have 95 % together. Each
round is a line of build/bench/fidelity.MODEL.SECONDSs.jsonl: started again, it goes on after the last (take the logs away
for new figures). Writes benchmarks/results/fidelity.ISA.json. Pass: every interval lies within 2 % of 1, and LoadGen says
VALID each time. Exit 1 when an interval lies beyond or a test is INVALID, 4 when one still reaches across.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import timm
import torch

from toolchain.loadgen import Load, run_loadgen
from toolchain.loadgen.system import System
from toolchain.runtime import host, timing
from toolchain.runtime.bench import Asked, Sampling, bench
from toolchain.runtime.bench_input import Wish, prepare
from toolchain.runtime.session import Session
from toolchain.runtime.trace import TracedSession

RESULT = Path(__file__).resolve().parents[1] / "results" / f"fidelity.{host.isa()}.json"
MODELS = ("resnet18", "mobilenetv2_100", "efficientnet_lite0")
SIDE = 224
BOUND = 0.02
TURN = 10  # calls, then it is the other side's
_DROP = 10
LOOKS = 3  # at most, of `rounds` each
_TAIL = 0.05 / LOOKS / 2
_PAIRS = {
    "of bare loop": lambda row: row["ours"][0] / row["ours"][1],
    "of LoadGen": lambda row: (row["ours"][0] / row["ours"][1]) / (row["loadgen"][0] / row["loadgen"][1]),
    "of profile": lambda row: row["profile"][0] / row["profile"][1],
}


class Bare:
    """The bare loop, in turns, with a session of its own."""

    def __init__(self, model: Path, feed: dict[str, Any]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._feed = feed
        self.times: list[int] = []
        self.turn()
        self.times.clear()

    def turn(self) -> None:
        """Ten calls."""
        for _ in range(TURN):
            start = time.perf_counter_ns()
            self._session.run(None, self._feed)
            self.times.append(time.perf_counter_ns() - start)

    @property
    def p50(self) -> float:
        """In ns."""
        return float(np.median(self.times))


def ours(model: Path, seconds: float, bare: Bare) -> tuple[float, float]:
    """The bench's p50 in ns, from its record, and the bare loop's between its blocks."""
    blocks = timing.repeat

    def by_turns(side: timing.Side, calls: int, more: Callable[[int], bool]) -> list[list[int]]:
        def then(done: int) -> bool:
            bare.turn()
            return more(done)

        return blocks(side, calls, then)

    sampling = Sampling(calls=TURN, seconds=2 * seconds, cold_starts=0, traced=1)
    with patch.object(timing, "repeat", by_turns):
        found = bench(model, Asked(sampling=sampling)).cases[0]
    p50 = found.percentiles["p50"]
    return float(np.median(found.blocks)) if p50 is None else p50.ns, bare.p50


def loadgen(model: Path, seconds: float, bare: Bare, verdicts: list[str]) -> tuple[float, float]:
    """LoadGen's 50th percentile in ns, from its own summary, and the bare loop's between its queries."""
    answer, count = System.issue, itertools.count(1)

    def by_turns(system: System, queries: list[Any]) -> None:
        answer(system, queries)
        if next(count) % TURN == 0:
            bare.turn()

    with tempfile.TemporaryDirectory() as folder, patch.object(System, "issue", by_turns):
        record = run_loadgen(model, Asked(), Load("single-stream", seconds=2 * seconds), Path(folder, "logs"))
    if record.summary is None:
        raise RuntimeError("LoadGen left no summary")
    verdicts.append(record.summary.verdict)
    return record.summary.percentiles_ns["p50"], bare.p50


def profiled(model: Path, feed: dict[str, Any], runs: int) -> tuple[float, float]:
    """(our loop's p50, the profile's p50 of `model_run`) of the same runs, in ns."""
    with tempfile.TemporaryDirectory() as folder:
        session = TracedSession(model, Path(folder))
        seen = timing.time_calls(partial(session.run, feed), _DROP + runs)
        told = session.finish(_DROP)
    return float(np.median(seen[_DROP:])), float(np.median(told.runs_ns))


def exported(name: str, path: Path) -> Path:
    """A network of timm with random weights."""
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False).eval()
    torch.onnx.export(
        network, (torch.randn(2, 3, SIDE, SIDE),), path, dynamo=True, input_names=["input"], external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    return path


def measure(name: str, rounds: int, seconds: float, log: Path) -> dict[str, Any]:
    """All sides of one network, by rounds; those of the log are not measured again."""
    done = kept(log, LOOKS * rounds)
    with tempfile.TemporaryDirectory() as folder:
        model = exported(name, Path(folder, f"{name}.onnx"))
        session = Session(model)
        feed = prepare(session.inputs, session.metadata, Wish(), name).feed
        while wanted(done, rounds):
            number = len(done)
            verdicts: list[str] = []
            sides: dict[str, Callable[[Bare], tuple[float, float]]] = {
                "ours": lambda bare: ours(model, seconds, bare),
                "loadgen": lambda bare: loadgen(model, seconds, bare, verdicts),  # noqa: B023  # called in this round
            }
            order = np.random.default_rng(number).permutation(list(sides))
            row: dict[str, Any] = {side: sides[side](Bare(model, feed)) for side in order}
            runs = max(20, int(seconds * 1e9 / row["ours"][1] / 2))
            done.append({**row, "profile": profiled(model, feed, runs), "verdict": verdicts[0]})
            with log.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(f"{name}: round {number + 1} of {_up(number + 1, rounds)}", file=sys.stderr, flush=True)
    return summary(done)


def wanted(done: list[dict[str, Any]], rounds: int) -> bool:
    """Whether a round more is wanted: to fill a look, or because the last look decided nothing and may not be the last."""
    count = len(done)
    if count < _up(count, rounds) or not count:
        return True
    return count < LOOKS * rounds and summary(done)["verdict"] == "inconclusive"


def _up(count: int, rounds: int) -> int:
    return -(-count // rounds) * rounds


def kept(log: Path, rounds: int) -> list[dict[str, Any]]:
    """The whole lines of a log, at most `rounds`; a line that a kill cut short is taken out of it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines if line.endswith("}\n")]
    log.write_text("".join(whole))
    return [json.loads(line) for line in whole[:rounds]]


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The ratios with their intervals, and what they were made from."""
    fields: dict[str, Any] = {"p50, ms": round(float(np.median([row["ours"][0] for row in rounds])) / 1e6, 4)}
    said = []
    for words, ratio in _PAIRS.items():
        ratios = np.array([ratio(row) for row in rounds])
        drawn = np.random.default_rng(1).integers(0, len(ratios), (4000, len(ratios)))
        ends = np.quantile(np.median(ratios[drawn], axis=1), (_TAIL, 1 - _TAIL))
        fields[words] = round(float(np.median(ratios)), 4)
        fields[f"{words}, ci95"] = [round(float(end), 4) for end in ends]
        said.append(judged(float(ends[0]), float(ends[1])))
    verdicts = [row["verdict"] for row in rounds]
    fields["LoadGen says"] = "VALID" if set(verdicts) == {"VALID"} else ", ".join(verdicts)
    said.append("pass" if set(verdicts) == {"VALID"} else "fail")
    fields["verdict"] = next(word for word in ("fail", "inconclusive", "pass") if word in said)
    raw = {side: [row[side] for row in rounds] for side in ("ours", "loadgen", "profile")}
    return fields | {"rounds": len(rounds), "raw_ns": raw}


def judged(low: float, high: float) -> str:
    """Whether an interval of a ratio lies within the bound, beyond it, or across it."""
    if max(abs(low - 1), abs(high - 1)) <= BOUND:
        return "pass"
    return "fail" if low - 1 > BOUND or 1 - high > BOUND else "inconclusive"


def main() -> int:
    """Measure, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--logs", type=Path, default=Path("build/bench"), help="of rounds, to go on from")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    before = host.facts()
    cases = {
        name: measure(
            name, asked.rounds, asked.seconds, asked.logs / f"fidelity.{name}.{asked.seconds:g}s.jsonl"
        )
        for name in asked.models
    }
    record = {
        "what": f"p50 of the bench over a bare loop's, LoadGen SingleStream's and onnxruntime's profile's, at {SIDE} px",
        "bound": BOUND, "rounds": asked.rounds, "seconds": asked.seconds, "turn": TURN, "cases": cases, "host": before,
        "note": f"Intervals of {100 * (1 - 2 * _TAIL):.1f} % at each of up to {LOOKS} looks, 95 % together.",
    }  # fmt: skip
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    for name, case in cases.items():
        told = ", ".join(f"{case[w]} {w}" for w in ("of bare loop", "of LoadGen", "of profile"))
        print(f"{name}: {told}, LoadGen {case['LoadGen says']}: {case['verdict']}")
    said = {case["verdict"] for case in cases.values()}
    return 1 if "fail" in said else 4 if "inconclusive" in said else 0


if __name__ == "__main__":
    sys.exit(main())
