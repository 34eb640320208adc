"""Rescale: the same network for smaller (or larger) pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from toolchain.artifact import Artifact, Form
from toolchain.backbones.architecture import first_line, fixed_size
from toolchain.backbones.counts import macs
from toolchain.backbones.network import load, save
from toolchain.backbones.settings import PreprocessOverrides, Side
from toolchain.errors import BackboneError
from toolchain.record import Measurement
from toolchain.step import Context, Step


class Rescale(Step):
    """Gives a network another input size; its weights stay. A little training at the new size wins most of what
    that costs back (Touvron et al., arXiv:1906.06423), so that `recover` usually follows.

    size: one side or (height, width), in pixels.
    """

    step: Literal["rescale"] = "rescale"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.TORCH}
    gives: ClassVar[Form] = Form.TORCH
    libraries: ClassVar[tuple[str, ...]] = ("torch", "timm")
    size: Side | tuple[Side, Side]

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Keep inputs["model"] with the new size; returns its cost before and after.

        Raises BackboneError for an architecture that is built for one size, and for a size at which it cannot run.
        """
        model, network = load(inputs["model"].folder)
        if fixed_size(network.architecture):
            raise BackboneError(
                f"rescale: '{network.architecture}' is built for one input size: set backbone.preprocess.size instead"
            )
        height, width = PreprocessOverrides(size=self.size).height_width or (0, 0)
        sized = network.preprocess.model_copy(update={"height": height, "width": width})
        before = macs(model, network.preprocess)
        try:
            after = macs(model, sized)
        except RuntimeError as error:  # a kernel larger than what is left of the picture there
            raise BackboneError(
                f"rescale: '{network.architecture}' cannot run at {height} x {width} ({first_line(error)})"
            ) from error
        save(model, network.model_copy(update={"preprocess": sized}), context.out)
        return (
            Measurement(name="macs", value=before, unit="MAC", where={"when": "before"}),
            Measurement(name="macs", value=after, unit="MAC", where={"when": "after"}),
        )
