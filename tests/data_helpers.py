"""Small labelled pictures for the tests of the data room."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toolchain.data.dataset import Data, Picture, PictureSet, Sample


def shared(name: str) -> Path:
    """A folder of the shared real data; skips loudly without it."""
    root = Path(os.environ.get("TOOLCHAIN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"TOOLCHAIN_DATA has no {name} (looked in {root})")
    return root / name


def noise(seed: int, height: int = 12, width: int = 16) -> Picture:
    """uint8 [height, width, 3] of smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, picture: Picture) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def fill(root: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write `counts[folder]` different pictures into root/folder, for folders like "train/cat"."""
    for number, (folder, count) in enumerate(counts.items()):
        for index in range(count):
            save(root / folder / f"{index:03d}.png", noise(seed + 1000 * number + index))
    return root


def held(pictures: list[Picture], labels: list[int], groups: list[str | None] | None = None) -> PictureSet:
    """A picture set that lives in memory."""
    named = {f"p/{i:03d}": picture for i, picture in enumerate(pictures)}
    samples = tuple(
        Sample(name, label, hashlib.sha256(picture.tobytes()).hexdigest(), group)
        for (name, picture), label, group in zip(
            named.items(), labels, groups or [None] * len(labels), strict=True
        )
    )
    return PictureSet(samples, named.__getitem__)


def in_thirds(pictures: PictureSet, labels: tuple[str, ...]) -> Data:
    """Every third sample to train, val and test in turn."""
    train, val, test = (pictures.subset(range(start, len(pictures), 3)) for start in range(3))
    return Data("thirds", labels, train, val, test)
