"""What the bundled nano's pretraining brings over random weights on handwritten digits.

    python -m benchmarks.transfer.digits --out benchmarks/results/transfer_digits.json

Test is the last 540 digits in order (writers likely unseen), val a stratified part of the rest. The learning
rate of each start and number of pictures is chosen on val with draw 0; test is read once per draw, at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.transfer.tuning import Pictures, Schedule, State, evaluate, prepare, start, tune, weights
from toolchain.backbones import bundled
from toolchain.data import digits
from toolchain.data.settings import Split
from toolchain.data.split import limit
from toolchain.device import select
from toolchain.runtime import host

COUNTS = {5: Schedule(steps=120), 20: Schedule(steps=200), 100: Schedule(steps=400)}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
DRAWS = (0, 1, 2)


class Digits:
    """The digits at one size; `train(count, draw)` gives `count` pictures a class."""

    def __init__(self, size: int) -> None:
        self.size = size
        data = digits.load(Split(val=0.15, seed=0), None)
        self._pool = data.train
        self.val, self.test = prepare(data.val, size), prepare(data.test, size)

    def train(self, count: int, draw: int) -> Pictures:
        """`count` training pictures a class, drawn with seed `draw`."""
        return prepare(limit(self._pool, count, draw), self.size)


def tuned(data: Digits, count: int, draw: int, pretrained: State | None, lr: float) -> nn.Module:
    """nano fine-tuned on one draw, from the weights given or from random ones."""
    model = start(pretrained, 10, draw)
    tune(model, data.train(count, draw), COUNTS[count], lr, draw)
    return model


def search(data: Digits, count: int, pretrained: State | None) -> tuple[float, dict[str, float]]:
    """The learning rate that is best on val with draw 0 (then by val loss), and val's top-1 for each."""
    found = {lr: evaluate(tuned(data, count, DRAWS[0], pretrained, lr), data.val) for lr in RATES}
    best = max(RATES, key=lambda lr: (found[lr][0], -found[lr][1]))
    return best, {f"{lr:g}": round(top1, 2) for lr, (top1, _) in found.items()}


def row(data: Digits, count: int, pretrained: State | None, lr: float) -> dict[str, Any]:
    """Top-1 on test in percent over the draws: mean, standard deviation, each."""
    scores = [evaluate(tuned(data, count, draw, pretrained, lr), data.test)[0] for draw in DRAWS]
    return {
        "mean": round(statistics.mean(scores), 2),
        "sd": round(statistics.stdev(scores), 2),
        "top1": [round(score, 2) for score in scores],
    }


def protocol() -> dict[str, Any]:
    """How the table was made, for whoever reads it."""
    return {
        "task": "scikit-learn digits at 32 pixels; test: the last 540 in order; full fine-tuning",
        "n_test": digits.TEST,
        "learning_rates": list(RATES),
        "chosen": "on val (15 % of the rest, stratified), with draw 0, for each start and count",
        "draws": len(DRAWS),
        "optimizer": "AdamW, warm-up a tenth, cosine, label smoothing 0.1, small rotation, scale and shift",
        "schedules": {str(count): asdict(schedule) for count, schedule in COUNTS.items()},
        "unit": "top-1 in percent, mean and standard deviation over draws of pictures, head and order",
    }


def table(path: Path) -> dict[str, Any]:
    """The rows of the table: for each number of pictures a class, both starts."""
    data = Digits(32)
    starts: dict[str, State | None] = {"random": None, "nano": weights(path)}
    rows = []
    for count in COUNTS:
        for name, pretrained in starts.items():
            lr, val = search(data, count, pretrained)
            rows.append({"per_class": count, "start": name, "lr": lr, "val_top1": val})
            rows[-1] |= row(data, count, pretrained, lr)
            print(json.dumps(rows[-1]), flush=True)
    return {"protocol": protocol(), "rows": rows}


def curve(folder: Path, lr: float, count: int = 5) -> list[dict[str, Any]]:
    """Transfer at `count` a class for the weights kept on the way of a pretraining run (`seen-*.pt`)."""
    data = Digits(32)
    points = []
    for path in sorted(folder.glob("seen-*.pt")):
        point = {"pictures": int(path.stem.removeprefix("seen-")), "per_class": count, "lr": lr}
        points.append(point | row(data, count, weights(path), lr))
        print(json.dumps(points[-1]), flush=True)
    return points


def main() -> None:
    """Measure the table (and the curve, when a run's folder is given) and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, default=bundled.weights_file("nano"))
    parser.add_argument("--out", type=Path, required=True, help="the record to write, JSON")
    parser.add_argument("--run", type=Path, help="folder of a pretraining run, for the curve")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    select("cpu", arguments.threads)
    begun = time.monotonic()
    record = table(arguments.weights)
    if arguments.run:
        lr = next(r["lr"] for r in record["rows"] if r["start"] == "nano" and r["per_class"] == 5)
        record["curve"] = curve(arguments.run, lr)
    record |= {
        "weights_sha256": bundled.card("nano").sha256,
        "seconds": round(time.monotonic() - begun),
        "threads": arguments.threads,
        "host": host.facts(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
