"""A stem without its upper limit: done where the logits bear it, left where they don't."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from learn_helpers import context
from numpy.typing import NDArray
from onnx_helpers import SQUARE, exported, mobile, noise_ratio, run, values

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.errors import DataError, ModelError
from toolchain.steps.quantize import Quantize
from toolchain.steps.relu_stem import ReluStem, unclip


def clipped(low: float, high: float) -> onnx.ModelProto:
    """The small network with Clips for all its ReLUs, the stem's from `low` to `high`, the others' from 0 to 6."""
    plain = mobile(side=16)
    for name, value in (("low", low), ("high", high), ("zero", 0.0), ("six", 6.0)):
        plain.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    for node in plain.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Clip"
            node.input.extend(["low", "high"] if node.name.startswith("stem") else ["zero", "six"])
    return plain


def network(folder: Path, limit: float) -> Artifact:
    return exported(folder, clipped(0.0, limit), SQUARE)


def clips(folder: Path) -> int:
    return [node.op_type for node in graph.read(folder / graph.PLAIN).graph.node].count("Clip")


def feed() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)


def test_the_stem_alone_loses_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faked(before: onnx.ModelProto, after: onnx.ModelProto, _: NDArray[np.float32]) -> float:
        return sum(n.op_type == "Clip" for n in after.graph.node) / sum(
            n.op_type == "Clip" for n in before.graph.node
        )

    monkeypatch.setattr("toolchain.steps.relu_stem.latency_ratio", faked)
    source, lent = network(tmp_path / "float", 6.0), context(tmp_path / "out")
    told = values(ReluStem().run({"model": source}, lent))
    model = graph.read(lent.out / graph.PLAIN)
    assert [n.op_type for n in model.graph.node][:2] == ["Conv", "Relu"]
    assert clips(lent.out) == clips(source.folder) - 1
    assert told["replaced"] == 1
    assert told["price"] == round((clips(source.folder) - 1) / clips(source.folder), 3)
    assert told["sqnr"] > 20
    # What lies below the limit passes as before.
    small = 0.01 * feed()
    np.testing.assert_allclose(
        run(model, small), run(source.folder / graph.PLAIN, small), rtol=1e-5, atol=1e-6
    )


def test_a_limit_that_the_logits_hear_stays(tmp_path: Path) -> None:
    source, lent = network(tmp_path / "float", 0.1), context(tmp_path / "out")
    told = values(ReluStem().run({"model": source}, lent))
    assert told["replaced"] == 0
    assert told["sqnr"] < 20
    assert "price" not in told
    assert clips(lent.out) == clips(source.folder)
    np.testing.assert_array_equal(
        run(lent.out / graph.PLAIN, feed()), run(source.folder / graph.PLAIN, feed())
    )
    anyway = context(tmp_path / "anyway")
    ReluStem(min_sqnr=told["sqnr"] - 1).run({"model": source}, anyway)
    assert clips(anyway.out) == clips(source.folder) - 1


def test_nothing_to_do_is_told_and_changes_nothing(tmp_path: Path) -> None:
    source, first, second = network(tmp_path / "f", 6.0), context(tmp_path / "1"), context(tmp_path / "2")
    ReluStem().run({"model": source}, first)
    told = values(ReluStem().run({"model": Artifact(source.form, first.out, source.record)}, second))
    assert told["replaced"] == 0
    assert "price" not in told
    assert clips(second.out) == clips(first.out)


def test_a_clip_from_elsewhere_is_none_of_it() -> None:
    assert not unclip(clipped(-1.0, 6.0))
    assert not unclip(mobile(side=16))
    open_below = clipped(0.0, 6.0)
    next(node for node in open_below.graph.node if node.op_type == "Clip").input[1] = ""
    assert not unclip(open_below)
    read_twice = clipped(0.0, 6.0)
    read_twice.graph.node.append(onnx.helper.make_node("Relu", ["stem/linear"], ["other"], name="other"))
    assert not unclip(read_twice)
    assert unclip(clipped(0.0, 6.0))


def test_without_validation_pictures_nothing_is_decided(tmp_path: Path) -> None:
    source, lent = network(tmp_path / "float", 6.0), context(tmp_path / "out")
    none = replace(lent.data, val=lent.data.val.subset([]))
    with pytest.raises(DataError, match="relu_stem compares answers on validation pictures"):
        ReluStem().run({"model": source}, replace(lent, data=none))


def test_it_is_quantized_as_before_and_stands_before_it(tmp_path: Path) -> None:
    source, lent, int8 = (
        network(tmp_path / "float", 6.0), context(tmp_path / "out"), context(tmp_path / "int8")
    )  # fmt: skip
    ReluStem().run({"model": source}, lent)
    changed = Artifact(source.form, lent.out, source.record)
    Quantize(weight_bits=7, pictures=8).run({"model": changed}, int8)
    assert noise_ratio(run(lent.out / graph.PLAIN, feed()), run(int8.out / graph.PLAIN, feed())) > 15
    with pytest.raises(ModelError):
        ReluStem().run({"model": Artifact(source.form, int8.out, source.record)}, context(tmp_path / "late"))
