"""Does the bench say what is true: against a bare loop, against LoadGen, and against onnxruntime's own profile?

    python -m benchmarks.bench.fidelity [--rounds 30] [--seconds 2] [--models resnet18 …]

Three networks of timm with random weights at 224 x 224, fp32, batch 1, one thread. Each round times each side for
`seconds` in random order, every side with a session of its own: *ours* is `runtime.bench.bench`, *bare* the ten lines
below, *loadgen* a shortened SingleStream test (its VALID or INVALID is kept). A figure is the median over rounds of the
ratio of two sides' p50 of the same round, so that what changes slowly on the machine meets both; its 95 % interval draws
rounds. *of profile* is our loop's p50 under profiling over that of `model_run` in onnxruntime's profile of the same runs.
Each round is a line of build/bench/fidelity.MODEL.SECONDS.jsonl: started again, it goes on after the last (take the logs
away for new figures). Writes benchmarks/results/fidelity.ISA.json. Pass: every ratio lies within 2 % of 1, and LoadGen
says VALID each time; exit 1 otherwise. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch

from toolchain.loadgen import Load, run_loadgen
from toolchain.runtime import host, timing
from toolchain.runtime.bench import Asked, Sampling, bench
from toolchain.runtime.bench_input import Wish, prepare
from toolchain.runtime.session import Session
from toolchain.runtime.trace import TracedSession

RESULT = Path(__file__).resolve().parents[1] / "results" / f"fidelity.{host.isa()}.json"
MODELS = ("resnet18", "mobilenetv2_100", "efficientnet_lite0")
SIDE = 224
BOUND = 0.02
_DROP = 10


def bare_loop(model: Path, feed: dict[str, Any], seconds: float) -> float:
    """The ten lines: p50 in ns."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    times, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter_ns()
        session.run(None, feed)
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times[_DROP:]))


def ours(model: Path, seconds: float) -> float:
    """The bench's p50 in ns, from its record."""
    sampling = Sampling(calls=20, seconds=seconds, cold_starts=0, traced=1)
    found = bench(model, Asked(sampling=sampling)).cases[0]
    p50 = found.percentiles["p50"]
    return float(np.median(found.blocks)) if p50 is None else p50.ns


def loadgen(model: Path, seconds: float, verdicts: list[str]) -> float:
    """LoadGen's 50th percentile in ns, from its own summary."""
    with tempfile.TemporaryDirectory() as folder:
        record = run_loadgen(model, Asked(), Load("single-stream", seconds=seconds), Path(folder, "logs"))
    if record.summary is None:
        raise RuntimeError("LoadGen left no summary")
    verdicts.append(record.summary.verdict)
    return record.summary.percentiles_ns["p50"]


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
    done = kept(log, rounds)
    with tempfile.TemporaryDirectory() as folder:
        model = exported(name, Path(folder, f"{name}.onnx"))
        session = Session(model)
        feed = prepare(session.inputs, session.metadata, Wish(), name).feed
        for number in range(len(done), rounds):
            verdicts: list[str] = []
            sides: dict[str, Callable[[], float]] = {
                "ours": partial(ours, model, seconds),
                "bare": partial(bare_loop, model, feed, seconds),
                "loadgen": partial(loadgen, model, seconds, verdicts),
            }
            order = np.random.default_rng(number).permutation(list(sides))
            row: dict[str, Any] = {side: sides[side]() for side in order}
            runs = max(20, int(seconds * 1e9 / row["bare"] / 2))
            row["seen"], row["profile"] = profiled(model, feed, runs)
            done.append({**row, "verdict": verdicts[0]})
            with log.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    taken = {side: [row[side] for row in done] for side in ("ours", "bare", "loadgen", "seen", "profile")}
    return summary(taken, [row["verdict"] for row in done])


def kept(log: Path, rounds: int) -> list[dict[str, Any]]:
    """The whole lines of a log, at most `rounds`; a line that a kill cut short is taken out of it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines if line.endswith("}\n")]
    log.write_text("".join(whole))
    return [json.loads(line) for line in whole[:rounds]]


def summary(taken: dict[str, list[float]], verdicts: list[str]) -> dict[str, Any]:
    """The ratios with their intervals, and what they were made from."""
    fields: dict[str, Any] = {"p50, ms": round(float(np.median(taken["ours"])) / 1e6, 4)}
    pairs = {
        "of bare loop": ("ours", "bare"),
        "of LoadGen": ("ours", "loadgen"),
        "of profile": ("seen", "profile"),
    }
    for words, (a, b) in pairs.items():
        ratios = np.array(taken[a]) / np.array(taken[b])
        drawn = np.random.default_rng(1).integers(0, len(ratios), (4000, len(ratios)))
        ends = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
        fields[words] = round(float(np.median(ratios)), 4)
        fields[f"{words}, ci95"] = [round(float(end), 4) for end in ends]
    close = all(abs(fields[words] - 1) <= BOUND for words in pairs)
    fields["LoadGen says"] = "VALID" if set(verdicts) == {"VALID"} else ", ".join(verdicts)
    fields["verdict"] = "pass" if close and set(verdicts) == {"VALID"} else "fail"
    return fields | {"raw_ns": taken}


def main() -> int:
    """Measure, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--logs", type=Path, default=Path("build/bench"), help="of rounds, to go on from")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    before = host.facts()
    cases = {
        name: measure(
            name, asked.rounds, asked.seconds, asked.logs / f"fidelity.{name}.{asked.seconds:g}.jsonl"
        )
        for name in asked.models
    }
    record = {
        "what": f"p50 of the bench over a bare loop's, LoadGen SingleStream's and onnxruntime's profile's, at {SIDE} px",
        "bound": BOUND, "rounds": asked.rounds, "seconds": asked.seconds, "cases": cases, "host": before,
    }  # fmt: skip
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    for name, case in cases.items():
        told = ", ".join(f"{case[w]} {w}" for w in ("of bare loop", "of LoadGen", "of profile"))
        print(f"{name}: {told}, LoadGen {case['LoadGen says']}: {case['verdict']}")
    return 0 if all(case["verdict"] == "pass" for case in cases.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
