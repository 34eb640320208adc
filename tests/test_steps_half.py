"""Float16 files: the same interface, half the size, answers within 16 bits, and no overflow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from learn_helpers import context, data
from onnx import ModelProto, TensorProto, numpy_helper
from onnx_helpers import SQUARE, artifact, exported, mobile, noise_ratio, run, values

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration.pictures import prepared
from toolchain.errors import DataError, ModelError
from toolchain.steps import half
from toolchain.steps.half import Half


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("mobile"), mobile(side=16), SQUARE)


def halved(source: Artifact, folder: Path, **settings: object) -> tuple[Path, dict[str, float]]:
    lent = context(folder)
    measured = Half.model_validate(settings).run({"model": source}, lent)
    return lent.out, values(measured)


def inputs(source: Artifact) -> np.ndarray:
    val = data().val
    return np.concatenate(list(prepared(source.folder / graph.PREPROCESS, val, list(range(len(val))))))


def kinds(model: ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def scaled(factors: dict[str, float]) -> ModelProto:
    """The network with some weights multiplied."""
    made = mobile(side=16)
    for tensor in made.graph.initializer:
        value = numpy_helper.to_array(tensor) * np.float32(factors.get(tensor.name, 1))
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return made


def test_float16_inside_float32_outside(source: Artifact, tmp_path: Path) -> None:
    out, measured = halved(source, tmp_path)
    plain = graph.read(out / graph.PLAIN)
    ends = {v.name: v.type.tensor_type.elem_type for v in (*plain.graph.input, *plain.graph.output)}
    assert ends == {"input": TensorProto.FLOAT, "logits": TensorProto.FLOAT}
    assert set(kinds(plain).values()) == {TensorProto.FLOAT16}
    assert measured["nodes_float32"] == 0
    before = (source.folder / graph.PLAIN).stat().st_size
    assert (out / graph.PLAIN).stat().st_size < 0.65 * before
    preprocess = kinds(onnx.load(out / graph.FUSED))
    assert TensorProto.FLOAT in {kind for name, kind in preprocess.items() if name.startswith("preprocess/")}


def test_answers_agree_to_16_bits(source: Artifact, tmp_path: Path) -> None:
    out, measured = halved(source, tmp_path)
    feed = inputs(source)
    expected, got = run(source.folder / graph.PLAIN, feed), run(out / graph.PLAIN, feed)
    assert measured["sqnr"] == pytest.approx(noise_ratio(expected, got), abs=3)
    assert 40 < measured["sqnr"] < 90
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=5e-3 * np.abs(expected).max())
    assert np.abs(got - expected).max() > 0
    assert (got.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.95
    pictures = data().val.picture(0)[None]
    np.testing.assert_allclose(run(out / graph.FUSED, pictures).sum(), 1, atol=1e-5)


def test_the_same_bytes_again(source: Artifact, tmp_path: Path) -> None:
    first, second = (halved(source, tmp_path / name)[0] for name in "ab")
    for name in (graph.PREPROCESS, graph.PLAIN, graph.FUSED):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert json.loads(graph.metadata(graph.read(first / graph.PLAIN))["lineage"])[-1]["step"] == "half"


@pytest.mark.parametrize("factor", [3e5, 1e9])
def test_what_overflows_stays_in_float32(tmp_path: Path, factor: float) -> None:
    """One layer's outputs are too great for 16 bits; with the greater factor its weights are as well."""
    great = {"widen.weight": factor, "widen.bias": factor, "dense.weight": 1 / factor}
    source = exported(tmp_path / "source", scaled(great), SQUARE)
    out, measured = halved(source, tmp_path)
    assert measured["nodes_float32"] >= 3
    made = kinds(graph.read(out / graph.PLAIN))
    assert made["widen.weight"] == made["dense.weight"] == TensorProto.FLOAT
    assert made["stem.weight"] == made["fc.weight"] == TensorProto.FLOAT16
    feed = inputs(source)
    expected, got = run(source.folder / graph.PLAIN, feed), run(out / graph.PLAIN, feed)
    np.testing.assert_allclose(got, expected, atol=1e-2 * np.abs(expected).max())


def test_great_logits_are_handed_out_in_float32(tmp_path: Path) -> None:
    source = exported(tmp_path / "source", scaled({"fc.weight": 1e7}), SQUARE)
    out, _ = halved(source, tmp_path)
    feed = inputs(source)
    expected, got = run(source.folder / graph.PLAIN, feed), run(out / graph.PLAIN, feed)
    assert np.abs(expected).max() > 65504
    np.testing.assert_allclose(got, expected, atol=1e-2 * np.abs(expected).max())


def test_answers_that_are_not_finite_fail(
    source: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = scaled({"fc.weight": np.inf})
    monkeypatch.setattr(half, "convert_float_to_float16", lambda *_, **__: broken)
    with pytest.raises(ModelError, match="not finite"):
        halved(source, tmp_path)


def test_nodes_can_be_kept_by_name(source: Artifact, tmp_path: Path) -> None:
    out, measured = halved(source, tmp_path, exclude=["fc"])
    assert measured["nodes_float32"] == 1
    assert kinds(graph.read(out / graph.PLAIN))["fc.weight"] == TensorProto.FLOAT


def test_what_cannot_be_halved_is_told(source: Artifact, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="training pictures"):
        Half().run({"model": source}, context(tmp_path / "a", data(train=(0, 0, 0))))
    out, _ = halved(source, tmp_path / "b")
    with pytest.raises(ModelError, match="float16 already"):
        halved(artifact(out, Form.ONNX), tmp_path / "c")
    with pytest.raises(ModelError, match="exclude 'no'"):
        halved(source, tmp_path / "d", exclude=["no"])
