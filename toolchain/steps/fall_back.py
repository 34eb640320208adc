"""Fall back: int8 with the layers that break it given back to float, one by one, until a gate on agreement holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from onnx import ModelProto
from pydantic import Field, field_validator

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import float_layers, pictures, selection, sensitivity
from toolchain.calibration.price import latency_ratio
from toolchain.errors import DataError, ModelError, ParityError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.step import Context, Step
from toolchain.steps.quantize import Quantize, integer_weights


class FallBack(Step):
    """Static quantization, then layers back to float by measured sensitivity until int8 answers as fp32 does.

    quantize: the settings of the quantization; only what is made static can fall back.
    min_agreement: percent of val pictures whose top-1 must be fp32's. No label is used.
    pictures: at most so many of val, for the gate; probe: so many of them for each layer's sensitivity.
    by: what falls back at once. Within a "block" (the layers of one module, `blocks.1.0`) nothing is rounded any
    more, while a single "layer" still reads and writes integers.
    Measures `sensitivity` (dB gained with that part alone in float), `agreement` and `price` (how many times the
    latency of the file before) after each part that fell back.
    """

    step: Literal["fall_back"] = "fall_back"
    version: ClassVar[int] = 2
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train", "val"})
    libraries: ClassVar[tuple[str, ...]] = Quantize.libraries
    quantize: Quantize = Quantize()
    min_agreement: Annotated[float, Field(gt=0, le=100)] = 98.0
    pictures: Annotated[int, Field(ge=1)] = 1024
    probe: Annotated[int, Field(ge=1)] = 64
    by: sensitivity.Unit = "block"

    @field_validator("quantize")
    @classmethod
    def _static(cls, quantize: Quantize) -> Quantize:
        if quantize.scheme == "dynamic":
            raise ValueError("scheme 'dynamic' can't fall back layer by layer: use 'auto' or 'static'")
        if quantize.float_products:
            raise ValueError("float_products can't fall back layer by layer: use 'quantize' or 'qat'")
        if quantize.refit_head:
            raise ValueError(
                "refit_head is fitted to one network, layers that fall back make others: use 'quantize'"
            )
        return quantize

    def resolved(self) -> Self:
        """Fix what depends on this host, see Quantize.resolved."""
        return self.model_copy(update={"quantize": self.quantize.resolved()})

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Quantize inputs["model"]'s plain network and give layers back.

        Raises DataError without pictures, ModelError for what can't be quantized statically, ParityError when
        the gate doesn't hold with every layer in float.
        """
        settings, source = self.resolved(), inputs["model"].folder
        original = graph.read(source / graph.PLAIN)
        if selection.attention(original) and self.quantize.scheme == "auto":
            raise ModelError("fall_back: a network with attention becomes dynamic int8, name scheme: static")
        changed = ModelProto()
        changed.CopyFrom(original)
        quantized = settings.quantize.integers(changed, source / graph.PREPROCESS, context)
        prepared = pictures.some(source / graph.PREPROCESS, context.data.val, self.pictures)
        if not prepared:
            raise DataError("fall_back compares int8 with fp32 on validation pictures, and there are none")
        kept, measured = self._search(quantized, original, prepared, context)
        hand_on(settings, source, kept, context.out)
        return (
            Measurement(name="layers_int8", value=integer_weights(kept)),
            *measured,
            *graph.sizes(context.out),
        )

    def _search(
        self, quantized: ModelProto, original: ModelProto, inputs: Sequence[sensitivity.Floats], context: Context
    ) -> tuple[ModelProto, list[Measurement]]:  # fmt: skip
        """The first network of growing float share that keeps the gate, and what was measured on the way."""
        spread = np.linspace(0, len(inputs) - 1, min(self.probe, len(inputs))).astype(int)
        names = sensitivity.parts(float_layers.integer_layers(quantized), self.by)
        with context.progress.task("sensitivity", len(names)) as task:
            found = sensitivity.measure(
                quantized, original, [inputs[i] for i in spread], self.by, task.advance
            )
        measured = [
            Measurement(name="sensitivity", value=round(one.gain, 2), unit="dB", where={"layer": one.name})
            for one in found
        ]
        reference = sensitivity.answers(original, inputs)
        current, given_back = quantized, set[str]()
        reached = sensitivity.fidelity(reference, sensitivity.answers(current, inputs))
        measured += _reached(reached, "", 0)
        with context.progress.task("fall back", len(found)) as task:
            for one in found:
                if 100 * reached.agreement >= self.min_agreement:
                    return current, measured
                given_back |= set(one.layers)
                candidate = float_layers.in_float(quantized, original, given_back)
                reached = sensitivity.fidelity(reference, sensitivity.answers(candidate, inputs))
                measured += _reached(reached, one.name, len(given_back))
                price = round(latency_ratio(current, candidate, inputs[0]), 3)
                measured.append(Measurement(name="price", value=price, where={"layer": one.name}))
                current = candidate
                task.advance(agreement=reached.agreement)
        if 100 * reached.agreement >= self.min_agreement:
            return current, measured
        raise ParityError(
            f"fall_back.min_agreement: with every layer in float, {100 * reached.agreement:.1f} % of the answers "
            f"are fp32's, {self.min_agreement:g} % are asked for: lower it, or look at the calibration"
        )


def _reached(reached: sensitivity.Fidelity, layer: str, count: int) -> list[Measurement]:
    where: dict[str, str | int | float] = {"layer": layer, "layers_given_back": count}
    return [
        Measurement(name="agreement", value=reached.agreement, where=where),
        Measurement(name="sqnr", value=round(reached.sqnr, 2), unit="dB", where=where),
    ]
