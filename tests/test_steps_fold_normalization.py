"""Normalisation in the first convolution: the same answers, with passes over the picture left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from learn_helpers import context, data
from numpy.typing import NDArray
from onnx import NodeProto
from onnx.helper import make_node
from onnx_helpers import convolution, exported, mobile, model, run, values

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.backbones.network import read
from toolchain.calibration.pictures import prepared
from toolchain.data.preprocess import Preprocess
from toolchain.errors import ModelError
from toolchain.steps.fold_normalization import FoldNormalization
from toolchain.steps.pad_stem import PadStem
from toolchain.steps.quantize import Quantize

SETTINGS = Preprocess(height=16, width=16, crop_mode="squash", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def patches(bias: bool = True) -> onnx.ModelProto:
    """A network whose first convolution cuts the picture into patches, without padding."""
    rng = np.random.default_rng(0)
    constants = {
        "patch.weight": rng.normal(size=(8, 3, 4, 4)).astype(np.float32) / 7,
        "patch.bias": rng.normal(size=8).astype(np.float32), "fc.weight": rng.normal(size=(8, 3)).astype(np.float32),
    }  # fmt: skip
    inputs = ["input", "patch.weight", *(["patch.bias"] if bias else [])]
    if not bias:
        del constants["patch.bias"]
    nodes: list[NodeProto] = [
        make_node("Conv", inputs, ["cut"], name="patch", kernel_shape=[4, 4], strides=[4, 4]),
        make_node("GlobalAveragePool", ["cut"], ["mean"], name="mean"),
        make_node("Flatten", ["mean"], ["flat"], name="flat"),
        make_node("MatMul", ["flat", "fc.weight"], ["logits"], name="fc"),
    ]
    return model(nodes, constants, shape=("N", 3, 16, 16))


def pictures() -> NDArray[np.uint8]:
    val = data().val
    return np.stack([val.picture(index) for index in range(len(val))])


def folded(
    plain: onnx.ModelProto, folder: Path, settings: Preprocess = SETTINGS
) -> tuple[Artifact, Path, dict[str, float]]:
    source = exported(folder / "source", plain, settings)
    lent = context(folder)
    return source, lent.out, values(FoldNormalization().run({"model": source}, lent))


@pytest.mark.parametrize(
    ("plain", "passes", "mean"),
    [(mobile(side=16), 1, SETTINGS.mean), (patches(), 2, (0, 0, 0)), (patches(bias=False), 2, (0, 0, 0))],
    ids=["padded", "patches", "patches without bias"],
)
def test_the_answers_stay(
    plain: onnx.ModelProto, passes: int, mean: tuple[float, ...], tmp_path: Path
) -> None:
    source, out, measured = folded(plain, tmp_path)
    assert measured["folded"] == passes
    assert measured["price"] > 0
    answers = run(out / graph.FUSED, pictures())
    np.testing.assert_allclose(answers, run(source.folder / graph.FUSED, pictures()), atol=1e-5)
    assert answers.std(axis=0).max() > 1e-3  # not all alike
    operators = [node.op_type for node in onnx.load(out / graph.PREPROCESS).graph.node]
    assert ("Mul" in operators, "Sub" in operators) == (False, passes == 1)
    network = read(out)
    assert (network.preprocess.mean, network.preprocess.std) == (mean, (1 / 255,) * 3)
    about = graph.metadata(onnx.load(out / graph.PLAIN))
    assert json.loads(about["preprocessing"])["std"] == [1 / 255] * 3
    assert json.loads(about["lineage"])[-1]["step"] == "fold_normalization"


def test_the_plain_file_takes_what_its_own_preprocessing_gives(tmp_path: Path) -> None:
    source, out, _ = folded(patches(), tmp_path)
    val, every = data().val, list(range(len(data().val)))
    own = np.concatenate(list(prepared(out / graph.PREPROCESS, val, every)))
    assert own.max() > 128
    given = np.concatenate(list(prepared(source.folder / graph.PREPROCESS, val, every)))
    np.testing.assert_allclose(
        run(out / graph.PLAIN, own), run(source.folder / graph.PLAIN, given), rtol=1e-4, atol=1e-4
    )


def test_a_second_time_there_is_nothing_left(tmp_path: Path) -> None:
    source, out, _ = folded(patches(), tmp_path)
    lent = context(tmp_path / "again")
    again = FoldNormalization().run({"model": Artifact(source.form, out, source.record)}, lent)
    assert values(again)["folded"] == 0
    assert onnx.load(lent.out / graph.PLAIN).graph == onnx.load(out / graph.PLAIN).graph


def test_what_else_reads_the_input_leaves_all_as_it_was(tmp_path: Path) -> None:
    constants = {"half": np.float32(0.5), "fc.weight": np.eye(3, dtype=np.float32)}
    nodes = [
        make_node("Mul", ["input", "half"], ["less"], name="less"),
        *convolution("less", "stem", np.ones((3, 3, 3, 3), np.float32) / 27, constants),
        make_node("GlobalAveragePool", ["stem"], ["mean"], name="mean"),
        make_node("Flatten", ["mean"], ["flat"], name="flat"),
        make_node("MatMul", ["flat", "fc.weight"], ["logits"], name="fc"),
    ]
    source, out, measured = folded(model(nodes, constants, shape=("N", 3, 16, 16)), tmp_path)
    assert measured["folded"] == 0
    assert "price" not in measured
    assert read(out) == read(source.folder)
    assert onnx.load(out / graph.PREPROCESS).graph == onnx.load(source.folder / graph.PREPROCESS).graph


def test_weights_that_another_layer_shares_stay_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(3, 3, 3, 3)).astype(np.float32) / 5,
        "fc.weight": np.eye(3, dtype=np.float32),
    }
    nodes = [
        make_node("Conv", ["input", "w"], ["a"], name="a", kernel_shape=[3, 3], pads=[1] * 4),
        make_node("Conv", ["a", "w"], ["b"], name="b", kernel_shape=[3, 3], pads=[1] * 4),
        make_node("GlobalAveragePool", ["b"], ["mean"], name="mean"),
        make_node("Flatten", ["mean"], ["flat"], name="flat"),
        make_node("MatMul", ["flat", "fc.weight"], ["logits"], name="fc"),
    ]
    source, out, _ = folded(model(nodes, constants, shape=("N", 3, 16, 16)), tmp_path)
    np.testing.assert_allclose(
        run(out / graph.FUSED, pictures()), run(source.folder / graph.FUSED, pictures()), atol=1e-5
    )


def test_it_goes_into_integers(tmp_path: Path) -> None:
    source, out, _ = folded(mobile(side=16), tmp_path)
    answers = []
    for name, folder in (("before", source.folder), ("after", out)):
        lent = context(tmp_path / name)
        Quantize(float_stem=False).run({"model": Artifact(source.form, folder, source.record)}, lent)
        answers.append(run(lent.out / graph.FUSED, pictures()))
    reference = run(source.folder / graph.FUSED, pictures())
    lost = [float(np.abs(found - reference).max()) for found in answers]
    assert lost[1] < 0.05
    assert lost[1] < 2 * lost[0] + 0.01


def test_a_quantized_network_is_refused(tmp_path: Path) -> None:
    source = exported(tmp_path / "source", mobile(side=16), SETTINGS)
    lent = context(tmp_path / "int8")
    Quantize().run({"model": source}, lent)
    with pytest.raises(ModelError):
        FoldNormalization().run({"model": Artifact(source.form, lent.out, source.record)}, context(tmp_path))


def test_a_padded_stem_is_left_alone(tmp_path: Path) -> None:
    source = exported(tmp_path / "source", mobile(side=16), SETTINGS)
    lent = context(tmp_path / "padded")
    PadStem().run({"model": source}, lent)
    again = context(tmp_path / "folded")
    measured = values(
        FoldNormalization().run({"model": Artifact(source.form, lent.out, source.record)}, again)
    )
    assert measured["folded"] == 0
