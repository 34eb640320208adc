"""One step of the toolchain outside of a pipeline and its store, for benchmarks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.data.dataset import Data
from toolchain.device import select
from toolchain.progress import Silent
from toolchain.record import Record
from toolchain.step import Context, Step


def run_step(step: Step, source: Path, out: Path, data: Data, threads: int = 1) -> Path:
    """Run `step` on the artifact in `source` into the new folder `out`; returns where an exported plain file lies."""
    about = Record(key="", step="", version=0, settings={}, parents={}, libraries={}, seconds=0.0)
    out.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(out, Path(scratch), data, select("cpu", threads), 0, Silent())
        step.run({"model": Artifact(step.takes["model"], source, about)}, context)
    return out / graph.PLAIN
