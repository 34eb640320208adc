"""Smooth: SmoothQuant for transformers, before int8 that rounds activations. The function stays the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from onnx import ModelProto
from pydantic import Field

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import pictures, sensitivity, smoothing
from toolchain.errors import DataError, ModelError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step


class Smooth(Step):
    """Great channels behind layer norms made small, and the weights that read them great (calibration/smoothing.py).

    alpha: how much moves into the weights, 0.5 in the paper. pictures: of the training split.
    Measures `norms` that were smoothed, and `sqnr` of the logits against before: rounding of float32 only.
    """

    step: Literal["smooth"] = "smooth"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "numpy", *host.onnxruntimes(),
    )  # fmt: skip
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    pictures: Annotated[int, Field(ge=1)] = 64

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Smooth inputs["model"]'s plain network.

        Raises DataError without training pictures, ModelError for a network that is quantized or has no layer norm
        that products alone read.
        """
        source, train = inputs["model"].folder, context.data.train
        original = graph.read(source / graph.PLAIN)
        graph.require_float(original)
        chosen = pictures.choose(train, self.pictures)
        if not chosen:
            raise DataError("smooth looks at training pictures, and there are none")
        model = ModelProto()
        model.CopyFrom(original)
        found = list(smoothing.sites(model))
        if not found:
            raise ModelError("smooth: the network has no layer norm before products: leave the step out")
        with context.progress.task("smooth", len(chosen)) as task:
            prepared = list(pictures.prepared(source / graph.PREPROCESS, train, chosen, task.advance))
        smoothing.smooth(model, found, smoothing.greatest(model, found, prepared), self.alpha)
        hand_on(self, source, model, context.out)
        return (
            Measurement(name="norms", value=len(found)),
            sensitivity.against(original, model, prepared),
            *graph.sizes(context.out),
        )
