"""The smallest whole trip: coloured squares, a recipe that learns them in a second, the command line in process.

`tiny_run` in conftest.py is a finished run of it, made once a session; copy what you are going to damage.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (200, 50, 40)}
COUNTS = {"train": 12, "val": 6, "test": 6}


@dataclass(frozen=True)
class TinyRun:
    """A finished run: the recipe's file, what it wrote (report and bundle), its store and its pictures."""

    recipe: Path
    out: Path
    store: Path
    pictures: Path

    @property
    def bundle(self) -> Path:
        return self.out / "bundle"


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code and streams."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Trip:
    """A finished search: its run and what the command said."""

    run: TinyRun
    answer: Answer

    @property
    def found(self) -> dict[str, Any]:
        return json.loads((self.run.out / "optimize.json").read_text())  # type: ignore[no-any-return]


def tiny_pictures(
    folder: Path,
    labels: tuple[str, ...] = tuple(COLOURS),
    counts: Mapping[str, int] = COUNTS,
    suffix: str = "png",
) -> Path:
    """Write folder/SPLIT/LABEL/NN.png: squares of 16 x 16 noisy pixels in the label's colour, all different."""
    for split, count in counts.items():
        for label in labels:
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                path = folder / split / label / f"{index:02d}.{suffix}"
                rng = np.random.default_rng(list(f"{split}/{label}/{index}".encode()))
                colour = COLOURS.get(label, (120, 120, 120))
                pixels = rng.normal(colour, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(path)
    return folder


def tiny_settings(pictures: Path, **changes: Any) -> dict[str, Any]:
    """The recipe of a tiny run as plain values; `changes` replaces whole sections (None leaves one out)."""
    recipe: dict[str, Any] = {
        "name": "tiny",
        "device": "cpu",
        "threads": 1,
        "data": {"folder": str(pictures)},
        "backbone": {
            "timm": "resnet10t",
            "weights": "random",
            "kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8},
            "preprocess": {"size": 32, "crop_pct": 1.0},
        },
        "tune": {"epochs": 1, "batch_size": 8, "lr": 0.01},
        "variants": {"fp32": {"from": "tuned", "steps": ["export"]}},
        "measure": {"providers": ["cpu"], "blocks": 20, "calls": 10, "drop": 2, "seconds": 0},
        "gates": {"max_drop": 100},
    }
    return {name: value for name, value in (recipe | changes).items() if value is not None}


def tiny_recipe(folder: Path, pictures: Path, **changes: Any) -> Path:
    """Write folder/recipe.yaml for the pictures; see tiny_settings."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny_settings(pictures, **changes), sort_keys=False))
    return path


def command(*arguments: object) -> Answer:
    """Run `toolchain ARGUMENTS` in this process, as the console script does: argv, streams and exit code."""
    from toolchain.cli import main

    out, err, code = StringIO(), StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["toolchain", *map(str, arguments)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
    return Answer(code, out.getvalue(), err.getvalue())


def tiny_run(folder: Path, **changes: Any) -> TinyRun:
    """Make pictures and recipe in a folder and run it to its end."""
    pictures = tiny_pictures(folder / "pictures")
    recipe = tiny_recipe(folder, pictures, **changes)
    run = TinyRun(recipe, folder / "out", folder / "store", pictures)
    answer = command("run", recipe, "--out", run.out, "--store", run.store)
    if answer.code:
        raise RuntimeError(f"the tiny run ended with {answer.code}: {answer.err}")
    return run
