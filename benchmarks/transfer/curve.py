"""Transfer against pictures seen: a linear probe of the weights that a pretraining run kept on its way.

    nice python -m benchmarks.transfer.curve small --run build/pretrain/small

Goes on where it was; writes benchmarks/results/transfer_curve_NAME.json. The probe's strength is searched on val for
each point, as in the table; 0 pictures is the random network.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.pretrain.train import RECIPES
from benchmarks.transfer.run import Cell
from benchmarks.transfer.starts import start
from benchmarks.transfer.tasks import TASKS, Setting, Task
from toolchain.device import select
from toolchain.runtime import host

RESULTS = Path(__file__).parents[1] / "results"
SETTINGS = (Setting("cifar10", 50), Setting("digits", 5))
DRAWS = 3


def points(name: str, run: Path, tasks: dict[str, Task]) -> list[dict[str, Any]]:
    """One point for the random network and one for each file of weights, [pictures, mean of each setting]."""
    device = select("auto", 1)
    sources: dict[int, Path | None] = {0: None}
    sources |= {int(path.stem.removeprefix("seen-")): path for path in sorted(run.glob("seen-*.pt"))}
    made = []
    for pictures, file in sources.items():
        origin = start(name, file) if file else start(f"{name}-random")
        point: dict[str, Any] = {"backbone": name, "pictures": pictures}
        for setting in SETTINGS:
            cell = Cell(setting, origin, "probe", run / "curve" / str(pictures))
            cell.fill(tasks[setting.task], DRAWS, device)
            scores = list(cell.facts["test"].values())[:DRAWS]
            point[f"{setting.task} {setting.per_class}"] = round(statistics.mean(scores), 2)
            point[f"{setting.task} sd"] = round(statistics.stdev(scores), 2)
        print(json.dumps(point), flush=True)
        made.append(point)
    return made


def main() -> None:
    """Draw the curve of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--run", type=Path, required=True, help="folder of train.py's run")
    arguments = parser.parse_args()
    tasks = {setting.task: TASKS[setting.task]() for setting in SETTINGS}
    record = {
        "what": f"linear probe of {arguments.name} against pretraining pictures seen: percent right, "
        "CIFAR-10 with 50 and digits with 5 pictures a class",
        "rows": points(arguments.name, arguments.run, tasks),
        "host": host.facts(),
        "note": f"{DRAWS} draws of training pictures.",
    }
    path = RESULTS / f"transfer_curve_{arguments.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
