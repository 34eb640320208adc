"""Residual streams: what additions tie together is scaled as one, and an activation's one step then serves all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learn_helpers import context, data
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.helper import make_node
from onnx_helpers import SQUARE, convolution, exported, model, noise_ratio, run, values

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration import streams
from toolchain.calibration.pictures import prepared
from toolchain.calibration.weights import layers, scales
from toolchain.steps.equalize import Equalize
from toolchain.steps.quantize import Quantize


def residual(*, spread: float = 1.5, pooled: bool = False, seed: int = 0) -> ModelProto:
    """Two additions (a ReLU before the second) on a stream whose channels differ by 10^spread either way."""
    rng = np.random.default_rng(seed)
    size = 10 ** rng.uniform(-spread, spread, 8)
    constants: dict[str, Any] = {}

    def random(*shape: int) -> NDArray[np.float32]:
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    def writes(*shape: int) -> NDArray[np.float32]:
        return np.asarray(random(*shape) * size.reshape(-1, 1, 1, 1), np.float32)

    def reads(*shape: int) -> NDArray[np.float32]:
        return np.asarray(random(*shape) / size.reshape(1, -1, 1, 1), np.float32)

    nodes = [
        *convolution("input", "stem", random(12, 3, 3, 3), constants),
        *convolution("stem", "in", writes(8, 12, 1, 1), constants, activation=None),
        *convolution("in", "b", reads(16, 8, 3, 3), constants),
        *convolution("b", "b.out", writes(8, 16, 1, 1), constants, activation=None),
        make_node("Add", ["in", "b.out"], ["sum"], name="sum"),
        make_node("Relu", ["sum"], ["positive"], name="positive"),
        *convolution("positive", "c", reads(16, 8, 1, 1), constants),
        *convolution("c", "c.out", writes(8, 16, 1, 1), constants, activation=None),
        make_node("Add", ["positive", "c.out"], ["total"], name="total"),
        *convolution("total", "last", reads(24, 8, 1, 1), constants),
        make_node("GlobalAveragePool", ["total" if pooled else "last"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["flat"], name="flat", axis=1),
        make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], name="fc", transB=1),
    ]
    for name in ("in", "b.out", "c.out"):
        constants[f"{name}.bias"] = np.asarray(constants[f"{name}.bias"] * size, np.float32)
    constants["fc.weight"] = 3 * random(3, 8 if pooled else 24)
    constants["fc.bias"] = np.zeros(3, np.float32)
    return model(nodes, constants, shape=("N", 3, 16, 16))


def tied(plain: ModelProto) -> list[streams.Stream]:
    """The streams that an addition belongs to."""
    return [stream for stream in streams.streams(plain) if "in" in stream.tensors]


def feed(found: Artifact) -> NDArray[np.float32]:
    val = data().val
    return np.concatenate(list(prepared(found.folder / graph.PREPROCESS, val, list(range(len(val))))))


def equalized(found: Artifact, folder: Path) -> tuple[Artifact, dict[str, float]]:
    lent = context(folder)
    measured = values(Equalize(over="streams").run({"model": found}, lent))
    return Artifact(found.form, lent.out, found.record), measured


def test_layers_with_a_relu_between_are_streams_too() -> None:
    assert [[layer.node.name for layer in stream.writers] for stream in streams.streams(residual())] == [
        ["stem"], ["in", "b.out", "c.out"], ["b"], ["c"],
    ]  # fmt: skip


def test_a_stream_is_what_additions_and_relus_tie_together() -> None:
    (stream,) = tied(residual())
    assert [layer.node.name for layer in stream.writers] == ["in", "b.out", "c.out"]
    assert sorted(layer.node.name for layer in stream.readers) == ["b", "c", "last"]
    # `sum` is read by the ReLU alone, which int8 folds into the addition.
    assert set(stream.tensors) == {"in", "b.out", "positive", "c.out", "total"}


def test_answers_stay_and_channels_get_one_range(tmp_path: Path) -> None:
    plain = residual()
    found = exported(tmp_path / "in", plain, SQUARE)
    equal, measured = equalized(found, tmp_path / "equal")
    changed, given = graph.read(equal.folder / graph.PLAIN), feed(found)
    assert noise_ratio(run(plain, given), run(changed, given)) > 90
    assert measured["sqnr"] > 90
    assert measured["channels"] >= 4
    spread = []
    for network in (plain, changed):
        reached = streams.spans(network, tied(residual()), [picture[None] for picture in given])
        shares = np.stack([value / value.max() for value in reached.values()])
        spread.append(
            float(np.exp(np.log(shares).mean(axis=0)).max() / np.exp(np.log(shares).mean(axis=0)).min())
        )
    assert spread[0] > 10
    assert spread[1] < 1.5


def test_one_step_an_activation_comes_closer_to_float(tmp_path: Path) -> None:
    found = exported(tmp_path / "in", residual(), SQUARE)
    equal, _ = equalized(found, tmp_path / "equal")
    reference, given = run(found.folder / graph.PLAIN, feed(found)), feed(found)
    reached = []
    for number, source in enumerate((found, equal)):
        lent = context(tmp_path / str(number))
        Quantize().run({"model": source}, lent)
        reached.append(noise_ratio(reference, run(lent.out / graph.PLAIN, given)))
    assert reached[1] > reached[0] + 6


def test_what_something_else_reads_is_left_alone() -> None:
    """A pooling reads the stream: its layer has no columns to divide."""
    assert not tied(residual(pooled=True))


@pytest.mark.parametrize("names", [("b",), ("b", "c", "last")])
def test_weights_on_a_grid_of_8_bits_keep_it(names: tuple[str, ...]) -> None:
    """Networks that were quantized before: their columns can't be divided without rounding anew."""
    plain = residual(spread=0.5)
    for layer in list(layers(plain)):
        if layer.node.name in names:
            steps = scales(layer, 8).reshape(-1, 1, 1, 1)
            value = (np.rint(layer.rows / steps) * steps).astype(np.float32)
            (tensor,) = (found for found in plain.graph.initializer if found.name == layer.weight)
            tensor.CopyFrom(numpy_helper.from_array(value, layer.weight))
    assert not tied(plain)


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    plain = residual()
    for node in plain.graph.node:
        if node.name == "c.out":
            node.input[1] = "b.out.weight"
    assert not tied(plain)


