"""What the final file answers: the fused model over a split, through the runtime that ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolchain.artifact import Artifact
from toolchain.data.dataset import PictureSet
from toolchain.errors import ModelError
from toolchain.runtime.session import Session

FILE = "probabilities.npy"


def answers(
    artifact: Artifact, pictures: PictureSet, provider: str, threads: int, advance: Callable[[], None]
) -> NDArray[np.float32]:
    """Probabilities [n, C] of `model.onnx` for each picture, one by one, as a device asks.

    Raises ModelError when an answer is not finite, PictureError when a picture cannot be read.
    """
    session = Session(artifact.folder / "model.onnx", provider=provider, threads=threads)
    rows = []
    for index in range(len(pictures)):
        picture = np.ascontiguousarray(pictures.picture(index)[None])
        row = session.run({"pictures": picture})[0][0]
        if not np.isfinite(row).all():
            name = pictures.samples[index].name
            raise ModelError(f"{artifact.folder.name[:12]}/model.onnx: its answer to {name} is not finite")
        rows.append(row)
        advance()
    return np.stack(rows).astype(np.float32)


def save(probabilities: NDArray[np.float32], folder: Path) -> None:
    """Keep the answers in a store entry."""
    np.save(folder / FILE, probabilities)


def load(folder: Path) -> NDArray[np.float32]:
    """The answers kept by `save`, [n, C]."""
    return np.asarray(np.load(folder / FILE, allow_pickle=False), dtype=np.float32)
