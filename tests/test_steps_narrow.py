"""Narrowing and joining: what goes is what the network can do without, and the rest answers as before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from learn_helpers import context, data
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.helper import make_node
from onnx_helpers import SQUARE, convolution, exported, mobile, model, noise_ratio, run, values

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration import elimination, sensitivity
from toolchain.calibration.chains import chains
from toolchain.calibration.pictures import prepared
from toolchain.errors import DataError, ModelError
from toolchain.steps.join import Join, join
from toolchain.steps.narrow import Narrow, _cheapest_first, _counts, _longest, narrower
from toolchain.steps.quantize import Quantize

RNG = np.random.default_rng(0)


def edited(plain: ModelProto, **changes: Any) -> ModelProto:
    """The network with functions of its constant tensors in their place (`widen_bias` is `widen.bias`)."""
    for tensor in plain.graph.initializer:
        change = changes.get(tensor.name.replace(".", "_"))
        if change is not None:
            value = change(numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return plain


def halved(bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every second channel is so low that its ReLU never lets anything through."""
    bias[::2] = -1000
    return bias


def source(folder: Path, plain: ModelProto) -> Artifact:
    return exported(folder, plain, SQUARE)


def inputs(found: Artifact) -> NDArray[np.float32]:
    val = data().val
    return np.concatenate(list(prepared(found.folder / graph.PREPROCESS, val, list(range(len(val))))))


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}


def windowed(stride: int = 1) -> tuple[ModelProto, dict[str, Any]]:
    """Two convolutions of 3 by 3 with 16 channels between them, of which every second is half of the one before."""
    random = np.random.default_rng(5)
    constants: dict[str, Any] = {}
    first, second = random.normal(size=(16, 3, 3, 3)), random.normal(size=(8, 16, 3, 3))
    first[1::2] = 0.5 * first[::2]
    floats = [value.astype(np.float32) for value in (first, second)]
    nodes = [
        *convolution("input", "a", floats[0], constants),
        *convolution("a", "b", floats[1], constants, stride=stride),
        make_node("GlobalAveragePool", ["b"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["flat"], name="flat", axis=1),
        make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], name="fc", transB=1),
    ]
    constants["a.bias"] = np.zeros(16, np.float32)
    constants["fc.weight"] = random.normal(size=(3, 8)).astype(np.float32)
    constants["fc.bias"] = np.zeros(3, np.float32)
    return model(nodes, constants, shape=("N", 3, 16, 16)), constants


@pytest.mark.parametrize("stride", [1, 2])
def test_a_reader_of_windows_makes_up_for_channels_that_say_the_same(stride: int, tmp_path: Path) -> None:
    found = source(tmp_path / "in", windowed(stride)[0])
    lent = context(tmp_path)
    measured = values(Narrow(multiple=4, min_sqnr=40).run({"model": found}, lent))
    tensors = shapes(lent.out / graph.PLAIN)
    assert (tensors["a.weight"], tensors["b.weight"]) == ((8, 3, 3, 3), (8, 8, 3, 3))
    assert measured["products"] == 0.5
    before, after = (run(folder / graph.PLAIN, inputs(found)) for folder in (found.folder, lent.out))
    assert noise_ratio(before, after) > 40


def test_readers_of_too_many_inputs_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toolchain.steps.narrow._LONGEST", 143)
    found = source(tmp_path / "in", windowed()[0])
    assert values(Narrow(multiple=4).run({"model": found}, context(tmp_path)))["products"] == 1
    with pytest.raises(ModelError, match="of at most 143 inputs"):
        Narrow(multiple=4, layers=("a",)).run({"model": found}, context(tmp_path / "named"))


