"""NVIDIA ModelOpt's ONNX quantization, calibrated on the CPU, as its guide calls it."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import INPUT, Task, main
from modelopt.onnx.quantization import quantize


def int8(task: Task, **settings: Any) -> None:
    """quantize() in int8 with all calibration pictures."""
    pictures = {INPUT: np.array(task.calibration)}
    quantize(
        str(task.model), quantize_mode="int8", calibration_data=pictures, calibration_eps=["cpu"],
        output_path=str(task.out), **settings,
    )  # fmt: skip


if __name__ == "__main__":
    main({
        "defaults": int8,
        "max-fp32": lambda task: int8(task, calibration_method="max", high_precision_dtype="fp32"),
    })  # fmt: skip
