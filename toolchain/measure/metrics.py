"""Accuracy from kept answers: probabilities float [n, C], labels int [n], groups. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from toolchain.stats import Floats, Ints, accuracy_interval, balanced, hits, recalls, top1, wilson

BINS = 15
DENSE_CLASSES = 100  # up to here the whole confusion matrix is kept; above, its largest cells
_PAIRS = 20

Ends = tuple[float, float]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Bin(_Model):
    """One bar of a reliability diagram: answers whose probability lies in (low, high]."""

    low: float
    high: float
    n: int
    confidence: float | None = Field(description="mean probability of the answers, null for n = 0")
    accuracy: float | None = Field(description="share of right answers, null for n = 0")


class ConfusedPair(_Model):
    """Pictures of class `label` that were taken for `predicted`."""

    label: str
    predicted: str
    n: int


class Accuracy(_Model):
    """How one file answers one split on one provider. Every accuracy is a fraction of 1."""

    split: str
    n: int
    groups: int | None = Field(default=None, description="groups of pictures that intervals are by, if any")
    top1: float
    ci95: Ends = Field(description="95 % interval of top1: Wilson, or bootstrap by group")
    balanced: float = Field(description="mean recall of the classes that occur")
    balanced_ci95: Ends
    per_class: Mapping[str, float | None] = Field(description="recall by class, null without pictures")
    per_class_n: Mapping[str, int]
    per_class_ci95: Mapping[str, Ends | None] = Field(
        description="Wilson intervals; pictures taken as single"
    )
    confusion: tuple[tuple[int, ...], ...] | None = Field(
        default=None, description=f"rows: label, columns: answer; null above {DENSE_CLASSES} classes"
    )
    most_confused: tuple[ConfusedPair, ...] = ()
    ece: float = Field(description=f"expected calibration error, {BINS} equal bins (Guo et al. 2017)")
    nll: float = Field(description="mean negative log-likelihood of the labels, in nats")


class Mistake(_Model):
    """A wrong answer: indices of the picture in its split, of its label and of the answer."""

    index: int
    label: int
    predicted: int
    probability: float


def accuracy(
    probabilities: Floats,
    labels: Ints,
    names: Sequence[str],
    groups: Sequence[str] | None = None,
    split: str = "test",
) -> Accuracy:
    """Every figure of one file on one split.

    probabilities [n, C]; labels [n], class indices; names [C] of the classes; groups [n] or None.
    """
    if probabilities.shape[1] != len(names):
        raise ValueError(f"{probabilities.shape[1]} probabilities a picture for {len(names)} classes")
    matrix = confusion(probabilities, labels)
    rows = dict(zip(names, matrix, strict=True))
    grouped = groups is not None and len(set(groups)) < len(labels)
    shares = dict(zip(names, recalls(probabilities, labels), strict=True))
    right = dict(zip(names, np.diag(matrix), strict=True))
    return Accuracy(
        split=split,
        n=len(labels),
        groups=len(set(groups)) if grouped and groups is not None else None,
        top1=top1(probabilities, labels),
        ci95=accuracy_interval(probabilities, labels, groups).ci95,
        balanced=balanced(probabilities, labels),
        balanced_ci95=accuracy_interval(probabilities, labels, groups, "balanced").ci95,
        per_class={name: float(share) if np.isfinite(share) else None for name, share in shares.items()},
        per_class_n={name: int(row.sum()) for name, row in rows.items()},
        per_class_ci95={
            name: wilson(int(right[name]), int(row.sum())).ci95 if row.any() else None
            for name, row in rows.items()
        },
        confusion=tuple(tuple(map(int, row)) for row in matrix) if len(names) <= DENSE_CLASSES else None,
        most_confused=_most_confused(matrix, names),
        ece=calibration_error(probabilities, labels),
        nll=nll(probabilities, labels),
    )


def confusion(probabilities: Floats, labels: Ints) -> NDArray[np.int64]:
    """Counts [C, C]: row = label, column = most probable class."""
    classes = probabilities.shape[1]
    cells = np.bincount(labels * classes + probabilities.argmax(axis=1), minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)


def reliability(probabilities: Floats, labels: Ints, bins: int = BINS) -> tuple[Bin, ...]:
    """Answers sorted into equal bins of their probability: what they claim against how often they hold."""
    confidence, right = probabilities.max(axis=1), hits(probabilities, labels)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    claimed = np.bincount(place, confidence, bins)
    held = np.bincount(place, right, bins)
    return tuple(
        Bin(
            low=k / bins,
            high=(k + 1) / bins,
            n=int(n),
            confidence=float(claimed[k] / n) if n else None,
            accuracy=float(held[k] / n) if n else None,
        )
        for k, n in enumerate(counts)
    )


def calibration_error(probabilities: Floats, labels: Ints, bins: int = BINS) -> float:
    """Expected calibration error of the answers' probabilities (Guo et al. 2017, equation 3), in [0, 1]."""
    return sum(
        found.n / len(labels) * abs(found.accuracy - found.confidence)
        for found in reliability(probabilities, labels, bins)
        if found.accuracy is not None and found.confidence is not None
    )


def nll(probabilities: Floats, labels: Ints) -> float:
    """Mean negative log-likelihood of the labels in nats; a probability of 0 counts as the smallest float32."""
    given = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(given, np.finfo(np.float32).tiny)).mean())


def worst_mistakes(probabilities: Floats, labels: Ints, count: int = 24) -> list[Mistake]:
    """The wrong answers given with most confidence, worst first; ties in the order of the pictures."""
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(~hits(probabilities, labels))
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [
        Mistake(
            index=int(i),
            label=int(labels[i]),
            predicted=int(probabilities[i].argmax()),
            probability=float(confidence[i]),
        )
        for i in worst
    ]


def _most_confused(matrix: NDArray[np.int64], names: Sequence[str]) -> tuple[ConfusedPair, ...]:
    """The largest cells off the diagonal, largest first."""
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:_PAIRS]
    cells = [np.unravel_index(at, errors.shape) for at in order]
    return tuple(
        ConfusedPair(label=names[i], predicted=names[j], n=int(errors[i, j]))
        for i, j in cells
        if errors[i, j]
    )
