"""The field's pruning table: ResNet-56 on CIFAR-10 with 2.13 times fewer multiplications, against our own baseline.

    python -m benchmarks.resnet56.run [--epochs 200] [--seeds 0 1 2] [--device cuda]          # the bar; an hour of a GPU
    python -m benchmarks.resnet56.run --epochs 2 4 8 --per-class 500 --seeds 0 --threads 1    # a short curve, without one

Each number of epochs is one point of the curve: ResNet-56 is trained for so long from random weights (SGD, cosine), pruned
evenly until it needs 2.13 times fewer multiplications, and trained again for as long, with the same settings and the
unpruned network as its teacher. Beside it stands a thinner ResNet-56 of about as many multiplications (`thin`), trained from
random weights for as long as both together, without a teacher: what pruning has to beat to be worth its while.
Accuracy is that of the ONNX files on the 10,000 test pictures, read once; the last epoch counts, and nothing is chosen.
Everything comes from the store when it was done before, so a run that was killed goes on, inside a training as well.
Writes benchmarks/results/resnet56.DEVICE.json after every point. The field (DepGraph, arXiv:2301.12900, table 2) went from
93.53 to 93.77 %. Passes (issue 5, bar 4) when the last point, of 200 epochs or more and with all pictures, gains as much and
is better than `thin`; exit 1 otherwise.
Reads cifar10/cifar10.zip below $TOOLCHAIN_DATA, and unpacks it into build/cifar10.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.resnet56 import network
from toolchain import graph, stats, workflow
from toolchain.artifact import Artifact
from toolchain.backbones.network import describe
from toolchain.backbones.pruning import Pruning, cost, prune
from toolchain.backbones.settings import Backbone
from toolchain.calibration.pictures import prepared
from toolchain.calibration.sensitivity import answers
from toolchain.data.dataset import PictureSet
from toolchain.progress import Silent
from toolchain.recipe import Recipe, build
from toolchain.runtime import host
from toolchain.workflow import Wishes

ROOT = Path(__file__).resolve().parents[2]
FEWER = 2.13  # times fewer multiplications
LONG = 200  # epochs
GAINED = 93.77 - 93.53  # points of the field's best at that
NAME = network.resnet56_cifar.__name__
BACKBONE: Mapping[str, Any] = {"timm": NAME, "weights": "random"}
THIN: Mapping[str, Any] = {**BACKBONE, "kwargs": {"channels": [12, 21, 41]}}
# The field's: a batch of 128, SGD, a weight decay of 5e-4, pictures moved by up to 4 pixels and mirrored.
TRAINING: Mapping[str, Any] = {
    "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "cosine",
    "keep": "last", "augment": {"translate": 0.125, "fill": "black", "flip_horizontal": True},
}  # fmt: skip
Floats = NDArray[np.float32]


def enough() -> Pruning:
    """Five of 16 channels of every layer, and of those between the last stage's convolutions as many more as it takes."""
    plain = describe(Backbone.model_validate(BACKBONE), [str(label) for label in range(10)])
    for inner in range(20, 64):
        pruning = Pruning(ratio=20 / 64, round_to=1, ratios={"layer3.*.conv1": inner / 64})
        model = plain.skeleton()
        whole = cost(model, plain).macs
        if whole >= FEWER * cost(model, prune(model, plain, pruning)).macs:
            return pruning
    raise AssertionError("a network without its last stage needs fewer multiplications than that")


def recipe(epochs: int, seed: int, asked: argparse.Namespace) -> Recipe:
    """One point of the curve, one seed."""
    training = {**TRAINING, "workers": asked.workers}
    smaller = [
        {"prune": asked.pruning.model_dump()},
        {"recover": {"teacher": "tuned", "epochs": epochs, **training}},
        "export",
    ]
    raw = {
        "name": f"resnet56-{epochs}-{seed}", "seed": seed, "device": asked.device, "threads": asked.threads,
        "data": {
            "folder": str(unpacked(asked.data)), "split": {"val": 0.02}, "near_duplicates": "warn",
            "limit_per_class": asked.per_class,
        },
        "backbone": BACKBONE, "tune": {"epochs": epochs, **training},
        "networks": {"thin-net": {"backbone": THIN, "epochs": 2 * epochs}},
        "variants": {
            "fp32": {"from": "tuned", "steps": ["export"]},
            "pruned": {"from": "tuned", "steps": smaller},
            "thin": {"from": "thin-net", "steps": ["export"]},
        },
    }  # fmt: skip
    return build(raw, ROOT)


