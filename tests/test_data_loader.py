"""Batches depend on seed, epoch and position; never on workers, cache or where an epoch is resumed."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import torch
from data_helpers import held, noise

from toolchain.data.augment import Augment, Augmenter
from toolchain.data.dataset import PictureSet
from toolchain.data.loader import (
    Batches,
    EvalBatches,
    Loading,
    eval_batches,
    evaluation_tensor,
    weights_by_class,
)
from toolchain.data.preprocess import Preprocess, Preprocessing
from toolchain.errors import DataError, PictureError

SQUARE = Preprocess(height=16, width=16)
AUGMENT = {
    "crop_scale": (0.5, 1.0),
    "flip_horizontal": True,
    "rotate": 10,
    "noise": 0.02,
    "trivial_augment": True,
}


def pictures(count: int = 23) -> PictureSet:
    return held([noise(i, 18 + i % 5, 20) for i in range(count)], [i % 3 for i in range(count)])


def batches(source: PictureSet, augment: dict[str, object] = AUGMENT, weights: np.ndarray | None = None,
            **loading: int) -> Batches:  # fmt: skip
    settings = Loading.model_validate({"batch_size": 4, "seed": 5} | loading)
    return Batches(source, Augmenter(Augment.model_validate(augment), SQUARE), settings, weights)


def collect(source: Batches, epoch: int, start: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    with source:
        return list(source.epoch(epoch, start))


def equal(
    these: list[tuple[torch.Tensor, torch.Tensor]], those: list[tuple[torch.Tensor, torch.Tensor]]
) -> bool:
    return len(these) == len(those) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(these, those, strict=True)
    )


@pytest.mark.parametrize("augment", [AUGMENT, {"translate": 0.1}, {}])
@pytest.mark.parametrize("other", [{"workers": 1}, {"workers": 3}, {"cache_bytes": 0}, {"cache_bytes": 9000}])
def test_workers_and_cache_change_nothing(augment: dict[str, object], other: dict[str, int]) -> None:
    source = pictures()
    plain = batches(source, augment)
    expected = [list(plain.epoch(epoch)) for epoch in range(2)]
    with batches(source, augment, **other) as those:
        assert all(equal(list(those.epoch(epoch)), expected[epoch]) for epoch in range(2))


def test_an_epoch_resumes_at_any_batch_in_a_fresh_process() -> None:
    whole = collect(batches(pictures()), 3)
    for start in (0, 2, 5, 6):
        assert equal(collect(batches(pictures(), workers=2), 3, start), whole[start:])


def test_batches_hold_every_picture_once_in_sizes_that_differ_by_one() -> None:
    source = batches(pictures(), {})
    found = list(source.epoch(0))
    assert len(found) == len(source) == 6
    assert sorted(len(labels) for _, labels in found) == [3, 4, 4, 4, 4, 4]
    assert found[0][0].dtype == torch.float32
    assert found[0][0].shape[1:] == (3, 16, 16)
    assert found[0][1].dtype == torch.int64
    whole = evaluation_tensor(pictures(), SQUARE)
    drawn = torch.cat([x for x, _ in found])
    nearest = torch.cdist(drawn.flatten(1), whole.flatten(1)).argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(23))
    assert torch.equal(torch.cat([y for _, y in found]), torch.tensor([i % 3 for i in nearest]))


def test_epochs_and_seeds_differ_in_order_and_augmentation() -> None:
    source = batches(pictures())
    assert source.order(0).tolist() != source.order(1).tolist()
    assert source.order(0).tolist() != batches(pictures(), seed=6).order(0).tolist()
    one = held([noise(1)], [0])
    first, second = (next(batches(one).epoch(epoch))[0] for epoch in range(2))
    assert not torch.equal(first, second)


def test_weights_balance_the_classes_and_spread_evenly_inside() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    source = held([noise(0)] * 100, labels.tolist())
    weighted = batches(source, weights=weights_by_class(labels))
    drawn = [weighted.order(epoch) for epoch in range(30)]
    for order in drawn:
        assert len(order) == 100
        counts = np.bincount(labels[order], minlength=3)
        assert counts.tolist() == pytest.approx([33, 33, 33], abs=1.1)
        assert {3, 4} >= set(Counter(order[order >= 90].tolist()).values())
    often = np.bincount(np.concatenate(drawn), minlength=100) / 30
    np.testing.assert_allclose(often[:60], 100 / 3 / 60, atol=0.3)


def test_weights_of_half_power_lie_between() -> None:
    labels = np.array([0] * 81 + [1] * 9)
    shares = [weights_by_class(labels, power)[labels == 1].sum() for power in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.1, 0.25, 0.5])


def test_a_broken_picture_is_named_also_from_a_worker() -> None:
    good = pictures(6)

    def decode(name: str) -> np.ndarray:
        if name == "p/004":
            raise PictureError(f"{name}: cut short")
        return good.decode(name)

    broken = PictureSet(good.samples, decode)
    for workers in (0, 2):
        with pytest.raises(PictureError, match="p/004"):
            collect(batches(broken, workers=workers), 0)
    with pytest.raises(PictureError, match="p/004"):
        list(eval_batches(broken, SQUARE, 2, workers=2))


def test_an_abandoned_epoch_leaves_no_worker_behind() -> None:
    source = batches(pictures(200), workers=2)
    with source:
        next(source.epoch(0))
        started = time.perf_counter()
    assert time.perf_counter() - started < 5
    with pytest.raises(RuntimeError):
        next(source.epoch(1))


def test_no_pictures_are_refused() -> None:
    with pytest.raises(DataError, match="no pictures"):
        batches(pictures().subset([]))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_is_the_module_on_each_picture_in_order(workers: int) -> None:
    source = pictures(11)
    evaluation = EvalBatches(
        source, SQUARE, batch_size=4, workers=workers, cache_bytes=2 * 4 * 3 * 16 * 16 * 4
    )
    module = Preprocessing(SQUARE)
    expected = torch.cat([module(torch.from_numpy(source.picture(i))[None]) for i in range(11)])
    for _ in range(2):
        found = list(evaluation)
        assert [len(labels) for _, labels in found] == [4, 4, 3]
        assert torch.equal(torch.cat([x for x, _ in found]), expected)
        assert torch.cat([y for _, y in found]).tolist() == source.labels.tolist()
    assert len(evaluation) == 3
    assert torch.equal(evaluation_tensor(source, SQUARE), expected)


def test_a_cached_set_is_decoded_once() -> None:
    source = pictures(9)
    asked: Counter[str] = Counter()

    def decode(name: str) -> np.ndarray:
        asked[name] += 1
        return source.decode(name)

    counted = PictureSet(source.samples, decode)
    training, evaluation = batches(counted), EvalBatches(counted, SQUARE, 4)
    for epoch in range(3):
        list(training.epoch(epoch))
        list(evaluation)
    assert set(asked.values()) == {2}
