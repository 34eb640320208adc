"""What a step makes: a folder that is never edited again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from toolchain.record import Record


class Form(StrEnum):
    """What lies in an artifact's folder.

    TORCH: `network.json` and `weights.safetensors` (see backbones/network.py).
    ONNX: `model.plain.onnx` (input `input` float [N, 3, H, W] -> `logits` [N, C]), `model.onnx`
    (input `pictures` uint8 [N, H, W, 3] -> `probabilities` [N, C]), `preprocess.onnx`, `network.json`.
    """

    TORCH = "torch"
    ONNX = "onnx"


@dataclass(frozen=True)
class Artifact:
    """A finished step's result: its form, its folder in the store and its record."""

    form: Form
    folder: Path
    record: Record

    @property
    def key(self) -> str:
        """The content address."""
        return self.record.key


def lineage(artifact: Artifact, known: Iterable[Artifact]) -> list[Artifact]:
    """The artifact and the models it was made from, nearest first, as far as they are among `known`."""
    by_key = {one.key: one for one in known}
    found = [artifact]
    while (parent := by_key.get(found[-1].record.parents.get("model", ""))) is not None:
        found.append(parent)
    return found


def figure(artifact: Artifact, known: Iterable[Artifact], name: str) -> float | None:
    """What the nearest step in an artifact's lineage measured under `name`; None when none did."""
    for one in lineage(artifact, known):
        for measurement in one.record.measurements:
            if measurement.name == name:
                return measurement.value
    return None
