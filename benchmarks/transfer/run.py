"""Fill the transfer table: every start, task, number of pictures a class and way of using the weights.

    nice python -m benchmarks.transfer.run                                  # everything; again goes on
    python -m benchmarks.transfer.run --tasks cifar10 --per-class 50 --starts small small-random --draws 5
    python -m benchmarks.transfer.table                                     # the record and the cards' tables

One protocol for every start: the same schedule, and the same search of the learning rate (of the probe's strength)
on val with draw 0, which goes on beyond the grid's edge until the best lies inside. Test is read once a draw. Each
cell is a JSON file of its own, written after each training, so a killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.transfer.starts import Start, names, start
from benchmarks.transfer.tasks import ALL, TASKS, Setting, Task, settings
from benchmarks.transfer.tuning import Probe, evaluate, tune
from toolchain.device import Device, select
from toolchain.runtime import host
from toolchain.runtime.whole import write_whole

CELLS = Path(__file__).parents[1] / "results" / "transfer"
Way = Literal["tune", "probe"]
GRIDS: dict[Way, tuple[float, ...]] = {"tune": (1e-3, 3e-3, 1e-2), "probe": (1e-3, 1e-2, 1e-1)}
BOUNDS: dict[Way, tuple[float, float]] = {"tune": (1e-5, 1.0), "probe": (1e-5, 1e4)}
WIDTHS: dict[Way, float] = {"tune": 3.3, "probe": 10.0}


@dataclass
class Cell:
    """One start on one task: what was searched and scored so far, kept in a file."""

    setting: Setting
    start: Start
    way: Way
    folder: Path

    def __post_init__(self) -> None:
        self.path = (
            self.folder / f"{self.setting.task}.{self.setting.per_class}.{self.way}.{self.start.name}.json"
        )
        given = {
            "task": self.setting.task,
            "per_class": self.setting.per_class,
            "way": self.way,
            "start": self.start.name,
            "weights_sha256": self.start.sha256,
            "schedule": asdict(self.setting.schedule),
            "told": TASKS[self.setting.task].told,
        }
        self.facts: dict[str, Any] = {**given, "searched": {}, "test": {}, "seconds": 0.0}
        if self.path.exists():
            self.facts = json.loads(self.path.read_text())
            if any(self.facts.get(name) != value for name, value in given.items()):
                raise SystemExit(
                    f"{self.path}: made with other weights, splits or another schedule, remove it"
                )

    def fill(self, task: Task, draws: int, device: Device) -> None:
        """Search the rate, then score each draw that is not there yet."""
        rate = self._search(task, device)
        for draw in range(draws):
            if str(draw) not in self.facts["test"]:
                begun = time.process_time()
                self.facts["test"][str(draw)] = self._train(task, draw, rate, device, "test")[0]
                self._keep(begun)

    def _search(self, task: Task, device: Device) -> float:
        """The best rate on val with draw 0 (then by val loss), inside what was tried unless at a bound."""
        tried: dict[str, list[float]] = self.facts["searched"]
        todo = list(GRIDS[self.way])
        while todo:
            rate = todo.pop(0)
            if f"{rate:g}" not in tried:
                begun = time.process_time()
                tried[f"{rate:g}"] = list(self._train(task, 0, rate, device, "val"))
                self._keep(begun)
            if not todo:
                todo = beyond(tried, self.way)
        self.facts["rate"] = best(tried)
        return best(tried)

    def _train(
        self, task: Task, draw: int, rate: float, device: Device, split: Literal["val", "test"]
    ) -> tuple[float, float]:
        model = self.start.model(task.classes, draw).to(device.torch)
        data, scored = task.train(self.setting.count, draw), task.val if split == "val" else task.test(draw)
        if self.way == "probe":
            return Probe(model, data, rate).evaluate(scored, task.metric)
        tune(model, data, self.setting.schedule, rate, draw)
        return evaluate(model, scored, task.metric)

    def _keep(self, begun: float) -> None:
        self.facts["seconds"] += time.process_time() - begun
        self.facts["host"] = host.facts()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, json.dumps(self.facts, indent=1).encode())


def best(tried: dict[str, list[float]]) -> float:
    """The rate with the best accuracy, then the lowest loss."""
    return float(max(tried, key=lambda rate: (tried[rate][0], -tried[rate][1])))


def beyond(tried: dict[str, list[float]], way: Way) -> list[float]:
    """The next rate to try when the best of those tried lies on their edge; nothing when inside or at a bound."""
    rates, width, (least, most) = sorted(map(float, tried)), WIDTHS[way], BOUNDS[way]
    chosen = best(tried)
    if chosen == rates[0] and chosen / width >= least:
        return [float(f"{chosen / width:.1g}")]
    if chosen == rates[-1] and chosen * width <= most:
        return [float(f"{chosen * width:.1g}")]
    return []


def wanted(arguments: argparse.Namespace, device: Device) -> Iterator[tuple[Setting, Way, str]]:
    """The cells asked for; all of CIFAR-10 only where it was asked for or a GPU is there."""
    for setting in settings(arguments.tasks):
        asked = setting.per_class in (arguments.per_class or [setting.per_class])
        large = setting == Setting("cifar10", ALL) and device.kind == "cpu" and not arguments.per_class
        if asked and not large:
            for way in arguments.ways:
                for name in arguments.starts:
                    yield setting, way, name


def main() -> None:
    """Fill the cells asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--starts", nargs="+", choices=names(), default=names())
    parser.add_argument("--ways", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    parser.add_argument("--per-class", nargs="+", help="numbers of pictures a class, or all")
    parser.add_argument("--draws", type=int, help="of pictures, classifier and order [3; 5 folds of tiles]")
    parser.add_argument("--cells", type=Path, default=CELLS, help="the cells' folder")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    device = select(arguments.device, arguments.threads)
    loaded: dict[str, Task] = {}
    for setting, way, name in wanted(arguments, device):
        cell = Cell(setting, start(name), way, arguments.cells)
        if setting.task not in loaded:
            loaded[setting.task] = TASKS[setting.task]()
        task = loaded[setting.task]
        cell.fill(task, arguments.draws or task.draws, device)
        scores = {draw: round(score, 2) for draw, score in cell.facts["test"].items()}
        print(setting.task, setting.per_class, way, name, cell.facts["rate"], scores, flush=True)


if __name__ == "__main__":
    main()
