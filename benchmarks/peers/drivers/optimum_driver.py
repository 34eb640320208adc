"""optimum-onnx's ORTQuantizer with its presets for AVX-512 VNNI and for AVX2, as its guide calls it."""

from __future__ import annotations

import shutil
from typing import Any

from common import INPUT, Task, main
from onnxruntime.quantization import CalibrationMethod
from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer
from optimum.onnxruntime.configuration import CalibrationConfig
from transformers import PretrainedConfig


class Feed:
    """The calibration pictures as `fit` wants a data set: dicts of one picture each, batched by itself."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __iter__(self) -> Any:
        return ({INPUT: picture[0]} for picture in self.task.pictures())


def quantizer(task: Task) -> ORTQuantizer:
    """The model under a name without dots: optimum takes what follows the first for the suffix."""
    plain = shutil.copyfile(task.model, task.scratch / "model.onnx")
    return ORTQuantizer(plain, config=PretrainedConfig())


def dynamic(task: Task) -> None:
    """What `optimum-cli onnxruntime quantize --avx512_vnni` does."""
    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
    quantizer(task).quantize(config, task.scratch)
    keep(task)


def static(
    task: Task, method: CalibrationMethod = CalibrationMethod.MinMax, preset: Any = None, **bins: Any
) -> None:
    """The guide's static example. `partial_fit` would need less memory, but forgets every shard but the last."""
    config = preset or AutoQuantizationConfig.avx512_vnni(is_static=True)
    calibration = CalibrationConfig("", "", "", len(task.calibration), method=method, **bins)
    own = quantizer(task)
    ranges = own.fit(
        Feed(task), calibration, onnx_augmented_model_name=str(task.scratch / "augmented.onnx"),
        operators_to_quantize=config.operators_to_quantize,
    )  # fmt: skip
    own.quantize(config, task.scratch, calibration_tensors_range=ranges)
    keep(task)


def keep(task: Task) -> None:
    """Move the file to where it was asked for."""
    shutil.move(task.scratch / "model_quantized.onnx", task.out)


if __name__ == "__main__":
    main({
        "dynamic": dynamic,
        "static": static,
        "static-avx2": lambda task: static(task, preset=AutoQuantizationConfig.avx2(is_static=True)),
        "static-avx2-reduced": lambda task: static(
            task, preset=AutoQuantizationConfig.avx2(is_static=True, reduce_range=True)
        ),
        "static-percentile": lambda task: static(
            task, CalibrationMethod.Percentile, num_bins=2048, percentile=99.999
        ),
    })  # fmt: skip
