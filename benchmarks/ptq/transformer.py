"""Techniques beyond plain int8 on a transformer that was trained, each beside the plain form: SmoothQuant, weight-only
products, ways to cut ranges, adaptive rounding.

    python -m benchmarks.ptq.transformer [--seeds 0 1 2] [--epochs 12] [--size 48] [--blocks 30] [--store DIR] [--data DIR]

timm's vit_tiny_patch16_224 with patches of 8 pixels learns blood cells from random weights, once a seed; no label is looked
at afterwards. Each file's logits on test are held against fp32's: signal over noise, and how many dB of it a form gains over
its plain form on the same pictures (95 % interval: every seed's pictures drawn with replacement); top-1 and what that loses
to fp32; bytes; and the latency of the first seed's files, in one process, interleaved, on one thread.
Training comes from the store when it was done before, so a run that was killed goes on. Writes
benchmarks/results/ptq_transformer.ISA.json. Passes when each form of CLOSER is for certain closer to fp32 than its plain
form; exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.ptq.paired import gained
from toolchain import graph, stats, workflow
from toolchain.artifact import Artifact
from toolchain.calibration.pictures import prepared
from toolchain.calibration.sensitivity import answers, fidelity
from toolchain.data.dataset import PictureSet
from toolchain.progress import Silent
from toolchain.recipe import Recipe, build
from toolchain.runtime import host
from toolchain.runtime.session import Session
from toolchain.runtime.timing import interleave
from toolchain.workflow import Wishes

ROOT = Path(__file__).resolve().parents[2]
DYNAMIC, STATIC = "dynamic int8", "static int8"


def _static(**settings: Any) -> list[Any]:
    return [{"quantize": {"scheme": "static", **settings}}]


# file: the steps behind fp32, and the plain form that it is held against
FORMS: Mapping[str, tuple[Sequence[Any], str | None]] = {
    DYNAMIC: (["quantize"], None),
    "smooth, dynamic int8": (["smooth", "quantize"], DYNAMIC),
    "weight-only, 8 bits": ([{"weight_only": {"bits": 8}}], DYNAMIC),
    "weight-only, 4 bits": ([{"weight_only": {"bits": 4}}], DYNAMIC),
    STATIC: (_static(), None),
    "smooth, static int8": (["smooth", *_static()], STATIC),
    "static int8, percentile": (_static(calibration="percentile"), STATIC),
    "static int8, entropy": (_static(calibration="entropy"), STATIC),
    "static int8, mse": (_static(calibration="mse"), STATIC),
    "static int8, adaptive rounding": (_static(rounding="adaptive"), STATIC),
}
CLOSER = ("weight-only, 8 bits", "static int8, mse")
Floats = NDArray[np.float32]


def recipe(seed: int, asked: argparse.Namespace) -> Recipe:
    """The run of one seed."""
    forms = {
        f"form{number}": {"from": "fp32", "steps": steps} for number, (steps, _) in enumerate(FORMS.values())
    }
    raw = {
        "name": f"transformer-{seed}", "seed": seed, "device": "cpu", "threads": asked.threads,
        "data": {"folder": str(asked.data / "clinic_blood_cells")},
        "backbone": {
            "timm": "vit_tiny_patch16_224", "weights": "random", "kwargs": {"patch_size": 8},
            "preprocess": {"size": asked.size, "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3},
        },
        "tune": {
            "epochs": asked.epochs, "batch_size": 32, "optimizer": "adamw", "lr": 0.0005, "weight_decay": 0.05,
            "warmup_epochs": 2, "augment": {"flip_horizontal": True, "flip_vertical": True},
        },
        "variants": {"fp32": {"from": "tuned", "steps": ["export"]}, **forms},
    }  # fmt: skip
    return build(raw, ROOT)


def logits(artifact: Artifact, pictures: PictureSet) -> Floats:
    """What the plain file answers to each picture, [n, C]."""
    inputs = prepared(artifact.folder / graph.PREPROCESS, pictures, list(range(len(pictures))))
    return answers(graph.read(artifact.folder / graph.PLAIN), list(inputs))


def timed(files: Mapping[str, Path], one: Floats, blocks: int) -> dict[str, dict[str, Any]]:
    """Median and speed-up over fp32, interleaved, one thread."""
    sides = {name: partial(Session(file).run, {graph.INPUT: one}) for name, file in files.items()}
    times = interleave(sides, blocks=blocks)
    found = {}
    for name in files:
        faster = stats.ratio_of_medians(times["fp32"], times[name])
        found[name] = {
            "p50_ms": round(float(np.median(times[name])) / 1e6, 3), "faster": round(faster.value, 2),
            "faster_ci95": [round(end, 2) for end in faster.ci95], "bytes": files[name].stat().st_size,
        }  # fmt: skip
    return found


def rows(
    given: Sequence[Mapping[str, Floats]], labels: NDArray[np.int64], speed: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One row a file; the answers of all seeds behind each other."""
    joined = {name: np.concatenate([one[name] for one in given]) for name in given[0]}
    every = np.tile(labels, len(given))
    pictures = [str(index) for _ in given for index in range(len(labels))]
    found = []
    for name, own in joined.items():
        lost = stats.accuracy_difference(joined["fp32"], own, every, pictures)
        row = {
            "file": name, "top1": round(100 * stats.top1(own, every), 2), "lost": round(lost.value, 2),
            "lost_ci95": [round(end, 2) for end in lost.ci95], **speed[name],
        }  # fmt: skip
        if name != "fp32":
            reference, plain = joined["fp32"], FORMS[name][1]
            row |= {
                "sqnr_db": round(fidelity(reference, own).sqnr, 2),
                "same answer": round(100 * float((own.argmax(1) == reference.argmax(1)).mean()), 2),
            }
            if plain is not None:
                row |= gained(reference, joined[plain], own, beside=plain)
        found.append(row)
    return found


