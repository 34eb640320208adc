"""What every driver shares: its command line and the calibration pictures. Runs inside a rival's own environment.

    python onnxruntime_driver.py MODEL CALIBRATION OUT SETTING

MODEL: the float ONNX file. CALIBRATION: float32 [n, 3, h, w], .npy. OUT: the file to write. SETTING: one of the
driver's. Only numpy and the rival's own packages may be imported.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INPUT = "input"  # the name of the model's only input


@dataclass(frozen=True)
class Task:
    """One call: paths are absolute, `scratch` is an empty folder that goes away."""

    model: Path
    calibration: Any
    out: Path
    scratch: Path

    def pictures(self) -> Iterator[Any]:
        """The calibration pictures one by one, float32 [1, 3, h, w]."""
        return (np.array(self.calibration[i : i + 1]) for i in range(len(self.calibration)))

    def feeds(self) -> Iterator[dict[str, Any]]:
        """The same as ONNX Runtime is fed."""
        return ({INPUT: picture} for picture in self.pictures())


class Reader:
    """The calibration pictures as onnxruntime's CalibrationDataReader hands them out."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.left = task.feeds()

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, or None after the last."""
        return next(self.left, None)

    def rewind(self) -> None:
        """Start again."""
        self.left = self.task.feeds()

    def __len__(self) -> int:
        return len(self.task.calibration)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Hand out only pictures of [start_index, end_index): calibration in parts, with bounded memory."""
        part = self.task.calibration[start_index:end_index]
        self.left = ({INPUT: np.array(part[i : i + 1])} for i in range(len(part)))


def main(settings: Mapping[str, Callable[[Task], None]]) -> None:
    """Run the setting that the command line names; an exception ends the process with a traceback."""
    model, calibration, out, name = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        task = Task(
            Path(model).resolve(), np.load(calibration, mmap_mode="r"), Path(out).resolve(), Path(scratch)
        )
        settings[name](task)
