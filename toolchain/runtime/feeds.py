"""Inputs made from a model's own signature, so that any classifier can be timed without its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolchain.runtime.errors import ModelError
from toolchain.runtime.session import Session, Tensor

_NONE: Mapping[str, Sequence[int]] = MappingProxyType({})


def feed(
    session: Session, batch: int = 1, shapes: Mapping[str, Sequence[int]] = _NONE, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Noise for every input of a model: the same bytes for the same signature, batch, shapes and seed.

    float types: standard normal; integers: uniform in 0–255 (0 and 1 for wider types, which are often
    indices); bool: fair. A first dimension without a number is the batch; other dimensions without one need
    `shapes` ({input name: whole shape}). Raises ModelError for those, for a batch that the model does not
    take, and for types that cannot be made up.
    """
    if unknown := sorted(set(shapes) - {given.name for given in session.inputs}):
        known = ", ".join(given.name for given in session.inputs)
        raise ModelError(f"{session.label}: has no input {unknown[0]!r}; its inputs are {known}")
    random = np.random.default_rng(seed)
    return {
        given.name: _noise(
            given, _shape(session.label, given, batch, shapes.get(given.name)), session, random
        )
        for given in session.inputs
    }


def _shape(label: str, given: Tensor, batch: int, asked: Sequence[int] | None) -> tuple[int, ...]:
    """The whole shape of one input."""
    declared = given.shape
    if asked is not None:
        fits = len(asked) == len(declared) and all(
            not isinstance(own, int) or own == size for own, size in zip(declared, asked, strict=True)
        )
        if not fits or min(asked, default=1) < 1:
            raise ModelError(
                f"{label}: input {given.name!r} is {_written(declared)} and cannot be {_written(asked)}"
            )
        return tuple(asked)
    if not declared:
        return ()
    if isinstance(declared[0], int) and declared[0] != batch:
        raise ModelError(
            f"{label}: input {given.name!r} takes batches of {declared[0]} only, not of {batch}; ask for that batch"
        )
    if open_ones := [str(size) for size in declared[1:] if not isinstance(size, int)]:
        example = ",".join(
            str(size) for size in (batch, *(s if isinstance(s, int) else 224 for s in declared[1:]))
        )
        raise ModelError(
            f"{label}: input {given.name!r} leaves {', '.join(open_ones)} open; say its shape, "
            f"e.g. --shape {given.name}={example}"
        )
    return (batch, *(size for size in declared[1:] if isinstance(size, int)))


def _noise(
    given: Tensor, shape: tuple[int, ...], session: Session, random: np.random.Generator
) -> NDArray[Any]:
    if given.dtype == "bool":
        return random.integers(0, 2, shape).astype(np.bool_)
    if given.dtype in ("float16", "float32", "float64"):
        return random.standard_normal(shape).astype(given.dtype)
    if given.dtype in ("uint8", "int8"):
        return random.integers(0, 256, shape).astype(given.dtype)
    if given.dtype in ("int16", "uint16", "int32", "uint32", "int64", "uint64"):
        return random.integers(0, 2, shape).astype(given.dtype)
    raise ModelError(
        f"{session.label}: input {given.name!r} is of type {given.dtype}, which cannot be made up"
    )


def _written(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
