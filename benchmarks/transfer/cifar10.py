"""What the bundled nano's pretraining brings over random weights on small photographs (CIFAR-10, 50 a class).

    python -m benchmarks.transfer.cifar10 --out benchmarks/results/transfer_cifar10.json

Reads cifar10/cifar10.zip (train/CLASS/NNNN.jpg, test/CLASS/NNNN.jpg) below $TOOLCHAIN_DATA. Training draws come
from the first 4,900 of a class, val is the last 50 of each, test the first 200 of each test class.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from benchmarks.transfer.table import main
from benchmarks.transfer.tuning import Pictures, Schedule
from toolchain.runtime.pictures import decode

POOL, VAL, TEST = range(4900), range(4900, 4950), range(200)


class Cifar10:
    """CIFAR-10 at its 32 pixels."""

    told: ClassVar[str] = "CIFAR-10 (JPEG), 2,000 test pictures, full fine-tuning, mirrored pictures added"
    schedules: ClassVar[Mapping[int, Schedule]] = {50: Schedule(steps=600)}
    rates: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3, 1e-2)
    curve: ClassVar[tuple[int, float]] = (50, 3e-3)

    def __init__(self) -> None:
        folder = Path(os.environ.get("TOOLCHAIN_DATA", Path(__file__).parents[3] / "shared" / "data"))
        self._file = zipfile.ZipFile(folder / "cifar10" / "cifar10.zip")
        names = (name for name in self._file.namelist() if name.endswith(".jpg"))
        self._classes = sorted({name.split("/")[1] for name in names})
        self.classes = len(self._classes)
        self.val = self._read("train", [VAL] * self.classes)
        self.test = self._read("test", [TEST] * self.classes)

    def train(self, count: int, draw: int) -> Pictures:
        """`count` training pictures a class, drawn with seed `draw`, and their mirror images."""
        rng = np.random.default_rng(draw)
        drawn = self._read("train", [rng.choice(POOL, count, replace=False) for _ in self._classes])
        both = torch.cat([drawn.pictures, drawn.pictures.flip(3)])
        return Pictures(both, drawn.labels.repeat(2))

    def _read(self, split: str, numbers: list[range] | list[np.ndarray]) -> Pictures:
        pairs = [(k, i) for k, chosen in enumerate(numbers) for i in chosen]
        pictures = [decode(self._file.read(f"{split}/{self._classes[k]}/{i:04d}.jpg")) for k, i in pairs]
        planes = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return Pictures(planes.float() / 127.5 - 1, torch.tensor([k for k, _ in pairs]))


if __name__ == "__main__":
    main(Cifar10, __doc__)
