"""Drop blocks: an ONNX network without the residual blocks that it misses least. No training, no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from onnx import ModelProto
from pydantic import Field

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import costs, pictures, sensitivity
from toolchain.calibration.price import latency_ratio
from toolchain.calibration.residuals import moments, residuals, without
from toolchain.errors import DataError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step


class DropBlocks(Step):
    """Takes out residual blocks, the least missed first, and refits what read them (calibration/residuals.py).

    min_sqnr: how far below their signal the logits' noise must stay (dB), on `probe` pictures of val; no label is
    looked at. pictures: of train, for the least squares. On small devices every layer costs its start, however few
    its channels: what `narrow` leaves of them, this takes away. Train on (`qat`) where much went.
    Measures `sqnr` and `agreement` after each `block`, then `price`, how many times the latency of the file before,
    and what is left of `macs` and `parameters`.
    """

    step: Literal["drop_blocks"] = "drop_blocks"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train", "val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "numpy", *host.onnxruntimes(),
    )  # fmt: skip
    min_sqnr: Annotated[float, Field(gt=0)] = 10.0
    pictures: Annotated[int, Field(ge=1)] = 128
    probe: Annotated[int, Field(ge=1)] = 128

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Drop what can go of inputs["model"]'s plain network; the preprocessing stays as it is.

        Raises DataError without training or validation pictures, ModelError for a network that is quantized.
        """
        source, data = inputs["model"].folder, context.data
        original = graph.read(source / graph.PLAIN)
        graph.require_float(original)
        preprocess = source / graph.PREPROCESS
        taught = pictures.some(preprocess, data.train, self.pictures)
        probe = pictures.some(preprocess, data.val, self.probe)
        if not taught or not probe:
            raise DataError(
                "drop_blocks fits on training pictures and compares answers on validation pictures"
            )
        left, measured = self._search(original, taught, probe, context)
        hand_on(self, source, left, context.out)
        price = round(latency_ratio(original, left, probe[0]), 3) if measured else 1.0
        return (
            *measured,
            Measurement(name="price", value=price),
            *costs.measured(left),
            *graph.sizes(context.out),
        )

    def _search(
        self, original: ModelProto, taught: Sequence[sensitivity.Floats], probe: Sequence[sensitivity.Floats],
        context: Context,
    ) -> tuple[ModelProto, list[Measurement]]:  # fmt: skip
        """The network after the last block that could go, and what was measured on the way."""
        reference = sensitivity.answers(original, probe)
        current, measured = original, list[Measurement]()
        with context.progress.task("drop", len(list(residuals(original)))) as task:
            while blocks := list(residuals(current)):
                known = moments(current, blocks, taught)
                tried = {one.name: without(current, one, known[one.name]) for one in blocks}
                reached = {
                    name: sensitivity.fidelity(reference, sensitivity.answers(model, probe))
                    for name, model in tried.items()
                }
                best = max(reached, key=lambda name: reached[name].sqnr)
                if reached[best].sqnr < self.min_sqnr:
                    break
                current = tried[best]
                where: dict[str, str | int | float] = {"block": best.removesuffix("/Add")}
                measured += (
                    Measurement(name="sqnr", value=round(reached[best].sqnr, 2), unit="dB", where=where),
                    Measurement(name="agreement", value=reached[best].agreement, where=where),
                )
                task.advance()
        return current, measured
