"""The last layer fitted anew: an int8 network's logits come closer to float on pictures that were not looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from learn_helpers import context
from onnx import ModelProto, numpy_helper
from onnx_helpers import SQUARE, exported, mobile, noise_ratio, run
from pydantic import ValidationError

from toolchain import graph
from toolchain.calibration import refit
from toolchain.errors import ModelError
from toolchain.steps.quantize import Quantize


def coarse(plain: ModelProto) -> ModelProto:
    """A copy whose other weights are rounded to a few steps, its last layer as it was."""
    changed = ModelProto()
    changed.CopyFrom(plain)
    for tensor in changed.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.ndim == 4:
            step = np.abs(value).max() / 5
            tensor.CopyFrom(
                numpy_helper.from_array((np.rint(value / step) * step).astype(np.float32), tensor.name)
            )
    return changed


def noise(count: int, seed: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    rng = np.random.default_rng(seed)
    light = rng.uniform(0.2, 2, (count, 1, 1, 1))
    return [picture[None].astype(np.float32) for picture in rng.normal(size=(count, 3, 8, 8)) * light]


def test_logits_come_closer_on_other_pictures() -> None:
    plain = mobile()
    changed = coarse(plain)
    others = np.concatenate(noise(64, 1))
    wanted, before = run(plain, others), run(changed, others)
    seen = []
    refit.refit(changed, plain, noise(256, 0), lambda: seen.append(1))
    assert len(seen) == 256
    assert noise_ratio(wanted, run(changed, others)) > noise_ratio(wanted, before) + 2
    untouched = {tensor.name for tensor in plain.graph.initializer} - {"fc.weight", "fc.bias"}
    old, new = graph.weights(coarse(plain)), graph.weights(changed)
    assert all(np.array_equal(old[name], new[name]) for name in untouched)


def test_ridge_shrinks_slopes_and_keeps_the_mean() -> None:
    """One feature with variance v: the slope of least squares over 1 + 3, errors' mean matched."""
    rng = np.random.default_rng(0)
    features = np.stack([rng.normal(2, 3, 500), np.full(500, 7.0)], axis=1)
    errors = (0.8 * features[:, :1] + 5) @ np.array([[1.0, -1.0]])
    slope, constant = refit.ridge(features, errors)
    np.testing.assert_allclose(slope[0], [0.2, -0.2], rtol=1e-6)
    np.testing.assert_allclose(slope[1], 0, atol=1e-9)
    np.testing.assert_allclose((features @ slope + constant).mean(axis=0), errors.mean(axis=0), rtol=1e-9)


def test_quantize_refits_where_the_last_layer_is_float(tmp_path: Path) -> None:
    found = exported(tmp_path / "in", mobile(side=16), SQUARE)
    settings = {"exclude": ("fc",), "weight_bits": 7, "per_channel": False, "correct_bias": False}
    kept = []
    for name, wanted in (("without", False), ("with", True)):
        lent = context(tmp_path / name)
        Quantize.model_validate({**settings, "refit_head": wanted}).run({"model": found}, lent)
        kept.append(graph.weights(graph.read(lent.out / graph.PLAIN)))
    same = {name for name in kept[0] if np.array_equal(kept[0][name], kept[1][name])}
    assert set(kept[0]) == set(kept[1])
    assert set(kept[0]) - same == {"fc.weight", "fc.bias"}


def test_a_last_layer_of_integers_is_refused(tmp_path: Path) -> None:
    found = exported(tmp_path / "in", mobile(side=16), SQUARE)
    with pytest.raises(ModelError, match="refit_head: the logits do not come from a linear layer in float"):
        Quantize(refit_head=True).run({"model": found}, context(tmp_path))


def test_dynamic_has_nothing_to_refit() -> None:
    with pytest.raises(ValidationError, match="refit_head needs scheme"):
        Quantize(scheme="dynamic", refit_head=True)
