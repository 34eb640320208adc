"""Where an ONNX file says that its weights lie, read without the onnx package, and which places are refused.

A model may keep tensors in other files ("external data"), named by a path inside the model: a way to make a
reader load any file of the machine. ONNX Runtime from 1.24.4 on refuses paths and links that leave the
model's folder, but not hard links. Format: https://protobuf.dev/programming-guides/encoding and onnx.proto.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from toolchain.runtime.errors import ModelError
from toolchain.runtime.whole import open_plain

# Which fields of which message lead to a TensorProto: {message: {field number: message}}.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},  # external_data
    "Entry": {},
}
# What a device may be asked to load, weights in other files included.
MODEL_BYTES = 4 << 30
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Span = tuple[int, int]


def check(model: Path | bytes) -> None:
    """Refuse an ONNX model whose external data is not an ordinary file of its own inside the model's folder.

    Refused are absolute paths, `..`, links (symbolic or hard: `st_nlink` above 1), missing files, and any
    external data of a model given as bytes; so is a model of more than MODEL_BYTES. Raises ModelError, also
    when the file is no protobuf.
    """
    if isinstance(model, bytes):
        if places := _locations(model, "model"):
            raise ModelError(f"model: keeps weights in another file ({places[0]!r}); give it as a file")
        return
    places = sorted(set(locations(model)))
    for place in places:
        _check_place(model, place)
    size = sum((model.parent / place).stat().st_size for place in places) + model.stat().st_size
    if size > MODEL_BYTES:
        raise _too_large(model, size)


def locations(model: Path) -> list[str]:
    """The `location` of every tensor with external data in an ONNX file. Raises ModelError as `check`."""
    try:
        with open_plain(model) as file:
            if (size := os.fstat(file.fileno()).st_size) > MODEL_BYTES:  # told before it is walked
                raise _too_large(model, size)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _locations(data, str(model))
    except FileNotFoundError as e:
        raise ModelError(f"{model}: no such file") from e
    except OSError as e:
        raise ModelError(f"{model}: cannot be read as an ONNX file ({e.strerror})") from e
    except ValueError as e:  # an empty file cannot be mapped
        raise ModelError(f"{model}: not an ONNX file ({e})") from e


def _too_large(model: Path, size: int) -> ModelError:
    return ModelError(f"{model}: {size} bytes with its weights, more than the {MODEL_BYTES} allowed")


def _check_place(model: Path, place: str) -> None:
    folder = model.parent.resolve()
    parts = PurePosixPath(place).parts
    if not parts or place.startswith("/") or ".." in parts or "\0" in place or "\\" in place:
        raise ModelError(f"{model}: keeps weights outside its folder ({place!r}); refused")
    wanted = folder.joinpath(*parts)
    try:
        real = wanted.resolve(strict=True)
        links = real.stat().st_nlink
    except OSError as e:
        raise ModelError(f"{model}: its weights file {place!r} cannot be read ({e.strerror})") from e
    if real != wanted or links > 1 or not real.is_file():
        raise ModelError(
            f"{model}: its weights file {place!r} is a link or no plain file; copy the file there"
        )


def _locations(data: bytes | mmap.mmap, label: str) -> list[str]:
    """Walk all messages that can lead to a tensor; the values of entries with the key "location"."""
    found: list[str] = []
    waiting: list[tuple[str, _Span]] = [("Model", (0, len(data)))]
    try:
        while waiting:
            message, span = waiting.pop()
            if message == "Entry":
                found += _entry(data, span)
                continue
            children = _CHILDREN[message]
            waiting += [(children[n], inner) for n, inner in _fields(data, span) if n in children]
    except (IndexError, UnicodeDecodeError) as e:
        raise ModelError(f"{label}: not an ONNX file, or cut short") from e
    return found


def _entry(data: bytes | mmap.mmap, span: _Span) -> list[str]:
    """A StringStringEntryProto's values when one of its keys is "location"; a repeated field counts twice."""
    fields = [(number, bytes(data[start:end]).decode()) for number, (start, end) in _fields(data, span)]
    return [text for number, text in fields if number == 2] if (1, "location") in fields else []


def _fields(data: bytes | mmap.mmap, span: _Span) -> Iterator[tuple[int, _Span]]:
    """(field number, span of its bytes) of every length-delimited field; IndexError for a malformed message."""
    at, end = span
    while at < end:
        tag, at = _varint(data, at, end)
        if tag > 0xFFFFFFFF:  # other readers would drop the high bits and see another field
            raise IndexError("a field number of more than 32 bits")
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            length, at = _varint(data, at, end)
            yield tag >> 3, (at, at + length)
            at += length
        else:
            raise IndexError(f"wire type {kind}, which ONNX does not use")
        if at > end:
            raise IndexError("a field longer than its message")


def _varint(data: bytes | mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """(value, next position) of a base-128 number of at most 10 bytes."""
    if at < end and data[at] < 0x80:  # nearly all of them
        return data[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError("a number without an end")
