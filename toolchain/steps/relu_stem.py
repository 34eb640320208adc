"""Relu stem: the first convolution's ReLU6 becomes a ReLU, which ONNX Runtime's float kernels do on their way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from onnx import ModelProto
from pydantic import Field

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import pictures, sensitivity
from toolchain.calibration.price import latency_ratio
from toolchain.calibration.weights import first_convolution
from toolchain.errors import DataError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step


class ReluStem(Step):
    """For networks with ReLU6 whose stem stays in float: its Clip is a pass over a large tensor, a ReLU is none.

    Integers clip for nothing, so that only the stem is worth it. What was above the limit is so no longer: that changes
    answers, and is done only if the logits' noise stays `min_sqnr` dB below their signal on `probe` pictures of val; no
    label is looked at. Put it first, so that `narrow` and `reconstruct` see it.
    Measures `replaced` (0 or 1); the `sqnr` and `agreement` that it leaves or would leave, where there is such a Clip; and
    where it goes `price`, how many times the latency of the file before.
    """

    step: Literal["relu_stem"] = "relu_stem"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"val"})
    libraries: ClassVar[tuple[str, ...]] = ("onnx", "numpy", *host.onnxruntimes())
    min_sqnr: Annotated[float, Field(gt=0)] = 20.0
    probe: Annotated[int, Field(ge=1)] = 64

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Change inputs["model"]'s plain network; the preprocessing stays as it is.

        Raises DataError without validation pictures, ModelError for a network that is quantized.
        """
        source = inputs["model"].folder
        original = graph.read(source / graph.PLAIN)
        graph.require_float(original)
        changed = ModelProto()
        changed.CopyFrom(original)
        if not unclip(changed):
            context.progress.say(
                "relu_stem has nothing to do: the first convolution is not followed by one Clip alone, with 0 below"
            )
            hand_on(self, source, original, context.out)
            return (Measurement(name="replaced", value=0), *graph.sizes(context.out))
        probe = pictures.some(source / graph.PREPROCESS, context.data.val, self.probe)
        if not probe:
            raise DataError("relu_stem compares answers on validation pictures, and there are none")
        before, after = (sensitivity.answers(model, probe) for model in (original, changed))
        reached = sensitivity.fidelity(before, after)
        kept = reached.sqnr >= self.min_sqnr
        hand_on(self, source, changed if kept else original, context.out)
        measured = [
            Measurement(name="replaced", value=int(kept)),
            Measurement(name="sqnr", value=round(reached.sqnr, 2), unit="dB"),
            Measurement(name="agreement", value=reached.agreement),
        ]
        if kept:
            price = latency_ratio(original, changed, probe[0])
            measured.append(Measurement(name="price", value=round(price, 3)))
        else:
            context.progress.say(
                f"relu_stem leaves the Clip: without it the logits keep {reached.sqnr:.1f} dB of signal over noise, less "
                f"than min_sqnr ({self.min_sqnr:g})"
            )
        return (*measured, *graph.sizes(context.out))


def unclip(model: ModelProto) -> bool:
    """Put a Relu where a Clip from 0 alone reads the first convolution, in place; False where none does."""
    stem = first_convolution(model)
    if stem is None:
        return False
    reading = graph.consumers(model.graph).get(stem.node.output[0], [])
    if len(reading) != 1 or reading[0].op_type != "Clip" or len(reading[0].input) < 2:
        return False
    clip = reading[0]
    lowest = graph.weights(model).get(clip.input[1])
    if lowest is None or float(lowest) != 0:
        return False
    clip.op_type = "Relu"
    del clip.input[1:]
    graph.drop_unread(model)
    return True
