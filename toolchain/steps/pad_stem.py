"""Pad the stem: a fourth input channel of zeros, so that the first convolution gets the fast integer kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import padding
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.step import Context, Step


class PadStem(Step):
    """Before `quantize: {float_stem: false}`: the network's first dense convolution reads a multiple of 4 channels.

    The function stays. It pays where the stem goes into int8, and costs a little where it stays in float; a stem that
    `narrow` could halve is faster in float.
    Measures `channels` that were added; none where no dense convolution reads the input alone.
    """

    step: Literal["pad_stem"] = "pad_stem"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "numpy")

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Pad inputs["model"]'s plain network. Raises ModelError for a network that is quantized."""
        source = inputs["model"].folder
        model = graph.read(source / graph.PLAIN)
        graph.require_float(model)
        added = padding.pad(model)
        hand_on(self, source, model, context.out)
        return (Measurement(name="channels", value=added), *graph.sizes(context.out))
