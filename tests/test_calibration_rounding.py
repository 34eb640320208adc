"""Adaptive rounding: better than the nearest integers in what counts, and never out of bounds."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from learn_helpers import context, data
from numpy.typing import NDArray
from onnx import ModelProto
from onnx.helper import make_node
from onnx_helpers import SQUARE, exported, mobile, model, noise_ratio, run

from toolchain import graph
from toolchain.calibration import rounding, weights
from toolchain.calibration.pictures import prepared
from toolchain.steps.quantize import Quantize

RNG = np.random.default_rng(0)


def layer(weight: NDArray[np.float32], groups: int = 1) -> weights.Layer:
    made = model([make_node("Conv", ["input", "w"], ["logits"], group=groups)], {"w": weight})
    return next(weights.layers(made))


def correlated(width: int) -> NDArray[np.float64]:
    values = RNG.normal(size=(width, 3 * width)) + 2 * RNG.normal(size=(1, 3 * width))
    return values @ values.T / (3 * width)


def cost(integers: NDArray[Any], exact: NDArray[Any], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    error = integers.reshape(len(exact), -1) - exact
    return np.asarray(np.einsum("mk,kl,ml->m", error, matrix, error))


def test_it_finds_nearly_the_best_of_all_choices() -> None:
    matrix, weight = correlated(8), RNG.normal(size=(12, 8, 1, 1)).astype(np.float32)
    steps = np.full(12, 0.3, np.float32)
    found = rounding.adaptive(layer(weight), steps, matrix[None], 127)
    exact = weight.reshape(12, 8) / 0.3
    low = np.floor(exact)
    assert np.isin(found.reshape(12, 8) - low, (0, 1)).all()
    nearest, chosen = cost(np.rint(exact), exact, matrix), cost(found, exact, matrix)
    best = np.min([cost(low + np.array(ups), exact, matrix) for ups in product((0, 1), repeat=8)], axis=0)
    assert (chosen <= nearest + 1e-9).all()
    assert chosen.sum() < 0.6 * nearest.sum()
    assert chosen.sum() < 1.5 * best.sum()


def test_integers_stay_in_bounds() -> None:
    weight = np.array([[1.0, -1.0, 0.999, 0.4]], np.float32).reshape(1, 4, 1, 1)
    found = rounding.adaptive(layer(weight), np.array([1 / 63.6], np.float32), correlated(4)[None], 64)
    assert np.abs(found).max() <= 64


@pytest.mark.parametrize(
    ("groups", "stride", "pads", "dilation"),
    [(1, 1, [1, 1, 1, 1], 1), (6, 2, [0, 0, 1, 1], 1), (2, 1, [2, 2, 2, 2], 2)],
)
def test_covariances_are_those_of_the_windows(
    groups: int, stride: int, pads: list[int], dilation: int
) -> None:
    """An output's variance is its row times the covariance of what the row reads."""
    weight = RNG.normal(size=(6, 6 // groups, 3, 3)).astype(np.float32)
    node = make_node(
        "Conv", ["input", "w"], ["c"], name="c", group=groups, kernel_shape=[3, 3], pads=pads, strides=[stride] * 2,
        dilations=[dilation] * 2,
    )  # fmt: skip
    nodes = [node, make_node("GlobalAveragePool", ["c"], ["p"]), make_node("Flatten", ["p"], ["logits"])]
    made = model(nodes, {"w": weight}, shape=("N", 6, 8, 8), classes=6)
    found = next(weights.layers(made))
    pictures = RNG.normal(1, 1, size=(6, 1, 6, 8, 8)).astype(np.float32)
    covariance = rounding.covariances(made, [found], pictures)["w"]
    assert covariance.shape == (groups, 54 // groups, 54 // groups)
    shown = ModelProto()
    shown.CopyFrom(made)
    del shown.graph.output[:]
    shown.graph.output.append(onnx.helper.make_empty_tensor_value_info("c"))
    output = run(shown, pictures[:, 0])  # at most 64 places: all are taken
    rows = weight.reshape(groups, 6 // groups, -1)
    expected = np.einsum("gmk,gkl,gml->gm", rows, covariance, rows).reshape(-1)
    np.testing.assert_allclose(output.var(axis=(0, 2, 3)), expected, rtol=1e-3)


def test_the_file_holds_the_chosen_integers_and_answers_closer(tmp_path: Path) -> None:
    source = exported(tmp_path / "in", mobile(side=16), SQUARE)
    val = data().val
    feed = np.concatenate(list(prepared(source.folder / graph.PREPROCESS, val, list(range(len(val))))))
    reference, ratio, kept = run(source.folder / graph.PLAIN, feed), {}, {}
    for way in ("nearest", "adaptive"):
        lent = context(tmp_path / way)
        step = Quantize.model_validate(
            {
                "weight_bits": 7,
                "per_channel": False,
                "float_stem": False,
                "rounding": way,
                "exclude": ["stem", "dw"],
            }
        )
        step.run({"model": source}, lent)
        ratio[way] = noise_ratio(reference, run(lent.out / graph.PLAIN, feed))
        kept[way] = graph.weights(graph.read(lent.out / graph.PLAIN))["dense.weight_quantized"].astype(int)
    assert ratio["adaptive"] > ratio["nearest"] + 0.5
    difference = np.abs(kept["adaptive"] - kept["nearest"])
    assert difference.max() == 1
    assert difference.mean() > 0.02
    assert np.abs(kept["adaptive"]).max() <= 64


def test_pairs_stay_clear_of_saturation(tmp_path: Path) -> None:
    source = exported(tmp_path / "in", mobile(side=16), SQUARE)
    lent = context(tmp_path)
    Quantize(weight_bits="pairwise", rounding="adaptive").run({"model": source}, lent)
    found = graph.weights(graph.read(lent.out / graph.PLAIN))
    dense = found["dense.weight_quantized"].astype(np.float32)
    assert not weights.saturating(dense).any()


def test_saturating_rows_are_seen() -> None:
    rows = np.array([[100, 29, 0, 0], [100, 28, 0, 0], [100, -100, 0, 0]], np.float32)
    assert weights.saturating(rows).tolist() == [True, False, False]
