"""Dropping residual blocks: what goes is missed least, and what read it makes up for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from learn_helpers import context, data
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.helper import make_node
from onnx_helpers import SQUARE, convolution, exported, model, noise_ratio, run

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration.pictures import prepared
from toolchain.calibration.residuals import moments, residuals, without
from toolchain.errors import DataError, ModelError
from toolchain.steps.drop_blocks import DropBlocks
from toolchain.steps.quantize import Quantize

SIDE = 16


def blocks(branches: Mapping[str, float | None], head: int = 1) -> ModelProto:
    """A network of 8 channels with blocks by name, their branch's size (None: what it adds is constant); the last sum
    is read by a head convolution of this side."""
    random = np.random.default_rng(3)
    constants: dict[str, Any] = {}

    def weight(*shape: int) -> NDArray[np.float32]:
        return (random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = convolution("input", "stem", weight(8, 3, 3, 3), constants)
    before = "stem"
    for name, size in branches.items():
        nodes += convolution(before, f"{name}.wide", weight(16, 8, 1, 1), constants)
        last = weight(8, 16, 1, 1) * np.float32(size or 0)
        nodes += convolution(f"{name}.wide", f"{name}.narrow", last, constants, activation=None)
        nodes.append(make_node("Add", [before, f"{name}.narrow"], [f"{name}:sum"], name=f"{name}/Add"))
        before = f"{name}:sum"
    nodes += [
        *convolution(before, "head", weight(12, 8, head, head), constants),
        make_node("GlobalAveragePool", ["head"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["flat"], name="flat", axis=1),
        make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], name="fc", transB=1),
    ]
    constants["fc.weight"], constants["fc.bias"] = 3 * weight(3, 12), np.zeros(3, np.float32)
    return model(nodes, constants, shape=("N", 3, SIDE, SIDE))


def pictures(count: int = 12) -> list[NDArray[np.float32]]:
    random = np.random.default_rng(1)
    return [random.normal(size=(1, 3, SIDE, SIDE)).astype(np.float32) for _ in range(count)]


def dropped(net: ModelProto, name: str) -> tuple[ModelProto, float]:
    """The network without a block, and how far below the signal (dB) the answers' noise is then."""
    block = next(one for one in residuals(net) if one.name == f"{name}/Add")
    less = without(net, block, moments(net, [block], pictures())[block.name])
    onnx.checker.check_model(less)
    fresh = np.concatenate(pictures(30)[12:])
    return less, noise_ratio(run(net, fresh), run(less, fresh))


def names(net: ModelProto) -> list[str]:
    return [node.name for node in net.graph.node]


def test_a_block_whose_next_branch_is_one_convolution_is_made_up_for() -> None:
    """It reads the sum twice: as the next block's whole branch, and as its stream."""
    net = blocks({"a": 0.5})
    at = next(i for i, node in enumerate(net.graph.node) if node.name == "head")
    weight = np.random.default_rng(5).normal(size=(8, 8, 1, 1)).astype(np.float32) / 3
    constants: dict[str, Any] = {}
    nodes = convolution("a:sum", "b", weight, constants, activation=None)
    nodes.append(make_node("Add", ["a:sum", "b"], ["b:sum"], name="b/Add"))
    for node in reversed(nodes):
        net.graph.node.insert(at, node)
    net.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    next(node for node in net.graph.node if node.name == "head").input[0] = "b:sum"
    block = next(one for one in residuals(net) if one.name == "a/Add")
    second = moments(net, [block], pictures())[block.name]
    less = without(net, block, second)
    rows = graph.weights(less)["b.refitted"].reshape(8, 8)
    given = weight.reshape(8, 8)
    assert np.abs(rows - given).max() > 0.01  # the slope is in it, not the old weight again
    fresh = np.concatenate(pictures(30)[12:])
    old = ModelProto()
    old.CopyFrom(less)
    for tensor in old.graph.initializer:
        if tensor.name == "b.refitted":
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    wanted = run(net, fresh)
    assert noise_ratio(wanted, run(less, fresh)) > noise_ratio(wanted, run(old, fresh))


def test_blocks_are_found_in_order() -> None:
    found = list(residuals(blocks({"a": 1.0, "b": 1.0})))
    assert [(one.name, one.stream, one.branch, one.output) for one in found] == [
        ("a/Add", "stem", "a.narrow", "a:sum"),
        ("b/Add", "a:sum", "b.narrow", "b:sum"),
    ]


def test_a_branch_that_others_read_or_that_reads_more_than_the_stream_is_no_block() -> None:
    net = blocks({"a": 1.0, "b": 1.0})
    peeks = next(node for node in net.graph.node if node.name == "b.wide")
    peeks.input[0] = "a.wide"  # b reads inside of a: neither is closed
    assert list(residuals(net)) == []


