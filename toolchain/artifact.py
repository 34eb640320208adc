"""What a step makes: a folder that is never edited again."""

from __future__ import annotations

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
