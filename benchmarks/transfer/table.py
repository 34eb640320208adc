"""The transfer table of one task: both starts, the same schedule and the same search of the learning rate."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import nn

from benchmarks.transfer.tuning import Pictures, Schedule, State, evaluate, start, tune, weights
from toolchain.backbones import bundled
from toolchain.backbones.files import digest_file
from toolchain.device import select
from toolchain.runtime import host

DRAWS = (0, 1, 2)


class Task(Protocol):
    """Labelled pictures. `schedules` says for each number of pictures a class how long is tuned; `curve` at
    which of them, and at which learning rate, the pretraining's curve is drawn."""

    told: ClassVar[str]
    schedules: ClassVar[Mapping[int, Schedule]]
    rates: ClassVar[tuple[float, ...]]
    curve: ClassVar[tuple[int, float]]
    classes: int
    val: Pictures
    test: Pictures

    def train(self, count: int, draw: int) -> Pictures:
        """`count` training pictures a class, drawn with seed `draw`."""
        ...


def tuned(task: Task, count: int, draw: int, pretrained: State | None, lr: float) -> nn.Module:
    """nano fine-tuned on one draw, from the weights given or from random ones."""
    model = start(pretrained, task.classes, draw)
    tune(model, task.train(count, draw), task.schedules[count], lr, draw)
    return model


def search(task: Task, count: int, pretrained: State | None) -> tuple[float, dict[str, float]]:
    """The learning rate that is best on val with draw 0 (then by val loss), and val's top-1 for each."""
    found = {lr: evaluate(tuned(task, count, DRAWS[0], pretrained, lr), task.val) for lr in task.rates}
    best = max(task.rates, key=lambda lr: (found[lr][0], -found[lr][1]))
    return best, {f"{lr:g}": round(top1, 2) for lr, (top1, _) in found.items()}


def row(task: Task, count: int, pretrained: State | None, lr: float) -> dict[str, Any]:
    """Top-1 on test in percent over the draws: mean, standard deviation, each."""
    scores = [evaluate(tuned(task, count, draw, pretrained, lr), task.test)[0] for draw in DRAWS]
    return {
        "mean": round(statistics.mean(scores), 2),
        "sd": round(statistics.stdev(scores), 2),
        "top1": [round(score, 2) for score in scores],
    }


def rows(task: Task, path: Path) -> list[dict[str, Any]]:
    """For each number of pictures a class, both starts."""
    starts: dict[str, State | None] = {"random": None, "nano": weights(path)}
    found = []
    for count in task.schedules:
        for name, pretrained in starts.items():
            lr, val = search(task, count, pretrained)
            found.append({"per_class": count, "start": name, "lr": lr, "val_top1": val})
            found[-1] |= row(task, count, pretrained, lr)
            print(json.dumps(found[-1]), flush=True)
    return found


def curve(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Transfer of the weights kept on the way of a pretraining run (`seen-*.pt`), and of random ones (0)."""
    count, lr = task.curve
    sources: dict[int, Path | None] = {0: None}
    sources |= {int(path.stem.removeprefix("seen-")): path for path in sorted(folder.glob("seen-*.pt"))}
    points = []
    for pictures, path in sources.items():
        point = {"pictures": pictures, "per_class": count, "lr": lr}
        points.append(point | row(task, count, weights(path) if path else None, lr))
        print(json.dumps(points[-1]), flush=True)
    return points


def protocol(task: Task) -> dict[str, Any]:
    """How the table was made, for whoever reads it."""
    return {
        "task": task.told,
        "n_test": len(task.test.labels),
        "n_val": len(task.val.labels),
        "learning_rates": list(task.rates),
        "chosen": "on val with draw 0, for each start and number of pictures; ties by val loss",
        "draws": len(DRAWS),
        "optimizer": "AdamW on all parameters, warm-up a tenth, cosine, label smoothing 0.1, "
        "small rotation, scale and shift",
        "schedules": {str(count): asdict(schedule) for count, schedule in task.schedules.items()},
        "curve": "at one learning rate for all points, without a search",
        "unit": "top-1 in percent, mean and standard deviation over draws of pictures, head and order",
    }


def main(kind: type[Task], description: str | None) -> None:
    """Measure a task's table (and the curve, when a run's folder is given) and write the record."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=bundled.weights_file("nano"))
    parser.add_argument("--out", type=Path, required=True, help="the record to write, JSON")
    parser.add_argument("--run", type=Path, help="folder of a pretraining run, for the curve")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    select("cpu", arguments.threads)
    begun = time.monotonic()
    task = kind()
    record: dict[str, Any] = {"protocol": protocol(task), "rows": rows(task, arguments.weights)}
    if arguments.run:
        record["curve"] = curve(task, arguments.run)
    record |= {
        "weights": arguments.weights.name,
        "weights_sha256": digest_file(arguments.weights),
        "seconds": round(time.monotonic() - begun),
        "threads": arguments.threads,
        "host": host.facts(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
