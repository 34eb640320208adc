"""What both sides answer to the same pictures: asked now, or read from a file of saved answers."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolchain.compare.sides import Side
from toolchain.data.folder import Found, find
from toolchain.errors import DataError, ModelError
from toolchain.progress import Progress
from toolchain.runtime import manifest
from toolchain.runtime.bench_input import file_kind
from toolchain.runtime.bundle import Bundle
from toolchain.runtime.fresh import Setup
from toolchain.runtime.pictures import decode
from toolchain.runtime.session import Session

Probabilities = NDArray[np.float64]
NO_ANSWER = "(no answer)"  # the class of what is not finite: never right
_ROUNDED = 0.05  # that the sum of rounded probabilities may be from 1
_DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, csv.Error)


@dataclass(frozen=True)
class Paired:
    """Answers of both sides, probabilities [n, C], to the same pictures, with the labels' indices [n].

    classes: names [C]; groups: of pictures that belong together [n], or None; sure: whether these are
    probabilities, or only the classes that were answered; source: where they come from, in words. farthest: the largest
    absolute difference between the raw outputs, where they were asked for; NaN when one is not finite.
    """

    base: Probabilities
    candidate: Probabilities
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    source: str
    groups: tuple[str, ...] | None = None
    sure: bool = True
    farthest: float | None = None


def ask(base: Side, candidate: Side, pictures: Path, setup: Setup, progress: Progress) -> Paired:
    """Ask both sides for every picture of a folder: CLASS/…, or test/CLASS/… where it has splits.

    Raises ModelError for a side that does not take pictures, DataError for classes that it does not know,
    PictureError for a damaged picture.
    """
    found = find(pictures).pictures
    test = [one for one in found if one.split == "test"]
    chosen = test or [one for one in found if one.split is None]
    if not chosen:
        raise DataError(f"{pictures}: has no test pictures; it needs test/ or a folder a class")
    names = sorted({one.label for one in chosen})
    sides = [_Asked.of(side, setup, names) for side in (base, candidate)]
    classes = sides[0].classes
    if sorted(classes) != sorted(sides[1].classes):
        raise ModelError(
            f"{candidate.path}: knows other classes than {base.path}; only the same can be compared"
        )
    if unknown := sorted(set(names) - set(classes)):
        raise DataError(
            f"{pictures}: {unknown[0]!r} is no class of {base.path}; its classes are {', '.join(classes)}"
        )
    rows = _rows(sides, pictures, chosen, progress)
    columns = [sides[1].classes.index(name) for name in classes]
    first, second = finite(rows[0], str(base.path)), _absent(rows[1][:, columns])
    labels = np.array([classes.index(one.label) for one in chosen], np.int64)
    padded = np.hstack([first, np.zeros((len(first), 1))])
    source = f"{pictures.name}, {len(chosen)} pictures"
    apart = farthest(rows[0], rows[1][:, columns])
    return Paired(padded, second, labels, (*classes, NO_ANSWER), source, farthest=apart)


def farthest(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """The largest absolute difference of two outputs, 0 of nothing; NaN when one of `right` is not finite."""
    return float(np.abs(left - right).max(initial=0.0)) if np.isfinite(right).all() else float("nan")


@dataclass(frozen=True)
class _Asked:
    """A session that takes pictures, and its classes in the order of its answers."""

    session: Session
    classes: tuple[str, ...]

    @classmethod
    def of(cls, side: Side, setup: Setup, names: Sequence[str]) -> _Asked:
        """A bundle's fused file, or an ONNX file that takes pictures itself."""
        if side.bundle is not None:
            loaded = Bundle.load(side.bundle)
            return cls(setup.session(side.bundle / manifest.MODEL), loaded.manifest.labels)
        session = setup.session(side.file)
        if file_kind(session.inputs, session.metadata) != "fused":
            raise ModelError(
                f"{side.file}: takes no pictures (uint8 [N, H, W, 3]), so its preprocessing is not known here; "
                f"give bundles, or the answers of both sides by --answers"
            )
        return cls(session, _labels(session, names))


def _labels(session: Session, names: Sequence[str]) -> tuple[str, ...]:
    """The classes that the file tells in its metadata, else the folders' names in sorted order."""
    try:
        told = json.loads(session.metadata.get("labels", "null"))
    except ValueError:
        told = None
    if isinstance(told, list):
        return tuple(map(str, told))
    width = session.outputs[0].shape[-1]
    if width != len(names):
        raise ModelError(
            f"{session.label}: answers {width} classes and does not name them; there are {len(names)} folders"
        )
    return tuple(names)


