"""Pictures listed in a CSV, and groups listed beside an image folder. Errors name the file and line."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from toolchain.data.settings import Columns
from toolchain.errors import DataError

# What people call the splits.
SPLIT_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_PATH_NAMES = ("file", "filename", "image", "picture")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a CSV of pictures: a path below the root, with / between folders, and what is known of it."""

    line: int
    path: str
    label: str
    group: str | None
    split: str | None


def read_rows(file: Path, columns: Columns) -> list[Row]:
    """Read path, label[, group][, split] from `file` (UTF-8; comma, semicolon or tab between values).

    Raises DataError for a missing column, an empty path or label, a split that is none of train, val and
    test, a split given for some rows only, and a path listed twice.
    """
    table = _read(file)
    columns = _meant(table, columns)
    named = {columns.group, columns.split} - {
        "group",
        "split",
    }  # which may be absent, unless somebody named them
    for column in (columns.path, columns.label, *sorted(named)):
        _require(file, table, column)
    rows: list[Row] = []
    lines: dict[str, int] = {}
    for line, values in table.records:
        row = _row(file, line, values, columns)
        if row.path in lines:
            raise DataError(f"{file}, line {line}: '{row.path}' is listed in line {lines[row.path]} already")
        if rows and (row.split is None) != (rows[0].split is None):
            raise DataError(f"{file}, line {line}: give '{columns.split}' for every picture or for none")
        lines[row.path] = line
        rows.append(row)
    if not rows:
        raise DataError(f"{file}: lists no pictures")
    return rows


def group_column(file: Path, columns: Columns) -> str | None:
    """The column that names groups: the one called `columns.group`, or else the only one ending in "group"."""
    return _group_column(_read(file), columns)


def read_groups(file: Path, columns: Columns, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Read the group of each picture in `names`, which are paths below the data folder.

    A row's path may also be only the end of such a path (a file name, say) if one picture alone has it.
    Returns the group by picture, and what a person should know (rows and pictures that don't match).
    Raises DataError for missing columns, and for a path that several pictures have.
    """
    table = _read(file)
    path_column = next((name for name in (columns.path, *_PATH_NAMES) if name in table.header), columns.path)
    column = _group_column(table, columns) or columns.group
    _require(file, table, path_column)
    _require(file, table, column)
    endings = _endings(names)
    found: dict[str, str] = {}
    unknown = 0
    for line, values in table.records:
        path, group = _posix(values[path_column]), values[column].strip()
        matches = endings.get(path, [])
        if len(matches) > 1 and path not in matches:
            raise DataError(
                f"{file}, line {line}: '{path}' may be {matches[0]} or {matches[1]}: "
                f"give the path below the data folder"
            )
        if not matches:
            unknown += 1
        elif group:
            name = path if path in matches else matches[0]
            if found.setdefault(name, group) != group:
                raise DataError(
                    f"{file}, line {line}: '{path}' is in group '{found[name]}' already, and now in '{group}'"
                )
    if not found:
        raise DataError(f"{file}: none of its rows gives a group to a picture of the data folder")
    return found, _unmatched(file, len(names) - len(found), unknown)


def _unmatched(file: Path, without: int, unknown: int) -> list[str]:
    notes = []
    if without:
        notes.append(f"{file.name}: {without} pictures have no group there, each counts as its own group")
    if unknown:
        notes.append(f"{file.name}: {unknown} rows name no picture of the data folder")
    return notes


def _row(file: Path, line: int, values: Mapping[str, str], columns: Columns) -> Row:
    path, label = _posix(values[columns.path]), values[columns.label].strip()
    for column, value in ((columns.path, path), (columns.label, label)):
        if not value:
            raise DataError(f"{file}, line {line}: '{column}' is empty")
    split = values.get(columns.split, "").strip()
    if split and split.lower() not in SPLIT_NAMES:
        raise DataError(f"{file}, line {line}: '{split}' is no split; write train, val or test")
    group = values.get(columns.group, "").strip()
    return Row(line, path, label, group or None, SPLIT_NAMES[split.lower()] if split else None)


class _Table(NamedTuple):
    """A header, and each row by column with the number of its last line."""

    header: list[str]
    records: list[tuple[int, dict[str, str]]]


def _read(file: Path) -> _Table:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise DataError(f"{file}, line {line}: is not UTF-8 text; save it as UTF-8") from e
    except OSError as e:
        raise DataError(f"{file}: cannot be read ({e.strerror})") from e
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    header: list[str] = []
    records = []
    try:
        for values in reader:
            if not header:
                header = [name.strip() for name in values]
            elif len(values) == len(header):
                records.append((reader.line_num, dict(zip(header, values, strict=True))))
            elif values:
                raise DataError(
                    f"{file}, line {reader.line_num}: {len(values)} values where the header has {len(header)}"
                )
    except csv.Error as e:
        raise DataError(f"{file}, line {reader.line_num}: is not CSV ({e})") from e
    return _Table(header, records)


def _require(file: Path, table: _Table, column: str) -> None:
    if column not in table.header:
        raise DataError(
            f"{file}: has no column '{column}' (it has {', '.join(table.header) or 'none'}); "
            f"rename one, or name it under data.columns"
        )


def _group_column(table: _Table, columns: Columns) -> str | None:
    if columns.group in table.header:
        return columns.group
    endings = [name for name in table.header if name.lower().endswith("group")]
    return endings[0] if len(endings) == 1 and columns.group == "group" else None


def _meant(table: _Table, columns: Columns) -> Columns:
    """With the columns that a header means: the one of groups as everywhere, and Split or SPLIT for split."""
    found: dict[str, str] = {}
    if group := _group_column(table, columns):
        found["group"] = group
    splits = [name for name in table.header if name.strip().lower() == columns.split]
    if columns.split not in table.header and len(splits) == 1:
        found["split"] = splits[0]
    return columns.model_copy(update=found)


def _posix(path: str) -> str:
    """The path with / between folders and without a leading ./ ."""
    text = path.strip().replace("\\", "/")
    return str(PurePosixPath(text)) if text else ""


def _endings(names: Sequence[str]) -> dict[str, list[str]]:
    """Every way to end a picture's path (`a/b/c.png`, `b/c.png`, `c.png`), with the pictures that end so."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        parts = PurePosixPath(name).parts
        for start in range(len(parts)):
            found["/".join(parts[start:])].append(name)
    return found
