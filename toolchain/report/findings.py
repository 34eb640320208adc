"""Everything a run found, gathered: what the report is assembled from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolchain.artifact import Artifact, figure
from toolchain.choose import Choice
from toolchain.data.dataset import Data, PictureSet
from toolchain.data.findings import DataReport
from toolchain.device import Device
from toolchain.measure.latency import Condition, Latency
from toolchain.recipe import Recipe
from toolchain.store import Entry

Probabilities = NDArray[np.float32]


@dataclass(frozen=True)
class Findings:
    """One run. `artifacts` by node name, `files` those of them that are variants, by variant name.

    answers: probabilities [n, C] by (variant, provider, split). unavailable: provider -> why not.
    reused: node names that lay in the store already. seconds: wall time of this start.
    """

    recipe: Recipe
    data: Data
    checks: DataReport
    device: Device
    artifacts: Mapping[str, Artifact]
    files: Mapping[str, Artifact]
    providers: tuple[str, ...]
    unavailable: Mapping[str, str]
    answers: Mapping[tuple[str, str, str], Probabilities]
    placement: Mapping[tuple[str, str], Mapping[str, int]]
    latencies: Sequence[Latency]
    latency_entry: Entry
    choice: Choice
    reused: frozenset[str]
    started: str
    seconds: float

    def pictures(self, split: str) -> PictureSet:
        """The pictures of "train", "val" or "test"."""
        return dict(self.data.splits)[split]

    def groups(self, split: str) -> tuple[str, ...] | None:
        """The group of each picture, or None when pictures do not come in groups."""
        pictures = self.pictures(split)
        return pictures.groups if any(sample.group for sample in pictures.samples) else None

    def latency(self, variant: str, condition: Condition) -> Latency:
        """The samples of one variant under one condition."""
        return next(x for x in self.latencies if x.variant == variant and x.condition == condition)

    @property
    def conditions(self) -> list[Condition]:
        """Every condition measured, in order."""
        return list(dict.fromkeys(x.condition for x in self.latencies))

    def measurement(self, name: str, what: str) -> float | None:
        """A step's figure for an artifact, looked up through the models it was made from."""
        return figure(self.files[name], self.artifacts.values(), what)
