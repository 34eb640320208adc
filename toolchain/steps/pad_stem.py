"""Pad the stem: a fourth input channel of zeros, so that the first convolution gets the fast integer kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from onnx import ModelProto

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import padding
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step
from toolchain.steps.quantize import int8_price


class PadStem(Step):
    """Before `quantize: {float_stem: false}`: the network's first dense convolution reads a multiple of 4 channels.

    The function stays. It pays where the stem goes into int8, and costs a little where it stays in float; a stem that
    `narrow` could halve is faster in float.
    timed: measure what that gained, which takes two quantizations.
    Measures `channels` that were added, none where no dense convolution reads the input alone; and, if timed, `price`: how
    many times the latency of the file before, both in int8 from the stem on.
    """

    step: Literal["pad_stem"] = "pad_stem"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train"})
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "numpy", *host.onnxruntimes())
    timed: bool = True

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Pad inputs["model"]'s plain network. Raises ModelError for a network that is quantized."""
        source = inputs["model"].folder
        model = graph.read(source / graph.PLAIN)
        graph.require_float(model)
        before = ModelProto()
        before.CopyFrom(model)
        added = padding.pad(model)
        hand_on(self, source, model, context.out)
        timed = added and self.timed
        price = (
            int8_price(before, model, source / graph.PREPROCESS, context, float_stem=False) if timed else ()
        )
        return (Measurement(name="channels", value=added), *price, *graph.sizes(context.out))
