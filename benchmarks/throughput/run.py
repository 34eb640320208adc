"""Pictures a second of the training loop against the bare loop, same loader and settings, in alternating fits.

    python benchmarks/throughput/run.py [--rounds 8] [--threads 1]

Each round trains a network once with each loop, in random order; what is timed is the training part of all
epochs but the first (in which pictures are decoded and memory is warmed). Writes
benchmarks/results/throughput.json; exits 1 when the loop is certainly below 95 % of the bare one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bare_loop import train
from torch import nn

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

RESULT = Path(__file__).resolve().parents[1] / "results" / "throughput.json"
BOUND = 0.95
AUGMENT = Augment(rotate=10, translate=0.1)
TRAINING = Training(
    epochs=4, batch_size=32, lr=1e-3, weight_decay=0.05, label_smoothing=0.1, augment=AUGMENT, workers=0
)
# What is trained, and on how many training pictures an epoch.
CASES = {
    "resnet10t-32": (
        Backbone(
            timm="resnet10t",
            weights="random",
            kwargs={"channels": [32, 64, 128, 256]},
            preprocess=PreprocessOverrides(size=32, crop_pct=1.0),
        ),
        320,
    ),
    "mobilenetv2_100-64": (
        Backbone(
            timm="mobilenetv2_100", weights="random", preprocess=PreprocessOverrides(size=64, crop_pct=1.0)
        ),
        96,
    ),
}


def bare(model: nn.Module, network: Network, data: Data, device: Device) -> list[float]:
    """Seconds of the bare loop's epochs but the first."""
    augmenter = Augmenter(AUGMENT, network.preprocess, device.torch)
    loading = Loading(batch_size=TRAINING.batch_size, workers=TRAINING.workers)
    with Batches(data.train, augmenter, loading) as batches:
        rates = train(model, batches, TRAINING.lr, TRAINING.epochs, device)
    return [len(data.train) / rate for rate in rates[1:]]


def ours(model: nn.Module, network: Network, data: Data, device: Device) -> list[EpochRow]:
    """The training loop's epochs but the first."""
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder, "out"), Path(folder, "scratch")
        out.mkdir()
        scratch.mkdir()
        context = Context(out, scratch, data, device, 0, Silent())
        return fit(model, network, TRAINING, context)[1][1:]


def measure(name: str, rounds: int, device: Device, chance: random.Random) -> dict[str, object]:
    """Alternate both loops; the ratio is of pictures a second, with its interval by round."""
    backbone, count = CASES[name]
    digits = load(DataSettings(source="digits"), Path())
    data = Data(
        "digits", digits.labels, digits.train.subset(range(count)), digits.val.subset(range(64)), digits.test
    )
    seconds: dict[str, list[list[float]]] = {"bare": [], "ours": []}
    rows: list[EpochRow] = []
    for number in range(-1, rounds):  # round -1 warms up and does not count
        for side in chance.sample(("bare", "ours"), 2):
            model, network = build(backbone, data.labels)
            if side == "bare":
                taken = bare(model, network, data, device)
            else:
                rows = ours(model, network, data, device)
                taken = [row.train_seconds for row in rows]
            if number >= 0:
                seconds[side].append(taken)
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {
        "pictures_an_epoch": count,
        "data_share": round(rows[-1].data_share, 4),
        **summary(seconds, count),
    }


def summary(seconds: dict[str, list[list[float]]], count: int) -> dict[str, object]:
    """Ratio of pictures a second with its interval by round, the verdict, and the raw seconds."""
    blocks = {side: np.rint(np.array(taken) * 1e9).astype(np.int64) for side, taken in seconds.items()}
    ratio = stats.ratio_of_medians(blocks["bare"], blocks["ours"])
    verdict = "pass" if ratio.low >= BOUND else "fail" if ratio.high < BOUND else "inconclusive"
    speeds = {side: round(count / float(np.median(taken)), 1) for side, taken in seconds.items()}
    return {
        "ratio": round(ratio.value, 4),
        "ci95": [round(end, 4) for end in ratio.ci95],
        "verdict": verdict,
        "pictures_per_second": speeds,
        "seconds": {side: np.round(taken, 4).tolist() for side, taken in seconds.items()},
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
    cases = {name: measure(name, arguments.rounds, device, chance) for name in CASES}
    record = {
        "what": "pictures a second of the training loop over those of bare_loop.py (training part of an epoch)",
        "bound": BOUND,
        "rounds": arguments.rounds,
        "device": device.fingerprint,
        "torch": torch.__version__,
        "training": TRAINING.model_dump(mode="json"),
        "load_average": {"before": before, "after": os.getloadavg()},
        "host": host.facts(),
        "cases": cases,
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, case in cases.items():
        print(f"{name}: {case['ratio']} of the bare loop, 95 % interval {case['ci95']}: {case['verdict']}")
    if any(case["verdict"] == "fail" for case in cases.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