def test_sums_that_sums_read_stay_exact(tmp_path: Path) -> None:
    """The second addition reads the first unrounded, the convolution between them reads it in 8 bits."""
    net = residual(spread=0)
    net.graph.node.remove(next(node for node in net.graph.node if node.name == "positive"))
    for node in net.graph.node:
        node.input[:] = ["sum" if name == "positive" else name for name in node.input]
    found = exported(tmp_path / "float", net, SQUARE)
    for exact in (False, True):
        lent = context(tmp_path / str(exact))
        Quantize(float_sums=exact, float_stem=False, pictures=24).run({"model": found}, lent)
        integers = graph.read(lent.out / graph.PLAIN)
        makers = {name: node for node in integers.graph.node for name in node.output}
        nodes = {node.name: node for node in integers.graph.node}
        assert ("sum" in nodes["total"].input) == exact
        assert makers[nodes["c"].input[0]].op_type == "DequantizeLinear"
        assert noise_ratio(run(net, feed(found)), run(integers, feed(found))) > 35


def test_a_sum_behind_a_relu_stays_rounded(tmp_path: Path) -> None:
    """The quantizer takes the ReLU out and leaves it to the rounding: without that, what is below zero would go on."""
    found = exported(tmp_path / "float", residual(spread=0), SQUARE)
    net = graph.read(found.folder / graph.PLAIN)
    lent = context(tmp_path / "int8")
    Quantize(float_sums=True, float_stem=False, pictures=24).run({"model": found}, lent)
    assert noise_ratio(run(net, feed(found)), run(graph.read(lent.out / graph.PLAIN), feed(found))) > 30
