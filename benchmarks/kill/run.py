"""Kill a run with SIGKILL at random moments, restart it each time, and compare its ONNX files with an undisturbed run's.

    python benchmarks/kill/run.py [--recipe quickstart] [--kills 10] [--seed 0]

Writes benchmarks/results/kill.ISA.json; exits 1 when any file differs by a byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from toolchain.runtime import host
from toolchain.store import Store, hash_path

RESULT = Path(__file__).resolve().parents[1] / "results" / f"kill.{host.isa()}.json"


def command(recipe: str, folder: Path) -> list[str]:
    """The run, in a folder of its own."""
    program = [sys.executable, "-c", "from toolchain.cli import main; main()", "run", recipe]
    return [*program, "--out", str(folder / "run"), "--store", str(folder / "store")]


def undisturbed(recipe: str, folder: Path) -> float:
    """Run to the end; seconds."""
    started = time.monotonic()
    subprocess.run(command(recipe, folder), check=True)
    return time.monotonic() - started


def killed(recipe: str, folder: Path, kills: int, span: float, seed: int) -> list[float]:
    """Start, kill after a random while, and again; returns the moments (seconds after each start)."""
    chance = random.Random(seed)
    moments = []
    while len(moments) < kills:
        moment = chance.uniform(2, span)
        process = subprocess.Popen(command(recipe, folder), start_new_session=True, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            print("finished before it could be killed", flush=True)
            break
        moments.append(round(moment, 2))
        print(f"killed after {moment:.1f} s ({len(moments)} of {kills})", flush=True)
    return moments


def onnx_files(folder: Path) -> dict[str, str]:
    """sha256 of every ONNX file, by the key of the artifact it lies in."""
    entries = Store(folder / "store").entries()
    return {
        f"{e.record.step}/{e.record.key}/{p.name}": hash_path(p)
        for e in entries
        for p in e.folder.glob("*.onnx")
    }


def main() -> int:
    """Compare, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        seconds = undisturbed(asked.recipe, Path(first))
        moments = killed(asked.recipe, Path(second), asked.kills, seconds / 6, asked.seed)
        undisturbed(asked.recipe, Path(second))
        one, two = onnx_files(Path(first)), onnx_files(Path(second))
    same = one == two and bool(one)
    row = {
        "recipe": asked.recipe, "kills": len(moments), "undisturbed run, s": round(seconds, 1),
        "ONNX files compared": len(one), "same bytes": same,
    }  # fmt: skip
    what = "Runs killed with SIGKILL at random moments and restarted, against an undisturbed run in another folder"
    record = {"what": what, "rows": [row], "moments_s": moments, "host": host.facts()}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{len(one)} ONNX files, {'all the same' if same else 'NOT the same'} after {len(moments)} kills")
    return 0 if same and len(moments) == asked.kills else 1


if __name__ == "__main__":
    sys.exit(main())
