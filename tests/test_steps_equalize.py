"""Equalizing: the function stays, ranges meet, and int8 with one step a weight tensor gets closer to float."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learn_helpers import context, data, pictures
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.helper import make_node
from onnx_helpers import SQUARE, convolution, exported, mobile, model, noise_ratio, run, values

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration import equalization
from toolchain.calibration.pictures import prepared
from toolchain.data.dataset import Picture, PictureSet
from toolchain.errors import DataError
from toolchain.steps.equalize import Equalize
from toolchain.steps.quantize import Quantize


def uneven(plain: ModelProto) -> ModelProto:
    """Channels of the stem and of `widen` that differ by up to a thousand, the layers after making up for it."""
    random = np.random.default_rng(3)
    scales = {name: 10.0 ** random.uniform(-1.5, 1.5, count) for name, count in (("stem", 16), ("widen", 32))}
    for tensor in plain.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(np.float64)
        writer = tensor.name.partition(".")[0]
        if writer in scales:
            value = value * scales[writer].reshape(-1, *[1] * (value.ndim - 1))
        elif tensor.name == "dw.weight":
            value = value / scales["stem"].reshape(-1, 1, 1, 1)
        elif tensor.name == "dense.weight":
            value = value / scales["widen"].reshape(1, -1, 1, 1)
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return plain


def inputs(found: Artifact) -> NDArray[np.float32]:
    val = data().val
    return np.concatenate(list(prepared(found.folder / graph.PREPROCESS, val, list(range(len(val))))))


def greatest(plain: ModelProto, name: str, axis: int) -> NDArray[np.float32]:
    value = np.abs(graph.weights(plain)[name])
    return np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1).max(axis=1)


def test_pairs_are_convolutions_in_a_row() -> None:
    found = [(pair.writer.name, pair.reader.name, pair.depthwise) for pair in equalization.pairs(mobile())]
    assert found == [
        ("stem", "dw", True),
        ("dw", "narrow", False),
        ("narrow", "widen", False),
        ("widen", "dense", False),
    ]


def test_both_sides_of_a_channel_get_one_range_and_answers_stay(tmp_path: Path) -> None:
    plain = uneven(mobile(side=16))
    found = exported(tmp_path / "in", plain, SQUARE)
    lent = context(tmp_path)
    measured = values(Equalize().run({"model": found}, lent))
    equal = graph.read(lent.out / graph.PLAIN)
    assert noise_ratio(run(plain, inputs(found)), run(equal, inputs(found))) > 80
    assert measured["sqnr"] > 80
    assert measured["channels"] > 20
    for writer, reader, axis in (("widen", "dense", 1), ("stem", "dw", 0)):
        ratio = greatest(equal, f"{writer}.weight", 0) / greatest(equal, f"{reader}.weight", axis)
        assert ratio.max() / ratio.min() < 1.01
        before = greatest(plain, f"{writer}.weight", 0) / greatest(plain, f"{reader}.weight", axis)
        assert before.max() / before.min() > 100


def test_what_it_cost_is_measured_on_val(tmp_path: Path) -> None:
    """Of train nothing can be told: there the channels are scaled so that nothing is cut."""
    seen: list[str] = []
    full = data()

    def spy(name: str) -> Picture:
        seen.append(name)
        return full.val.decode(name)

    spied = replace(full, val=PictureSet(full.val.samples, spy))
    found = exported(tmp_path / "in", mobile(side=16), SQUARE)
    assert "sqnr" in values(Equalize(probe=6).run({"model": found}, context(tmp_path, spied)))
    assert len(seen) == 6
    none = replace(full, val=pictures("val", ()))
    assert "sqnr" not in values(Equalize().run({"model": found}, context(tmp_path / "none", none)))


def test_one_step_a_tensor_comes_closer_to_float(tmp_path: Path) -> None:
    found = exported(tmp_path / "in", uneven(mobile(side=16)), SQUARE)
    equal, plain, better = (
        context(tmp_path / "equal"),
        context(tmp_path / "plain"),
        context(tmp_path / "better"),
    )
    Equalize().run({"model": found}, equal)
    step = Quantize(per_channel=False, float_stem=False)
    step.run({"model": found}, plain)
    step.run({"model": Artifact(found.form, equal.out, found.record)}, better)
    feed = inputs(found)
    reference = run(found.folder / graph.PLAIN, feed)
    without, with_it = (noise_ratio(reference, run(lent.out / graph.PLAIN, feed)) for lent in (plain, better))
    assert with_it > without + 6


def test_what_a_clip_cuts_is_left_alone() -> None:
    """Of three channels one is cut by the Clip, one stays just below, one far below."""
    constants: dict[str, Any] = {"zero": np.float32(0), "six": np.float32(6)}
    weight = np.zeros((3, 3, 1, 1), np.float32)
    weight[[0, 1, 2], [0, 1, 2]] = np.array([10.0, 4.0, 0.1], np.float32)[:, None, None]
    second = np.array([[[[0.1]], [[2.0]], [[90.0]]]], np.float32) * np.ones((4, 1, 1, 1), np.float32)
    nodes = [
        *convolution("input", "a", weight, constants, activation=None),
        make_node("Clip", ["a", "zero", "six"], ["cut"], name="clip"),
        *convolution("cut", "b", second, constants, activation=None),
        make_node("GlobalAveragePool", ["b"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["logits"], name="flat", axis=1),
    ]
    constants["a.bias"] = np.zeros(3, np.float32)
    plain = model(nodes, constants, classes=4)
    feed = np.random.default_rng(0).uniform(0, 1, (2, 3, 8, 8)).astype(np.float32)
    feed[:, :, 0, 0] = 1
    before = run(plain, feed)
    found = list(equalization.pairs(plain))
    assert [pair.limit for pair in found] == [6.0]
    tops = equalization.greatest(plain, found, [picture[None] for picture in feed])
    np.testing.assert_allclose(tops["cut"], [6, 4, 0.1], rtol=1e-5)
    scales = equalization.equalize(plain, found, tops)["cut"]
    assert scales[0] == 1
    assert 4 * scales[1] <= 0.8 * 6 + 1e-6
    assert scales[2] > 5
    np.testing.assert_allclose(run(plain, feed), before, rtol=1e-4, atol=1e-5)


def test_equalize_needs_pictures(tmp_path: Path) -> None:
    found = exported(tmp_path / "in", mobile(side=16), SQUARE)
    with pytest.raises(DataError, match="equalize looks at training pictures"):
        Equalize().run({"model": found}, context(tmp_path, data(train=(0, 0, 0))))
