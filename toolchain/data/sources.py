"""From what a recipe says about its data to pictures in three splits."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolchain.data import digits
from toolchain.data.dataset import Data, Picture, PictureSet, Sample
from toolchain.data.folder import Found, find
from toolchain.data.settings import DataSettings, Split
from toolchain.data.split import Indices, Parts, Shares, limit, partition
from toolchain.data.table import read_groups, read_rows
from toolchain.errors import DataError
from toolchain.runtime.pictures import decode


@dataclass(frozen=True)
class FolderDecoder:
    """Decodes pictures by their path below `root`."""

    root: Path

    def __call__(self, name: str) -> Picture:
        """uint8 [H, W, 3] RGB; raises PictureError naming the picture."""
        return decode(self.root / name, name=name)


def load(settings: DataSettings, base: Path) -> Data:
    """Find, label and split the pictures; relative paths in `settings` start at `base`.

    Class names are folder names or labels, sorted. Splits that the source does not give are taken from
    train: stratified by class, and by whole groups where groups are known. Nothing is decoded yet.
    Raises DataError: nothing there, one class only, a class that train lacks, a listed file that is missing.
    """
    if settings.source == "digits":
        return digits.load(settings.split, settings.limit_per_class)
    source = _search(settings, base)
    root, found = source.root, source.found
    labels = tuple(sorted({picture.label for picture in found}))
    if not found:
        raise DataError(
            f"{root}: no pictures in class folders" + "".join(f"; {note}" for note in source.notes)
        )
    if len(labels) < 2:
        raise DataError(f"{root}: all {len(found)} pictures are of one class, '{labels[0]}'; two are needed")
    hashes = _hashes(root, [picture.name for picture in found])
    numbers = {label: number for number, label in enumerate(labels)}
    samples = tuple(
        Sample(picture.name, numbers[picture.label], sha, source.groups.get(picture.name))
        for picture, sha in zip(found, hashes, strict=True)
    )
    parts = _parts(samples, [picture.split for picture in found], settings.split)
    _check_classes(root, labels, samples, parts)
    everything = PictureSet(samples, FolderDecoder(root))
    train, val, test = (everything.subset(int(i) for i in part) for part in parts)
    if settings.limit_per_class is not None:
        train = limit(train, settings.limit_per_class, settings.split.seed)
    return Data(source.name, labels, train, val, test, source.notes)


class _Source(NamedTuple):
    """Pictures below `root`, their groups by name, and what a person should know."""

    name: str
    root: Path
    found: list[Found]
    groups: Mapping[str, str]
    notes: tuple[str, ...]


def _search(settings: DataSettings, base: Path) -> _Source:
    if settings.csv is not None:
        return _listed(base / settings.csv, base, settings)
    root = base / (settings.folder or Path())
    search = find(root)
    name = root.resolve().name
    if settings.groups is None:
        return _Source(name, root, search.pictures, {}, tuple(search.notes))
    names = [picture.name for picture in search.pictures]
    groups, notes = read_groups(base / settings.groups, settings.columns, names)
    return _Source(name, root, search.pictures, groups, (*search.notes, *notes))


def _listed(file: Path, base: Path, settings: DataSettings) -> _Source:
    rows = read_rows(file, settings.columns)
    root = base / settings.root if settings.root is not None else file.parent
    missing = next((row for row in rows if not (root / row.path).is_file()), None)
    if missing is not None:
        raise DataError(f"{file}, line {missing.line}: there is no file {root / missing.path}")
    found = [Found(row.path, row.label, row.split) for row in rows]
    return _Source(file.stem, root, found, {row.path: row.group for row in rows if row.group}, ())


def _parts(samples: Sequence[Sample], given: Sequence[str | None], split: Split) -> Parts:
    """The splits as the source gives them; val and test come out of train where it gives none."""
    home: defaultdict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(given):
        home[name or "train"].append(index)
    if "train" not in home:
        raise DataError("the split column gives no picture to train")
    pool = np.array(home["train"], dtype=np.int64)
    fixed = {name: np.array(home[name], dtype=np.int64) for name in ("val", "test")}
    shares = Shares(*(0.0 if len(fixed[name]) else getattr(split, name) for name in ("val", "test")))
    groups = [samples[i].group or samples[i].name for i in pool]
    grouped = any(samples[i].group for i in pool)
    labels = np.array([samples[i].label for i in pool], dtype=np.int64)
    made = partition(labels, groups if grouped else None, shares, split.seed)
    pick: dict[str, Indices] = {
        name: fixed[name] if len(fixed[name]) else pool[getattr(made, name)] for name in ("val", "test")
    }
    return Parts(pool[made.train], pick["val"], pick["test"])


def _check_classes(root: Path, labels: Sequence[str], samples: Sequence[Sample], parts: Parts) -> None:
    taught = {samples[i].label for i in parts.train}
    for split, part in (("val", parts.val), ("test", parts.test)):
        unknown = sorted({samples[i].label for i in part} - taught)
        if unknown:
            names = ", ".join(f"'{labels[label]}'" for label in unknown)
            raise DataError(f"{root}: {split} has pictures of {names}, but train has none to learn from")
        if len(part) == 0:
            raise DataError(f"{root}: too few pictures to make a {split} split; add pictures, or give one")


def _hashes(root: Path, names: Sequence[str]) -> list[str]:
    """sha256 of each file's bytes, read by as many threads as there are cores."""

    def digest(name: str) -> str:
        try:
            with open(root / name, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as e:
            raise DataError(f"{root / name}: cannot be read ({e.strerror})") from e

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(digest, names, chunksize=64))
