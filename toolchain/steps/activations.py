"""Activations: SiLU and hard-swish become ReLU, sigmoid gates hard ones. The network then needs `recover`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import onnx
from onnx import ModelProto
from pydantic import Field
from torch import nn

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones import activations
from toolchain.backbones.architecture import deployable
from toolchain.backbones.network import Network, load, save
from toolchain.calibration import pictures
from toolchain.calibration.price import latency_ratio
from toolchain.data.dataset import PictureSet
from toolchain.errors import BackboneError, DataError
from toolchain.record import Measurement
from toolchain.step import Context, Step
from toolchain.steps.export import export_network, export_preprocessing
from toolchain.steps.fold_gates import fold
from toolchain.steps.quantize import int8_price


class Activations(Step):
    """Replaces activations that ONNX Runtime has no integer kernel for (docs/quantization.md has what it costs there).

    to: what SiLU (swish), hard-swish and Mish become; integer kernels do both for nothing. "relu6" keeps ranges narrow, as
    EfficientNet-Lite does. gates: sigmoids become a "hard" one, which `fold_gates` makes a clip; or are "kept": their
    integer kernel is a table, but a pass over the tensor. keep: patterns of module names (`blocks.0.*`) that stay as
    they are.
    timed: measure what that gained, which takes two exports.
    Measures how many were `replaced` by kind and, if timed, `speedup` of the network in float and in int8 (before over
    after, interleaved; a first impression on a busy machine, it decides nothing).
    """

    step: Literal["activations"] = "activations"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.TORCH}
    gives: ClassVar[Form] = Form.TORCH
    uses: ClassVar[frozenset[str]] = frozenset({"train"})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "timm")
    to: activations.Smooth = "relu"
    gates: Literal["hard", "kept"] = "hard"
    keep: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    timed: bool = True

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Replace the activations of inputs["model"]; the weights stay.

        Raises BackboneError when there is nothing to replace, DataError when timed without training pictures.
        """
        model, network = load(inputs["model"].folder)
        plan = activations.replaceable(model, self.to, self.gates == "hard", self.keep)
        if not plan:
            raise BackboneError(
                f"activations: '{network.architecture}' has no SiLU, hard-swish or sigmoid to replace: leave the step out"
            )
        before = export_network(deployable(model), network) if self.timed else None
        activations.apply(model, plan)
        changed = network.model_copy(update={"activations": {**network.activations, **plan}})
        save(model, changed, context.out)
        kinds = sorted(set(plan.values()))
        counts = {kind: sum(new == kind for new in plan.values()) for kind in kinds}
        return (
            *(Measurement(name="replaced", value=counts[kind], where={"by": kind}) for kind in kinds),
            *(() if before is None else _speedups(before, model, changed, context)),
        )


def _speedups(
    before: ModelProto, model: nn.Module, network: Network, context: Context
) -> Iterator[Measurement]:
    """How many times as fast the network became, in float and with integers where they can be put."""
    train: PictureSet = context.data.train
    chosen = pictures.choose(train, 1)
    if not chosen:
        raise DataError("activations are timed on training pictures, and there are none")
    preprocess = context.scratch / graph.PREPROCESS
    onnx.save(export_preprocessing(network.preprocess), preprocess)
    one = next(pictures.prepared(preprocess, train, chosen))
    after = export_network(deployable(model), network)
    with context.progress.task("time activations", 2) as task:
        yield _speedup("float", latency_ratio(before, after, one))
        task.advance()
        fold(after)
        yield from (_speedup("int8", price.value) for price in int8_price(before, after, preprocess, context))
        task.advance()


def _speedup(form: str, ratio: float) -> Measurement:
    return Measurement(name="speedup", value=round(1 / ratio, 3), where={"form": form})
