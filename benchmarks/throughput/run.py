"""Pictures a second of the training loop against the bare loop, same loader and settings, in alternating fits.

    python benchmarks/throughput/run.py [--rounds 8] [--threads 1] [--device cuda]

Each round trains a network once with each loop, in random order. One hook on the optimizer times both: from one
step's end to the next one's, which spans loading, forward, backward and whatever a loop does besides, in all
epochs but the first. `ratio` is of median wall times; `cpu_ratio` is of the CPU seconds of whole rounds, which
sees what happens now and then and does not see that others use the machine. On a GPU ResNet-50 is trained, and once more
by the bare loop on one batch that lies on the card, as timm's benchmark.py does: what loading costs. Writes
benchmarks/results/throughput.ISA.json, or throughput.cuda.json. Pass: both intervals lie above 0.95; exit 1: one lies
below it. Of a GPU, whose process waits for it, the wall time decides alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare_loop import train
from numpy.typing import NDArray
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from toolchain import stats
from toolchain.backbones.network import Network, build
from toolchain.backbones.settings import Backbone, PreprocessOverrides
from toolchain.data.augment import Augmenter
from toolchain.data.augmentation import Augment
from toolchain.data.dataset import Data
from toolchain.data.loader import Batches, Loading
from toolchain.data.settings import DataSettings
from toolchain.data.sources import load
from toolchain.device import Device, select
from toolchain.learn.curves import EpochRow
from toolchain.learn.loop import fit
from toolchain.learn.settings import Training
from toolchain.progress import Silent
from toolchain.runtime import host
from toolchain.step import Context

RESULTS = Path(__file__).resolve().parents[1] / "results"
BOUND = 0.95
AUGMENT = Augment(rotate=10, translate=0.1)
TRAINING = Training(
    epochs=4, batch_size=32, lr=1e-3, weight_decay=0.05, label_smoothing=0.1, augment=AUGMENT, workers=0
)


@dataclass(frozen=True)
class Case:
    """What is trained, on how many training pictures an epoch, how."""

    backbone: Backbone
    pictures: int
    training: Training = TRAINING

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.pictures // self.training.batch_size


CPU_CASES = {
    "resnet10t-32": Case(
        Backbone(
            timm="resnet10t",
            weights="random",
            kwargs={"channels": [32, 64, 128, 256]},
            preprocess=PreprocessOverrides(size=32, crop_pct=1.0),
        ),
        320,
    ),
    "mobilenetv2_100-64": Case(
        Backbone(
            timm="mobilenetv2_100", weights="random", preprocess=PreprocessOverrides(size=64, crop_pct=1.0)
        ),
        128,
    ),
}
GPU_CASES = {
    "resnet50-224": Case(
        Backbone(timm="resnet50", weights="random", preprocess=PreprocessOverrides(size=224, crop_pct=1.0)),
        1024,
        TRAINING.model_copy(update={"batch_size": 64, "workers": 8, "epochs": 4}),
    )
}


@dataclass(frozen=True)
class OneBatch:
    """The same pictures on the device again and again, in place of a loader."""

    inputs: torch.Tensor
    labels: torch.Tensor
    steps: int

    def __len__(self) -> int:
        return self.steps

    def epoch(self, _: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch."""
        return iter([(self.inputs, self.labels)] * self.steps)


class Clock:
    """Wall and CPU nanoseconds of each optimizer step [epochs - 1, steps - 1, 2] while it is held."""

    def __init__(self, epochs: int, steps: int) -> None:
        self._shape = epochs, steps, 2
        self._marks: list[tuple[int, int]] = []

    def __enter__(self) -> Clock:
        self._hook = register_optimizer_step_post_hook(self._mark)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _mark(self, *_: object) -> None:
        self._marks.append((time.perf_counter_ns(), time.process_time_ns()))

    def taken(self) -> NDArray[np.int64]:
        """The times; the first epoch, and what lies between two epochs, is left out."""
        marks = np.array(self._marks, dtype=np.int64).reshape(self._shape)
        return np.diff(marks[1:], axis=1)


def bare(model: nn.Module, network: Network, training: Training, data: Data, device: Device) -> None:
    """Train with the bare loop."""
    augmenter = Augmenter(AUGMENT, network.preprocess, device.torch)
    loading = Loading(batch_size=training.batch_size, workers=training.workers)
    with Batches(data.train, augmenter, loading) as batches:
        train(model, batches, training.lr, training.epochs, device)


