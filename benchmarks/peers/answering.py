"""What each file answers to the held-back pictures, through the runtime that it is made for; kept by content."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import install, process
from benchmarks.peers.entrants import Entrant
from benchmarks.peers.places import BUILD, ROOT, case_folder, read_json, write_json

LIMIT_S = 1800.0
FOREIGN = "openvino"  # the environment whose runtime is the foreign reference


def answers(case: str, entrant: Entrant, build: Path = BUILD) -> tuple[Any, str | None]:
    """Logits [n, C] of a file, or None with the reason: it was not made, or its runtime cannot load or run it."""
    if entrant.error:
        return None, entrant.error
    pictures = case_folder(case, build) / "held_back.npy"
    inputs = read_json(pictures.with_name("case.json")) or {}
    folder = build / "answers" / case / f"{entrant.sha256}.{inputs['sha256'][pictures.name][:16]}"
    done = read_json(folder / "done.json")
    if done is None:
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *program(entrant.foreign, build),
            "answers",
            str(entrant.file),
            str(pictures),
            str(folder / "logits.npy"),
        ]
        outcome = process.run(command, folder / "log.txt", surroundings(), LIMIT_S)
        done = {"error": outcome.error}
        write_json(folder / "done.json", done)
    if done["error"]:
        return None, f"its file does not run: {done['error']}"
    return np.load(folder / "logits.npy"), None


def program(foreign: bool, build: Path = BUILD) -> list[str]:
    """The command that runs sides.py: in our environment, or in the one that has OpenVINO too."""
    python = install.python(FOREIGN, build).absolute() if foreign else sys.executable
    return [str(python), "-m", "benchmarks.peers.sides"]


def surroundings() -> dict[str, str]:
    """Our packages come from this checkout in either environment."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
