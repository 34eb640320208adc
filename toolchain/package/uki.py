"""A unified kernel image: one EFI program that holds kernel, command line and initial file system.

systemd's stub gets sections added, as `ukify` does it: the UAPI group's "Unified Kernel Image" specification, and
Microsoft's PE format for the headers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from toolchain.errors import PackageError

_SECTION = struct.Struct("<8s6I2HI")
_READ_DATA = 0x40000040  # initialized data, readable
_OPTIONAL_AT = 24  # of the optional header, from the PE signature
_ALIGNMENTS, _IMAGE_SIZE, _HEADERS_SIZE, _CHECKSUM = 32, 56, 60, 64  # in the optional header


def build(stub: bytes, sections: Mapping[str, bytes]) -> bytes:
    """The stub with `sections` ({".linux": …}) behind its own, in their order. Raises PackageError for no such stub."""
    try:
        return _build(stub, sections)
    except (struct.error, IndexError) as e:
        raise PackageError(f"the EFI stub is no PE program ({e})") from e


def _build(stub: bytes, sections: Mapping[str, bytes]) -> bytes:
    image = bytearray(stub)
    (pe,) = struct.unpack_from("<I", image, 0x3C)
    count, optional_size = (struct.unpack_from("<H", image, pe + at)[0] for at in (6, 20))
    optional = pe + _OPTIONAL_AT
    aligned, file_aligned = struct.unpack_from("<2I", image, optional + _ALIGNMENTS)
    table = optional + optional_size
    (headers,) = struct.unpack_from("<I", image, optional + _HEADERS_SIZE)
    room = headers - table - _SECTION.size * (count + len(sections))
    if image[pe : pe + 4] != b"PE\0\0" or not count or room < 0:
        raise PackageError("the EFI stub is no PE program with room for more sections")
    rows = [_SECTION.unpack_from(image, table + i * _SECTION.size) for i in range(count)]
    address = max(row[2] + row[1] for row in rows)
    for index, (name, data) in enumerate(sections.items(), start=count):
        address = _up(address, aligned)
        image += bytes(_up(len(image), file_aligned) - len(image))
        row = (name.encode(), len(data), address, _up(len(data), file_aligned), len(image), 0, 0, 0, 0)
        _SECTION.pack_into(image, table + index * _SECTION.size, *row, _READ_DATA)
        image += data + bytes(_up(len(data), file_aligned) - len(data))
        address += len(data)
    struct.pack_into("<H", image, pe + 6, count + len(sections))
    struct.pack_into("<I", image, optional + _IMAGE_SIZE, _up(address, aligned))
    struct.pack_into("<I", image, optional + _CHECKSUM, 0)
    return bytes(image)


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
