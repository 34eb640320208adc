"""What the bundled backbones lose and gain in int8: fine-tuned on digits and blood cells, and timed at several sides.

    nice python -m benchmarks.transfer.int8 [--blocks 30] [--store build/transfer/store]

Each backbone goes through `toolchain run` with the variants fp32 and int8 alone: digits at 32 pixels, blood cells at 64.
Lost are points of top-1 on the test split, paired, with the report's interval. Then the same network is exported and
quantized at each side of SIDES, untrained (times do not depend on it), and both plain files are timed interleaved, one
thread, batch 1.
Writes benchmarks/results/bundled_int8.ISA.json. Pass: at most 1 point lost each time (the bad end of the interval at most
3), and at least 2 times faster at each side of 64 pixels and above; exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.one_step import run_step
from benchmarks.transfer.tasks import folder
from toolchain import graph, stats
from toolchain.backbones import bundled, network
from toolchain.backbones.settings import Backbone, PreprocessOverrides
from toolchain.data.dataset import Data
from toolchain.data.settings import DataSettings
from toolchain.data.sources import load
from toolchain.report.summary import main_accuracy
from toolchain.runtime import host
from toolchain.runtime.session import Session
from toolchain.runtime.timing import interleave
from toolchain.steps.export import Export
from toolchain.steps.quantize import Quantize
from toolchain.workflow import Places, run

RESULT = Path(__file__).parents[1] / "results" / f"bundled_int8.{host.isa()}.json"
SIDES = (32, 64, 128, 224)
TUNE = {
    "epochs": 12, "batch_size": 32, "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.05,
    "schedule": "cosine", "warmup_epochs": 1, "label_smoothing": 0.05,
}  # fmt: skip
TASKS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "digits": (32, {"source": "digits"}, {"rotate": 10, "translate": 0.1}),
    "blood_cells": (
        64,
        {
            "folder": str(folder("clinic_blood_cells")),
            "groups": str(folder("clinic_blood_cells") / "split.csv"),
            "columns": {"group": "source_image"},
        },
        {"flip_horizontal": True, "flip_vertical": True},
    ),
}


def scored(name: str, task: str, work: Path, store: Path) -> dict[str, Any]:
    """A row: what int8 loses on a task's test split after fine-tuning."""
    size, data, augment = TASKS[task]
    recipe = work / f"{name}-{task.replace('_', '-')}.yaml"
    settings = {
        "name": recipe.stem,
        "data": data,
        "backbone": {"bundled": name, "preprocess": {"size": size, "crop_pct": 1.0}},
        "tune": {**TUNE, "augment": augment},
        "variants": {
            "fp32": {"from": "tuned", "steps": ["export"]},
            "int8": {"from": "fp32", "steps": ["quantize"]},
        },
    }
    recipe.write_text(yaml.safe_dump(settings))
    report = run(recipe, Places(store=store, out=work / recipe.stem)).report
    int8, fp32 = (report.variant(kind) if report else None for kind in ("int8", "fp32"))
    before = main_accuracy(fp32) if fp32 else None
    if int8 is None or before is None:
        raise SystemExit(f"{recipe.stem}: the run made no report of both files")
    drop = int8.drop["test"]
    return {
        "backbone": name,
        "task": task,
        "side": size,
        "fp32 top-1, %": round(100 * before.top1, 2),
        "lost, points": round(drop.points, 2),
        "lost ci95": [round(end, 2) for end in drop.ci95],
    }


def timed(name: str, side: int, data: Data, work: Path, blocks: int) -> dict[str, Any]:
    """A row: fp32 and int8 of a backbone at one side, interleaved."""
    here = work / f"{name}.{side}"
    (here / "torch").mkdir(parents=True)
    backbone = Backbone(bundled=name, preprocess=PreprocessOverrides(size=side, crop_pct=1.0))
    network.save(*network.build(backbone, data.labels), here / "torch")
    run_step(Export(), here / "torch", here / "fp32", data)
    run_step(Quantize().resolved(), here / "fp32", here / "int8", data)
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
    sides = {
        kind: partial(Session(here / kind / graph.PLAIN, threads=1).run, {graph.INPUT: picture})
        for kind in ("fp32", "int8")
    }
    times = interleave(sides, blocks=blocks)
    ratio = stats.ratio_of_medians(times["fp32"], times["int8"])
    return {
        "backbone": name,
        "side": side,
        **{f"{kind} p50, ms": round(float(np.median(taken)) / 1e6, 3) for kind, taken in times.items()},
        "faster": round(ratio.value, 2),
        "faster ci95": [round(end, 2) for end in ratio.ci95],
    }


def main() -> int:
    """Fine-tune, score, time, record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--store", type=Path, default=Path("build/transfer/store"))
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        digits = load(DataSettings(source="digits"), Path())
        for name in bundled.names():
            rows += [timed(name, side, digits, Path(work), asked.blocks) for side in SIDES]
            rows += [scored(name, task, Path(work), asked.store) for task in TASKS]
            print(*rows[-len(SIDES) - len(TASKS) :], sep="\n", flush=True)
    passed = all(
        row["lost, points"] <= 1 and row["lost ci95"][1] <= 3 if "task" in row else row["side"] < 64 or row["faster"] >= 2
        for row in rows
    )  # fmt: skip
    record = {
        "what": "Bundled backbones: what int8 loses after fine-tuning on test, and how much faster it is, one thread",
        "rows": rows,
        "tune": TUNE,
        "passed": passed,
        "host": host.facts(),
        "weights_sha256": {name: bundled.card(name).sha256 for name in bundled.names()},
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print("pass" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
