"""Pointwise convolutions whose sums go on in float: the same integers, one rounding less, no transposition more."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from learn_helpers import context, data
from numpy.typing import NDArray
from onnx import ModelProto
from onnx_helpers import SQUARE, exported, noise_ratio, run
from pydantic import ValidationError
from test_calibration_streams import residual

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration import products
from toolchain.calibration.pictures import prepared
from toolchain.errors import ModelError
from toolchain.steps.fall_back import FallBack
from toolchain.steps.qat import Qat
from toolchain.steps.quantize import Quantize

# 7 bits saturate on no processor, so that the figures are the same on all.
PLAIN = Quantize(float_sums=True, float_stem=False, weight_bits=7, pictures=24)
FLOAT = PLAIN.model_copy(update={"float_products": True})


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("float"), residual(spread=0), SQUARE)


def made(step: Quantize, network: Artifact, folder: Path) -> ModelProto:
    lent = context(folder)
    step.run({"model": network}, lent)
    return graph.read(lent.out / graph.PLAIN)


def feed(network: Artifact) -> NDArray[np.float32]:
    train = data().train
    return np.concatenate(list(prepared(network.folder / graph.PREPROCESS, train, list(range(len(train))))))


def test_what_additions_read_is_no_longer_rounded_and_closer_to_float(
    network: Artifact, tmp_path: Path
) -> None:
    rounded, summed = made(PLAIN, network, tmp_path / "rounded"), made(FLOAT, network, tmp_path / "summed")
    kinds = Counter(node.op_type for node in summed.graph.node)
    assert kinds[products.PRODUCT] == 3  # in, b.out, c.out; c and last are read by ReLUs
    makers = {name: node for node in summed.graph.node for name in node.output}
    kinds_read = {
        node.name: [makers[given].op_type for given in node.input]
        for node in summed.graph.node
        if node.op_type == "Add"
    }
    # Of "total", the first is behind a ReLU that the rounding stands for.
    assert kinds_read == {"sum": ["Transpose", "Transpose"], "total": ["DequantizeLinear", "Transpose"]}
    net, pictures = graph.read(network.folder / graph.PLAIN), feed(network)
    exact = run(net, pictures)
    assert noise_ratio(exact, run(summed, pictures)) > noise_ratio(exact, run(rounded, pictures)) + 0.2


def test_the_integers_are_those_of_the_convolution(network: Artifact, tmp_path: Path) -> None:
    """Before `lower` onnxruntime computes the convolutions in float, from the same integers."""
    lent, pictures = context(tmp_path / "before"), feed(network)
    model = FLOAT.integers(graph.read(network.folder / graph.PLAIN), network.folder / graph.PREPROCESS, lent)
    before = run(model, pictures)
    assert products.lower(model) == 3
    assert products.lower(model) == 0
    onnx.checker.check_model(model)
    assert noise_ratio(before, run(model, pictures)) > 60


def test_onnxruntime_has_no_transposition_to_make_that_it_had_not_before(
    network: Artifact, tmp_path: Path
) -> None:
    found = {}
    for name, step in (("rounded", PLAIN), ("summed", FLOAT)):
        model, path = made(step, network, tmp_path / name), tmp_path / f"{name}.onnx"
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        found[name] = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert found["summed"][products.PRODUCT] == 3
    assert found["summed"]["Transpose"] <= found["rounded"]["Transpose"]
    assert "Conv" not in found["summed"]


def test_qat_trains_the_sums_as_they_are(network: Artifact, tmp_path: Path) -> None:
    step = Qat(teacher="fp32", quantize=FLOAT, epochs=2, batch_size=8, lr=1e-4, amp="off", workers=0)
    lent = context(tmp_path / "qat")
    told = step.run({"model": network, "teacher": network}, lent)
    assert next(m.value for m in told if m.name == "simulated_agreement") == 1
    kinds = Counter(node.op_type for node in graph.read(lent.out / graph.PLAIN).graph.node)
    assert kinds[products.PRODUCT] == 3


def test_a_network_without_sums_stays_as_it_is(network: Artifact) -> None:
    model = graph.read(network.folder / graph.PLAIN)
    before = model.SerializeToString()
    assert not products.unrounded(model, model, [node.name for node in model.graph.node])
    assert products.lower(model) == 0
    assert model.SerializeToString() == before


def test_patterns_say_which(network: Artifact, tmp_path: Path) -> None:
    """On large tensors floats cost time, so that only some may be worth it."""
    step = PLAIN.model_copy(update={"float_products": ("c.*", "in")})
    summed = made(step, network, tmp_path / "some")
    assert {node.name for node in summed.graph.node if node.op_type == products.PRODUCT} == {"in", "c.out"}
    with pytest.raises(ModelError, match=r"float_products 'blocks\.9': the network has no node of that name"):
        made(PLAIN.model_copy(update={"float_products": ("blocks.9",)}), network, tmp_path / "none")


@pytest.mark.parametrize("exact", [False, True])
def test_pooling_in_float_reads_what_is_not_rounded(tmp_path: Path, exact: bool) -> None:
    """A pool that is told to stay in float reads the sum; one in integers the rounded values."""
    net = exported(tmp_path / "float", residual(spread=0, pooled=True), SQUARE)
    exclude = ("pool", "flat") if exact else ()
    step = Quantize(float_sums=True, float_stem=False, weight_bits=7, pictures=24, exclude=exclude)
    model = made(step, net, tmp_path / "int8")
    makers = {given: node for node in model.graph.node for given in node.output}
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    assert makers[pool.input[0]].op_type == ("Add" if exact else "DequantizeLinear")
    read = {given for node in model.graph.node for given in node.input} | {model.graph.output[0].name}
    roundings = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(read.intersection(node.output) for node in roundings)


def test_pooling_in_float_reads_the_last_convolution(tmp_path: Path) -> None:
    net = residual(spread=0)
    for node in net.graph.node:  # no ReLU behind the last convolution, as in MobileNetV2 read by its blocks
        node.input[:] = ["last.linear" if node.name == "pool" else one for one in node.input]
    last = next(node for node in net.graph.node if node.name == "last")
    last.output[0] = "last.linear"
    for node in [node for node in net.graph.node if "last" in node.output or "last" in node.input]:
        net.graph.node.remove(node)
    net = exported(tmp_path / "float", net, SQUARE)
    step = FLOAT.model_copy(update={"exclude": ("pool", "flat")})
    kinds = {node.name: node.op_type for node in made(step, net, tmp_path / "int8").graph.node}
    assert kinds["last"] == products.PRODUCT
    assert (
        noise_ratio(
            run(net.folder / graph.PLAIN, feed(net)), run(tmp_path / "int8" / "out" / graph.PLAIN, feed(net))
        )
        > 20
    )


def test_pooling_behind_a_relu_reads_what_the_rounding_made_of_it(network: Artifact, tmp_path: Path) -> None:
    model = made(FLOAT.model_copy(update={"exclude": ("pool", "flat")}), network, tmp_path / "int8")
    makers = {given: node for node in model.graph.node for given in node.output}
    pool = next(node for node in model.graph.node if node.name == "pool")
    assert makers[pool.input[0]].op_type == "DequantizeLinear"


def test_it_cannot_fall_back_layer_by_layer() -> None:
    with pytest.raises(ValidationError, match="float_products can't fall back"):
        FallBack.model_validate({"quantize": {"float_products": True}})
