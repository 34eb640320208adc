"""The part of protobuf's wire format that the Open Inference Protocol's messages need, without generated code.

https://protobuf.dev/programming-guides/encoding: a message is a row of (field number, wire type, value).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from toolchain.runtime.server.refusals import RefusedError

Value = int | memoryview
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST = 10_000
_WIDTHS = {_FIXED64: 8, _FIXED32: 4}


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """(number, value) of each field: a whole number, or the bytes of a text, message or packed row.

    Fixed-width values come as their bytes. Raises RefusedError 400 for what is no message, or has more than 10,000 fields.
    """
    at, end, count = 0, len(message), 0
    while at < end:
        count += 1
        _require_few(count)
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _varint(message, at)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in _WIDTHS:
            length = _WIDTHS[kind]
        else:
            raise RefusedError(400, f"the message is no protobuf (wire type {kind})")
        if length > end - at:
            raise RefusedError(400, "the message is no protobuf, or cut short")
        yield tag >> 3, message[at : at + length]
        at += length


def text_of(value: Value) -> str:
    """A field that is a text. Raises RefusedError 400 for another, or when it is no UTF-8."""
    try:
        return str(bytes_of(value), "utf-8")
    except UnicodeDecodeError as e:
        raise RefusedError(400, "a text of the message is no UTF-8") from e


def bytes_of(value: Value) -> memoryview:
    """A field that is bytes or a message. Raises RefusedError 400 for a number."""
    if isinstance(value, int):
        raise RefusedError(400, "the message has a number where text or bytes belong")
    return value


def numbers_of(value: Value) -> Iterator[int]:
    """A field of repeated int64, one or packed; negative ones as they are meant."""
    if isinstance(value, int):
        yield _signed(value)
        return
    at = count = 0
    while at < len(value):
        count += 1
        _require_few(count)
        number, at = _varint(value, at)
        yield _signed(number)


def _require_few(count: int) -> None:
    if count > _MOST:
        raise RefusedError(400, f"the message has more than {_MOST} fields or numbers in a row")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
    raise RefusedError(400, "the message is no protobuf, or cut short")


def flag(number: int, value: bool) -> bytes:
    """A field that is true or false."""
    return _number(number << 3 | _VARINT) + _number(int(value))


def data(number: int, content: str | bytes | memoryview) -> bytes:
    """A field that is a text, bytes or a message."""
    raw = content.encode() if isinstance(content, str) else content
    return b"".join((_number(number << 3 | _BYTES), _number(len(raw)), raw))


def numbers(number: int, values: Iterable[int]) -> bytes:
    """A field of repeated int64, packed."""
    return data(number, b"".join(_number(value & (1 << 64) - 1) for value in values))


def _number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
