"""Equalize: channels of neighbouring convolutions, or along residual streams, scaled to one range before int8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from pydantic import Field

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import equalization, pictures, sensitivity, streams
from toolchain.calibration.weights import Floats
from toolchain.errors import DataError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step


class Equalize(Step):
    """Equalization, before `quantize`: nothing is added to the network, and its float answers stay.

    over: "pairs" is cross-layer equalization (calibration/equalization.py), for one step a weight tensor; "streams"
    scales what additions tie together (calibration/streams.py), for the one step that an activation has.
    Of pairs only channels that stay well below their Clip (ReLU6) on the training pictures are scaled, and only so far that
    they stay there: for pictures unlike those a channel may be cut that was not before.
    (Making Clips ReLUs first, as the paper does, left MobileNetV2's logits 4.6 dB of signal over noise.)
    pictures: how many of train. probe: of val, for `sqnr`.
    Measures `channels` scaled by more than a tenth, and, where there are validation pictures, `sqnr` of the logits
    against before: on train nothing is cut by construction.
    """

    step: Literal["equalize"] = "equalize"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train", "val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "numpy", *host.onnxruntimes(),
    )  # fmt: skip
    over: Literal["pairs", "streams"] = "pairs"
    pictures: Annotated[int, Field(ge=1)] = 64
    probe: Annotated[int, Field(ge=1)] = 64

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Equalize inputs["model"]'s plain network.

        Raises DataError without training pictures, ModelError for a network that is quantized.
        """
        source, train = inputs["model"].folder, context.data.train
        original = graph.read(source / graph.PLAIN)
        graph.require_float(original)
        chosen = pictures.choose(train, self.pictures)
        if not chosen:
            raise DataError("equalize looks at training pictures, and there are none")
        model = ModelProto()
        model.CopyFrom(original)
        with context.progress.task("equalize", len(chosen)) as task:
            prepared = pictures.prepared(source / graph.PREPROCESS, train, chosen, task.advance)
            scales = self._scaled(model, prepared)
        changed = sum(int((np.abs(np.log(scale)) > np.log(1.1)).sum()) for scale in scales.values())
        reached = self._reached(original, model, source / graph.PREPROCESS, context)
        hand_on(self, source, model, context.out)
        return (
            Measurement(name="channels", value=changed),
            *reached,
            *graph.sizes(context.out),
        )

    def _scaled(self, model: ModelProto, inputs: Iterable[Floats]) -> dict[str, NDArray[np.float64]]:
        """Equalize in place; what each pair or stream was multiplied by, [C]."""
        if self.over == "streams":
            tied = list(streams.streams(model))
            return streams.equalize(model, tied, streams.spans(model, tied, inputs))
        found = list(equalization.pairs(model))
        return equalization.equalize(model, found, equalization.greatest(model, found, inputs))

    def _reached(
        self, original: ModelProto, model: ModelProto, preprocess: Path, context: Context
    ) -> tuple[Measurement, ...]:
        probe = pictures.some(preprocess, context.data.val, self.probe)
        return (sensitivity.against(original, model, probe),) if probe else ()
