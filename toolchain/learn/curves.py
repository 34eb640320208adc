"""Learning curves: a row an epoch, as JSON for the report and as TensorBoard events for those who watch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict
from torch.utils.tensorboard.writer import SummaryWriter

from toolchain.learn.settings import Keep, Metric

FILE, EVENTS = "curves.json", "tensorboard"
_TAGS = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "top1/train": "train_top1",
    "top1/val": "val_top1",
    "balanced/val": "val_balanced",
    "lr": "lr",
    "speed/pictures_per_second": "pictures_per_second",
    "speed/data_share": "data_share",
}


class EpochRow(BaseModel):
    """One epoch (from 1). Accuracies are fractions; train's are of augmented pictures, during the epoch.

    lr: of the last step. seconds: training and validation. data_seconds: of those, waiting for batches.
    pictures_per_second: of training alone. kept: whether the weights that are kept are this epoch's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    epoch: int
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    val_balanced: float
    lr: float
    seconds: float
    train_seconds: float
    data_seconds: float
    pictures_per_second: float
    kept: bool = False

    @property
    def data_share(self) -> float:
        """The share of training's time that went into waiting for batches."""
        return self.data_seconds / self.train_seconds

    def score(self, metric: Metric) -> float:
        """A val metric, turned so that greater is better."""
        return {"top1": self.val_top1, "balanced": self.val_balanced, "loss": -self.val_loss}[metric]


class Curves:
    """Writes TensorBoard events while training runs; a context. Rows of an earlier start are written again."""

    def __init__(self, folder: Path, rows: Sequence[EpochRow]) -> None:
        self._writer = SummaryWriter(str(folder / EVENTS))
        for row in rows:
            self.add(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def add(self, row: EpochRow) -> None:
        """Write one epoch's events."""
        for tag, name in _TAGS.items():
            self._writer.add_scalar(tag, getattr(row, name), row.epoch)
        self._writer.flush()


def kept(rows: Sequence[EpochRow], metric: Metric, keep: Keep = "best") -> EpochRow | None:
    """The row to keep: the last, or the best metric, among equals the lowest loss, then the earliest."""
    if keep == "last":
        return rows[-1] if rows else None
    return max(rows, key=lambda row: (row.score(metric), -row.val_loss, -row.epoch), default=None)


def idle(rows: Sequence[EpochRow], metric: Metric) -> int:
    """How many epochs have passed since `metric` was better than ever before."""
    scores = [row.score(metric) for row in rows]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0


def write(rows: Sequence[EpochRow], folder: Path) -> None:
    """Write `curves.json`, a list of rows."""
    text = json.dumps([row.model_dump() for row in rows], indent=1)
    (folder / FILE).write_text(text, encoding="utf-8")
