"""Reconstruction: layers take back what those before them lost, and nothing more than pictures left out confirm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from learn_helpers import context, data
from onnx import ModelProto, numpy_helper
from onnx_helpers import SQUARE, exported, noise_ratio, run
from test_steps_drop_blocks import SIDE, blocks, pictures

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration.chains import put
from toolchain.calibration.reconstruction import Sums, places, reconstruct
from toolchain.errors import DataError, ModelError
from toolchain.steps.narrow import Narrow
from toolchain.steps.quantize import Quantize
from toolchain.steps.reconstruct import Reconstruct

NET = blocks({"a": 1.0, "b": 1.0})
TAUGHT = pictures(40)
FRESH = np.concatenate(pictures(60)[40:])


def changed(net: ModelProto, **weights: np.ndarray) -> ModelProto:
    """A copy with other weights, by the layers' names ("a_wide")."""
    other = ModelProto()
    other.CopyFrom(net)
    put(other, {f"{name.replace('_', '.')}.weight": value for name, value in weights.items()})
    return other


def weight(net: ModelProto, layer: str) -> np.ndarray:
    return graph.weights(net)[f"{layer}.weight"]


def closeness(net: ModelProto, teacher: ModelProto = NET) -> float:
    return noise_ratio(run(teacher, FRESH), run(net, FRESH))


def test_ends_of_blocks_are_found_with_what_they_add_to() -> None:
    found = [(one.layer.node.name, one.target, one.beside) for one in places(NET, NET)]
    assert found == [("a.narrow", "a:sum", "stem"), ("b.narrow", "b:sum", "a:sum")]


def test_what_a_layer_lost_itself_comes_back() -> None:
    hurt = changed(NET, a_narrow=weight(NET, "a.narrow") * np.float32(0.5))
    assert closeness(hurt) < 25
    better, done = reconstruct(hurt, NET, TAUGHT)
    assert done == ["a.narrow"]
    assert closeness(better) > 60


def test_a_layer_takes_back_what_those_before_it_lost() -> None:
    """Half of a's hidden channels say nothing: a alone cannot make up for it."""
    half = weight(NET, "a.wide").copy()
    half[::2] = 0
    hurt = changed(NET, a_wide=half)
    better, done = reconstruct(hurt, NET, TAUGHT)
    assert done == ["a.narrow", "b.narrow"]
    alone = ModelProto()
    alone.CopyFrom(better)
    back = next(node for node in alone.graph.node if node.name == "b.narrow")
    back.input[:] = [back.input[0], *next(n for n in NET.graph.node if n.name == "b.narrow").input[1:]]
    alone.graph.initializer.extend(t for t in NET.graph.initializer if t.name in back.input)
    assert closeness(hurt) + 1 < closeness(alone) < closeness(better) - 0.5


def test_what_nobody_reads_any_more_goes() -> None:
    hurt = changed(NET, a_narrow=weight(NET, "a.narrow") * np.float32(0.5))
    better, _ = reconstruct(hurt, NET, TAUGHT)
    names = graph.weights(better).keys()
    assert "a.narrow.fitted" in names
    assert "a.narrow.weight" not in names
    assert "a.narrow.weight" in graph.weights(hurt)  # the network that was given stays


def test_nothing_changes_where_nothing_was_lost() -> None:
    same, done = reconstruct(NET, NET, TAUGHT)
    assert done == []
    assert same.SerializeToString(deterministic=True) == NET.SerializeToString(deterministic=True)


def test_what_pictures_left_out_do_not_confirm_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dozen positions fit 17 weights a row by heart, and tell nothing of others: without ridge -7 dB are left."""
    monkeypatch.setattr("toolchain.calibration.reconstruction._POSITIONS", 1)
    half = weight(NET, "a.wide").copy()
    half[::2] = 0
    hurt = changed(NET, a_wide=half)
    assert closeness(reconstruct(hurt, NET, TAUGHT[:12])[0]) > closeness(hurt) + 5
    better, done = reconstruct(hurt, NET, TAUGHT[:24])
    assert done == ["a.narrow"]  # b would lose 2 dB
    assert closeness(better) > closeness(hurt) + 8


def test_an_addition_of_a_constant_is_no_stream() -> None:
    """`drop_blocks` leaves such: the layer's own output counts, where the teacher has it."""
    shifted = changed(NET)
    add = next(node for node in shifted.graph.node if node.name == "b/Add")
    add.input[:] = ["b.narrow", "mean"]
    shifted.graph.initializer.append(numpy_helper.from_array(np.ones((1, 8, 1, 1), np.float32), "mean"))
    assert [(one.target, one.beside) for one in places(shifted, NET)] == [
        ("a:sum", "stem"),
        ("b.narrow", None),
    ]


