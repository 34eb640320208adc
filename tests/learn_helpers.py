"""Small pictures that a small network can tell apart, and a small network."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from toolchain.backbones.network import Network, build
from toolchain.backbones.settings import Backbone, PreprocessOverrides
from toolchain.data.dataset import Data, PictureSet, Sample
from toolchain.device import Device
from toolchain.progress import Silent
from toolchain.step import Context

LABELS = ("red", "green", "blue")
CPU = Device("cpu", "cpu", 1)
TINY = Backbone(
    timm="resnet10t",
    weights="random",
    kwargs={"channels": [8, 8, 16, 16], "stem_width": 8},
    preprocess=PreprocessOverrides(size=16, crop_pct=1.0),
)


def pictures(split: str, counts: tuple[int, ...], noise: float = 60.0) -> PictureSet:
    """Noisy 12 x 12 pictures, each brighter in its class's colour."""
    held = {}
    samples = []
    for label, count in enumerate(counts):
        for index in range(count):
            name = f"{split}/{LABELS[label]}/{index}"
            rng = np.random.default_rng(list(name.encode()))
            values = rng.normal(100, noise, (12, 12, 3))
            values[..., label] += 70
            held[name] = values.clip(0, 255).astype(np.uint8)
            samples.append(Sample(name, label, hashlib.sha256(held[name].tobytes()).hexdigest()))
    return PictureSet(tuple(samples), held.__getitem__)


def data(
    train: tuple[int, ...] = (16, 16, 16), val: tuple[int, ...] = (8, 8, 8), noise: float = 60.0
) -> Data:
    return Data(
        "colours",
        LABELS,
        pictures("train", train, noise),
        pictures("val", val, noise),
        pictures("test", (1, 1, 1), noise),
    )


def tiny(**changes):
    """A tiny untrained network with its description, and the data's labels."""
    return build(TINY.model_copy(update=changes), LABELS)


class Lines(Silent):
    """A progress that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def context(folder: Path, found: Data | None = None, seed: int = 0) -> Context:
    """A context in a folder: `out` is new, `scratch` may be there from before."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    return Context(out, scratch, found or data(), CPU, seed, Lines())


def state_bytes(model) -> bytes:
    """Every weight and buffer of a model, one after the other."""
    return b"".join(t.detach().contiguous().numpy().tobytes() for t in model.state_dict().values())


__all__ = ["CPU", "LABELS", "TINY", "Lines", "Network", "context", "data", "pictures", "state_bytes", "tiny"]
