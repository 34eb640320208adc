"""What a model is timed with, found from its own signature: pictures, or noise of its input's shape.

Sizes that a model leaves open must be said: a figure for an unsaid size is a figure for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolchain.runtime.bench_record import Input
from toolchain.runtime.errors import ModelError, PictureError
from toolchain.runtime.pictures import decode, find_pictures
from toolchain.runtime.session import Tensor

Feed = dict[str, NDArray[Any]]
Picture = NDArray[np.uint8]
FileKind = Literal["fused", "plain", "foreign"]
_SEED = 20150715
_MOST_PICTURES = 50


@dataclass(frozen=True)
class Wish:
    """What to feed. shapes: {dimension: size} for those that the model leaves open, by the model's name for it
    ("H") or by input and place ("input.2"); pictures: uint8 [H, W, 3] RGB each, or none for noise."""

    batch: int = 1
    shapes: Mapping[str, int] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A feed, {input name: contiguous array}, and what the record says of it."""

    feed: Feed
    kind: FileKind
    input: Input


def load_pictures(folder: Path) -> tuple[Picture, ...]:
    """The first 50 pictures of a folder, decoded. Raises PictureError when there is none, or one is damaged."""
    paths = find_pictures([folder])[:_MOST_PICTURES]
    if not paths:
        raise PictureError(f"{folder}: no pictures in it; give a folder of pictures, or none for noise")
    return tuple(decode(path) for path in paths)


def file_kind(inputs: Sequence[Tensor], metadata: Mapping[str, str]) -> FileKind:
    """ "fused" takes uint8 pictures [N, H, W, 3], "plain" is a float file of this toolchain, "foreign" any other."""
    first = inputs[0]
    if first.dtype == "uint8" and len(first.shape) == 4 and first.shape[3] == 3:
        return "fused"
    return "plain" if {"labels", "preprocessing", "lineage"} <= set(metadata) else "foreign"


def prepare(inputs: Sequence[Tensor], metadata: Mapping[str, str], wish: Wish, label: str) -> Prepared:
    """The feed for a model with these inputs; `label` names the model in errors.

    Raises ModelError for open dimensions without a size (saying which --shape to give), sizes for dimensions
    that there are not, a fixed batch that is not the one wanted, and inputs that are no tensors of numbers;
    PictureError when the pictures cannot be laid into the first input.
    """
    if not inputs:
        raise ModelError(f"{label}: takes no input, so there is nothing to time it with")
    kind = file_kind(inputs, metadata)
    shapes = dict(wish.shapes)
    if kind == "fused" and wish.pictures:
        shapes |= _sides(inputs[0], typical(wish.pictures), shapes)
    _known(inputs, wish.shapes, label)
    sizes = {tensor.name: _shape(tensor, wish.batch, shapes, label) for tensor in inputs}
    generator = np.random.default_rng(_SEED)
    feed = {tensor.name: _noise(tensor, sizes[tensor.name], generator, label) for tensor in inputs}
    first = inputs[0]
    if (fixed := first.shape[0] if first.shape else 1) not in (None, wish.batch) and isinstance(fixed, int):
        raise ModelError(
            f"{label}: input {first.name!r} {_words(first)} takes batches of {fixed} only; give --batch {fixed}"
        )
    if wish.pictures:
        laid = _laid(wish.pictures, first, sizes[first.name], metadata, label)
        feed[first.name] = np.ascontiguousarray(laid)
    source: Literal["noise", "pictures"] = "pictures" if wish.pictures else "noise"
    return Prepared(feed, kind, Input(first.dtype, sizes[first.name], source))


