"""Tune: fine-tune a pretrained backbone on the training pictures. It makes the trunk of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from toolchain.artifact import Artifact, Form
from toolchain.backbones.counts import macs, parameters
from toolchain.backbones.network import build, save
from toolchain.backbones.settings import Backbone
from toolchain.learn.curves import EpochRow
from toolchain.learn.loop import fit
from toolchain.learn.settings import Training
from toolchain.record import Measurement
from toolchain.step import Context, Step


class Tune(Training, Step):
    """Training's settings (see learn/settings.py) and the backbone to start from, which the recipe puts here."""

    step: Literal["tune"] = "tune"
    takes: ClassVar[Mapping[str, Form]] = {}
    gives: ClassVar[Form] = Form.TORCH
    uses: ClassVar[frozenset[str]] = frozenset({"train", "val", "device", "seed"})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "timm", "numpy", "pillow")
    backbone: Backbone

    def roots(self) -> Mapping[str, Path]:
        """The pretrained weights, if they are a file."""
        return {f"backbone.{name}": path for name, path in self.backbone.roots().items()}

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Train, and keep the best epoch's network; returns its size and what it reached on val."""
        model, network = build(self.backbone, context.data.labels, seed=context.seed)
        model, rows = fit(model, network, self, context)
        save(model, network, context.out)
        return (
            Measurement(name="macs", value=macs(model, network.preprocess), unit="MAC"),
            Measurement(name="parameters", value=parameters(model)),
            *measurements(rows),
        )


def measurements(rows: list[EpochRow]) -> tuple[Measurement, ...]:
    """What a training reached, as records: of the epoch that is kept, and of all of them."""
    kept = next(row for row in rows if row.kept)
    seconds = sum(row.train_seconds for row in rows)
    return (
        Measurement(name="top1", value=kept.val_top1, where={"split": "val", "epoch": kept.epoch}),
        Measurement(name="balanced", value=kept.val_balanced, where={"split": "val", "epoch": kept.epoch}),
        Measurement(
            name="loss", value=kept.val_loss, unit="nat", where={"split": "val", "epoch": kept.epoch}
        ),
        Measurement(name="epochs", value=len(rows)),
        Measurement(name="data_share", value=sum(row.data_seconds for row in rows) / seconds),
        Measurement(name="training_seconds", value=sum(row.seconds for row in rows), unit="s"),
    )
