"""Dividing by class and by group, over many random label sets."""

from __future__ import annotations

import numpy as np
import pytest
from data_helpers import held, in_thirds, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.data.split import Shares, folds, limit, partition
from toolchain.errors import DataError

SHARES = st.sampled_from([Shares(0.15, 0.15), Shares(0.2, 0.0), Shares(0.0, 0.3), Shares(0.45, 0.45)])
COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(COUNTS, SHARES, st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_classes_keep_their_shares(counts: list[int], shares: Shares, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    parts = partition(labels, None, shares, seed)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    for label, count in enumerate(counts):
        train, val, test = (int((labels[part] == label).sum()) for part in parts)
        assert train >= 1
        for got, share in ((val, shares.val), (test, shares.test)):
            assert abs(got - share * count) <= 1
            assert got >= 1 or share == 0 or count < 3


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 6)), min_size=4, max_size=60),
    SHARES,
    st.integers(0, 3),
)
@settings(deadline=None, max_examples=80)
def test_groups_stay_whole_and_every_class_is_taught(
    made: list[tuple[int, int, int]], shares: Shares, seed: int
) -> None:
    labels, groups = [], []
    for number, (one, two, size) in enumerate(made):  # a group holds one class or two
        labels += [one] * size + [two]
        groups += [f"g{number}"] * (size + 1)
    array = np.array(labels)
    parts = partition(array, groups, shares, seed)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    homes = [{groups[i] for i in part} for part in parts]
    assert sum(map(len, homes)) == len(set().union(*homes))
    assert set(array[parts.train]) == set(labels)
    assert bool(len(parts.val)) <= (shares.val > 0)
    assert bool(len(parts.test)) <= (shares.test > 0)


def test_groups_come_near_the_shares_in_every_class() -> None:
    rng = np.random.default_rng(0)
    of_group = rng.integers(0, 150, 1500)
    labels = (of_group % 7 == 0) + 2 * (rng.random(1500) < 0.05).astype(np.int64)
    parts = partition(labels, [str(g) for g in of_group], Shares(0.15, 0.15), 0)
    for label in range(4):
        count = (labels == label).sum()
        for part in parts[1:]:
            assert (labels[part] == label).sum() / count == pytest.approx(0.15, abs=0.06)


def test_a_class_of_three_small_groups_reaches_every_split() -> None:
    labels = np.array([0] * 90 + [1] * 6)
    groups = [f"a{i // 3}" for i in range(90)] + [f"b{i // 2}" for i in range(6)]
    parts = partition(labels, groups, Shares(0.15, 0.15), 3)
    assert [int((labels[part] == 1).sum()) for part in parts] == [2, 2, 2]


@pytest.mark.parametrize("grouped", [True, False])
def test_folds_hold_every_picture_in_one_test_and_no_group_in_two_splits(grouped: bool) -> None:
    labels = [i % 3 for i in range(90)]
    groups: list[str | None] | None = [f"g{i // 2}" for i in range(90)] if grouped else None
    data = in_thirds(held([noise(i) for i in range(90)], labels, groups), ("a", "b", "c"))
    made = folds(data, 5, seed=0)
    tested = [sample.name for fold in made for sample in fold.test.samples]
    assert sorted(tested) == sorted(s.name for _, split in data.splits for s in split.samples)
    for fold in made:
        parts = [set(split.groups) for _, split in fold.splits]
        assert sum(map(len, parts)) == len(set().union(*parts))
        assert sum(len(split) for _, split in fold.splits) == 90
        assert 15 <= len(fold.test) <= 21
        assert 0.35 * 72 <= len(fold.val) <= 0.65 * 72  # val was half of train and val
        assert set(fold.test.labels) == set(fold.train.labels) == {0, 1, 2}
    assert [f.test.fingerprint for f in made] == [f.test.fingerprint for f in folds(data, 5, seed=0)]
    assert made[0].train.picture(0).shape == (12, 16, 3)


def test_more_folds_than_groups_are_refused() -> None:
    data = in_thirds(held([noise(i) for i in range(12)], [0, 1] * 6, ["x", "y", "z"] * 4), ("a", "b"))
    with pytest.raises(DataError, match="3 groups cannot make 4 folds"):
        folds(data, 4, 0)


def test_limit_takes_a_random_few_in_order() -> None:
    pictures = held([noise(i) for i in range(30)], [0] * 20 + [1] * 10)
    kept = limit(pictures, 5, seed=1)
    assert np.bincount(kept.labels).tolist() == [5, 5]
    names = [sample.name for sample in kept.samples]
    assert names == sorted(names)
    assert names != [sample.name for sample in limit(pictures, 5, seed=2).samples]
