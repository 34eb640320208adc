"""Which of several beginnings of a pretraining run to go on with: linear probes on val, never on test.

    python -m benchmarks.pretrain.variants small build/pretrain/variants/*    # prints the best folder last

Each folder holds a run of train.py, of any length. Its averaged weights are probed on CIFAR-10 with 50 and 10 pictures a
class and on digits with 5, three draws each, every strength of the table's grid; the figure is the best strength's mean.
The best folder is that with the highest mean over the three.
Writes benchmarks/results/pretrain_variants_NAME.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.pretrain.train import RECIPES
from benchmarks.transfer.starts import start
from benchmarks.transfer.tasks import TASKS, Setting, Task
from benchmarks.transfer.tuning import Probe
from toolchain.device import select
from toolchain.runtime import host

RESULTS = Path(__file__).parents[1] / "results"
SETTINGS = (Setting("cifar10", 50), Setting("cifar10", 10), Setting("digits", 5))
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
DRAWS = 3
CHANGED = ("lr", "batch", "contrast", "shares", "grown_from")


@cache
def task(name: str) -> Task:
    """A task, read once a process."""
    return TASKS[name]()


def probed(folder: Path, name: str) -> dict[str, Any]:
    """A row: what the run is, what it saw, and its mean accuracy on val for each setting, in percent."""
    device = select("auto", 1)
    state = torch.load(folder / "last.pt", map_location="cpu", weights_only=True)
    classes = sum(count for part, count in state["sizes"].items() if part != "scene")
    row: dict[str, Any] = {"variant": folder.name, "classes": classes}
    row |= {part: state["plan"][part] for part in CHANGED if state["plan"][part]}
    row |= {"scenes": state["step"] * state["plan"]["batch"], "seconds": round(state["seconds"])}
    row |= {"generating": round(state["generating"] / state["seconds"], 3)}
    for setting in SETTINGS:
        row[f"{setting.task} {setting.per_class}"] = _best(setting, name, folder, device.torch)
    row["mean"] = round(statistics.mean(row[f"{s.task} {s.per_class}"] for s in SETTINGS), 2)
    return row


def _best(setting: Setting, name: str, folder: Path, device: torch.device) -> float:
    known, found = task(setting.task), []
    network = start(name, folder / "last.pt")
    for strength in STRENGTHS:
        scores = []
        for draw in range(DRAWS):
            model = network.model(known.classes, draw).to(device)
            probe = Probe(model, known.train(setting.count, draw), strength)
            scores.append(probe.evaluate(known.val, known.metric)[0])
        found.append(statistics.mean(scores))
    return round(max(found), 2)


def record(name: str, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows, as benchmarks/table.py draws them."""
    return {
        "what": f"beginnings of {name}'s pretraining: linear probes on val, percent right",
        "rows": rows,
        "host": host.facts(),
        "note": f"{DRAWS} draws of training pictures; the run of the highest mean went on.",
    }


def main() -> None:
    """Probe the folders and name the best."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("folders", nargs="+", type=Path)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(len(arguments.folders)) as pool:
        rows = list(pool.map(partial(probed, name=arguments.name), arguments.folders))
    path = RESULTS / f"pretrain_variants_{arguments.name}.json"
    path.write_text(json.dumps(record(arguments.name, rows), indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))
    best = max(range(len(rows)), key=lambda i: rows[i]["mean"])
    print(arguments.folders[best])


if __name__ == "__main__":
    main()