def typical(pictures: Sequence[Picture]) -> Picture:
    """The picture of median pixel count."""
    return sorted(pictures, key=lambda p: p.shape[0] * p.shape[1])[len(pictures) // 2]


def _sides(tensor: Tensor, picture: Picture, asked: Mapping[str, int]) -> dict[str, int]:
    """The picture's height and width for those that the model and `asked` leave open."""
    sides = zip((1, 2), picture.shape[:2], strict=True)
    named = {f"{tensor.name}.{at}": (tensor.shape[at], size) for at, size in sides}
    return {
        place: size
        for place, (name, size) in named.items()
        if not isinstance(name, int) and place not in asked and name not in asked
    }


def _known(inputs: Iterable[Tensor], asked: Mapping[str, int], label: str) -> None:
    known = {
        name
        for tensor in inputs
        for at, size in enumerate(tensor.shape)
        if not isinstance(size, int)
        for name in (size, f"{tensor.name}.{at}")
        if name
    }
    batches = {name for tensor in inputs for name in (*tensor.shape[:1], f"{tensor.name}.0")}
    if unknown := sorted(set(asked) - known):
        open_ones = sorted(known - batches)  # --batch sets the others
        has = (
            f"its open dimensions are {', '.join(open_ones)}"
            if open_ones
            else "it leaves none open but the batch"
        )
        if not known:
            has = "all its dimensions are fixed"
        raise ModelError(f"{label}: has no open dimension {', '.join(unknown)}; {has}")


def _shape(tensor: Tensor, batch: int, shapes: Mapping[str, int], label: str) -> tuple[int, ...]:
    """The input's shape; an open first dimension is the batch."""
    found, missing = [], []
    for at, size in enumerate(tensor.shape):
        place = f"{tensor.name}.{at}"
        if isinstance(size, int):
            found.append(size)
        elif at == 0 and (place in shapes or size in shapes):
            raise ModelError(
                f"{label}: {size or place} is the batch, which --batch sets; leave --shape {size or place} out"
            )
        elif place in shapes or size in shapes:
            found.append(shapes[place] if place in shapes else shapes[str(size)])
        elif at == 0:
            found.append(batch)
        else:
            missing.append(size if isinstance(size, str) else place)
    if missing:
        flags = " ".join(f"--shape {name}=…" for name in dict.fromkeys(missing))
        raise ModelError(f"{label}: input {tensor.name!r} {_words(tensor)} leaves sizes open; give {flags}")
    return tuple(found)


def _words(tensor: Tensor) -> str:
    return f"{tensor.dtype} [{', '.join('?' if size is None else str(size) for size in tensor.shape)}]"


def _noise(
    tensor: Tensor, shape: tuple[int, ...], generator: np.random.Generator, label: str
) -> NDArray[Any]:
    """Floats 0..1, whole numbers 0..255 for uint8 and 0..1 for other types."""
    kinds = (
        "float16",
        "float32",
        "float64",
        "bool",
        *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
    )
    if tensor.dtype not in kinds:
        raise ModelError(f"{label}: input {tensor.name!r} is {tensor.dtype}, which cannot be made up")
    if tensor.dtype.startswith("float"):
        return generator.random(shape, np.float32).astype(tensor.dtype)
    top = 256 if tensor.dtype == "uint8" else 2
    return generator.integers(0, top, shape).astype(tensor.dtype)


def _laid(
    pictures: Sequence[Picture],
    tensor: Tensor,
    shape: tuple[int, ...],
    metadata: Mapping[str, str],
    label: str,
) -> NDArray[Any]:
    """A batch of pictures, each resized to the input's sides. Pictures of those sides come first, untouched."""
    layout = _layout(shape)
    if layout is None:
        raise PictureError(f"{label}: pictures do not fit its input {tensor.name!r} {_words(tensor)}")
    height, width = (shape[1], shape[2]) if layout == "NHWC" else (shape[2], shape[3])
    fitting = [p for p in pictures if p.shape[:2] == (height, width)] or pictures
    resized = [_resized(p, height, width) for p in islice(cycle(fitting), shape[0])]
    batch: NDArray[Any] = np.stack(resized)
    if tensor.dtype != "uint8":
        mean, deviation = _normalization(metadata)
        batch = ((batch / np.float32(255) - mean) / deviation).astype(tensor.dtype)
    channels = shape[3] if layout == "NHWC" else shape[1]
    if channels == 1:
        batch = batch.mean(axis=3, keepdims=True).astype(batch.dtype)
    return batch if layout == "NHWC" else batch.transpose(0, 3, 1, 2)


def _layout(shape: tuple[int, ...]) -> Literal["NHWC", "NCHW"] | None:
    if len(shape) != 4:
        return None
    if shape[1] in (1, 3):
        return "NCHW"
    return "NHWC" if shape[3] in (1, 3) else None


def _resized(picture: Picture, height: int, width: int) -> Picture:
    if picture.shape[:2] == (height, width):
        return picture
    image = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)


def _normalization(metadata: Mapping[str, str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation by channel: those in the metadata of this toolchain's files, else values stay 0..1."""
    try:
        declared = json.loads(metadata.get("preprocessing", "{}"))
        mean, deviation = declared.get("mean", [0.0]), declared.get("std", [1.0])
        return np.asarray(mean, np.float32), np.asarray(deviation, np.float32)
    except (ValueError, TypeError, AttributeError):  # a foreign file's own "preprocessing"
        return np.zeros(1, np.float32), np.ones(1, np.float32)
