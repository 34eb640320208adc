"""Splitting: the function stays, copies go to the channels whose rounding is heard, and int8 comes closer to float."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from learn_helpers import context, data, pictures
from numpy.typing import NDArray
from onnx import ModelProto
from onnx_helpers import SQUARE, exported, mobile, noise_ratio, run, values

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration import splitting
from toolchain.calibration.chains import Chain, put
from toolchain.calibration.pictures import prepared
from toolchain.errors import DataError, ModelError
from toolchain.steps.quantize import Quantize
from toolchain.steps.split_channels import SplitChannels

LOUD = 5


def loud() -> ModelProto:
    """A network in which one channel of the depthwise layer makes most of what the next layer says.

    That layer's weights lie on a grid of 8 bits: rounding them costs nothing.
    """
    plain = mobile(side=16)
    known = graph.weights(plain)
    bias, column = known["dw.bias"].copy(), known["narrow.weight"].copy()
    bias[LOUD] = 1
    column[:, LOUD] *= 10
    widths = np.abs(column).max(axis=1, keepdims=True) / 127
    put(plain, {"dw.bias": bias, "narrow.weight": np.rint(column / widths) * widths})
    return plain


def inputs(found: Artifact) -> list[NDArray[np.float32]]:
    val = data().val
    return list(prepared(found.folder / graph.PREPROCESS, val, list(range(len(val)))))


def chain(model: ModelProto, writer: str) -> Chain:
    return next(one for one in splitting.splittable(model) if one.writer.node.name == writer)


def test_copies_round_to_a_mean_with_finer_steps() -> None:
    """Hermite's identity: n copies, an n-th of a step apart, are wrong by half of an n-th of a step at most."""
    plain = loud()
    before, step = graph.weights(plain), 0.25
    counts = np.ones(16, np.int64)
    counts[LOUD] = 5
    splitting.split(plain, chain(plain, "stem"), counts, step)
    after, places = graph.weights(plain), slice(LOUD, LOUD + 5)
    shift = after["dw.bias"][places] - before["dw.bias"][LOUD]
    value = np.linspace(-3, 3, 1001)
    rounded = np.rint((value[:, None] + shift) / step).mean(axis=1) * step
    assert np.abs(rounded - value).max() < step / 10 + 1e-6
    read, split = before["narrow.weight"][:, LOUD, 0, 0], after["narrow.weight"][:, places, 0, 0]
    np.testing.assert_allclose(split.sum(axis=1), read, rtol=1e-5)
    width = np.abs(after["narrow.weight"]).reshape(8, -1).max(axis=1) / 127
    integers = np.rint(split / width[:, None]).sum(axis=1) * width
    assert np.abs(integers - read).max() < 0.51 * width.max() < 0.51 * (np.abs(read) / 127).max()


def test_a_layer_without_a_bias_gets_one() -> None:
    plain = loud()
    for node in plain.graph.node:
        if node.name == "dw":
            del node.input[2]
    picture = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    before = run(plain, picture)
    splitting.split(plain, chain(plain, "stem"), np.array([1, 3] + [1] * 14), 0.01)
    assert graph.weights(plain)["dw.bias_split"].shape == (18,)
    assert noise_ratio(before, run(plain, picture)) > 60


def test_copies_go_where_they_take_most_noise_away() -> None:
    assert splitting.copies(np.array([1.0, 90.0, 4.0]), 0).tolist() == [1, 1, 1]
    # Second of the loudest: 67.5 less; third: 12.5; fourth: 4.4, which is more than 3.0 of the next channel.
    assert splitting.copies(np.array([1.0, 90.0, 4.0]), 3).tolist() == [1, 4, 1]
    assert splitting.copies(np.array([1.0, 90.0, 4.0]), 4).tolist() == [1, 4, 2]


def test_the_channel_whose_rounding_is_heard_gets_the_copies(tmp_path: Path) -> None:
    found = exported(tmp_path / "in", loud(), SQUARE)
    lent = context(tmp_path)
    measured = SplitChannels(layers=("stem",), pictures=4).run({"model": found}, lent)
    copies = {one.where["channel"]: one.value for one in measured if one.name == "copies"}
    assert copies[LOUD] == max(copies.values()) >= 3
    assert sum(copies.values()) == 4 + len(copies)
    assert values(measured)["noise"] < 0.3
    model = graph.read(lent.out / graph.PLAIN)
    shapes = {name: value.shape for name, value in graph.weights(model).items()}
    assert shapes["stem.weight"] == (20, 3, 3, 3)
    assert shapes["dw.weight"] == (20, 1, 3, 3)
    assert shapes["narrow.weight"] == (8, 20, 1, 1)
    feed = np.concatenate(inputs(found))
    assert noise_ratio(run(found.folder / graph.PLAIN, feed), run(lent.out / graph.PLAIN, feed)) > 80


def test_int8_comes_closer_to_float(tmp_path: Path) -> None:
    found = exported(tmp_path / "in", loud(), SQUARE)
    split, plain, finer = (context(tmp_path / name) for name in ("split", "plain", "finer"))
    SplitChannels(layers=("stem",), channels=8).run({"model": found}, split)
    others = ("stem*", "dw*", "widen*", "dense*", "pool", "flat", "fc")
    step = Quantize(weight_bits="pairwise", rounding="adaptive", float_stem=False, exclude=others)
    step.run({"model": found}, plain)
    step.run({"model": Artifact(found.form, split.out, found.record)}, finer)
    feed = np.concatenate(inputs(found))
    reference = run(found.folder / graph.PLAIN, feed)
    without, with_it = (noise_ratio(reference, run(lent.out / graph.PLAIN, feed)) for lent in (plain, finer))
    assert with_it > without + 5


def test_layers_whose_channels_cannot_be_split_are_refused(tmp_path: Path) -> None:
    found = exported(tmp_path / "in", mobile(side=16), SQUARE)
    for name in ("widen", "fc", "dw"):
        with pytest.raises(ModelError, match=f"'{name}' are not read by one pointwise convolution"):
            SplitChannels(layers=(name,)).run({"model": found}, context(tmp_path / name))
    with pytest.raises(ModelError, match="no node of that name"):
        SplitChannels(layers=("elsewhere",)).run({"model": found}, context(tmp_path / "none"))


def test_training_pictures_are_needed(tmp_path: Path) -> None:
    found = exported(tmp_path / "in", mobile(side=16), SQUARE)
    empty = replace(data(), train=pictures("train", ()))
    with pytest.raises(DataError, match="training pictures"):
        SplitChannels(layers=("stem",)).run({"model": found}, context(tmp_path, empty))
