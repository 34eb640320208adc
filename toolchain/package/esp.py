"""A disk with one partition that UEFI firmware boots from: GPT, and a FAT16 file system with one program.

Formats: UEFI specification 2.10, chapters 5 (GPT) and 13.3 (file system); Microsoft's FAT specification.
"""

from __future__ import annotations

import struct
import uuid
import zlib

from toolchain.errors import PackageError

_SECTOR = 512
_FIRST = 2048  # the partition's first sector: 1 MiB
_ENTRIES, _ENTRY = 128, 128
_TABLE = _ENTRIES * _ENTRY // _SECTOR
_SYSTEM_PARTITION = uuid.UUID("C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
_ROOT_ENTRIES = 512
_LEAST, _MOST = 4085, 65524  # clusters that make a FAT a FAT16


def disk(program: bytes, name: str, seed: str) -> bytes:
    """The disk's bytes with `program` as EFI/BOOT/`name` ("BOOTX64.EFI"); `seed` makes its identifiers.

    Raises PackageError for more than FAT16 holds (2 GB).
    """
    volume = _fat16(program, name, zlib.crc32(seed.encode()))
    sectors = _FIRST + len(volume) // _SECTOR + _TABLE + 1
    ids = [uuid.uuid5(uuid.NAMESPACE_OID, f"{seed} {what}") for what in ("disk", "partition")]
    last = _FIRST + len(volume) // _SECTOR - 1
    label = "toolchain".encode("utf-16-le").ljust(72, b"\0")
    entry = _SYSTEM_PARTITION.bytes_le + ids[1].bytes_le + struct.pack("<3Q", _FIRST, last, 0) + label
    table = entry.ljust(_TABLE * _SECTOR, b"\0")
    first = _header(ids[0], table, sectors, 1, 2).ljust(_SECTOR, b"\0")
    backup = _header(ids[0], table, sectors, sectors - 1, sectors - 1 - _TABLE).ljust(_SECTOR, b"\0")
    start = _protective(sectors) + first + table
    return start.ljust(_FIRST * _SECTOR, b"\0") + volume + table + backup


def _protective(sectors: int) -> bytes:
    """A master boot record that keeps old tools off."""
    entry = struct.pack("<B3sB3s2I", 0, b"\0\2\0", 0xEE, b"\xff" * 3, 1, min(sectors - 1, 0xFFFFFFFF))
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def _header(disk_id: uuid.UUID, table: bytes, sectors: int, here: int, table_at: int) -> bytes:
    other = sectors - 1 if here == 1 else 1
    usable = (2 + _TABLE, sectors - 2 - _TABLE)

    def packed(checksum: int) -> bytes:
        head = struct.pack("<8s4I", b"EFI PART", 0x10000, 92, checksum, 0)
        places = struct.pack("<4Q", here, other, *usable) + disk_id.bytes_le
        return head + places + struct.pack("<Q3I", table_at, _ENTRIES, _ENTRY, zlib.crc32(table))

    return packed(zlib.crc32(packed(0)))


def _fat16(program: bytes, name: str, serial: int) -> bytes:
    """A file system that holds one program two folders deep; its times are 1980-01-01, FAT's first day."""
    each = cluster_bytes(len(program))
    count = max(_clusters(program, each) + 2, _LEAST + 64)  # two folders before the file
    fat_sectors = -(-(count + 2) * 2 // _SECTOR)
    start = _boot_sector(each // _SECTOR, fat_sectors, count, serial)
    chain = [0xFFF8, 0xFFFF, 0xFFFF, 0xFFFF]  # two reserved entries, two folders of one cluster each
    chain += range(len(chain) + 1, len(chain) + _clusters(program, each))
    chain.append(0xFFFF)
    table = struct.pack(f"<{len(chain)}H", *chain).ljust(fat_sectors * _SECTOR, b"\0")
    root = _entry(b"EFI        ", 2, folder=True).ljust(_ROOT_ENTRIES * 32, b"\0")
    efi = _dots(2, 0) + _entry(b"BOOT       ", 3, folder=True)
    short = "{:8}{:3}".format(*name.split(".")).encode()
    boot = _dots(3, 2) + _entry(short, 4, size=len(program))
    data = efi.ljust(each, b"\0") + boot.ljust(each, b"\0") + program
    return start + table * 2 + root + data.ljust(count * each, b"\0")


def cluster_bytes(size: int) -> int:
    """The smallest cluster, of 4 to 32 KiB, with which FAT16 holds a file of `size` bytes. Raises PackageError."""
    for each in (1 << 12, 1 << 13, 1 << 14, 1 << 15):
        if -(-size // each) + 2 <= _MOST:
            return each
    raise PackageError(f"a bootable image of {size} bytes is more than FAT16 holds")


def _clusters(program: bytes, each: int) -> int:
    return -(-len(program) // each)


def _boot_sector(cluster_sectors: int, fat_sectors: int, clusters: int, serial: int) -> bytes:
    total = 1 + 2 * fat_sectors + _ROOT_ENTRIES * 32 // _SECTOR + clusters * cluster_sectors
    small, large = (total, 0) if total < 1 << 16 else (0, total)
    geometry = struct.pack(
        "<HBHBHHBHHHII",
        _SECTOR,
        cluster_sectors,
        1,
        2,
        _ROOT_ENTRIES,
        small,
        0xF8,
        fat_sectors,
        63,
        255,
        _FIRST,
        large,
    )
    head = b"\xeb\x3c\x90TOOLCHN " + geometry + struct.pack("<3BI", 0x80, 0, 0x29, serial)
    return (head + b"NO NAME    FAT16   ").ljust(510, b"\0") + b"\x55\xaa"


def _entry(name: bytes, cluster: int, *, folder: bool = False, size: int = 0) -> bytes:
    first_day = 0x21  # 1980-01-01
    return struct.pack("<11sB8x3HHI", name, 0x10 if folder else 0x20, 0, 0, first_day, cluster, size)


def _dots(own: int, parent: int) -> bytes:
    return _entry(b".          ", own, folder=True) + _entry(b"..         ", parent, folder=True)
