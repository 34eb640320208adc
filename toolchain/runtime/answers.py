"""Answers for picture files, and their tables: what `predict` prints and writes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from toolchain.runtime.bundle import Bundle, Prediction
from toolchain.runtime.errors import ModelError, PictureError
from toolchain.runtime.manifest import JSON
from toolchain.runtime.pictures import decode
from toolchain.runtime.session import Session


@dataclass(frozen=True)
class Answer:
    """A file's prediction, or (one of the two is None) why it could not be read."""

    path: Path
    prediction: Prediction | None
    error: str | None = None


def answers(bundle: Bundle, paths: Iterable[Path], session: Session) -> Iterator[Answer]:
    """Answer file after file; one that cannot be read or answered is told in its answer and does not stop the others."""
    for path in paths:
        try:
            picture = decode(path)
        except PictureError as e:
            yield Answer(path, None, str(e))
            continue
        try:
            found = bundle.predict([picture], session)[0]
        except (PictureError, ModelError) as e:  # too large for this device, for one
            yield Answer(path, None, f"{path}: {e}")
        else:
            yield Answer(path, found)


def line(answer: Answer) -> str:
    """path, label, probability, and "uncertain" where it is, separated by tabs."""
    if answer.prediction is None:
        return f"{answer.path}\t-\t-\t{answer.error}"
    found = answer.prediction
    return f"{answer.path}\t{found.label}\t{found.probability:.4f}\t{'' if found.certain else 'uncertain'}".rstrip()


def as_json(answer: Answer) -> dict[str, JSON]:
    """An answer as plain values: path, then label, probability, certain, probabilities; or error."""
    found = answer.prediction
    if found is None:
        return {"path": str(answer.path), "error": answer.error}
    return {
        "path": str(answer.path),
        "label": found.label,
        "probability": found.probability,
        "certain": found.certain,
        "probabilities": found.probabilities,
    }


def write_csv(rows: Iterable[Answer], labels: Sequence[str], file: IO[str]) -> None:
    """Write path, label, probability, certain, error and one column `p(label)` a label."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(["path", "label", "probability", "certain", "error", *(f"p({label})" for label in labels)])
    for row in rows:
        found = row.prediction
        if found is None:
            table.writerow([row.path, "", "", "", row.error, *("" for _ in labels)])
        else:
            shares = (f"{found.probabilities[label]:.6f}" for label in labels)
            certain = "yes" if found.certain else "no"
            table.writerow([row.path, found.label, f"{found.probability:.6f}", certain, "", *shares])