def unpacked(data: Path) -> Path:
    """The folder of pictures, train/CLASS and test/CLASS; whole or not there."""
    folder = ROOT / "build" / "cifar10"
    if not folder.is_dir():
        part = folder.with_name(f"cifar10.{os.getpid()}")
        with zipfile.ZipFile(data / "cifar10" / "cifar10.zip") as file:
            file.extractall(part)
        part.rename(folder)
    return folder


def logits(artifact: Artifact, pictures: PictureSet) -> Floats:
    """What the plain file answers to each picture, [n, C]."""
    inputs = prepared(artifact.folder / graph.PREPROCESS, pictures, list(range(len(pictures))))
    return answers(graph.read(artifact.folder / graph.PLAIN), list(inputs))


def trial(epochs: int, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Test's labels, each file's answers to it and its costs."""
    pipeline = workflow.open_pipeline(recipe(epochs, seed, asked), asked.store, Wishes(), Silent())
    data, _ = pipeline.data()
    made = pipeline.build(data)
    found: dict[str, Any] = {"labels": data.test.labels, "train": len(data.train)}
    for name in ("fp32", "pruned", "thin"):
        found[name] = logits(made[name], data.test)
    found["macs"] = {
        "fp32": macs(made["tuned"]),
        "pruned": macs(made["pruned/0-prune"], when="after"),
        "thin": macs(made["thin-net"]),
    }
    print(epochs, "epochs, seed", seed, found["macs"], flush=True)
    return found


def macs(artifact: Artifact, **where: str) -> float:
    """Multiplications of one picture, as the step that made the network noted them."""
    return next(
        m.value for m in artifact.record.measurements if m.name == "macs" and where.items() <= m.where.items()
    )


def row(epochs: int, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One point: means over the seeds, and paired differences (pictures drawn, each with all its seeds)."""
    labels = np.concatenate([one["labels"] for one in trials])
    pictures = [str(i) for one in trials for i in range(len(one["labels"]))]
    joined = {name: np.concatenate([one[name] for one in trials]) for name in ("fp32", "pruned", "thin")}
    gained = stats.accuracy_difference(joined["pruned"], joined["fp32"], labels, pictures)
    over = stats.accuracy_difference(joined["pruned"], joined["thin"], labels, pictures)
    macs = trials[0]["macs"]
    return {
        "epochs": epochs, "seeds": len(trials), "training pictures": trials[0]["train"],
        "million MACs": round(macs["fp32"] / 1e6, 1),
        **{f"{name} top1": round(100 * stats.top1(joined[name], labels), 2) for name in joined},
        "pruned, times fewer MACs": round(macs["fp32"] / macs["pruned"], 2),
        "gained, points": round(gained.value, 2), "gained_ci95": [round(end, 2) for end in gained.ci95],
        "thin, times fewer MACs": round(macs["fp32"] / macs["thin"], 2),
        "over thin, points": round(over.value, 2), "over_thin_ci95": [round(end, 2) for end in over.ci95],
    }  # fmt: skip


def reached(point: Mapping[str, Any]) -> bool:
    """Whether a point is as long as the field's, gains as much, and is better than the thinner network."""
    gains = point["gained, points"] >= round(GAINED, 2) and point["over thin, points"] > 0
    return bool(point["epochs"] >= LONG and gains)


def write(rows: Sequence[Mapping[str, Any]], asked: argparse.Namespace, passed: bool) -> None:
    """The record, so far."""
    record = {
        "what": "ResNet-56 on CIFAR-10 (JPEG), pruned to 2.13 times fewer MACs, by epochs of each training",
        "note": f"The field: 93.53 to 93.77 % at 2.13 times, 200 epochs and more. Trained on {asked.device}. "
        "thin: random weights, trained for both trainings' epochs.",
        "host": host.facts(), "rows": list(rows), "passed": passed,
    }  # fmt: skip
    name = "cuda" if asked.device == "cuda" else host.isa()
    target = ROOT / "benchmarks" / "results" / f"resnet56.{name}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")


def main() -> int:
    """Make what is missing, compare, write the record; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(os.environ.get("TOOLCHAIN_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--epochs", nargs="+", type=int, default=[200], help="of each training; a point each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--per-class", type=int, help="training pictures of a class [all]")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of a CPU [all]")
    parser.add_argument("--workers", type=int, default=2, help="threads that prepare batches")
    parser.add_argument("--store", type=Path, default=Path("runs/store"))
    parser.add_argument("--data", type=Path, default=shared, help="folder with cifar10/cifar10.zip")
    asked = parser.parse_args()
    asked.pruning = enough()
    rows: list[dict[str, Any]] = []
    passed = False
    for epochs in sorted(asked.epochs):
        rows.append(row(epochs, [trial(epochs, seed, asked) for seed in asked.seeds]))
        passed = asked.per_class is None and reached(rows[-1])
        write(rows, asked, passed)
    print(json.dumps(rows, indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
