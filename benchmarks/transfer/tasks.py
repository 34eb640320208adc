"""The four tasks of the transfer table, as normalised pictures in train, val and test."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch

from benchmarks.transfer.tuning import Pictures, Schedule, mirrored, prepare
from toolchain.data import digits, sources
from toolchain.data.dataset import Data
from toolchain.data.settings import DataSettings, Split
from toolchain.data.split import folds, limit
from toolchain.runtime.pictures import decode

ALL = 1_000_000  # more pictures than a class has


class Task(Protocol):
    """Labelled pictures of `size` pixels a side. `schedules` says for each number of pictures a class how long
    is tuned; `metric` is what is scored, top-1 or the mean of the classes' recalls; `draws` are scored unless
    told otherwise. `val` belongs to draw 0 and is in no draw's test."""

    told: ClassVar[str]
    size: ClassVar[int]
    metric: ClassVar[Literal["top1", "balanced"]]
    draws: ClassVar[int]
    schedules: ClassVar[Mapping[int, Schedule]]
    classes: int
    val: Pictures

    def train(self, count: int, draw: int) -> Pictures:
        """At most `count` training pictures a class, drawn with seed `draw`."""
        ...

    def test(self, draw: int) -> Pictures:
        """What scores a draw."""
        ...


class Digits:
    """scikit-learn's digits: test is the last 540 in order (writers likely unseen), val a part of the rest."""

    told: ClassVar[str] = "scikit-learn digits at 32 pixels, test the last 540 in order"
    size: ClassVar[int] = 32
    metric: ClassVar[Literal["top1", "balanced"]] = "top1"
    draws: ClassVar[int] = 3
    schedules: ClassVar[Mapping[int, Schedule]] = {
        5: Schedule(steps=120),
        10: Schedule(steps=150),
        20: Schedule(steps=200),
        50: Schedule(steps=300),
        100: Schedule(steps=400),
        ALL: Schedule(steps=500),
    }

    def __init__(self) -> None:
        data = digits.load(Split(val=0.15, seed=0), None)
        self.classes = len(data.labels)
        self._pool = data.train
        self.val, self._test = prepare(data.val, self.size), prepare(data.test, self.size)

    def train(self, count: int, draw: int) -> Pictures:
        """At most `count` training pictures a class, drawn with seed `draw`."""
        return prepare(limit(self._pool, count, draw), self.size)

    def test(self, draw: int) -> Pictures:
        """The same pictures for every draw."""
        return self._test


class Cifar10:
    """CIFAR-10 (JPEG) at its 32 pixels: training draws from the first 4,900 of a class, val is the last 50 of
    each, test the first 200 of each test class. Reads cifar10/cifar10.zip below $TOOLCHAIN_DATA."""

    told: ClassVar[str] = "CIFAR-10 (JPEG) at 32 pixels, 2,000 test pictures"
    size: ClassVar[int] = 32
    metric: ClassVar[Literal["top1", "balanced"]] = "top1"
    draws: ClassVar[int] = 3
    schedules: ClassVar[Mapping[int, Schedule]] = {
        10: Schedule(steps=300),
        50: Schedule(steps=600),
        ALL: Schedule(steps=2500, batch=256),
    }
    _POOL, _VAL, _TEST = range(4900), range(4900, 4950), range(200)

    def __init__(self) -> None:
        self._file = zipfile.ZipFile(folder("cifar10") / "cifar10.zip")
        names = (name for name in self._file.namelist() if name.endswith(".jpg"))
        self._classes = sorted({name.split("/")[1] for name in names})
        self.classes = len(self._classes)
        self.val = self._read("train", [self._VAL] * self.classes)
        self._test = self._read("test", [self._TEST] * self.classes)

    def train(self, count: int, draw: int) -> Pictures:
        """At most `count` training pictures a class, drawn with seed `draw`, and their mirror images."""
        if count >= len(self._POOL):
            return self._all
        rng = np.random.default_rng(draw)
        return mirrored(
            self._read("train", [rng.choice(self._POOL, count, replace=False) for _ in self._classes])
        )

    def test(self, draw: int) -> Pictures:
        """The same pictures for every draw."""
        return self._test

    @cached_property
    def _all(self) -> Pictures:
        return mirrored(self._read("train", [self._POOL] * self.classes))

    def _read(self, split: str, numbers: list[range] | list[np.ndarray]) -> Pictures:
        pairs = [(k, i) for k, chosen in enumerate(numbers) for i in chosen]
        pictures = [decode(self._file.read(f"{split}/{self._classes[k]}/{i:04d}.jpg")) for k, i in pairs]
        planes = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return Pictures(planes.float() / 127.5 - 1, torch.tensor([k for k, _ in pairs]))


