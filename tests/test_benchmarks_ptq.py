"""The sums of the post-training benchmarks; making and timing the files is theirs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.ptq.paired import gained
from benchmarks.ptq.run import apart
from toolchain.data.dataset import Data, PictureSet, Sample


def test_half_of_the_noise_is_six_decibels_for_certain() -> None:
    chance = np.random.default_rng(0)
    reference, noise = (chance.normal(size=(100, 10)).astype(np.float32) for _ in range(2))
    found = gained(reference, reference + noise, reference + noise / 2, beside="plain")
    assert found["gained_db"] == pytest.approx(20 * np.log10(2), abs=0.01)
    assert found["gained_ci95"] == pytest.approx([20 * np.log10(2)] * 2, abs=0.01)
    assert found["beside"] == "plain"


def test_noise_drawn_alike_is_undecided() -> None:
    chance = np.random.default_rng(0)
    reference, plain, ours = (chance.normal(size=(100, 10)).astype(np.float32) for _ in range(3))
    low, high = gained(reference, reference + plain, reference + ours, beside="plain")["gained_ci95"]
    assert low < 0 < high


def test_what_is_added_to_all_classes_alike_is_no_noise() -> None:
    chance = np.random.default_rng(0)
    reference, noise = (chance.normal(size=(100, 10)).astype(np.float32) for _ in range(2))
    moved = reference + noise + chance.normal(size=(100, 1)).astype(np.float32)
    found = gained(reference, reference + noise, moved, beside="plain")
    assert found["gained_db"] == pytest.approx(0, abs=0.01)


def test_pictures_that_are_fitted_tell_nothing() -> None:
    samples = tuple(Sample(f"{index}.png", 0, str(index)) for index in range(256))
    calibration = PictureSet(samples, lambda name: np.zeros((2, 2, 3), np.uint8))
    parts = apart(Data("all", ("one",), train=calibration, val=calibration, test=calibration.subset([])))
    fit, tell = ({sample.sha256 for sample in part.samples} for part in (parts.train, parts.val))
    assert (len(fit), len(tell)) == (192, 64)
    assert not fit & tell
