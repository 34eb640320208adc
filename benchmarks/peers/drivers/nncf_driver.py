"""NNCF's post-training quantization of an ONNX model, as a user calls it."""

from __future__ import annotations

from typing import Any

import nncf
import onnx
from common import Task, main


def quantize(task: Task, **settings: Any) -> None:
    """nncf.quantize over all calibration pictures, saved as onnx.save does."""
    model = onnx.load(str(task.model))
    data = nncf.Dataset(list(task.feeds()))
    onnx.save(nncf.quantize(model, data, **settings), str(task.out))


def accurate(task: Task) -> None:
    """Asymmetric activations and the slow, exact bias correction."""
    quantize(task, preset=nncf.QuantizationPreset.MIXED, fast_bias_correction=False)


if __name__ == "__main__":
    main({
        "defaults": quantize,
        "mixed": lambda task: quantize(task, preset=nncf.QuantizationPreset.MIXED),
        "accurate": accurate,
    })  # fmt: skip
