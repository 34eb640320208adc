"""`toolchain init`: a commented recipe for the pictures found in a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from toolchain.data.settings import Columns, DataSettings
from toolchain.data.sources import load
from toolchain.data.table import group_column
from toolchain.errors import DataError
from toolchain.runtime.whole import write_whole

_FEW_A_CLASS = 200
_FEW = 5000  # pictures for training, of which pretraining saves the larger network from too few examples
_UNEVEN = 3.0
_LOOKED_AT = 60


_TEMPLATE = """\
# Made by 'toolchain init': {classes} classes, {train} training pictures (the rarest class has {rarest}).
# Check it: toolchain check recipe.yaml      Run it: toolchain run recipe.yaml
# Editors complete and check this file with the schema that 'toolchain schema' prints.
name: "{name}"
seed: 0

data:
  folder: .{groups}

# The bundled backbones (small, and nano, a quarter of its file at about half its time) need no network and nobody's
# pictures. With a way to timm's hub, a network pretrained on ImageNet may learn more from pictures of 160 pixels and more
# (mind ImageNet's non-commercial terms; at 32 to 64 pixels it did not, see docs/cards):
#   backbone: {{timm: resnet18.a1_in1k, weights: hub}}
# or from a file: backbone: {{timm: mobilenetv2_100, weights: ./mobilenetv2.safetensors}}
backbone:
  bundled: {bundled}
  preprocess: {{size: {size}, crop_pct: 1.0}}   # your pictures' shorter side is about {side} pixels

tune:                       # makes the artifact `tuned`
  epochs: {epochs}
  batch_size: 32
  optimizer: adamw
  lr: 0.001
  weight_decay: 0.05
  schedule: cosine
  warmup_epochs: 1
  label_smoothing: 0.05
  balance: {balance}          # none, loss, sampler or logits; {note}
  select: {metric}
  augment: {{flip_horizontal: true, rotate: 10, translate: 0.05}}   # no flips if left and right mean something

variants:
  fp32: {{from: tuned, steps: [export]}}
  int8: {{from: fp32, steps: [quantize]}}
  pruned:
    from: tuned
    steps:
      - prune: {{ratio: 0.5}}
      - recover: {{teacher: tuned, epochs: {epochs}, optimizer: adamw, lr: 0.001, balance: {drawn}, select: {metric}}}
      - export
  pruned-int8: {{from: pruned, steps: [quantize]}}
  fp16: {{from: fp32, steps: [half], provider: cuda}}   # made where the CUDA provider is measured

measure: {{providers: [auto], threads: [1], batch: [1]}}

gates:                      # decided on val, from the final files; exit code 3 when nothing passes
  metric: {metric}
  max_drop: 1.0             # points lost against fp32 on the same pictures
  # min_recall: 90          # percent, for every class
  # max_latency_ms: 5
"""


@dataclass(frozen=True)
class _Seen:
    """What was found: pictures for training in all and in the rarest and commonest class, side in pixels."""

    classes: int
    train: int
    rarest: int
    commonest: int
    side: int
    groups: Path | None


def propose(folder: Path, force: bool = False) -> Path:
    """Write `recipe.yaml` into an image folder and return its path.

    Raises DataError when the folder holds no usable pictures, or a recipe is there and `force` is not given.
    """
    target = folder / "recipe.yaml"
    if target.exists() and not force:
        raise DataError(f"{target}: is there already; take --force to replace it")
    seen = _look(folder)
    write_whole(target, _recipe(folder, seen).encode())
    return target


def _look(folder: Path) -> _Seen:
    tables = (folder / "groups.csv", folder / "split.csv")
    groups = next((p for p in tables if p.is_file() and group_column(p, Columns()) is not None), None)
    data = load(
        DataSettings(folder=folder.resolve(), groups=groups.resolve() if groups else None), Path.cwd()
    )
    counts = [int((data.train.labels == k).sum()) for k in range(len(data.labels))]
    step = max(1, len(data.train) // _LOOKED_AT)
    sides = [min(data.train.picture(i).shape[:2]) for i in range(0, len(data.train), step)]
    return _Seen(len(data.labels), len(data.train), min(counts), max(counts), int(median(sides)), groups)


def _recipe(folder: Path, seen: _Seen) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._")[:64] or "pictures"
    few = seen.rarest < _FEW_A_CLASS
    uneven = seen.commonest > _UNEVEN * seen.rarest
    size = next(s for s in (32, 64, 96, 128, 160, 224) if s >= min(seen.side, 224))
    groups = (
        f"\n  groups: ./{seen.groups.name}   # splits that are made keep a group together; given ones are checked for it"
        if seen.groups
        else ""
    )
    epochs = 30 if few else 15
    # Of the ways to balance only margins in the logits were measured to help (magnetic tiles, benchmarks/README.md).
    balance, metric = ("logits\n  balance_power: 0.5", "balanced") if uneven else ("none", "top1")
    note = "the classes are uneven" if uneven else "the classes are about even"
    return _TEMPLATE.format(
        classes=seen.classes,
        train=seen.train,
        rarest=seen.rarest,
        side=seen.side,
        name=name,
        bundled="small" if seen.train < _FEW else "nano",
        groups=groups,
        size=size,
        epochs=epochs,
        balance=balance,
        drawn="sampler" if uneven else "none",
        metric=metric,
        note=note,
    )