def main() -> int:
    """Make what is missing, compare, time, write the record; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(os.environ.get("TOOLCHAIN_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1, help="of training")
    parser.add_argument("--store", type=Path, default=Path("runs/store"))
    parser.add_argument("--data", type=Path, default=shared, help="folder with clinic_blood_cells")
    asked = parser.parse_args()
    given, speed, labels = [], {}, None
    for seed in asked.seeds:
        pipeline = workflow.open_pipeline(recipe(seed, asked), asked.store, Wishes(), Silent())
        data, _ = pipeline.data()
        made = pipeline.build(data)
        files = {"fp32": made["fp32"], **{name: made[f"form{n}"] for n, name in enumerate(FORMS)}}
        if not speed:
            one = next(prepared(made["fp32"].folder / graph.PREPROCESS, data.val, [0]))
            speed = timed(
                {name: made.folder / graph.PLAIN for name, made in files.items()}, one, asked.blocks
            )
        given.append({name: logits(artifact, data.test) for name, artifact in files.items()})
        labels = data.test.labels
        print("made", seed, flush=True)
    assert labels is not None  # argparse asks for a seed
    found = rows(given, labels, speed)
    passed = all(row["gained_ci95"][0] > 0 for row in found if row["file"] in CLOSER)
    settings = {name: getattr(asked, name) for name in ("seeds", "size", "epochs", "blocks", "threads")}
    record = {
        "what": "techniques beyond plain int8 on vit_tiny_patch16_224 (patches of 8 pixels), blood cells",
        "note": "From random weights; test read once. gained_db: the logits' signal over noise, more than the plain form's.",
        "host": host.facts(), "settings": settings, "rows": found, "passed": passed,
    }  # fmt: skip
    target = ROOT / "benchmarks" / "results" / f"ptq_transformer.{host.isa()}.json"
    target.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
