"""What the bench adds to a call: its loop around an identity model, against a loop without clock or wrapper.

    python -m benchmarks.bench.harness_cost [--rounds 60] [--calls 10000]

Both sides time the same onnxruntime session, `rounds` times by turns in random order: *bare* calls
`InferenceSession.run` in a plain loop between two readings of the clock, *ours* is `timing.repeat` of `Session.run` in
blocks of 50 calls as the bench has them, with the clock readings, the lists, the collection of garbage between blocks and
all else that lies between two samples. The cost is the difference a call; its 95 % interval draws pairs of rounds.
Writes benchmarks/results/harness_cost.ISA.json. Pass: the whole interval lies below 10 microseconds; exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from toolchain.runtime import host, timing
from toolchain.runtime.session import Session

RESULT = Path(__file__).resolve().parents[1] / "results" / f"harness_cost.{host.isa()}.json"
BOUND_US = 10.0
_BLOCK = 50


def identity() -> bytes:
    """y = x, float32 [1]."""
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", *ends)
    opsets = [helper.make_opsetid("", 18)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def measure(rounds: int, calls: int) -> dict[str, NDArray[np.float64]]:
    """Microseconds a call, [rounds] a side; element i of both comes from the same round."""
    session = Session(identity())
    feed = {"x": np.zeros(1, np.float32)}
    raw = session._session  # the same onnxruntime session for both

    def bare() -> None:
        run = raw.run
        for _ in range(calls):
            run(None, feed)

    sides: dict[str, Callable[[], object]] = {
        "bare": bare,
        "ours": lambda: timing.repeat(
            partial(session.run, feed), _BLOCK, lambda done: done < calls // _BLOCK
        ),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    order = np.random.default_rng(0)
    for number in range(-3, rounds):  # three rounds warm up
        for name in order.permutation(list(sides)):
            start = perf_counter_ns()
            sides[name]()
            if number >= 0:
                taken[name].append((perf_counter_ns() - start) / calls / 1000)
    return {name: np.array(times) for name, times in taken.items()}


def summary(taken: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """The median difference a call with its interval."""
    cost = taken["ours"] - taken["bare"]
    drawn = np.random.default_rng(1).integers(0, len(cost), (4000, len(cost)))
    low, high = np.quantile(np.median(cost[drawn], axis=1), (0.025, 0.975))
    return {
        "bare, us a call": round(float(np.median(taken["bare"])), 3),
        "ours, us a call": round(float(np.median(taken["ours"])), 3),
        "cost, us a call": round(float(np.median(cost)), 3),
        "ci95": [round(float(low), 3), round(float(high), 3)],
        "bound, us": BOUND_US,
        "verdict": "pass" if high <= BOUND_US else "fail",
    }


def main() -> int:
    """Measure, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    taken = measure(asked.rounds, asked.calls)
    row = summary(taken)
    record = {
        "what": "What the bench adds to a call, on an identity model, one thread",
        "rows": [row], "rounds": asked.rounds, "calls": asked.calls,
        "us_a_call": {name: times.round(3).tolist() for name, times in taken.items()}, "host": host.facts(),
    }  # fmt: skip
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{row['cost, us a call']} us a call {row['ci95']}, bound {BOUND_US}: {row['verdict']}")
    return 0 if row["verdict"] == "pass" else 1


if __name__ == "__main__":
    sys.exit(main())
