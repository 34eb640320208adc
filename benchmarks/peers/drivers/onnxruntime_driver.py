"""onnxruntime's own quantization, as a user calls it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common import Reader, Task, main
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

STRIDE = 16


def static(task: Task) -> None:
    """quantize_static with nothing but what it demands."""
    quantize_static(task.model, task.out, Reader(task))


def preprocessed(task: Task) -> Path:
    """The recommended pre-processing; symbolic shape inference is for transformers, and fails on pooling by maximum."""
    before = task.scratch / "preprocessed.onnx"
    quant_pre_process(task.model, before, skip_symbolic_shape=True)
    return before


def static_u8s8(
    task: Task, method: CalibrationMethod = CalibrationMethod.MinMax, weights: QuantType = QuantType.QInt8, *,
    reduced: bool = False, **extra: object,
) -> None:  # fmt: skip
    """Pre-processing, then u8 activations and s8 weights per channel, as the page on quantization advises x86-64.

    weights, reduced: what it advises where pairs of u8 x s8 saturate, unsigned weights or 7 bits.
    """
    quantize_static(
        preprocessed(task), task.out, Reader(task), activation_type=QuantType.QUInt8, weight_type=weights,
        per_channel=True, calibrate_method=method, reduce_range=reduced, extra_options=extra,
    )  # fmt: skip


def entropy(task: Task) -> None:
    """Entropy and percentile keep every activation unless they are fed in parts, which must be whole."""
    whole = len(task.calibration) // STRIDE * STRIDE
    fed = replace(task, calibration=task.calibration[:whole])
    static_u8s8(fed, CalibrationMethod.Entropy, CalibStridedMinMax=STRIDE)


def dynamic(task: Task) -> None:
    """quantize_dynamic with nothing but what it demands."""
    quantize_dynamic(task.model, task.out)


def dynamic_u8(task: Task) -> None:
    """Unsigned weights, because there is no kernel for convolutions with signed ones."""
    quantize_dynamic(preprocessed(task), task.out, weight_type=QuantType.QUInt8, per_channel=True)


if __name__ == "__main__":
    main({
        "static": static,
        "static-u8s8": static_u8s8,
        "static-u8s8-entropy": entropy,
        "static-reduced": lambda task: static_u8s8(task, reduced=True),
        "static-u8u8": lambda task: static_u8s8(task, weights=QuantType.QUInt8),
        "dynamic": dynamic,
        "dynamic-u8": dynamic_u8,
    })  # fmt: skip
