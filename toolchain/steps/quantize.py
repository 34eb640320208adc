"""Quantize: an ONNX network with 8-bit integers where they pay, through onnxruntime's and optimum's quantizers."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import (
    CalibrationMethod,
    TensorData,
    TensorsData,
    save_tensors_data,
)
from pydantic import Field, model_validator

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import pictures, ranges, selection, weights
from toolchain.errors import DataError
from toolchain.record import JSON, Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step

Bits = Literal["auto", 8, 7, "pairwise"]
_TYPES = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
_TRANSFORMER_OPERATORS = ("Conv", "Gemm", "MatMul")
_DYNAMIC_OPERATORS = ("MatMul",)  # a Gemm becomes a MatMul and an Add on the way


class Quantize(Step):
    """Post-training quantization to 8 bits.

    scheme: "static" with ranges from calibration pictures, "dynamic" with ranges found while running; "auto" is
    dynamic for networks with attention, else static.
    activation, weight: u8 and s8 suit x86, s8 and s8 Arm. per_channel: of weights.
    weight_bits: how signed weights keep clear of the 16-bit saturation of x86 processors without VNNI (see
    calibration/weights.py): 8 ignores it, "pairwise" and 7 cannot saturate. "auto" is 8 where this host has
    VNNI or is no x86, else "pairwise" (7 with "dynamic"). Name the value when the device is another machine.
    calibration, percentile: how ranges are cut, see calibration/ranges.py. pictures: of the training split.
    float_stem: leave the first, shallow convolutions in float. exclude: patterns of further node names.
    operators: the operators to quantize; None is all that onnxruntime can, for attention only convolutions and
    products with weights. correct_bias: move biases by the mean error of rounded weights.
    """

    step: Literal["quantize"] = "quantize"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "optimum", "optimum-onnx",
        *(name for name in ("onnxruntime", "onnxruntime-gpu") if host.distribution_version(name)),
    )  # fmt: skip
    scheme: Literal["auto", "static", "dynamic"] = "auto"
    activation: Literal["u8", "s8"] = "u8"
    weight: Literal["s8", "u8"] = "s8"
    per_channel: bool = True
    weight_bits: Bits = "auto"
    calibration: ranges.Method = "minmax"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    pictures: Annotated[int, Field(ge=1)] = 256
    float_stem: bool = True
    exclude: tuple[str, ...] = ()
    operators: tuple[str, ...] | None = None
    correct_bias: bool = True

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.activation == "s8" and self.weight == "u8":
            raise ValueError("activation s8 needs weight s8: onnxruntime has no kernel for s8 times u8")
        if self.scheme == "dynamic" and self.activation == "s8":
            raise ValueError("scheme 'dynamic' needs activation u8")
        return self

    def resolved(self) -> Self:
        """Fix weight_bits "auto" for this host's processor."""
        if self.weight_bits != "auto":
            return self
        saturates = host.isa() in ("x86-avx2", "x86-other")
        return self.model_copy(update={"weight_bits": "pairwise" if saturates else 8})

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Quantize inputs["model"]'s plain network; the preprocessing stays in float.

        Raises DataError without calibration pictures, ModelError when the network cannot be quantized.
        """
        source = inputs["model"].folder
        model = graph.read(source / graph.PLAIN)
        about = graph.metadata(model)
        dynamic = self.scheme == "dynamic" or (self.scheme == "auto" and selection.attention(model))
        if dynamic:
            quantized = self._dynamic(model, context)
        else:
            quantized = self._static(model, source / graph.PREPROCESS, context)
        settings: dict[str, JSON] = self.model_dump(mode="json")
        about = graph.with_lineage(about, {"step": self.step, "version": self.version, "settings": settings})
        graph.write_all(context.out, graph.read(source / graph.PREPROCESS), quantized, about)
        shutil.copy(source / graph.NETWORK, context.out / graph.NETWORK)
        return _measurements(model, quantized, context.out, "dynamic" if dynamic else "static")
