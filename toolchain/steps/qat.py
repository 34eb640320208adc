"""Quantization-aware training: an int8 network trained on, with its rounding simulated, towards its float self."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from onnx import ModelProto
from pydantic import field_validator

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import read
from toolchain.calibration import pictures, products, sensitivity
from toolchain.device import AmpName
from toolchain.errors import TrainingError
from toolchain.learn.loop import fit
from toolchain.learn.settings import Count, Distillation, Keep, NotNegative, Positive, Share, Training
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.simulate.answering import Answering
from toolchain.simulate.network import Simulated, trained
from toolchain.step import Context, Step
from toolchain.steps.quantize import Quantize, integer_weights
from toolchain.steps.tune import measurements

_COMPARED = 1024  # val pictures


class Qat(Distillation, Training, Step):
    """Static quantization, then training with what the integers do to it (see simulate/network.py).

    teacher: the artifact whose answers are learnt, in float: the network itself, or what it was made smaller from.
    quantize: the settings of the quantization that is trained on; its ranges and steps stay as calibrated, weights
    and biases are trained. The other settings are training's and distillation's (see learn/settings.py); alpha 1
    needs no label.
    Measures how many of val's top-1 answers are the teacher's, and the logits' signal over noise, before and after;
    and how many are the simulation's.
    """

    step: Literal["qat"] = "qat"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX, "teacher": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    version: ClassVar[int] = 6
    uses: ClassVar[frozenset[str]] = frozenset({"train", "val", "device", "seed"})
    libraries: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "numpy", "pillow", *Quantize.libraries)
    teacher: str
    quantize: Quantize = Quantize()
    epochs: Count = 5
    lr: Positive = 1e-5
    weight_decay: NotNegative | None = 0.0
    train: Literal["full"] = "full"
    norm_statistics: Literal["batch"] = "batch"  # norms are folded: there are none
    keep: Keep = "last"
    amp: AmpName = "off"  # 16-bit floats are too coarse for the roundings that are simulated in them
    alpha: Share = 1.0
    temperature: Positive = 1.0

    @field_validator("quantize")
    @classmethod
    def _trainable(cls, quantize: Quantize) -> Quantize:
        if quantize.scheme == "dynamic" or quantize.weight == "u8":
            raise ValueError("qat trains static quantization with weight s8")
        return quantize

    def resolved(self) -> Self:
        """Fix what depends on this host, see Quantize.resolved.

        Where weights must keep clear of saturation they get 7 bits: pairs of trained weights can't be bounded.
        """
        fixed = self.quantize.resolved()
        if fixed.weight_bits == "pairwise":
            fixed = fixed.model_copy(update={"weight_bits": 7})
        return self.model_copy(update={"quantize": fixed})

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Quantize inputs["model"]'s plain network and train it on.

        Raises DataError without pictures, ModelError for what cannot be quantized statically or simulated,
        TrainingError when training fails or the teacher has not the same labels and preprocessing.
        """
        settings, source, taught = self.resolved(), inputs["model"].folder, inputs["teacher"].folder
        network = read(source)
        for name in ("labels", "preprocess"):
            if getattr(network, name) != getattr(read(taught), name):
                raise TrainingError(
                    f"qat: the teacher '{self.teacher}' has other {name} than the network that learns"
                )
        original = graph.read(source / graph.PLAIN)
        corrected = ModelProto()
        corrected.CopyFrom(original)
        static = settings.quantize.model_copy(update={"scheme": "static"})
        quantized = static.integers(corrected, source / graph.PREPROCESS, context)
        reference = graph.read(taught / graph.PLAIN)
        graph.require_float(reference)
        pupil = Simulated(quantized, graph.weights(corrected))
        on_cpu = context.device.torch.type == "cpu"
        teacher = Answering(reference) if on_cpu else Simulated(reference)
        fitted, rows = fit(pupil, network, settings, context, teacher=teacher, distill=settings)
        if not isinstance(fitted, Simulated):  # fit trains in place
            raise TypeError(type(fitted))
        kept = trained(fitted, quantized)
        for file in (quantized, kept):
            products.lower(file)
        hand_on(settings, source, kept, context.out)
        return (
            Measurement(name="layers_int8", value=integer_weights(kept)),
            *measurements(rows),
            *_fidelity(reference, {"before": quantized, "after": kept}, fitted, source, context),
            *graph.sizes(context.out),
        )


def _fidelity(
    teacher: ModelProto, files: Mapping[str, ModelProto], simulated: Simulated, source: Path, context: Context
) -> Iterator[Measurement]:  # fmt: skip
    """How close files answer to the teacher on val pictures, and how close the last one to its simulation."""
    prepared = pictures.some(source / graph.PREPROCESS, context.data.val, _COMPARED)
    reference = sensitivity.answers(teacher, prepared)
    for when, model in files.items():
        answers = sensitivity.answers(model, prepared)
        found = sensitivity.fidelity(reference, answers)
        yield Measurement(name="agreement", value=found.agreement, where={"when": when})
        yield Measurement(name="sqnr", value=round(found.sqnr, 2), unit="dB", where={"when": when})
    with torch.inference_mode():
        simulation = np.concatenate([simulated(torch.from_numpy(one)).numpy() for one in prepared])
    alike = sensitivity.fidelity(simulation, answers).agreement
    yield Measurement(name="simulated_agreement", value=alike)
