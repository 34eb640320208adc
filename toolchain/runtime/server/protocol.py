"""Open Inference Protocol v2, infer: requests to arrays and back, JSON and Triton's binary tensor extension.

https://github.com/kserve/open-inference-protocol and triton-inference-server's extension_binary_data.md.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolchain.runtime.manifest import Manifest, Port
from toolchain.runtime.server.refusals import RefusedError
from toolchain.runtime.server.settings import Limits

# {the protocol's name: numpy's}
DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_NAMES = {ours: theirs for theirs, ours in DATATYPES.items()}
_MOST_DIMENSIONS = 8
_SMALL_JSON_BYTES = 1024


@dataclass(frozen=True)
class Asked:
    """An infer request: the input's array, the client's id, and whether outputs are wanted as binary."""

    array: NDArray[Any]
    id: str | None
    binary: bool


def datatype(port: Port) -> str:
    """The protocol's name of a port's type."""
    return _NAMES[port.dtype]


def shape(port: Port) -> list[int]:
    """A port's shape, with -1 where it varies."""
    return [size if isinstance(size, int) else -1 for size in port.shape]


def pixels(array: NDArray[Any]) -> int:
    """How many pixels of three channels an array is worth."""
    return -(-array.size // 3)


def parse(body: bytes | bytearray, header_length: str | None, declared: Manifest, limits: Limits) -> Asked:
    """Read an infer request for a model with one input and one output; the array may look into `body`.

    header_length: the header Inference-Header-Content-Length. Raises RefusedError 400 with a sentence that names
    the field, and 413 for more JSON, pictures or pixels than `limits` allow.
    """
    split = _header_length(header_length, len(body))
    if split > limits.json:
        raise RefusedError(
            413, f"the JSON has more than the {limits.json} bytes allowed; send the array as binary data"
        )
    head = bytes(body[:split])
    content = _repeated(head) if split <= _SMALL_JSON_BYTES else _object(head)
    tail = memoryview(body)[split:]
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise RefusedError(400, f"'inputs' must be a list of one object, the input {declared.input.name!r}")
    identity = content.get("id")
    if identity is not None and not isinstance(identity, str):
        raise RefusedError(400, "'id' must be a text")
    return Asked(tensor(inputs[0], tail, declared, limits), identity, _wants_binary(content, declared.output))


def tensor(given: dict[str, Any], tail: memoryview, declared: Manifest, limits: Limits) -> NDArray[Any]:
    """The array of one input, its bytes in `tail` or its numbers in `given`; may look into `tail`.

    Raises RefusedError as `parse`.
    """
    sizes = _shape(given, declared.input)
    if sizes[0] > limits.batch:
        raise RefusedError(413, f"the input {sizes} has more than the {limits.batch} pictures allowed")
    if math.prod(sizes) > 3 * limits.pixels:
        raise RefusedError(413, f"the input {sizes} has more than the {limits.pixels} pixels allowed")
    options = _parameters(given)
    if "binary_data_size" in options:
        return _binary(tail, options["binary_data_size"], sizes, declared.input)
    if len(tail):
        raise RefusedError(
            400, "binary data follows the JSON, but no input has the parameter 'binary_data_size'"
        )
    return _listed(given.get("data"), sizes, declared.input)


def answer(asked: Asked, output: NDArray[Any], port: Port, about: dict[str, Any]) -> tuple[bytes, int | None]:
    """(body, length of its JSON part when binary data follows, else None); `about` opens the JSON object."""
    row: dict[str, Any] = {"name": port.name, "datatype": datatype(port), "shape": list(output.shape)}
    if asked.id is not None:
        about = {**about, "id": asked.id}
    if not asked.binary:
        row["data"] = output.ravel().tolist()
        return json.dumps({**about, "outputs": [row]}).encode(), None
    raw = np.ascontiguousarray(output).tobytes()
    row["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({**about, "outputs": [row]}).encode()
    return head + raw, len(head)


def _header_length(text: str | None, length: int) -> int:
    if text is None:
        return length
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= length):
        raise RefusedError(400, f"Inference-Header-Content-Length must be 0 to the body's {length} bytes")
    return int(text)


@functools.lru_cache(maxsize=64)
def _repeated(text: bytes) -> dict[str, Any]:
    """A small object that clients send again and again before their binary data; nobody may change it."""
    return _object(text)


def _object(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(str(text, "utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise RefusedError(400, f"the body is not JSON ({' '.join(str(e).split())[:200]})") from e
    if not isinstance(content, dict):
        raise RefusedError(400, "the body must be a JSON object")
    return content


def _parameters(given: dict[str, Any]) -> dict[str, Any]:
    options = given.get("parameters", {})
    if not isinstance(options, dict):
        raise RefusedError(400, "'parameters' must be an object")
    if refused := sorted({"shared_memory_region", "classification"} & set(options)):
        raise RefusedError(400, f"the parameter {refused[0]!r} is not supported")
    return options


def _shape(given: dict[str, Any], port: Port) -> list[int]:
    if given.get("name") != port.name:
        raise RefusedError(400, f"the input's name must be {port.name!r}")
    if given.get("datatype") != datatype(port):
        raise RefusedError(400, f"the input's datatype must be {datatype(port)}")
    sizes = given.get("shape")
    if (
        not isinstance(sizes, list)
        or len(sizes) > _MOST_DIMENSIONS
        or not all(type(n) is int and 0 < n < 2**31 for n in sizes)
    ):
        raise RefusedError(400, "the input's shape must be a list of whole numbers above 0")
    wanted = port.shape
    fits = len(sizes) == len(wanted) and all(
        isinstance(w, str) or w == n for w, n in zip(wanted, sizes, strict=True)
    )
    if not fits:
        raise RefusedError(400, f"the input's shape is {sizes}, but the model takes {shape(port)}")
    return list(sizes)


def _binary(tail: memoryview, size: object, sizes: Sequence[int], port: Port) -> NDArray[Any]:
    needed = math.prod(sizes) * np.dtype(port.dtype).itemsize
    if type(size) is not int or size != needed or len(tail) != needed:
        raise RefusedError(
            400, f"a {port.dtype} input {list(sizes)} has {needed} bytes, but {len(tail)} follow and "
            f"'binary_data_size' says {str(size)[:40]}"
        )  # fmt: skip
    return np.frombuffer(tail, dtype=np.dtype(port.dtype).newbyteorder("<")).reshape(sizes)


def _listed(data: object, sizes: Sequence[int], port: Port) -> NDArray[Any]:
    if not isinstance(data, list):
        raise RefusedError(400, "the input needs 'data', a list, or the parameter 'binary_data_size'")
    target = np.dtype(port.dtype)
    try:
        values = np.array(data)
    except (ValueError, OverflowError, TypeError) as e:
        raise RefusedError(400, f"'data' is no array of numbers ({e})") from e
    kinds = {"u": "iu", "i": "iu", "f": "iuf", "b": "b"}[target.kind]
    if values.dtype.kind not in kinds or values.size != math.prod(sizes):
        raise RefusedError(400, f"'data' must be {math.prod(sizes)} numbers of the type {port.dtype}")
    if target.kind in "iu":
        limits = np.iinfo(target)
        if int(values.min()) < limits.min or int(values.max()) > limits.max:
            raise RefusedError(400, f"'data' has values outside {limits.min} to {limits.max}")
    return values.astype(target).reshape(sizes)


def _wants_binary(content: dict[str, Any], port: Port) -> bool:
    """An output's own parameter goes before the request's."""
    binary = _parameters(content).get("binary_data_output", False)
    wanted = content.get("outputs", [])
    if not isinstance(wanted, list) or not all(isinstance(o, dict) for o in wanted) or len(wanted) > 1:
        raise RefusedError(400, f"'outputs' must be a list of at most one object, the output {port.name!r}")
    for output in wanted:
        if output.get("name") != port.name:
            raise RefusedError(400, f"the output's name must be {port.name!r}")
        binary = _parameters(output).get("binary_data", binary)
    if not isinstance(binary, bool):
        raise RefusedError(400, "'binary_data' and 'binary_data_output' must be true or false")
    return binary
