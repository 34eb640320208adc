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
    """For networks with ReLU6 whose stem stays in float: its Clip is a pass over the greatest tensor, a ReLU is none.

    Integers clip for nothing, so that only the stem is worth it. What was above the limit is so no longer: that changes
    answers, and is done only if the logits' noise stays `min_sqnr` dB below their signal on `probe` pictures of val; no
    label is looked at. Put it first, so that `narrow` and `reconstruct` see it.
    Measures the `sqnr` and `agreement` that it would leave, `replaced` (0 or 1), and `price`, how many times the latency
    of the file before.
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
        source, val = inputs["model"].folder, context.data.val
        original = graph.read(source / graph.PLAIN)
        graph.require_float(original)
        changed = ModelProto()
        changed.CopyFrom(original)
        if not unclip(changed):
            context.progress.say(
                "relu_stem has nothing to do: no Clip from 0 alone reads a first convolution"
            )
            hand_on(self, source, original, context.out)
            return (Measurement(name="replaced", value=0), *graph.sizes(context.out))
        chosen = pictures.choose(val, self.probe)
        if not chosen:
            raise DataError("relu_stem compares answers on validation pictures, and there are none")
        probe = list(pictures.prepared(source / graph.PREPROCESS, val, chosen))
        before, after = (sensitivity.answers(model, probe) for model in (original, changed))
        reached = sensitivity.fidelity(before, after)
        kept = reached.sqnr >= self.min_sqnr
        if not kept:
            context.progress.say(
                f"relu_stem leaves the Clip: without it the logits keep {reached.sqnr:.1f} dB of signal over noise, less "
                f"than min_sqnr ({self.min_sqnr:g})"
            )
        price = round(latency_ratio(original, changed, probe[0]), 3) if kept else 1.0
        hand_on(self, source, changed if kept else original, context.out)
        return (
            Measurement(name="replaced", value=int(kept)),
            Measurement(name="sqnr", value=round(reached.sqnr, 2), unit="dB"),
            Measurement(name="agreement", value=reached.agreement),
            Measurement(name="price", value=price),
            *graph.sizes(context.out),
        )


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