class _Folder:
    """Whole pictures at 64 pixels of an image folder of $TOOLCHAIN_DATA; a draw may have its own splits."""

    size: ClassVar[int] = 64
    metric: ClassVar[Literal["top1", "balanced"]] = "balanced"
    draws: ClassVar[int] = 3
    schedules: ClassVar[Mapping[int, Schedule]] = {
        10: Schedule(steps=200),
        50: Schedule(steps=300),
        ALL: Schedule(steps=500, even=True),
    }

    def __init__(self, splits: Sequence[Data]) -> None:
        self._splits = splits
        self.classes = len(splits[0].labels)
        self.val = prepare(splits[0].val, self.size)

    def train(self, count: int, draw: int) -> Pictures:
        """At most `count` training pictures a class, drawn with seed `draw`, and their mirror images."""
        pool = self._split(draw).train
        return mirrored(prepare(pool if count == ALL else limit(pool, count, draw), self.size))

    def test(self, draw: int) -> Pictures:
        """The test split of a draw, without pictures by which a rate was chosen."""
        found, known = self._split(draw).test, set(self._splits[0].val.samples)
        unknown = [index for index, sample in enumerate(found.samples) if sample not in known]
        return prepare(found.subset(unknown), self.size)

    def _split(self, draw: int) -> Data:
        return self._splits[draw % len(self._splits)]


class BloodCells(_Folder):
    """Crops of blood cells, three classes, split by slide."""

    told: ClassVar[str] = "blood cells at 64 pixels, balanced accuracy on 478 test pictures"

    def __init__(self) -> None:
        super().__init__([sources.load(DataSettings(folder=folder("clinic_blood_cells")), Path())])


FOLDS = 5  # of the magnetic tiles


class MagneticTile(_Folder):
    """Surface defects of magnetic tiles, six classes, the rarest with 32 pictures.

    Its own test split has five of the rarest class, each worth three points of the mean. Five grouped folds hold out
    all 1,344 pictures; the 205 that are val, of draw 0, score nowhere.
    """

    told: ClassVar[str] = (
        "magnetic tile defects at 64 pixels, balanced accuracy; draw i scores fold i of five, grouped by tile, without the "
        "pictures by which the rate was chosen"
    )
    draws: ClassVar[int] = FOLDS

    def __init__(self) -> None:
        where = folder("factory_magnetic_tile")
        data = sources.load(DataSettings(folder=where, groups=where / "split.csv"), Path())
        super().__init__(folds(data, FOLDS, seed=0))


TASKS: Mapping[str, type[Task]] = {
    "cifar10": Cifar10,
    "digits": Digits,
    "blood_cells": BloodCells,
    "magnetic_tile": MagneticTile,
}


@dataclass(frozen=True)
class Setting:
    """A task by name with a number of pictures a class; ALL means every one there is."""

    task: str
    count: int

    @property
    def per_class(self) -> str:
        """The number of pictures a class, as the table shows it."""
        return "all" if self.count == ALL else str(self.count)

    @property
    def schedule(self) -> Schedule:
        """How long is tuned."""
        return TASKS[self.task].schedules[self.count]


def folder(name: str) -> Path:
    """A data set below $TOOLCHAIN_DATA."""
    given = os.environ.get("TOOLCHAIN_DATA")
    return (Path(given) if given else Path(__file__).parents[3] / "shared" / "data") / name


def settings(tasks: Iterable[str]) -> list[Setting]:
    """All settings of the tasks given."""
    return [Setting(task, count) for task in tasks for count in TASKS[task].schedules]
