"""Latency of every file that runs, interleaved on one thread. Wants a quiet machine.

    python -m benchmarks.peers.timing [CASE …] [--blocks 30] [--processes 1]

All files take turns in one process; several such processes, one after another, load each file anew, for two copies of
one file differ by 1 to 2 % in a process (Zen 4). Where there are ten, intervals of a case of one part draw processes; else
rounds, as if all were of one process. Runs in OpenVINO's environment where there is one, so that its files take turns
with the others; otherwise in ours, and those rows have no times. The load before and after goes into the record.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import install, process, record
from benchmarks.peers.answering import FOREIGN, answers, program, surroundings
from benchmarks.peers.entrants import entrants
from benchmarks.peers.places import BUILD, CASES, case_folder, parts, write_json
from toolchain.runtime import host

LIMIT_S = 7200.0


def main() -> int:
    """Time the cases; exit code 1 when a timing process fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument(
        "--blocks", type=int, default=30, help="rounds a process; 20 at least in all for a record"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="how often all of it, each file loaded anew; ten for intervals over processes",
    )
    asked = parser.parse_args()
    if asked.processes < 1:
        parser.error("--processes: one at least")
    failed = 0
    for case in asked.cases:
        errors = [
            f"{part}: {error}"
            for part in parts(case)
            if (error := measure(part, asked.blocks, asked.processes))
        ]
        failed += bool(errors)
        print("\n".join(errors) or f"{case}: {record.write(case)}", flush=True)
    return 1 if failed else 0


def measure(case: str, blocks: int, processes: int = 1, build: Path = BUILD) -> str | None:
    """Time all files of a case or part that answered; returns why not, or None. Leaves raw samples below build."""
    with_foreign = install.problem(FOREIGN, build) is None
    running = {
        entrant.name: entrant
        for entrant in entrants(case, build)
        if answers(case, entrant, build)[1] is None and (with_foreign or not entrant.foreign)
    }
    folder = build / "times" / case
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "picture.npy", np.load(case_folder(case, build) / "held_back.npy", mmap_mode="r")[:1])
    files = {name: str(entrant.file.absolute()) for name, entrant in running.items()}
    plan = {"files": files, "picture": str((folder / "picture.npy").absolute()), "blocks": blocks}
    (folder / "times.json").unlink(missing_ok=True)
    taken = []
    for seed in range(processes):
        write_json(folder / "plan.json", plan | {"seed": seed})
        command = [*program(with_foreign, build), "times", str(folder / "plan.json"), str(folder / "raw.npz")]
        outcome = process.run(command, folder / "log.txt", surroundings(), LIMIT_S)
        if outcome.error is not None:
            return outcome.error
        taken.append(dict(np.load(folder / "raw.npz")))
    np.savez(folder / "raw.npz", **pooled(taken))
    hashes = {name: entrant.sha256 for name, entrant in running.items()}
    state = {"sha256": hashes, "host": host.facts(), "blocks": blocks * processes, "processes": processes}
    write_json(folder / "times.json", state)
    return None


def pooled(taken: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The samples of several processes: rounds after rounds, and the highest load before and after one."""
    loads = np.max([each["load"] for each in taken], axis=0)
    names = taken[0].keys() - {"load"}
    return {"load": loads, **{name: np.concatenate([each[name] for each in taken]) for name in names}}


if __name__ == "__main__":
    sys.exit(main())
