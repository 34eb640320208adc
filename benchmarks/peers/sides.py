"""A file in the runtime that it is made for: its answers, and many files timed in one process.

    python -m benchmarks.peers.sides answers FILE PICTURES OUT
    python -m benchmarks.peers.sides times PLAN OUT

Runs in our environment, or in that of OpenVINO, which has onnxruntime too: of our code only toolchain.runtime is
imported. ONNX files run through the session that ships; OpenVINO's files (.xml) in OpenVINO's runtime, as a
foreign reference, with its default precision. PLAN: JSON {"files": {name: path}, "picture": path, "blocks": n,
"seed": of the order of turns}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from toolchain.runtime.session import Session
from toolchain.runtime.timing import alternate, interleave

INPUT = "input"
OPENVINO = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1"}
Answer = Callable[[Any], Any]  # float32 [1, 3, h, w] -> logits [1, C]


def answerer(file: Path) -> Answer:
    """A loaded file, one thread. Raises what the runtime raises when the file cannot be loaded."""
    if file.suffix == ".xml":
        openvino = importlib.import_module("openvino")
        request = openvino.Core().compile_model(str(file), "CPU", OPENVINO).create_infer_request()
        return lambda picture: request.infer({0: picture})[0]
    session = Session(file)
    return lambda picture: session.run({INPUT: picture})[0]


def answers(file: Path, pictures: Any) -> Any:
    """Logits float32 [n, C] for pictures [n, 3, h, w], one by one. Raises ValueError for answers that are no numbers."""
    answer = answerer(file)
    rows = np.concatenate([np.array(answer(np.array(pictures[i : i + 1]))) for i in range(len(pictures))])
    if not np.isfinite(rows).all():
        raise ValueError(f"{file.name}: some answers are not finite")
    return rows.astype(np.float32)


def times(plan: dict[str, Any]) -> dict[str, Any]:
    """Raw nanoseconds: "blocks/NAME" [blocks, calls], interleaved; "mixed/NAME" [calls], alternating; "load" [2, 3]."""
    picture = np.load(plan["picture"])
    sides = {name: partial(answerer(Path(file)), picture) for name, file in plan["files"].items()}
    before = os.getloadavg()
    blocks = interleave(sides, blocks=plan["blocks"], seed=plan["seed"])
    mixed = alternate(sides, calls=10 * plan["blocks"], seed=plan["seed"])
    found: dict[str, Any] = {"load": np.array([before, os.getloadavg()])}
    found |= {f"blocks/{name}": samples for name, samples in blocks.items()}
    return found | {f"mixed/{name}": samples for name, samples in mixed.items()}


def main() -> int:
    """Answer or time."""
    what, *rest = sys.argv[1:]
    if what == "answers":
        file, pictures, out = map(Path, rest)
        np.save(out, answers(file, np.load(pictures, mmap_mode="r")))
    else:
        plan, out = map(Path, rest)
        np.savez(out, **times(json.loads(plan.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
