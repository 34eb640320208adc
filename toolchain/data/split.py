"""Dividing labelled samples into train, val and test, or into folds: by class, and by whole groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from toolchain.data.dataset import Data, PictureSet
from toolchain.errors import DataError

Indices = NDArray[np.int64]


class Shares(NamedTuple):
    """The shares of the samples that val and test get; 0 means none."""

    val: float
    test: float


class Parts(NamedTuple):
    """Sorted indices of the samples of each split."""

    train: Indices
    val: Indices
    test: Indices


def partition(labels: Indices, groups: Sequence[str] | None, shares: Shares, seed: int) -> Parts:
    """Divide samples with `labels` [n] by class; with `groups` [n], whole groups, near the classes' shares.

    A class with at least 3 samples (3 groups, when groups are given) has one or more in each split that
    is asked for; a class of 1 or 2 may go to train alone.
    """
    home = _by_class(labels, shares, seed) if groups is None else _by_group(labels, groups, shares, seed)
    return Parts(*(np.flatnonzero(home == split) for split in range(3)))


def folds(data: Data, k: int, seed: int) -> list[Data]:
    """Return `k` re-divisions of all of a task's pictures, for cross-validation.

    In fold i, test is the i-th of k disjoint parts that together hold every picture once; val is a part
    of the rest, as large as val was of train and val. Both keep classes in proportion and groups whole.
    Raises DataError when there are fewer than `k` groups (or, without groups, pictures of each class).
    """
    samples = tuple(sample for _, split in data.splits for sample in split.samples)
    everything = PictureSet(samples, data.train.decode)
    grouped = any(sample.group for sample in samples)
    most = len(set(everything.groups)) if grouped else int(np.bincount(everything.labels).max())
    if not 2 <= k <= most:
        raise DataError(
            f"{data.name}: {most} {'groups' if grouped else 'pictures of a class'} cannot make {k} folds"
        )
    labels, groups = everything.labels, everything.groups
    val_share = len(data.val) / max(1, len(data.train) + len(data.val))
    home = _folds_by_group(labels, groups, k, seed) if grouped else _folds_by_class(labels, k, seed)
    made = []
    for number in range(k):
        rest, test = np.flatnonzero(home != number), np.flatnonzero(home == number)
        parts = partition(
            labels[rest], [groups[i] for i in rest] if grouped else None, Shares(val_share, 0), seed + number
        )
        train, val, held_back = (everything.subset(p) for p in (rest[parts.train], rest[parts.val], test))
        made.append(Data(data.name, data.labels, train, val, held_back))
    return made


def limit(pictures: PictureSet, per_class: int, seed: int) -> PictureSet:
    """Keep at most `per_class` samples of each class, picked at random by `seed`, in their old order."""
    order = np.random.default_rng(seed).permutation(len(pictures))
    labels = pictures.labels[order]
    kept = [order[labels == label][:per_class] for label in np.unique(labels)]
    return pictures.subset(int(i) for i in np.sort(np.concatenate(kept)))


def _by_class(labels: Indices, shares: Shares, seed: int) -> Indices:
    """The split (0 train, 1 val, 2 test) of each sample [n]."""
    rng = np.random.default_rng(seed)
    home = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        # Train keeps at least one, and val leaves test one.
        val = min(_count(len(members), shares.val), max(0, len(members) - 2))
        test = min(_count(len(members), shares.test), max(0, len(members) - 1 - val))
        home[members[:val]] = 1
        home[members[val : val + test]] = 2
    return home


def _count(members: int, share: float) -> int:
    """How many of a class's members a split should get: its share, but one of three if it gets any at all."""
    least = 1 if share and members >= 3 else 0
    return max(round(share * members), least)


def _by_group(labels: Indices, groups: Sequence[str], shares: Shares, seed: int) -> Indices:
    """The split of each sample [n], the same in a group."""
    of_group, counts, order = _groups(labels, groups, seed)
    home = np.full(len(counts), -1, dtype=np.int64)
    _reserve(home, counts, order, shares)
    _spread(home, counts, order, np.array([1 - sum(shares), *shares]))
    return home[of_group]


def _folds_by_class(labels: Indices, k: int, seed: int) -> Indices:
    """The fold of each sample [n]: each class is dealt out like cards, on from where the last one ended."""
    order = np.random.default_rng(seed).permutation(len(labels))
    home = np.empty(len(labels), dtype=np.int64)
    home[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % k
    return home


def _folds_by_group(labels: Indices, groups: Sequence[str], k: int, seed: int) -> Indices:
    """The fold of each sample [n], the same in a group."""
    of_group, counts, order = _groups(labels, groups, seed)
    home = np.full(len(counts), -1, dtype=np.int64)
    _spread(home, counts, order, np.full(k, 1 / k))
    return home[of_group]


def _groups(
    labels: Indices, groups: Sequence[str], seed: int
) -> tuple[Indices, NDArray[np.float64], Indices]:
    """The number of each sample's group [n], each group's samples by class [groups, classes], and an order.

    The order is that of scikit-learn's StratifiedGroupKFold: first the groups that would upset most.
    """
    names, of_group = np.unique(np.array(groups), return_inverse=True)
    counts = np.zeros((len(names), int(labels.max()) + 1))
    np.add.at(counts, (of_group, labels), 1)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    return of_group, counts, shuffled[np.argsort(-counts[shuffled].std(axis=1), kind="stable")]


def _spread(home: Indices, counts: NDArray[np.float64], order: Indices, shares: NDArray[np.float64]) -> None:
    """Greedy: each group without a home (-1) to the split whose class counts it brings nearest its share."""
    totals = np.maximum(counts.sum(axis=0), 1)
    aims = np.outer(shares, totals)  # [splits, classes]
    have = np.stack([counts[home == split].sum(axis=0) for split in range(len(shares))])
    closed = np.where(shares == 0, np.inf, 0)
    for group in order[home[order] < 0]:
        # What the squared distance from the aims changes by, were the group put into each split.
        change = ((2 * (have - aims) + counts[group]) * counts[group] / totals**2).sum(axis=1)
        home[group] = int((change + closed).argmin())
        have[home[group]] += counts[group]


def _reserve(home: Indices, counts: NDArray[np.float64], order: Indices, shares: Shares) -> None:
    """Give train a group of each class, then val and test one of each class with 3 or more, rarest first."""
    present = counts > 0
    rarest_first = np.argsort(present.sum(axis=0), kind="stable")
    for split, share in enumerate((1.0, *shares)):
        for label in rarest_first:
            holders = order[present[order, label]]  # about from large to small
            free = holders[home[holders] < 0]
            served = bool(np.any(home[holders] == split))
            if share and len(free) and not served and (split == 0 or len(holders) >= 3):
                home[free[0 if split == 0 else -1]] = split
