"""A padded stem: the same answers in float, integers of four channels in int8."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from learn_helpers import context, data
from numpy.typing import NDArray
from onnx_helpers import SQUARE, exported, mobile, noise_ratio, run, values

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration import padding
from toolchain.calibration.pictures import prepared
from toolchain.steps.pad_stem import PadStem
from toolchain.steps.quantize import Quantize


def inputs(found: Artifact) -> NDArray[np.float32]:
    val = data().val
    return np.concatenate(list(prepared(found.folder / graph.PREPROCESS, val, list(range(len(val))))))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("mobile"), mobile(side=16), SQUARE)


def test_the_function_stays(network: Artifact, tmp_path: Path) -> None:
    lent = context(tmp_path)
    told = values(PadStem().run({"model": network}, lent))
    assert told["channels"] == 1
    assert told["price"] > 0
    weights = graph.weights(onnx.load(lent.out / graph.PLAIN))
    assert weights["stem.weight_padded"].shape == (16, 4, 3, 3)
    assert not weights["stem.weight_padded"][:, 3].any()
    assert "stem.weight" not in weights
    feed = inputs(network)
    np.testing.assert_allclose(
        run(lent.out / graph.PLAIN, feed), run(network.folder / graph.PLAIN, feed), rtol=1e-4, atol=1e-5
    )


def test_int8_pads_integers_and_answers_as_without(network: Artifact, tmp_path: Path) -> None:
    padded, int8, plain = (context(tmp_path / name) for name in ("padded", "int8", "plain"))
    PadStem().run({"model": network}, padded)
    # 7 bits: 8 saturate on processors without VNNI, and which pairs do depends on the channels.
    step = Quantize(float_stem=False, weight_bits=7)
    step.run({"model": Artifact(network.form, padded.out, network.record)}, int8)
    step.run({"model": network}, plain)
    model = onnx.load(int8.out / graph.PLAIN)
    makers = {name: node for node in model.graph.node for name in node.output}
    pad = next(node for node in model.graph.node if node.op_type == "Pad")
    assert makers[pad.input[0]].op_type == "QuantizeLinear"
    assert [node.op_type for node in model.graph.node if pad.output[0] in node.input] == ["DequantizeLinear"]
    feed = inputs(network)
    # The same integers in the same sums: the padded channel adds nothing.
    assert noise_ratio(run(plain.out / graph.PLAIN, feed), run(int8.out / graph.PLAIN, feed)) > 60


def test_a_padded_stem_stays_in_float_where_stems_do(network: Artifact, tmp_path: Path) -> None:
    padded, int8 = context(tmp_path / "padded"), context(tmp_path / "int8")
    PadStem().run({"model": network}, padded)
    Quantize(weight_bits=7).run({"model": Artifact(network.form, padded.out, network.record)}, int8)
    weights = graph.weights(onnx.load(int8.out / graph.PLAIN))
    assert weights["stem.weight_padded"].dtype == np.float32
    feed = inputs(network)
    assert noise_ratio(run(network.folder / graph.PLAIN, feed), run(int8.out / graph.PLAIN, feed)) > 20


def test_only_three_channels_into_a_dense_convolution_are_padded() -> None:
    plain = mobile(side=16)
    assert padding.pad(plain) == 1
    assert padding.pad(plain) == 0