def test_a_shortcut_of_its_own_is_no_block() -> None:
    """ResNet's first block of a stage adds two convolutions: without either nothing would have its channels."""
    net = blocks({"a": 1.0})
    constants: dict[str, Any] = {}
    short = convolution("stem", "short", np.ones((8, 8, 1, 1), np.float32), constants, activation=None)
    at = names(net).index("a/Add")
    for node in reversed(short):
        net.graph.node.insert(at, node)
    net.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in constants.items())
    next(node for node in net.graph.node if node.name == "a/Add").input[0] = "short"
    assert list(residuals(net)) == []


@pytest.mark.parametrize(("name", "head"), [("b", 1), ("b", 3), ("a", 1)])
def test_a_constant_branch_is_not_missed(name: str, head: int) -> None:
    """It goes into a pointwise reader's bias, a constant of its own, or the next block's last bias."""
    net = blocks({"a": 1.0, "b": 1.0, name: None}, head)
    less, decibels = dropped(net, name)
    assert decibels > 90
    assert not [node for node in names(less) if node.startswith(f"{name}.")]
    assert (f"{name}/Add/shifted" in names(less)) == (head == 3)


def test_a_pointwise_reader_makes_up_for_what_is_linear() -> None:
    """The branch of a block that has no activation is a linear function of the stream."""
    net = blocks({"a": 1.0})
    relu = next(node for node in net.graph.node if node.name == "a.wide/Relu")
    next(node for node in net.graph.node if node.name == "a.narrow").input[0] = relu.input[0]
    net.graph.node.remove(relu)
    assert dropped(net, "a")[1] > 60
    # A reader that can only be given a constant has to miss it.
    wide = blocks({"a": 1.0}, head=3)
    assert dropped(wide, "a")[1] < 30


def test_the_network_that_was_given_stays() -> None:
    net = blocks({"a": 1.0})
    before = net.SerializeToString(deterministic=True)
    dropped(net, "a")
    assert net.SerializeToString(deterministic=True) == before


def source(folder: Path, net: ModelProto) -> Artifact:
    return exported(folder, net, SQUARE)


def test_the_step_drops_the_least_missed_first_and_stops(tmp_path: Path) -> None:
    found = source(tmp_path / "float", blocks({"a": 2.0, "b": 0.001, "c": 0.3}))
    lent = context(tmp_path / "less")
    measured = DropBlocks(min_sqnr=12).run({"model": found}, lent)
    gone = [m.where["block"] for m in measured if m.name == "sqnr" and m.where]
    assert gone[:2] == ["b", "c"]
    left = graph.read(lent.out / graph.PLAIN)
    assert {one.name for one in residuals(left)} == {"a/Add", "b/Add", "c/Add"} - {f"{n}/Add" for n in gone}
    val = data().val
    inputs = np.concatenate(list(prepared(found.folder / graph.PREPROCESS, val, list(range(len(val))))))
    answers = [run(folder / graph.PLAIN, inputs) for folder in (found.folder, lent.out)]
    signal, other = (one - one.mean(axis=1, keepdims=True) for one in answers)
    last = [m.value for m in measured if m.name == "sqnr"][-1]
    assert 12 <= last == pytest.approx(noise_ratio(signal, other), abs=0.5)
    macs = {m.name: m.value for m in measured}["macs"]
    assert macs == SIDE * SIDE * (8 * 27 + (3 - len(gone)) * 2 * 8 * 16 + 12 * 8) + 3 * 12


def test_nothing_goes_where_everything_is_missed(tmp_path: Path) -> None:
    found = source(tmp_path / "float", blocks({"a": 1.0}, head=3))
    lent = context(tmp_path / "less")
    measured = {m.name: m.value for m in DropBlocks(min_sqnr=60).run({"model": found}, lent)}
    assert measured["price"] == 1.0
    assert "sqnr" not in measured
    assert names(graph.read(lent.out / graph.PLAIN)) == names(graph.read(found.folder / graph.PLAIN))


def test_what_it_needs_is_said(tmp_path: Path) -> None:
    found = source(tmp_path / "float", blocks({"a": 1.0}))
    lent = context(tmp_path / "none", data(val=(0, 0, 0)))
    with pytest.raises(DataError, match="validation pictures"):
        DropBlocks().run({"model": found}, lent)
    lent = context(tmp_path / "int8")
    Quantize().run({"model": found}, lent)
    integers = Artifact(found.form, lent.out, found.record)
    with pytest.raises(ModelError, match="quantized"):
        DropBlocks().run({"model": integers}, context(tmp_path / "less"))