def test_elimination_of_windows_is_that_of_all_their_inputs_refitted() -> None:
    """Against least squares done anew without each channel."""
    random = np.random.default_rng(6)
    inputs_ = random.normal(size=(12, 3)) @ random.normal(size=(3, 4000)) + 0.5 * random.normal(
        size=(12, 4000)
    )
    extended = np.concatenate([inputs_, np.ones((1, 4000))])
    weight = random.normal(size=(5, 12))
    found = elimination.order(elimination.Moments(extended @ extended.T / 4000, 1, 3), weight)
    assert sorted(found.order) == [0, 1, 2, 3]
    wanted = weight @ inputs_
    spread = ((wanted - wanted.mean(1, keepdims=True)) ** 2).sum()

    def error(gone: Sequence[int]) -> float:
        kept = [
            row for channel in range(4) if channel not in gone for row in range(3 * channel, 3 * channel + 3)
        ]
        given = np.concatenate([inputs_[kept], np.ones((1, 4000))])
        return float(((np.linalg.lstsq(given.T, wanted.T)[0].T @ given - wanted) ** 2).sum() / spread)

    for count in (1, 2, 3):
        assert found.noise[count - 1] == pytest.approx(error(found.order[:count]), rel=0.02)
    assert found.order[0] == min(range(4), key=lambda channel: error([channel]))


def test_chains_go_from_a_dense_convolution_to_a_pointwise_one() -> None:
    found = {
        (c.writer.node.name, tuple(d.node.name for d in c.depthwise), c.reader.node.name)
        for c in chains(mobile())
    }
    assert found == {("stem", ("dw",), "narrow"), ("narrow", (), "widen")}


def test_channels_that_are_read_twice_are_no_chain() -> None:
    constants: dict[str, Any] = {}
    one = RNG.normal(size=(8, 8, 1, 1)).astype(np.float32)
    nodes = [
        *convolution("input", "a", RNG.normal(size=(8, 3, 3, 3)).astype(np.float32), constants),
        *convolution("a", "b", one, constants),
        make_node("Add", ["a", "b"], ["sum"], name="add"),
        *convolution("sum", "c", one, constants),
        *convolution("c", "d", one, constants),
        make_node("GlobalAveragePool", ["d"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["logits"], name="flat", axis=1),
    ]
    assert [(c.writer.node.name, c.reader.node.name) for c in chains(model(nodes, constants, classes=8))] == [
        ("c", "d")
    ]


def test_convolutions_without_a_bias_in_a_row_are_narrowed_together(tmp_path: Path) -> None:
    """The middle one is reader, and gets a bias, and writer, which gives channels."""
    random = np.random.default_rng(4)
    constants: dict[str, Any] = {"fc.weight": random.normal(size=(3, 8)), "fc.bias": np.zeros(3)}
    nodes, before = [], "input"
    for name, shape in (("a", (32, 3, 1, 1)), ("b", (32, 32, 1, 1)), ("c", (8, 32, 1, 1))):
        constants[f"{name}.weight"] = random.normal(size=shape) / shape[1]
        if name != "c":
            constants[f"{name}.weight"][10:] *= 1e-5
        nodes += [
            make_node("Conv", [before, f"{name}.weight"], [f"{name}:0"], name=name, kernel_shape=[1, 1]),
            make_node("Relu", [f"{name}:0"], [name], name=f"{name}/Relu"),
        ]
        before = name
    nodes += [
        make_node("GlobalAveragePool", ["c"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["flat"], name="flat", axis=1),
        make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], name="fc", transB=1),
    ]
    floats = {name: value.astype(np.float32) for name, value in constants.items()}
    found = source(tmp_path / "float", model(nodes, floats, shape=("N", 3, 16, 16)))
    lent = context(tmp_path / "narrow")
    assert values(Narrow(min_sqnr=20).run({"model": found}, lent))["products"] == 0.5
    tensors = shapes(lent.out / graph.PLAIN)
    assert (tensors["b.weight"], tensors["b.bias_refitted"]) == ((16, 16, 1, 1), (16,))
    expected, answers = (run(folder / graph.PLAIN, inputs(found)) for folder in (found.folder, lent.out))
    assert noise_ratio(expected, answers) > 20