def _rows(
    sides: Sequence[_Asked], root: Path, chosen: Sequence[Found], progress: Progress
) -> list[NDArray[np.float64]]:
    """The raw answers of each side, [n, C]."""
    rows: list[list[NDArray[np.float64]]] = [[] for _ in sides]
    with progress.task("pictures", len(chosen)) as task:
        for one in chosen:
            picture = np.ascontiguousarray(decode(root / one.name)[None])
            for side, kept in zip(sides, rows, strict=True):
                answer = side.session.run({side.session.inputs[0].name: picture})[0]
                if answer.shape != (1, len(side.classes)):
                    raise ModelError(
                        f"{side.session.label}: answers {answer.shape} for {len(side.classes)} classes"
                    )
                kept.append(answer[0].astype(np.float64))
            task.advance()
    return [np.stack(kept) for kept in rows]


def finite(rows: NDArray[np.float64], label: str) -> NDArray[np.float64]:
    """The rows as probabilities. Raises ModelError when one is not finite."""
    if not np.isfinite(rows).all():
        raise ModelError(
            f"{label}: answers that are not finite (NaN or infinite); there is no base to compare with"
        )
    return probabilities(rows)


def probabilities(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows that are no probabilities are taken for logits: [n, C] -> [n, C].

    Probabilities that were rounded (steps of 1/256 in int8) sum to 1 only about, and are made to.
    """
    sums = rows.sum(axis=1, keepdims=True)
    if ((rows >= 0) & (rows <= 1)).all() and np.allclose(sums, 1, atol=_ROUNDED):
        return rows if np.allclose(sums, 1, atol=1e-3) else rows / sums
    powers = np.exp(rows - rows.max(axis=1, keepdims=True))
    found: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return found


def _absent(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The candidate's rows with one more column, which has all of what is not finite."""
    lost = ~np.isfinite(rows).all(axis=1)
    found = np.zeros((len(rows), rows.shape[1] + 1))
    if not lost.all():
        found[~lost, :-1] = probabilities(rows[~lost])
    found[lost, -1] = 1.0
    return found


def read(path: Path) -> Paired:
    """Saved answers: .npz with `base` and `candidate` [n, C], `labels` [n] (indices), and if wanted `classes`
    [C] and `groups` [n]; or .csv with the columns label, base, candidate (class names), and if wanted group.

    Raises DataError naming what is missing or does not fit.
    """
    try:
        return _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    except _DAMAGED as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        )
        raise DataError(f"{path}: no readable answers ({reason})") from error


def _read_npz(path: Path) -> Paired:
    with np.load(path, allow_pickle=False) as arrays:
        held: Mapping[str, NDArray[np.generic]] = dict(arrays)
    base, candidate = (held[name].astype(np.float64) for name in ("base", "candidate"))
    labels = held["labels"].astype(np.int64)
    if base.ndim != 2 or base.shape != candidate.shape or labels.shape != base.shape[:1] or not len(labels):
        raise ValueError(
            f"base {base.shape}, candidate {candidate.shape}, labels {labels.shape}: needed [n, C] twice and [n]"
        )
    if labels.min() < 0 or labels.max() >= base.shape[1]:
        raise ValueError(
            f"labels lie between 0 and {base.shape[1] - 1}; there is a {labels.min()} or {labels.max()}"
        )
    classes = tuple(map(str, held["classes"])) if "classes" in held else tuple(map(str, range(base.shape[1])))
    groups = _groups(map(str, held["groups"])) if "groups" in held else None
    if len(classes) != base.shape[1] or (groups is not None and len(groups) != len(labels)):
        raise ValueError("classes must name every column, groups every picture")
    padded = np.hstack([finite(base, str(path)), np.zeros((len(base), 1))])
    return Paired(
        padded,
        _absent(candidate),
        labels,
        (*classes, NO_ANSWER),
        f"{path.name}, {len(labels)} pictures",
        groups,
    )


def _groups(names: Iterable[str]) -> tuple[str, ...]:
    """A picture without a name of a group is a group of its own, as in a data set."""
    return tuple(name or f"\0{number}" for number, name in enumerate(names))


def _read_csv(path: Path) -> Paired:
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if missing := [
            name for name in ("label", "base", "candidate") if name not in (table.fieldnames or ())
        ]:
            raise ValueError(f"it has no column {missing[0]!r}; needed are label, base, candidate")
        rows = []
        for row in table:
            if None in row or None in row.values():
                raise ValueError(f"line {table.line_num} has not as many columns as the first")
            rows.append(row)
    if not rows:
        raise ValueError("it has no rows")
    columns = {name: [str(row[name]) for row in rows] for name in ("label", "base", "candidate")}
    classes = tuple(sorted({name for column in columns.values() for name in column}))
    index = {name: k for k, name in enumerate(classes)}
    at = {name: np.array([index[one] for one in column], np.int64) for name, column in columns.items()}
    sure = np.eye(len(classes))
    groups = _groups(str(row["group"]) for row in rows) if "group" in rows[0] else None
    source = f"{path.name}, {len(rows)} pictures"
    return Paired(sure[at["base"]], sure[at["candidate"]], at["label"], classes, source, groups, sure=False)
