"""Learning rates: pure functions of the step, and the one that listens to the validation result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolchain.learn.settings import Training

_ONE_CYCLE_START = 1 / 25
_ONE_CYCLE_RISE = 0.3


def factor(training: Training, step: int, steps_an_epoch: int) -> float:
    """What share of `lr` optimizer step `step` (from 0) has; a plateau's reductions come on top."""
    total = training.epochs * steps_an_epoch
    rise = training.warmup_epochs * steps_an_epoch
    if training.schedule == "one-cycle":
        return _one_cycle(step, rise or _ONE_CYCLE_RISE * total, total)
    if step < rise:
        return min(1.0, (step + 1) / rise)
    if training.schedule == "cosine":
        return _fall((step - rise) / (total - rise))
    return 1.0


@dataclass
class Plateau:
    """Multiplies the rate by `factor` when more than `patience` epochs in a row brought nothing better."""

    factor: float
    patience: int
    best: float = -math.inf
    bad: int = 0
    scale: float = 1.0

    def see(self, score: float) -> None:
        """Take in an epoch's score; greater is better."""
        if score > self.best:
            self.best, self.bad = score, 0
            return
        self.bad += 1
        if self.bad > self.patience:
            self.scale, self.bad = self.scale * self.factor, 0


def _one_cycle(step: int, rise: float, total: int) -> float:
    if step < rise:
        return 1 - (1 - _ONE_CYCLE_START) * _fall(step / rise)
    return _fall((step - rise) / (total - rise))


def _fall(share: float) -> float:
    """Half a cosine, from 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * share)) / 2
