"""Everything that changes while a network trains, and so everything that a checkpoint holds.

There is no random state: each step seeds its own draws from the run's seed and its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from toolchain.device import Device
from toolchain.learn import optimizer as optimizers
from toolchain.learn.average import Average
from toolchain.learn.curves import EpochRow, kept
from toolchain.learn.schedule import Plateau
from toolchain.learn.settings import Training
from toolchain.record import JSON


@dataclass
class Tally:
    """Sums over the epoch that is running; `waited` of `seconds` were spent waiting for batches."""

    loss: float = 0.0
    hits: int = 0
    pictures: int = 0
    seconds: float = 0.0
    waited: float = 0.0


@dataclass
class Position:
    """Where training is: `batch` batches of `epoch` (from 0) are done, and `step` optimizer steps in all."""

    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class State:
    """A model in training, on its device."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None
    plateau: Plateau
    position: Position = field(default_factory=Position)
    tally: Tally = field(default_factory=Tally)
    rows: list[EpochRow] = field(default_factory=list)
    kept: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, model: nn.Module, training: Training, device: Device) -> State:
        """The state before the first step; `model` is on the device, its frozen part frozen."""
        half = device.amp_type(training.amp) is torch.float16
        return cls(
            model=model,
            optimizer=optimizers.make(model, training),
            scaler=torch.amp.GradScaler(device.kind, enabled=half),
            average=Average(model, training.ema) if training.ema is not None else None,
            plateau=Plateau(training.factor, training.patience),
        )

    @property
    def judged(self) -> nn.Module:
        """The weights that val judges: the averaged ones where there are any."""
        return self.model if self.average is None else self.average.model

    def finish_epoch(self, row: EpochRow, training: Training) -> None:
        """Take in an epoch's result: keep its weights if it is the one to keep, and turn to the next epoch."""
        self.rows.append(row)
        self.plateau.see(row.score(training.select))
        if kept(self.rows, training.select, training.keep) is row:
            state = self.judged.state_dict()
            self.kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
        self.position = Position(self.position.epoch + 1, 0, self.position.step)
        self.tally = Tally()

    def dump(self) -> dict[str, JSON]:
        """Plain values and tensors, for a checkpoint."""
        average = self.average and {"model": self.average.model.state_dict(), "updates": self.average.updates}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": average,
            "plateau": asdict(self.plateau),
            "position": asdict(self.position),
            "tally": asdict(self.tally),
            "rows": [row.model_dump() for row in self.rows],
            "kept": self.kept,
        }

    def restore(self, saved: Mapping[str, JSON]) -> None:
        """Go back to what `dump` gave."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            self.average.model.load_state_dict(saved["average"]["model"])
            self.average.updates = saved["average"]["updates"]
        self.plateau = Plateau(**saved["plateau"])
        self.position = Position(**saved["position"])
        self.tally = Tally(**saved["tally"])
        self.rows = [EpochRow(**row) for row in saved["rows"]]
        self.kept = {name: tensor.cpu() for name, tensor in saved["kept"].items()}
