"""A folder of records, one JSON file each, and what it says about models over time."""

from __future__ import annotations

from toolchain.history.folder import add, read

__all__ = ["add", "read"]
