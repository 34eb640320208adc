"""Reconstruct: what a smaller network lost on its way is taken back layer by layer. No training, no labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from onnx import ModelProto
from pydantic import Field

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import read
from toolchain.calibration import pictures, sensitivity
from toolchain.calibration.reconstruction import places, reconstruct
from toolchain.errors import DataError, ModelError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step


class Reconstruct(Step):
    """Fits pointwise convolutions anew, in turn, towards the teacher's streams (calibration/reconstruction.py).

    teacher: the artifact that the network was made smaller from, in float. pictures: of train, for the least squares; a
    fourth of them tells how far to go. probe: pictures of val on which both are compared; where the logits don't come
    closer, the network stays as it is. Its place is behind `narrow` and `drop_blocks`, before `join` and `equalize`, which
    change the streams' names and scales.
    Measures `refitted` (layers), and the logits' `sqnr` and `agreement` with the teacher's, before and after.
    """

    step: Literal["reconstruct"] = "reconstruct"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX, "teacher": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train", "val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "numpy", *host.onnxruntimes(),
    )  # fmt: skip
    teacher: str
    pictures: Annotated[int, Field(ge=16)] = 256
    probe: Annotated[int, Field(ge=1)] = 128

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Fit the layers of inputs["model"]'s plain network; the preprocessing stays as it is.

        Raises DataError without pictures enough, ModelError for a network that is quantized, a teacher of other labels or
        preprocessing, or one that has none of the streams.
        """
        source, data = inputs["model"].folder, context.data
        model, teacher = self._networks(inputs)
        preprocess = source / graph.PREPROCESS
        taught = pictures.some(preprocess, data.train, self.pictures)
        probe = pictures.some(preprocess, data.val, self.probe)
        if len(taught) < 16 or not probe:
            raise DataError(
                "reconstruct fits on 16 training pictures at least and compares on validation pictures"
            )
        ends = len(list(places(model, teacher)))
        with context.progress.task("reconstruct", ends) as task:
            changed, done = reconstruct(model, teacher, taught, task.advance)
        reference = sensitivity.answers(teacher, probe)
        before, after = (
            sensitivity.fidelity(reference, sensitivity.answers(one, probe)) for one in (model, changed)
        )
        if after.sqnr <= before.sqnr:
            changed, done, after = model, [], before
        hand_on(self, source, changed, context.out)
        found = (("before", before), ("after", after))
        return (
            Measurement(name="refitted", value=len(done)),
            *(Measurement(name="sqnr", value=round(f.sqnr, 2), unit="dB", where={"when": when}) for when, f in found),
            *(Measurement(name="agreement", value=f.agreement, where={"when": when}) for when, f in found),
            *graph.sizes(context.out),
        )  # fmt: skip

    def _networks(self, inputs: Mapping[str, Artifact]) -> tuple[ModelProto, ModelProto]:
        """The network and its teacher; raises ModelError where they don't fit together."""
        own, other = (inputs[name].folder for name in ("model", "teacher"))
        model, teacher = (graph.read(folder / graph.PLAIN) for folder in (own, other))
        for one in (model, teacher):
            graph.require_float(one)
        for name in ("labels", "preprocess"):
            if getattr(read(own), name) != getattr(read(other), name):
                raise ModelError(
                    f"reconstruct: the teacher '{self.teacher}' has other {name} than the network"
                )
        if not any(places(model, teacher)):
            raise ModelError(
                f"reconstruct: no pointwise convolution at a block's end has its tensor in '{self.teacher}'; "
                "put it right behind narrow or drop_blocks, before join"
            )
        return model, teacher
