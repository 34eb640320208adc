"""What every rival starts from: one float file, calibration pictures, and held-back pictures with labels.

    python -m benchmarks.peers.cases [CASE …] [--store DIR] [--trip DIR] [--data DIR]

imagenet_sample: MobileNetV2 with ImageNet's weights, quantized after training, no labels; pictures, split and our files
are those of benchmarks/imagenet_sample and benchmarks/ptq. blood_cells, blood_cells_small, magnetic_tile: fine-tuned by
the recipes blood-cells, blood-cells-small and surface-inspection, our files are what those ship. Train calibrates; test
is scored. magnetic_tile's own test split has 5 to 18 pictures a rare class: its parts are the five folds of
benchmarks/magnetic_tile/trip.py, so that all 1,344 pictures are scored. The cases whose names end in _seeds are these with
each of three seeds, for the settings that came near with the first (rivals.py). A store that has the recipe's artifacts
already (--store; for the folds --trip) saves the training. Writes build/peers/cases/CASE, or CASE_NUMBER; one that is
there is left alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.magnetic_tile import trip
from benchmarks.magnetic_tile.folds import tiles
from benchmarks.peers.places import (
    BUILD,
    CASES,
    ROOT,
    case_folder,
    digest,
    parts,
    read_json,
    task,
    write_json,
)
from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration.pictures import choose, prepared
from toolchain.data.dataset import Data, PictureSet
from toolchain.pipeline import Pipeline
from toolchain.progress import Silent
from toolchain.recipe import Recipe, load
from toolchain.step import Step
from toolchain.steps import FallBack, Qat, Quantize
from toolchain.workflow import Wishes, open_pipeline

CALIBRATION = 256
CPU = "CPUExecutionProvider"
RECIPES = {
    "blood_cells": "blood-cells",
    "blood_cells_small": "blood-cells-small",
    "magnetic_tile": trip.RECIPE,
}


@dataclass(frozen=True)
class Ours:
    """A file of ours: `seconds` is the wall time of the steps from the float network to the file, training included."""

    name: str
    what: str
    needs: str
    seconds: float
    file: Path


def main() -> int:
    """Prepare the cases asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = Path(os.environ.get("TOOLCHAIN_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--data", type=Path, default=shared, help="folder of data sets and weights")
    parser.add_argument("--store", type=Path, default=BUILD / "store", help="a store of `toolchain run`")
    parser.add_argument(
        "--trip", type=Path, default=trip.SCRATCH, help="the --scratch of magnetic_tile's folds"
    )
    asked = parser.parse_args()
    if unknown := set(asked.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    os.environ["TOOLCHAIN_DATA"] = str(asked.data.resolve())
    for case in asked.cases:
        for number, part in enumerate(parts(case)):
            if read_json(case_folder(part) / "case.json") is None:
                if RECIPES.get(task(case)) == trip.RECIPE:
                    of_fold(case, part, number, asked.trip)
                elif task(case) in RECIPES:
                    of_recipe(case, part, number, asked.store)
                else:
                    of_imagenet(case, asked.data)
            print(f"{part}: {case_folder(part)}", flush=True)
    return 0


def of_imagenet(case: str, data: Path) -> None:
    """The case without training: our default int8 and the fastest chain of benchmarks/ptq."""
    from benchmarks.imagenet_sample.run import exported, pictures
    from benchmarks.ptq.run import FASTEST, FILES, build

    given = pictures(data / "imagenet_sample")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fp32 = exported(given, data, work)
        ours = []
        for name, chain in (("int8", FILES["int8"]), (FASTEST, FILES[FASTEST])):
            start = time.monotonic()
            made = build(chain, fp32, work, given)
            ours.append(Ours(name, words(chain), "calibration", time.monotonic() - start, made))
        keep(case, given, fp32, ours)


def words(chain: Sequence[Step]) -> str:
    """The steps of a chain with the settings that are not defaults."""
    return ", ".join(
        f"{step.step} {step.model_dump(mode='json', exclude_defaults=True, exclude={'step'}) or ''}".strip()
        for step in chain
    )


def of_recipe(case: str, part: str, seed: int, store: Path) -> None:
    """A case with a fine-tuned network: the files that the recipe ships with a seed (its own is 0)."""
    recipe, _ = load(RECIPES[task(case)], (f"seed={seed}",)).for_providers([CPU])
    pipeline = open_pipeline(recipe, store, Wishes(device="cpu"), Silent())
    ship(part, RECIPES[task(case)], pipeline, pipeline.data()[0])


def of_fold(case: str, part: str, number: int, scratch: Path) -> None:
    """A fold of such a case, with the seed whose turn it is: the recipe's files, made from the other four fifths."""
    turn, fold = divmod(number, trip.FOLDS)
    ship(part, RECIPES[task(case)], *trip.opened(tiles(), fold, scratch, trip.SEEDS[turn]))


def ship(part: str, name: str, pipeline: Pipeline, given: Data) -> None:
    """Make the recipe's files, and keep them with what rivals start from."""
    recipe, made = pipeline.recipe, pipeline.build(given)
    trained = {name for name, node in recipe.nodes().items() if node.step.step in ("recover", "qat")}
    ours = []
    for variant in ("int8", "pruned-int8"):
        chain = lineage(made, made[variant])
        needs = "training pictures" if trained & set(chain) else "calibration"
        steps = ", ".join(made[node].record.step for node in chain)
        seconds = sum(made[node].record.seconds for node in chain)
        ours.append(
            Ours(variant, f"{name}.yaml: {steps}", needs, seconds, made[variant].folder / graph.PLAIN)
        )
    keep(part, given, made["fp32"].folder, ours, calibrating(recipe))


def calibrating(recipe: Recipe) -> int:
    """How many training pictures calibrate: as many for everybody as the most that one of our files takes."""
    steps = [step for variant in recipe.variants.values() for step in variant.steps]
    own = [step for step in steps if isinstance(step, Quantize)]
    own += [step.quantize for step in steps if isinstance(step, FallBack | Qat)]
    return max(CALIBRATION, *(step.pictures for step in own))


def lineage(made: Mapping[str, Artifact], last: Artifact) -> list[str]:
    """The names of the steps from the fine-tuned network or its export to `last`, in order."""
    names = {artifact.key: name for name, artifact in made.items()}
    chain: list[str] = []
    name = names[last.key]
    while name not in ("tuned", "fp32"):
        chain.append(name)
        name = names[made[name].record.parents["model"]]
    return chain[::-1]


def keep(case: str, data: Data, fp32: Path, ours: Sequence[Ours], calibration: int = CALIBRATION) -> None:
    """Lay the inputs out as files, `case.json` last; a process's start counts as for rivals, whose whole process does."""
    folder = case_folder(case)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(fp32 / graph.PLAIN, folder / "fp32.onnx")
    for index, own in enumerate(ours):
        shutil.copyfile(own.file, folder / f"ours{index}.onnx")
    chosen = choose(data.train, calibration)
    tensors(fp32 / graph.PREPROCESS, data.train, chosen, folder / "calibration.npy")
    tensors(fp32 / graph.PREPROCESS, data.test, list(range(len(data.test))), folder / "held_back.npy")
    np.save(folder / "labels.npy", data.test.labels)
    groups, start = data.test.groups, starting()
    files = sorted(path.name for path in folder.iterdir())
    content: dict[str, Any] = {
        "case": case,
        "calibration": len(chosen),
        "scored": len(data.test),
        "groups": list(groups) if len(set(groups)) < len(groups) else None,
        "ours": [
            {"name": own.name, "what": own.what, "needs": own.needs, "seconds": round(own.seconds + start, 1),
             "file": f"ours{index}.onnx"}
            for index, own in enumerate(ours)
        ],
        "sha256": {name: digest(folder / name) for name in files},
    }  # fmt: skip
    write_json(folder / "case.json", content)


def starting() -> float:
    """Seconds until a process of ours has everything loaded that its steps need, and is gone again."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import toolchain.steps, toolchain.workflow"], check=True)
    return time.monotonic() - begun


def tensors(preprocess: Path, pictures: PictureSet, indices: list[int], target: Path) -> None:
    """Pictures as the network's input, float32 [n, 3, h, w], written one by one."""
    inputs: Iterator[Any] = prepared(preprocess, pictures, indices)
    first = next(inputs)
    out = np.lib.format.open_memmap(target, "w+", np.float32, (len(indices), *first.shape[1:]))
    out[0] = first[0]
    for index, one in enumerate(inputs, start=1):
        out[index] = one[0]
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
