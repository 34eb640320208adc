"""What was measured, as plain values: a Measurement is a number with a name and a unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

JSON = Any  # what json.dumps takes: None, bool, int, float, str, list, dict[str, JSON]


class Measurement(BaseModel):
    """One number: `value` in `unit` ("1" when dimensionless), with what it was measured under in `where`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    value: float
    unit: str = "1"
    where: Mapping[str, str | int | float] = {}


class Record(BaseModel):
    """What the store keeps of one finished step or measurement (`record.json`).

    `key` is the content address; `files` maps each file's path in the folder to its sha256;
    `seconds` is the wall time of the work; `libraries` the versions that the key was made with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = 1
    key: str
    step: str
    version: int
    settings: Mapping[str, JSON]
    parents: Mapping[str, str]
    libraries: Mapping[str, str]
    device: str | None = None
    seconds: float
    measurements: tuple[Measurement, ...] = ()
    files: Mapping[str, str] = {}
