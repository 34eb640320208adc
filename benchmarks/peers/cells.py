"""Every setting of every rival on every case: drivers run as processes, one cell of the table each.

    python -m benchmarks.peers.cells [CASE …] [--only RIVAL …] [--retry] [--limit SECONDS]

A cell whose inputs, driver and environment are what they were is not made again; --retry runs those again that
failed. A driver that fails leaves its last error line and is a row of the table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers import install, process
from benchmarks.peers.places import (
    BUILD,
    CASES,
    HERE,
    case_folder,
    cell_folder,
    digest,
    parts,
    read_json,
    write_json,
)
from benchmarks.peers.rivals import RIVALS, Rival, Setting, rivals

DRIVERS = HERE / "drivers"
LIMIT_S = 1800.0


def main() -> int:
    """Make the cells that are missing; exit code 0 also where some fail."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--only", nargs="+", default=[rival.name for rival in RIVALS], metavar="RIVAL")
    parser.add_argument("--retry", action="store_true", help="run failed cells again")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds a driver may take")
    asked = parser.parse_args()
    for part in [part for case in asked.cases for part in parts(case)]:
        wanted = [
            (rival, one) for rival in rivals(part) if rival.name in asked.only for one in rival.settings
        ]
        for rival, setting in wanted:
            cell = make(part, rival, setting, retry=asked.retry, limit_s=asked.limit)
            print(f"{part}: {rival.cell(setting)}: {cell['error'] or 'made'}", flush=True)
    return 0


def make(
    case: str,
    rival: Rival,
    setting: Setting,
    *,
    retry: bool = False,
    limit_s: float = LIMIT_S,
    build: Path = BUILD,
) -> dict[str, Any]:
    """One cell: taken from its folder when it was made from the same inputs, or else made.

    Returns {"identity", "error", "seconds", "cpu_seconds", "peak_bytes", "sha256"}; seconds are the whole process, imports
    included.
    """
    folder = cell_folder(case, rival.cell(setting), build)
    given = identity(case, rival, setting, build)
    known = read_json(folder / "cell.json")
    if known and known["identity"] == given and (not known["error"] or not retry):
        return known
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    missing = install.problem(rival.environment, build)
    outcome = (
        process.Outcome(0.0, 0.0, 0, missing) if missing else drive(case, rival, setting, limit_s, build)
    )
    out = folder / setting.file
    error = outcome.error or (None if out.is_file() else f"the driver wrote no {setting.file}")
    cell: dict[str, Any] = {
        "identity": given,
        "error": error,
        "seconds": round(outcome.seconds, 1),
        "cpu_seconds": round(outcome.cpu_seconds, 1),
        "peak_bytes": outcome.peak_bytes,
        "sha256": None if error else digest(out),
    }
    write_json(folder / "cell.json", cell)
    return cell


def identity(case: str, rival: Rival, setting: Setting, build: Path = BUILD) -> dict[str, str | None]:
    """What decides a cell: the case's float file and calibration pictures, the driver and the environment."""
    inputs = read_json(case_folder(case, build) / "case.json")
    if inputs is None:
        raise SystemExit(f"{case}: no inputs; run python -m benchmarks.peers.cases")
    state = read_json(install.environment(rival.environment, build).with_suffix(".json"))
    return {
        "model": inputs["sha256"]["fp32.onnx"],
        "calibration": inputs["sha256"]["calibration.npy"],
        "setting": setting.name,
        "driver": digest(DRIVERS / rival.driver),
        "common": digest(DRIVERS / "common.py"),
        "requirements": state["requirements"] if state else None,
    }


def drive(case: str, rival: Rival, setting: Setting, limit_s: float, build: Path) -> process.Outcome:
    """Run a driver inside its environment; driver.log is kept beside its file."""
    inputs, folder = case_folder(case, build), cell_folder(case, rival.cell(setting), build)
    files = (inputs / "fp32.onnx", inputs / "calibration.npy", folder / setting.file)
    command = [
        str(install.python(rival.environment, build).absolute()), str(DRIVERS / rival.driver),
        *(str(file.absolute()) for file in files), setting.name,
    ]  # fmt: skip
    return process.run(command, folder / "driver.log", surroundings(os.environ, folder), limit_s)


def surroundings(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment variables of a driver: its own home and caches, no way to our packages, nothing sent home."""
    kept = {name: value for name, value in given.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    private = folder.absolute() / "home"
    private.mkdir(exist_ok=True)
    return kept | {
        "HOME": str(private), "XDG_CACHE_HOME": str(private), "TMPDIR": given.get("TMPDIR", "/tmp"),
        "ORT_DISABLE_TELEMETRY": "1", "OLIVE_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