def test_the_teachers_tensors_of_another_shape_are_left_alone() -> None:
    random = np.random.default_rng(0)
    other = changed(NET)
    for node in other.graph.node:
        if node.name == "a/Add":
            node.output[0] = "elsewhere"
        node.input[:] = ["elsewhere" if name == "a:sum" else name for name in node.input]
    assert [one.layer.node.name for one in places(NET, other)] == ["b.narrow"]
    for tensor in other.graph.initializer:
        if tensor.name == "stem.weight":  # a stream of half the side
            value = random.normal(size=(8, 3, 3, 3)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    stem = next(node for node in other.graph.node if node.name == "stem")
    next(one for one in stem.attribute if one.name == "strides").ints[:] = [2, 2]
    assert reconstruct(NET, other, TAUGHT)[1] == []


def test_sums_know_the_error_and_the_best_weights() -> None:
    random = np.random.default_rng(0)
    x, exact = random.normal(size=(4, 50)), random.normal(size=(2, 4))
    x[-1] = 1
    y = exact @ x + 0.1 * random.normal(size=(2, 50))
    sums = Sums.of(4, 2)
    sums.add(x, y)
    assert sums.error(exact) == pytest.approx(float(((exact @ x - y) ** 2).sum() / 50))
    best = np.linalg.lstsq(x.T, y.T, rcond=None)[0].T
    np.testing.assert_allclose(sums.towards(np.zeros((2, 4)), 1e-12), best, atol=1e-8)
    drawn = sums.towards(exact, 1e9)
    np.testing.assert_allclose(drawn[:, :-1], exact[:, :-1], atol=1e-6)  # the bias is free
    twice = sums + sums
    np.testing.assert_allclose(twice.towards(exact, 0.1), sums.towards(exact, 0.1))


def test_the_step_takes_back_what_narrow_lost(tmp_path: Path) -> None:
    source = exported(tmp_path / "float", blocks({"a": 3.0, "b": 2.0, "c": 1.0}), SQUARE)
    lent = context(tmp_path / "narrow")
    Narrow(min_sqnr=10, multiple=4).run({"model": source}, lent)
    narrowed = Artifact(source.form, lent.out, source.record)
    lent = context(tmp_path / "better")
    measured = Reconstruct(teacher="fp32").run({"model": narrowed, "teacher": source}, lent)
    found = {(m.name, m.where["when"]): m.value for m in measured if "when" in m.where}
    assert found["sqnr", "after"] > found["sqnr", "before"] + 1
    assert next(m.value for m in measured if m.name == "refitted") >= 1
    better = graph.read(lent.out / graph.PLAIN)
    assert any(name.endswith(".fitted") for name in graph.weights(better))
    random = np.random.default_rng(2).normal(size=(4, 3, SIDE, SIDE)).astype(np.float32)
    assert not np.array_equal(run(better, random), run(graph.read(narrowed.folder / graph.PLAIN), random))


def test_where_val_says_no_the_network_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = exported(tmp_path / "float", NET, SQUARE)
    worse = changed(NET, b_narrow=np.zeros((8, 16, 1, 1), np.float32))
    monkeypatch.setattr("toolchain.steps.reconstruct.reconstruct", lambda *_: (worse, ["b.narrow"]))
    lent = context(tmp_path / "same")
    measured = Reconstruct(teacher="fp32").run({"model": source, "teacher": source}, lent)
    assert next(m.value for m in measured if m.name == "refitted") == 0
    before, after = (graph.read(one / graph.PLAIN) for one in (source.folder, lent.out))
    assert list(before.graph.initializer) == list(after.graph.initializer)


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    source = exported(tmp_path / "float", NET, SQUARE)
    wide = exported(tmp_path / "wide", NET, SQUARE.model_copy(update={"mean": (0.1, 0.1, 0.1)}))
    with pytest.raises(ModelError, match="has other preprocess"):
        Reconstruct(teacher="fp32").run({"model": source, "teacher": wide}, context(tmp_path / "out"))
    other = changed(NET)
    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = [name.replace(":sum", ":other") for name in names]
    renamed = exported(tmp_path / "renamed", other, SQUARE)
    with pytest.raises(ModelError, match="right behind narrow or drop_blocks"):
        Reconstruct(teacher="fp32").run({"model": source, "teacher": renamed}, context(tmp_path / "out2"))


def test_what_it_needs_is_said(tmp_path: Path) -> None:
    source = exported(tmp_path / "float", NET, SQUARE)
    step = Reconstruct(teacher="fp32")
    for lacking in (data(val=(0, 0, 0)), data(train=(5, 5, 5))):
        with pytest.raises(DataError, match="16 training pictures at least"):
            step.run({"model": source, "teacher": source}, context(tmp_path / "none", lacking))
    lent = context(tmp_path / "int8")
    Quantize().run({"model": source}, lent)
    integers = Artifact(source.form, lent.out, source.record)
    for model, teacher in ((integers, source), (source, integers)):
        with pytest.raises(ModelError, match="quantized"):
            step.run({"model": model, "teacher": teacher}, context(tmp_path / "out"))