def test_elimination_finds_what_others_can_replace() -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(6, 5000))
    values[3] = 0.5 * values[0] - values[1] + 2  # nothing of its own
    extended = np.concatenate([values, np.ones((1, 5000))])
    moments = elimination.Moments(extended @ extended.T / 5000, 1)
    weight = random.normal(size=(4, 6))
    found = elimination.order(moments, weight)
    assert found.order[0] in (0, 1, 3)
    assert found.noise[0] < 1e-3 < 0.02 < found.noise[1]
    assert (np.diff(found.noise) >= 0).all()
    assert sorted(found.order) == list(range(6))
    kept = sorted(found.order[1:])
    refitted, shift = elimination.refit(moments, weight, kept)
    np.testing.assert_allclose(refitted @ values[kept] + shift[:, None], weight @ values, atol=0.01)


def test_noise_is_what_the_refitted_layer_shows() -> None:
    random = np.random.default_rng(2)
    values = np.maximum(random.normal(size=(8, 8)) @ random.normal(size=(8, 20000)), 0)
    extended = np.concatenate([values, np.ones((1, 20000))])
    moments = elimination.Moments(extended @ extended.T / 20000, 1)
    weight = random.normal(size=(3, 8))
    found = elimination.order(moments, weight)
    for gone in (1, 4, 6):
        kept = sorted(found.order[gone:])
        refitted, shift = elimination.refit(moments, weight, kept)
        wanted = weight @ values
        error = ((refitted @ values[kept] + shift[:, None] - wanted) ** 2).sum() / (
            (wanted - wanted.mean(1, keepdims=True)) ** 2
        ).sum()
        assert error == pytest.approx(found.noise[gone - 1], rel=0.05)


def test_dead_channels_go_and_the_answers_stay(tmp_path: Path) -> None:
    found = source(tmp_path / "in", edited(mobile(side=16), stem_bias=halved))
    lent = context(tmp_path)
    measured = Narrow(multiple=4, min_sqnr=60, layers=("stem",)).run({"model": found}, lent)
    assert shapes(lent.out / graph.PLAIN)["stem.weight"] == (8, 3, 3, 3)
    assert shapes(lent.out / graph.PLAIN)["dw.weight"] == (8, 1, 3, 3)
    assert shapes(lent.out / graph.PLAIN)["narrow.weight"] == (8, 8, 1, 1)
    channels = {m.where["layer"]: (m.where["before"], m.value) for m in measured if m.name == "channels"}
    assert channels == {"stem": (16, 8)}
    before, after = (run(folder / graph.PLAIN, inputs(found)) for folder in (found.folder, lent.out))
    assert noise_ratio(before, after) > 60
    assert values(measured)["products"] == 0.5
    assert {"price", "agreement"} < set(values(measured))


def test_the_gate_decides_how_much_goes(tmp_path: Path) -> None:
    found = source(tmp_path / "in", mobile(side=16))
    left = []
    for index, least in enumerate((150, 30, 15)):
        lent = context(tmp_path / str(index))
        measured = values(Narrow(multiple=4, min_sqnr=least).run({"model": found}, lent))
        assert measured["sqnr"] >= least
        before, after = (run(folder / graph.PLAIN, inputs(found)) for folder in (found.folder, lent.out))
        centred = [logits - logits.mean(axis=1, keepdims=True) for logits in (before, after)]
        assert noise_ratio(*centred) >= min(least, 60) - 0.1
        left.append(measured["products"])
    assert left[0] == 1 > left[1] > left[2]


def test_so_much_goes_as_is_asked_for_whatever_it_costs(tmp_path: Path) -> None:
    found = source(tmp_path / "in", mobile(side=16))
    left, noise = [], []
    for share in (0.9, 0.7, 0.5):
        step, lent = Narrow(multiple=4, max_products=share), context(tmp_path / f"{share}")
        measured = values(step.run({"model": found}, lent))
        left.append(measured["products"])
        noise.append(measured["sqnr"])
        assert measured["products"] <= share
    assert left == sorted(left, reverse=True)
    assert len(set(left)) == 3
    assert noise == sorted(noise, reverse=True)


