"""The folder itself: a record's name is the hash of its content, so writers never meet and nothing is edited.

A file that cannot be read is named in one sentence and the others are used all the same.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolchain.errors import HostError, RecordError
from toolchain.record import JSON
from toolchain.runtime import bench_record
from toolchain.store import host_faults

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Kept:
    """A readable record and its file."""

    path: Path
    raw: Mapping[str, JSON]


@dataclass(frozen=True)
class Folder:
    """What a folder holds: readable records by file name, and one sentence for each file that is damaged."""

    records: tuple[Kept, ...]
    damaged: tuple[str, ...]


def add(folder: Path, record: Mapping[str, JSON]) -> Path:
    """Write a record (plain values with `schema` and `kind`) into a folder, made when missing; its path.

    Equal records are one file; a file that is there is never changed. Safe for parallel writers. Raises
    RecordError for what is no record, HostError when the folder cannot be written.
    """
    if not isinstance(record.get("kind"), str) or not isinstance(record.get("schema"), int):
        raise RecordError("a record needs a `kind` and a `schema`; this one was not written")
    try:
        with host_faults(folder):
            return bench_record.keep(dict(record), folder)
    except FileExistsError as error:
        raise HostError(f"{folder}: is a file; name a folder for the records") from error


def read(folder: Path) -> Folder:
    """Read every *.json of a folder, without those below it. RecordError when there is no such folder."""
    if not folder.is_dir():
        raise RecordError(f"{folder}: no such folder of records")
    records, damaged = [], []
    with host_faults(folder):
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    for path in paths:
        try:
            records.append(Kept(path, _load(path)))
        except RecordError as error:
            damaged.append(str(error))
    return Folder(tuple(records), tuple(damaged))


def _load(path: Path) -> Mapping[str, JSON]:
    """One record. RecordError in one sentence."""
    try:
        content = path.read_bytes()
        raw = json.loads(content)
    except OSError as error:
        raise RecordError(f"{path.name}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path.name}: damaged or cut short, it is no JSON; delete it") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("kind"), str):
        raise RecordError(f"{path.name}: no record of a measurement (it has no `kind`)")
    if _HASH.fullmatch(path.stem) and hashlib.sha256(content).hexdigest() != path.stem:
        raise RecordError(f"{path.name}: its content is not what its name says, it was changed; delete it")
    return raw
