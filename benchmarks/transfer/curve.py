"""Transfer against pictures seen: a linear probe of the weights that a pretraining run kept on its way.

    nice python -m benchmarks.transfer.curve small --run build/pretrain/small [--processes 2]

Goes on where it was; writes benchmarks/results/transfer_curve_NAME.json. The probe's strength is searched on val for
each point, as in the table; 0 pictures is the random network, and the package's weights are the last point.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.pretrain.train import RECIPES
from benchmarks.transfer.run import Cell
from benchmarks.transfer.starts import start
from benchmarks.transfer.tasks import ALL, TASKS, Setting, Task
from toolchain.backbones import bundled
from toolchain.device import select
from toolchain.runtime import host

RESULTS = Path(__file__).parents[1] / "results"
SETTINGS = (Setting("cifar10", 50), Setting("digits", 5), Setting("magnetic_tile", ALL))


@cache
def _task(name: str) -> Task:
    return TASKS[name]()


def point(mark: tuple[int, Path | None], name: str, run: Path) -> dict[str, Any]:
    """What the weights at one mark (pictures seen, their file; None: random) reach: the mean of each setting."""
    pictures, file = mark
    device = select("auto", 1)
    origin = start(name, file) if file else start(f"{name}-random")
    found: dict[str, Any] = {"backbone": name, "pictures": pictures}
    for setting in SETTINGS:
        folder = "package" if file and file.suffix == ".safetensors" else str(pictures)
        cell, task = Cell(setting, origin, "probe", run / "curve" / folder), _task(setting.task)
        cell.fill(task, task.draws, device)
        scores = list(cell.facts["test"].values())[: task.draws]
        found[f"{setting.task} {setting.per_class}"] = round(statistics.mean(scores), 2)
        found[f"{setting.task} sd"] = round(statistics.stdev(scores), 2)
    print(json.dumps(found), flush=True)
    return found


def points(name: str, run: Path, processes: int) -> list[dict[str, Any]]:
    """One point for the random network, one for each file of weights that the run kept, and one for the package's."""
    marks: list[tuple[int, Path | None]] = [(0, None)]
    marks += sorted((int(path.stem.removeprefix("seen-")), path) for path in run.glob("seen-*.pt"))
    shipped = bundled.weights_file(name)
    card = json.loads(shipped.with_suffix(".json").read_text())["pretraining"]
    marks.append((card["pictures"], shipped))
    with ProcessPoolExecutor(processes) as pool:
        found = list(pool.map(partial(point, name=name, run=run), marks))
    return [*found[:-1], found[-1] | {"run": f"the package's, {card['device']}"}]


def main() -> None:
    """Draw the curve of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--run", type=Path, required=True, help="folder of train.py's run")
    parser.add_argument("--processes", type=int, default=1, help="points at once [1]")
    arguments = parser.parse_args()
    record = {
        "what": f"linear probe of {arguments.name} against pretraining pictures seen: percent right, "
        "CIFAR-10 with 50 and digits with 5 pictures a class, magnetic tiles (balanced accuracy) with all",
        "rows": points(arguments.name, arguments.run, arguments.processes),
        "host": host.facts(),
        "note": "draws: " + ", ".join(f"{one.task} {TASKS[one.task].draws}" for one in SETTINGS),
    }
    path = RESULTS / f"transfer_curve_{arguments.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