def test_what_cannot_be_made_so_small_is_an_error_with_the_least(tmp_path: Path) -> None:
    found = source(tmp_path / "in", mobile(side=16))
    with pytest.raises(
        ModelError, match=r"no less than 0\.\d\d of the products can be left, and max_products is 0\.01"
    ):
        Narrow(multiple=4, max_products=0.01).run({"model": found}, context(tmp_path / "out"))


def test_one_bound_is_given() -> None:
    with pytest.raises(ValueError, match="min_sqnr does nothing beside max_products"):
        Narrow(min_sqnr=20, max_products=0.5)


def test_every_chain_goes_as_far_as_the_gate_lets_it(tmp_path: Path) -> None:
    """No chain alone could lose more: one that is at its end does not hold the others up."""
    found = source(tmp_path / "in", mobile(side=16))
    step, lent = Narrow(multiple=4, min_sqnr=20), context(tmp_path / "out")
    plain = graph.read(found.folder / graph.PLAIN)
    candidates = step._candidates(plain, found, lent)
    probe = step._probe(found.folder / graph.PREPROCESS, lent)
    counts, reached = step._choose(plain, candidates, probe, lent)
    assert reached.sqnr >= 20
    assert len(candidates) > 1
    for one in candidates:
        left = counts.get(one.chain.hidden, one.chain.channels)
        for fewer in list(_counts(left, 4))[:1]:
            less = narrower(plain, candidates, {**counts, one.chain.hidden: fewer})
            answers = [sensitivity.answers(model, probe) for model in (plain, less)]
            assert sensitivity.fidelity(*answers).sqnr < 20


def test_of_equal_channels_those_go_first_that_the_logits_hear_least(tmp_path: Path) -> None:
    found, lent = source(tmp_path / "in", mobile(side=16)), context(tmp_path / "out")
    one = Narrow(multiple=4)._candidates(graph.read(found.folder / graph.PLAIN), found, lent)[0]
    both = [replace(one, chain=replace(one.chain, hidden=name)) for name in ("a", "b")]
    for weights, first in (((1e-3, 1.0), "a"), ((1.0, 1e-3), "b")):
        assert next(_cheapest_first(both, weights, 4))[0] == first


def test_only_named_layers_lose_channels(tmp_path: Path) -> None:
    plain = edited(
        mobile(side=16),
        stem_bias=halved,
        narrow_weight=lambda rows: rows * (np.arange(8) % 2)[:, None, None, None],
    )
    found, lent = source(tmp_path / "in", plain), context(tmp_path / "out")
    measured = Narrow(multiple=4, min_sqnr=60, layers=("st*",)).run({"model": found}, lent)
    assert [m.where["layer"] for m in measured if m.name == "channels"] == ["stem"]
    with pytest.raises(
        ModelError, match=r"layers 'body\.\*': the network has no node of that name \(it has stem"
    ):
        Narrow(layers=("body.*",)).run({"model": found}, context(tmp_path / "no"))
    with pytest.raises(ModelError, match=r"layers 'fc' names nothing that can be narrowed"):
        Narrow(layers=("fc",)).run({"model": found}, context(tmp_path / "head"))


def test_the_longest_run_that_passes_is_found_wherever_it_ends() -> None:
    for size in range(1, 12):
        tried = [{"a": count} for count in range(size)]
        for end in range(size):
            assert _longest(tried, lambda counts, end=end: counts["a"] <= end) == end


def test_a_narrowed_network_can_be_quantized(tmp_path: Path) -> None:
    found = source(tmp_path / "in", edited(mobile(side=16), stem_bias=halved))
    narrow = context(tmp_path / "narrow")
    Narrow(multiple=4, min_sqnr=60).run({"model": found}, narrow)
    joined = context(tmp_path / "joined")
    Join().run({"model": Artifact(found.form, narrow.out, found.record)}, joined)
    quantized = context(tmp_path / "int8")
    Quantize().run({"model": Artifact(found.form, joined.out, found.record)}, quantized)
    assert (
        noise_ratio(
            run(found.folder / graph.PLAIN, inputs(found)), run(quantized.out / graph.PLAIN, inputs(found))
        )
        > 20
    )


