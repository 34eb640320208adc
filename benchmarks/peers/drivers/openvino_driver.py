"""OpenVINO's own format, float or quantized by NNCF: a reference in a foreign runtime."""

from __future__ import annotations

from typing import Any

import nncf
import openvino
from common import Task, main


def converted(task: Task) -> Any:
    """The float model with the one shape it will be asked for: a fixed shape is what OpenVINO's guide advises."""
    model = openvino.convert_model(task.model)
    model.reshape([1, *task.calibration.shape[1:]])
    return model


def save(task: Task, model: Any) -> None:
    """As .xml and .bin; weights stay as they are, because the runtime decides its precision itself."""
    openvino.save_model(model, task.out, compress_to_fp16=False)


def quantize(task: Task, **settings: Any) -> None:
    """nncf.quantize of the converted model over all calibration pictures."""
    save(task, nncf.quantize(converted(task), nncf.Dataset(list(task.pictures())), **settings))


if __name__ == "__main__":
    main({
        "float": lambda task: save(task, converted(task)),
        "nncf": quantize,
        "nncf-mixed": lambda task: quantize(
            task, preset=nncf.QuantizationPreset.MIXED, target_device=nncf.TargetDevice.CPU, fast_bias_correction=False
        ),
    })  # fmt: skip
