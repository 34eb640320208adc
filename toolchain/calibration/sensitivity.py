"""How much each layer's integers cost: the noise that goes when that layer alone goes back to float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from toolchain.calibration.float_layers import in_float, integer_layers
from toolchain.graph import INPUT
from toolchain.record import Measurement
from toolchain.runtime.session import Session

Floats = NDArray[np.float32]
Unit = Literal["layer", "block"]


@dataclass(frozen=True)
class Fidelity:
    """How close answers are: signal over noise of the logits in dB, and the share of equal top-1."""

    sqnr: float
    agreement: float


@dataclass(frozen=True)
class Part:
    """What the int8 network gains (dB of the logits' signal over noise) with these layers in float, then reaches."""

    name: str
    layers: tuple[str, ...]
    gain: float
    reached: Fidelity


def answers(model: ModelProto, inputs: Sequence[Floats]) -> Floats:
    """Logits [n, C] of inputs [1, 3, h, w], in the session that ships: optimizations and all."""
    session = Session(model.SerializeToString())
    return np.concatenate([session.run({INPUT: one})[0] for one in inputs])


def fidelity(reference: Floats, given: Floats) -> Fidelity:
    """Compare logits [n, C]; what is added to all classes alike is neither signal nor noise."""
    signal, other = (logits - logits.mean(axis=1, keepdims=True) for logits in (reference, given))
    noise = float(np.mean((other - signal) ** 2))
    power = float(np.mean(signal**2))
    sqnr = 10 * np.log10(max(power, 1e-20) / max(noise, 1e-20))
    return Fidelity(float(sqnr), float(np.mean(reference.argmax(axis=1) == given.argmax(axis=1))))


def against(before: ModelProto, after: ModelProto, inputs: Sequence[Floats]) -> Measurement:
    """`sqnr`: the signal over noise that a changed network's logits have against those of before."""
    found = fidelity(answers(before, inputs), answers(after, inputs))
    return Measurement(name="sqnr", value=round(found.sqnr, 2), unit="dB")


def parts(names: Sequence[str], by: Unit) -> dict[str, tuple[str, ...]]:
    """Layers by the part that falls back as one: each alone, or those of one module (`blocks.1.0`) together."""
    found: dict[str, tuple[str, ...]] = {}
    for name in names:
        part = name if by == "layer" else (name.rpartition(".")[0] or name)
        found[part] = (*found.get(part, ()), name)
    return found


def measure(
    quantized: ModelProto, original: ModelProto, inputs: Sequence[Floats], by: Unit = "layer",
    advance: Callable[[], None] = lambda: None,
) -> list[Part]:  # fmt: skip
    """Every int8 part, the one that gains most first; `advance` is called after each.

    Gains within 0.1 dB can't be told apart by so few pictures: there the agreement decides.
    """
    reference = answers(original, inputs)
    base = fidelity(reference, answers(quantized, inputs))
    found = []
    for name, layers in parts(integer_layers(quantized), by).items():
        reached = fidelity(reference, answers(in_float(quantized, original, layers), inputs))
        found.append(Part(name, layers, reached.sqnr - base.sqnr, reached))
        advance()
    return sorted(found, key=lambda part: (-round(part.gain, 1), -part.reached.agreement, part.name))