def test_a_reader_can_be_the_next_chains_writer(tmp_path: Path) -> None:
    """`narrow` reads `dw` and writes `widen`; both of its sides lose what is dead."""

    def dead(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        rows[::2] = 0
        return rows

    plain = edited(mobile(side=16), stem_bias=halved, narrow_weight=dead)
    found, lent = source(tmp_path / "in", plain), context(tmp_path)
    Narrow(multiple=4, min_sqnr=60, layers=("stem", "narrow")).run({"model": found}, lent)
    assert shapes(lent.out / graph.PLAIN)["narrow.weight"] == (4, 8, 1, 1)
    assert shapes(lent.out / graph.PLAIN)["widen.weight"] == (32, 4, 1, 1)
    assert noise_ratio(run(plain, inputs(found)), run(lent.out / graph.PLAIN, inputs(found))) > 60


def test_narrow_says_what_it_lacks(tmp_path: Path) -> None:
    found = source(tmp_path / "in", mobile(side=16))
    with pytest.raises(DataError, match="fits on training pictures"):
        Narrow().run({"model": found}, context(tmp_path / "a", data(train=(0, 0, 0))))
    with pytest.raises(DataError, match="on validation pictures"):
        Narrow().run({"model": found}, context(tmp_path / "b", data(val=(0, 0, 0))))
    lent = context(tmp_path / "int8")
    Quantize().run({"model": found}, lent)
    for step in (Narrow(), Join()):
        with pytest.raises(ModelError, match="quantized"):
            step.run({"model": Artifact(found.form, lent.out, found.record)}, context(tmp_path / step.step))


def linear_pair(middle: int) -> ModelProto:
    """A 3x3 convolution to `middle` channels, a pointwise one to 12, a ReLU."""
    constants: dict[str, Any] = {}
    nodes = [
        *convolution(
            "input",
            "first",
            RNG.normal(size=(middle, 3, 3, 3)).astype(np.float32),
            constants,
            activation=None,
        ),
        *convolution("first", "second", RNG.normal(size=(12, middle, 1, 1)).astype(np.float32), constants),
        make_node("GlobalAveragePool", ["second"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["logits"], name="flat", axis=1),
    ]
    return model(nodes, constants, classes=12)


def test_joined_layers_answer_as_before() -> None:
    plain, feed = linear_pair(12), RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)
    before = run(plain, feed)
    assert join(plain) == ["first"]
    onnx.checker.check_model(plain)
    assert [node.op_type for node in plain.graph.node].count("Conv") == 1
    assert {tensor.name for tensor in plain.graph.initializer} == {"second.joined", "second.joined_bias"}
    np.testing.assert_allclose(run(plain, feed), before, rtol=1e-4, atol=1e-4)


def test_layers_join_where_writing_what_is_between_costs_more_than_the_products() -> None:
    assert join(linear_pair(7)) == ["first"]


def test_layers_that_would_grow_or_bend_stay_apart() -> None:
    # 3 x 9 x 12 products are more than 3 x 9 x 6 and 6 x 12 and what it takes to write 6 values
    assert join(linear_pair(6)) == []
    bent = mobile()
    assert join(bent) == []


def test_join_reports_what_it_gained(tmp_path: Path) -> None:
    found = source(tmp_path / "in", edited(mobile(side=16), stem_bias=halved))
    narrow, joined = context(tmp_path / "narrow"), context(tmp_path / "joined")
    Narrow(multiple=4, min_sqnr=60).run({"model": found}, narrow)
    measured = values(Join().run({"model": Artifact(found.form, narrow.out, found.record)}, joined))
    assert measured["joined"] == 1
    assert measured["price"] > 0
    assert "narrow.weight" not in shapes(joined.out / graph.PLAIN)
    np.testing.assert_allclose(
        run(joined.out / graph.PLAIN, inputs(found)),
        run(narrow.out / graph.PLAIN, inputs(found)),
        rtol=1e-3,
        atol=1e-4,
    )