def unloaded(model: nn.Module, network: Network, training: Training, data: Data, device: Device) -> None:
    """Train with the bare loop on one batch that is there already."""
    size = training.batch_size
    inputs = torch.randn(size, 3, network.preprocess.height, network.preprocess.width, device=device.torch)
    labels = torch.randint(len(data.labels), (size,), device=device.torch)
    batches = OneBatch(inputs, labels, len(data.train) // size)
    train(model, batches, training.lr, training.epochs, device)


def ours(
    model: nn.Module, network: Network, training: Training, data: Data, device: Device
) -> list[EpochRow]:
    """Train with the training loop."""
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder, "out"), Path(folder, "scratch")
        out.mkdir()
        scratch.mkdir()
        return fit(model, network, training, Context(out, scratch, data, device, 0, Silent()))[1]


def measure(name: str, case: Case, rounds: int, device: Device, chance: random.Random) -> dict[str, Any]:
    """Alternate the loops."""
    digits = load(DataSettings(source="digits"), Path())
    data = Data(
        "digits",
        digits.labels,
        digits.train.subset(range(case.pictures)),
        digits.val.subset(range(64)),
        digits.test,
    )
    sides = {"bare": bare, "ours": ours} | ({"unloaded": unloaded} if device.kind == "cuda" else {})
    taken: dict[str, list[NDArray[np.int64]]] = {side: [] for side in sides}
    rows: list[EpochRow] = []
    for number in range(-1, rounds):  # round -1 warms up and does not count
        for side in chance.sample(list(sides), len(sides)):
            model, network = build(case.backbone, data.labels)
            with Clock(case.training.epochs, case.steps) as clock:
                rows = sides[side](model, network, case.training, data, device) or rows
            if number >= 0:
                taken[side].append(clock.taken().reshape(-1, 2))
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    about = {"pictures_an_epoch": case.pictures, "data_share": round(rows[-1].data_share, 4)}
    return {**about, **summary(taken, case.training.batch_size, by_cpu=device.kind == "cpu")}


def summary(taken: dict[str, list[NDArray[np.int64]]], batch_size: int, by_cpu: bool) -> dict[str, Any]:
    """Ratios with their intervals by round, the verdict (by CPU time as well or not), and the samples in microseconds."""
    wall = {side: np.stack(blocks)[..., 0] for side, blocks in taken.items()}
    busy = {side: np.stack(blocks)[..., 1].sum(axis=1, keepdims=True) for side, blocks in taken.items()}
    ratio = stats.ratio_of_medians(wall["bare"], wall["ours"])
    cpu = stats.ratio_of_medians(busy["bare"], busy["ours"])
    judged = [ratio, cpu] if by_cpu else [ratio]
    low, high = min(one.low for one in judged), min(one.high for one in judged)
    speeds = {side: batch_size / float(np.median(ns)) * 1e9 for side, ns in wall.items()}
    return {
        "ratio": round(ratio.value, 4),
        "ci95": [round(end, 4) for end in ratio.ci95],
        "cpu_ratio": round(cpu.value, 4),
        "cpu_ci95": [round(end, 4) for end in cpu.ci95],
        "verdict": "pass" if low >= BOUND else "fail" if high < BOUND else "inconclusive",
        "pictures_per_second": {side: round(speed, 1) for side, speed in speeds.items()},
        "wall_us": {side: (ns // 1000).tolist() for side, ns in wall.items()},
        "cpu_us_a_round": {side: (ns // 1000).ravel().tolist() for side, ns in busy.items()},
    }


def main() -> None:
    """Measure every case and write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    device, chance = select(arguments.device, arguments.threads), random.Random(0)
    before = os.getloadavg()
    chosen = CPU_CASES if device.kind == "cpu" else GPU_CASES
    cases = {name: measure(name, case, arguments.rounds, device, chance) for name, case in chosen.items()}
    record = {
        "what": "pictures a second of the training loop over those of bare_loop.py, from step to step",
        "bound": BOUND,
        "rounds": arguments.rounds,
        "device": device.fingerprint,
        "torch": torch.__version__,
        "training": {name: case.training.model_dump(mode="json") for name, case in chosen.items()},
        "load_average": {"before": before, "after": os.getloadavg()},
        "host": host.facts(),
        "cases": cases,
    }
    kind = host.isa() if device.kind == "cpu" else "cuda"
    (RESULTS / f"throughput.{kind}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, case in cases.items():
        cpu = f"by CPU time {case['cpu_ratio']} {case['cpu_ci95']}"
        print(f"{name}: {case['ratio']} {case['ci95']} of the bare loop, {cpu}: {case['verdict']}")
    if any(case["verdict"] == "fail" for case in cases.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
