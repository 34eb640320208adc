"""What the bundled nano's pretraining brings over random weights on handwritten digits.

    python -m benchmarks.transfer.digits --out benchmarks/results/transfer_digits.json

Test is the last 540 digits in order (writers likely unseen), val a stratified part of the rest. The learning
rate of each start and number of pictures is chosen on val with draw 0; test is read once per draw, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from benchmarks.transfer.table import main
from benchmarks.transfer.tuning import Pictures, Schedule, prepare
from toolchain.data import digits
from toolchain.data.settings import Split
from toolchain.data.split import limit

SIZE = 32


class Digits:
    """scikit-learn's digits at 32 pixels."""

    told: ClassVar[str] = "scikit-learn digits at 32 pixels, test the last 540 in order, full fine-tuning"
    schedules: ClassVar[Mapping[int, Schedule]] = {
        5: Schedule(steps=120),
        20: Schedule(steps=200),
        100: Schedule(steps=400),
    }
    rates: ClassVar[tuple[float, ...]] = (1e-3, 3e-3, 1e-2, 3e-2)
    curve: ClassVar[tuple[int, float]] = (5, 3e-2)

    def __init__(self) -> None:
        data = digits.load(Split(val=0.15, seed=0), None)
        self.classes = len(data.labels)
        self._pool = data.train
        self.val, self.test = prepare(data.val, SIZE), prepare(data.test, SIZE)

    def train(self, count: int, draw: int) -> Pictures:
        """`count` training pictures a class, drawn with seed `draw`."""
        return prepare(limit(self._pool, count, draw), SIZE)


if __name__ == "__main__":
    main(Digits, __doc__)
