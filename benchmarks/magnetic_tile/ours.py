"""Our side: the training of recipes/surface-inspection.yaml over the same five folds, and its ablations.

    python -m benchmarks.magnetic_tile.ours                  # the recipe as it is, all folds that are not done yet
    python -m benchmarks.magnetic_tile.ours --row all        # every ablation too (hours on a small CPU)
    python -m benchmarks.magnetic_tile.ours --folds 0 2 4    # one of two processes that share the work

Of each fold's four training fifths a sixth is held back as val, by tile, for what the training decides by it. The
held-out fifth is answered once. Each row changes one setting of the recipe.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from benchmarks.magnetic_tile.folds import FOLDS, SEED, Tiles, folder, folds, tiles
from toolchain.backbones.network import build
from toolchain.data.dataset import Data, PictureSet, Sample
from toolchain.data.loader import evaluation_tensor
from toolchain.device import select
from toolchain.learn.loop import fit
from toolchain.progress import Silent
from toolchain.recipe import load
from toolchain.runtime import host
from toolchain.runtime.pictures import decode
from toolchain.step import Context
from toolchain.steps import Tune

OUT = Path(__file__).resolve().parents[1] / "results" / "magnetic_tile"
RECIPE = "surface-inspection"
INNER = 6
ROWS: dict[str, tuple[str, ...]] = {
    "ours": (),
    "the network's end instead of its levels": ("backbone.out_indices=null",),
    "balanced sampling": ("tune.balance=sampler",),
    "classes as they come": ("tune.balance=none",),
    "the whole balance": ("tune.balance_power=1.0",),
    "norms by their batch": ("tune.norm_statistics=batch",),
    "classifier trained 30 times as fast": ("tune.head_lr_factor=30",),
    "head only": ("tune.train=head",),
    "whole network trained": ("tune.train=full",),
    "224 pixels": ("backbone.preprocess.size=224",),
    "aspect kept, black border": ("backbone.preprocess.crop_mode=border",),
    "random crops": ("tune.augment.crop_scale=[0.6, 1.0]",),
    "mixup": ("tune.mixup=0.4",),
    "no EMA": ("tune.ema=null",),
    "best epoch on val": ("tune.keep=best",),
}


def main() -> None:
    """Train and answer what is not done yet; one JSON file a row and fold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", default="ours", choices=["all", *ROWS])
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path("build/magnetic_tile"), help="checkpoints")
    asked = parser.parse_args()
    found = tiles()
    OUT.mkdir(parents=True, exist_ok=True)
    for row in ROWS if asked.row == "all" else [asked.row]:
        for fold, (train, held) in enumerate(folds(found)):
            target = OUT / f"{slug(row)}_fold{fold}.json"
            if fold in asked.folds and not target.exists():
                result = run(found, train, held, ROWS[row], asked.scratch / target.stem, asked.threads)
                target.write_text(json.dumps({"row": row, "fold": fold, **result}))
                print(f"{row}, fold {fold + 1} of {FOLDS}: val {result['val_balanced']:.3f}", flush=True)


def slug(row: str) -> str:
    """A row's name as part of a file's."""
    return "".join(letter if letter.isalnum() else "-" for letter in row)


def run(
    found: Tiles, train: NDArray[np.int64], held: NDArray[np.int64], changes: tuple[str, ...],
    scratch: Path, threads: int,
) -> dict[str, object]:  # fmt: skip
    """Train one fold with the recipe's settings and answer the held-out fifth."""
    tune = settings(changes)
    data = split(found, train, held)
    device, started = select("cpu", threads), time.time()
    model, network = build(tune.backbone, data.labels)
    out = scratch / "out"
    out.mkdir(parents=True, exist_ok=True)
    model, rows = fit(model, network, tune, Context(out, scratch, data, device, 0, Silent()))
    kept = next(row for row in rows if row.kept)
    with torch.inference_mode():
        inputs = evaluation_tensor(data.test, network.preprocess)
        answers = torch.cat([model(part).softmax(1) for part in inputs.split(32)]).numpy()
    return {
        "held": held.tolist(), "probabilities": np.round(answers, 5).tolist(), "changes": list(changes),
        "settings": tune.model_dump(mode="json", exclude={"backbone": {"weights"}}), "epoch": kept.epoch,
        "val_balanced": kept.val_balanced, "seconds": round(time.time() - started), "threads": threads,
        "host": host.facts(),
    }  # fmt: skip


def settings(changes: tuple[str, ...]) -> Tune:
    """The recipe's training with some settings changed."""
    tune = load(RECIPE, changes).tune
    if tune is None:
        raise SystemExit(f"{RECIPE} trains nothing")
    return tune


def split(found: Tiles, train: NDArray[np.int64], held: NDArray[np.int64]) -> Data:
    """The fold as the training loop takes it: no tile is in two of train, val and test."""
    groups = np.array(found.groups)
    inner = StratifiedGroupKFold(INNER, shuffle=True, random_state=SEED)
    teach, judge = next(iter(inner.split(train, found.labels[train], groups[train])))
    base = folder() / "factory_magnetic_tile"
    samples = [
        Sample(str(path.relative_to(base)), int(label), hashlib.sha256(path.read_bytes()).hexdigest(), group)
        for path, label, group in zip(found.paths, found.labels, found.groups, strict=True)
    ]
    pictures = PictureSet(tuple(samples), lambda name: decode(base / name))
    parts = [pictures.subset(indices.tolist()) for indices in (train[teach], train[judge], held)]
    return Data("magnetic-tile", found.classes, *parts)


if __name__ == "__main__":
    main()
