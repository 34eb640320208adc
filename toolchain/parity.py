"""Whether an ONNX artifact answers as what it was made from, on real pictures: a gate, not a warning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolchain import graph
from toolchain.calibration.pictures import choose
from toolchain.data.dataset import Picture, PictureSet
from toolchain.errors import DataError, ParityError
from toolchain.record import Measurement
from toolchain.runtime.session import Session

Floats = NDArray[np.float32]
Reference = Callable[[Picture], tuple[Floats, Floats]]
"""Picture [H, W, 3] -> what the original makes of it: network input [1, 3, h, w] and logits [1, C]."""

BATCHES = (1, 2, 5)


@dataclass
class _Side:
    """What one file differs by so far: the greatest difference, the picture it is from, agreeing top-1."""

    file: str
    difference: float = 0.0
    worst: str = ""
    agreeing: int = 0

    def add(self, name: str, difference: float, agrees: bool) -> None:
        self.agreeing += agrees
        # A difference that is not a number must not pass as small.
        if not difference <= self.difference:
            self.difference, self.worst = difference, name


def check(
    folder: Path, reference: Reference, pictures: PictureSet, count: int, tolerance: float
) -> tuple[Measurement, ...]:
    """Compare the plain and the fused file of `folder` with the original on up to `count` pictures.

    Returns `parity_plain` (greatest difference of logits, as a share of the greatest logit where that exceeds
    1), `parity_fused` (of probabilities), and `agreement_plain`, `agreement_fused` (share of equal top-1).
    Raises ParityError when a difference exceeds `tolerance`, DataError when there is no picture.
    """
    chosen = choose(pictures, count)
    if not chosen:
        raise DataError("parity is checked on validation pictures, and there are none")
    sessions = Session(folder / graph.PLAIN), Session(folder / graph.FUSED)
    plain, fused = _Side(graph.PLAIN), _Side(graph.FUSED)
    for index in chosen:
        name, picture = pictures.samples[index].name, pictures.picture(index)
        prepared, logits = reference(picture)
        own = sessions[0].run({graph.INPUT: prepared})[0]
        scale = max(1.0, float(np.abs(logits).max()))
        plain.add(name, float(np.abs(own - logits).max()) / scale, int(own.argmax()) == int(logits.argmax()))
        answer, wanted = sessions[1].run({graph.PICTURES: picture[None]})[0], softmax(logits)
        same = int(answer.argmax()) == int(wanted.argmax())
        fused.add(name, float(np.abs(answer - wanted).max()), same)
    for side in (plain, fused):
        if not side.difference <= tolerance:
            raise ParityError(
                f"{side.file} differs from what it was made from by {side.difference:.2g} on {side.worst}, "
                f"allowed is {tolerance:.2g}: this network does not survive the export"
            )
    where: dict[str, str | int | float] = {"pictures": len(chosen)}
    return tuple(
        Measurement(name=f"{what}_{kind}", value=value, where=where)
        for kind, side in (("plain", plain), ("fused", fused))
        for what, value in (("parity", side.difference), ("agreement", side.agreeing / len(chosen)))
    )


def check_batches(plain: Path, inputs: Sequence[Floats], tolerance: float) -> None:
    """Run `inputs` (each [1, 3, h, w]) together as batches of 1, 2 and 5, against one by one.

    Raises ParityError when a batch changes a logit by more than `tolerance` (relative, as in `check`),
    ModelError when the file refuses a batch size.
    """
    session = Session(plain)
    alone = np.concatenate([session.run({graph.INPUT: one})[0] for one in inputs])
    scale = max(1.0, float(np.abs(alone).max()))
    for size in BATCHES:
        order = [index % len(inputs) for index in range(size)]
        together = session.run({graph.INPUT: np.concatenate([inputs[i] for i in order])})[0]
        if (
            together.shape != (size, alone.shape[1])
            or not np.abs(together - alone[order]).max() <= tolerance * scale
        ):
            raise ParityError(f"{plain.name}: a batch of {size} pictures gets other answers than one by one")


def softmax(logits: Floats) -> Floats:
    """Probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float32)
