"""Labelled pictures in three splits, each with one job: train teaches, val decides, test is reported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # [H, W, 3], RGB


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture. `name` is its path below the data folder; `sha256` that of its bytes."""

    name: str
    label: int
    sha256: str
    group: str | None = None


@dataclass(frozen=True)
class PictureSet:
    """An ordered set of samples; `decode(name)` gives the picture, uint8 [H, W, 3] RGB."""

    samples: tuple[Sample, ...]
    decode: Callable[[str], Picture]

    def __len__(self) -> int:
        return len(self.samples)

    def picture(self, index: int) -> Picture:
        """Decode sample `index`. Raises PictureError, naming the file, when it cannot be read."""
        return self.decode(self.samples[index].name)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, int64 [n]."""
        return np.array([sample.label for sample in self.samples], dtype=np.int64)

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each sample; a sample without one is its own group."""
        return tuple(sample.group or sample.name for sample in self.samples)

    def subset(self, indices: Iterable[int]) -> PictureSet:
        """The samples at `indices`, in that order."""
        return PictureSet(tuple(self.samples[i] for i in indices), self.decode)

    @property
    def fingerprint(self) -> str:
        """sha256 over names, labels, groups and content hashes."""
        return _digest(f"{s.name}\0{s.label}\0{s.group}\0{s.sha256}" for s in self.samples)


@dataclass(frozen=True)
class Data:
    """A task's pictures. `labels[k]` is the name of class k; `notes` say what was noticed while loading."""

    name: str
    labels: tuple[str, ...]
    train: PictureSet
    val: PictureSet
    test: PictureSet
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> Sequence[tuple[str, PictureSet]]:
        """The three splits with their names."""
        return (("train", self.train), ("val", self.val), ("test", self.test))


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()
