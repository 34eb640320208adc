"""Calibration: which pictures, which ranges, which steps of the weights, and what stays in float."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.helper import make_node
from onnx_helpers import convolution, mobile, model, run

from toolchain.calibration import ranges, selection, weights
from toolchain.calibration.pictures import choose
from toolchain.data.dataset import PictureSet, Sample
from toolchain.errors import ModelError
from toolchain.runtime import host

RNG = np.random.default_rng(0)
PICTURES = RNG.normal(size=(40, 1, 3, 8, 8)).astype(np.float32)


def labelled(*counts: int) -> PictureSet:
    samples = [Sample(f"{label}/{i}", label, "") for label, count in enumerate(counts) for i in range(count)]
    return PictureSet(tuple(samples), lambda name: np.zeros((2, 2, 3), np.uint8))


def inputs() -> Iterator[NDArray[np.float32]]:
    return iter(PICTURES)


def tensor(made: ModelProto, name: str) -> NDArray[np.float32]:
    """The values of an inner tensor over all pictures."""
    shown = ModelProto()
    shown.CopyFrom(made)
    del shown.graph.output[:]
    shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return run(shown, PICTURES[:, 0])


# Pictures


def test_each_class_has_its_share() -> None:
    pictures = labelled(300, 100, 100)
    chosen = choose(pictures, 50)
    assert chosen == sorted(set(chosen)) == choose(pictures, 50)
    assert np.bincount(pictures.labels[chosen]).tolist() == [30, 10, 10]
    # Spread over the order of the set, not its beginning.
    assert np.diff(chosen[:30]).max() <= 11


def test_rare_classes_are_seen() -> None:
    pictures = labelled(1000, 3, 1)
    assert np.bincount(pictures.labels[choose(pictures, 20)]).tolist() == [18, 1, 1]


@pytest.mark.parametrize(
    ("counts", "asked", "got"), [((3, 2), 10, 5), ((5, 5, 5), 2, 2), ((), 4, 0), ((4,), 3, 3)]
)
def test_never_more_than_asked_or_there(counts: tuple[int, ...], asked: int, got: int) -> None:
    assert len(choose(labelled(*counts), asked)) == got


# Ranges


def test_extremes_are_those_of_all_pictures() -> None:
    made = mobile()
    found = ranges.observe(made, inputs, means_of=["narrow", "flat"])
    for name in ("input", "stem", "dw", "narrow", "pooled", "logits"):
        all_values = tensor(made, name) if name != "input" else PICTURES
        assert found.ranges[name] == pytest.approx((all_values.min(), all_values.max()), rel=1e-5)
    # What only a ReLU reads is clipped by the range of its output.
    assert found.ranges["stem/linear"] == found.ranges["stem"]
    np.testing.assert_allclose(
        found.means["narrow"], tensor(made, "narrow").mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(found.means["flat"], tensor(made, "flat").mean(axis=0), rtol=1e-4, atol=1e-6)


def test_percentile_cuts_outliers_only() -> None:
    pictures = [picture.copy() for picture in PICTURES]
    pictures[7][0, 1, 2, 3] = 1000.0
    made = mobile()
    widest = ranges.observe(made, lambda: iter(pictures)).ranges["input"]
    cut = ranges.observe(made, lambda: iter(pictures), "percentile", percentile=99.9).ranges["input"]
    assert widest[1] == 1000
    values = np.concatenate(pictures)
    assert cut[1] == pytest.approx(np.quantile(values, 0.9995), abs=2 * 1000 / ranges.BINS)
    assert cut[0] == pytest.approx(np.quantile(values, 0.0005), abs=2 * 1000 / ranges.BINS)


def test_entropy_cuts_outliers_and_keeps_the_rest() -> None:
    rng = np.random.default_rng(1)
    pictures = rng.normal(size=(30, 1, 3, 64, 64)).astype(np.float32)
    pictures[3, 0, 0, 0, 0] = 60
    made = model([*convolution("input", "c", np.ones((2, 3, 1, 1), np.float32), constants := {}, activation=None),
                  make_node("GlobalAveragePool", ["c"], ["p"]), make_node("Flatten", ["p"], ["logits"])],
                 constants, shape=("N", 3, 64, 64), classes=2)  # fmt: skip
    low, high = ranges.observe(made, lambda: iter(pictures), "entropy").ranges["input"]
    assert -6 < low < -3
    assert 3 < high < 20


def rounded(values: NDArray[np.float32], ends: tuple[float, float]) -> NDArray[np.float32]:
    step = (ends[1] - ends[0]) / 255
    return ((values / step).round().clip(round(ends[0] / step), round(ends[0] / step) + 255) * step).astype(
        np.float32
    )


@pytest.mark.parametrize(("kind", "shift"), [("laplace", 0.0), ("normal", 1.0), ("exponential", 0.0)])
def test_mse_moves_values_less_than_any_other_range(kind: str, shift: float) -> None:
    random = np.random.default_rng(2)
    pictures = (getattr(random, kind)(size=(20, 1, 3, 64, 64)) + shift).astype(np.float32)
    pictures[3, 0, 0, 0, 0] = 60
    made = model([*convolution("input", "c", np.ones((2, 3, 1, 1), np.float32), constants := {}, activation=None),
                  make_node("GlobalAveragePool", ["c"], ["p"]), make_node("Flatten", ["p"], ["logits"])],
                 constants, shape=("N", 3, 64, 64), classes=2)  # fmt: skip
    found = {method: ranges.observe(made, lambda: iter(pictures), method).ranges["input"]
             for method in ("minmax", "percentile", "entropy", "mse")}  # fmt: skip
    errors = {
        method: float(np.mean((rounded(pictures, ends) - pictures) ** 2)) for method, ends in found.items()
    }
    assert errors["mse"] <= 1.01 * min(errors.values())
    assert errors["mse"] < 0.9 * errors["minmax"]
    low, high = found["mse"]
    for factor in (0.7, 1.4):
        for ends in ((low * factor, high), (low, high * factor)):
            assert errors["mse"] <= 1.01 * float(np.mean((rounded(pictures, ends) - pictures) ** 2))


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_constant_activations_have_a_range(method: ranges.Method) -> None:
    still = np.zeros((3, 1, 3, 8, 8), np.float32)
    found = ranges.observe(mobile(), lambda: iter(still), method).ranges
    assert found["input"] == (0, 0)
    assert all(np.isfinite(ends).all() for ends in found.values())


def test_no_picture_and_no_number_are_told() -> None:
    with pytest.raises(ModelError, match="no picture"):
        ranges.observe(mobile(), lambda: iter(()))
    broken = np.full((2, 1, 3, 8, 8), np.nan, np.float32)
    with pytest.raises(ModelError, match="'input' is not finite"):
        ranges.observe(mobile(), lambda: iter(broken))


# Weights


def pair_sums(integers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of neighbours of one sign along the last axis, [M, K / 2], greatest first."""
    padded = np.pad(integers, ((0, 0), (0, integers.shape[1] % 2))).reshape(len(integers), -1, 2)
    return np.maximum(np.maximum(padded, 0).sum(2), np.maximum(-padded, 0).sum(2))


def layer(weight: NDArray[np.float32], groups: int = 1) -> weights.Layer:
    made = model([make_node("Conv", ["input", "w"], ["logits"], group=groups)], {"w": weight})
    return next(weights.layers(made))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(5, 4, 1, 1), (4, 3, 3, 3), (3, 8, 5, 5), (6, 7)]),
    st.booleans(),
)
def test_pairwise_steps_cannot_saturate(seed: int, shape: tuple[int, ...], per_channel: bool) -> None:
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=shape) ** rng.choice([1, 3])).astype(np.float32)
    found = layer(weight)
    steps = weights.scales(found, "pairwise", per_channel)
    integers = np.rint(weight / steps.reshape(-1, *[1] * (len(shape) - 1)))
    assert np.abs(integers).max() <= 127
    assert pair_sums(integers.reshape(shape[0], -1)).max() <= 128
    if len(shape) == 4:
        assert pair_sums(integers.transpose(0, 2, 3, 1).reshape(shape[0], -1)).max() <= 128
    # Never coarser than 7 bits by more than the rounding that a pair can gain.
    assert (steps <= weights.scales(found, 7, per_channel) * 1.02).all()
    assert (steps >= weights.scales(found, 8, per_channel) * 0.999).all()


def test_channels_without_neighbours_of_one_sign_keep_8_bits() -> None:
    weight = np.array([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 0.1, 0.1]], np.float32).reshape(2, 4, 1, 1)
    full, found = weights.scales(layer(weight), 8), weights.scales(layer(weight), "pairwise")
    assert found[0] == full[0] == pytest.approx(1 / 127)
    assert found[1] == pytest.approx(1 / 64)
    assert weights.scales(layer(weight), 7) == pytest.approx([1 / 64, 1 / 64])


def test_depthwise_keeps_8_bits_and_zero_channels_have_a_step() -> None:
    weight = np.ones((4, 1, 3, 3), np.float32)
    weight[2] = 0
    for bits in (8, 7, "pairwise"):
        steps = weights.scales(layer(weight, groups=4), bits)
        assert steps[[0, 1, 3]] == pytest.approx(1 / 127)
        assert steps[2] > 0


def saturating(bits: weights.Bits) -> ModelProto:
    """An integer convolution whose inputs and weights are as great as they can be."""
    weight = np.tile(np.array([1.0, 0.9, -1.0, -0.95], np.float32), 16)[None, :, None, None] * np.ones(
        (8, 1, 1, 1), np.float32
    )
    steps = weights.scales(layer(weight), bits)
    shape = (1, 64, 4, 4)
    constants = {
        "step": np.float32(1 / 255), "zero": np.uint8(0), "steps": steps, "zeros": np.zeros(8, np.int8),
        "w": np.rint(weight / steps[:, None, None, None]).astype(np.int8), "wide": np.float32(0.5), "half": np.uint8(128),
    }  # fmt: skip
    nodes = [
        make_node("QuantizeLinear", ["input", "step", "zero"], ["q"]),
        make_node("DequantizeLinear", ["q", "step", "zero"], ["d"]),
        make_node("DequantizeLinear", ["w", "steps", "zeros"], ["dw"], axis=0),
        make_node("Conv", ["d", "dw"], ["c"]),
        make_node("QuantizeLinear", ["c", "wide", "half"], ["qc"]),
        make_node("DequantizeLinear", ["qc", "wide", "half"], ["dc"]),
        make_node("Flatten", ["dc"], ["logits"]),
    ]
    return model(nodes, constants, shape=shape, classes=128)


@pytest.mark.parametrize("bits", [7, "pairwise"])
def test_safe_steps_are_exact_on_this_processor(bits: weights.Bits) -> None:
    picture = np.ones((1, 64, 4, 4), np.float32)
    picture[:, 2::4] = picture[:, 3::4] = 0.0
    made = saturating(bits)
    np.testing.assert_array_equal(run(made, picture), run(made, picture, optimize=False))


@pytest.mark.skipif(host.isa() != "x86-avx2", reason="only x86 without VNNI saturates")
def test_8_bits_do_saturate_here() -> None:
    picture = np.ones((1, 64, 4, 4), np.float32)
    picture[:, 2::4] = picture[:, 3::4] = 0.0
    made = saturating(8)
    assert np.abs(run(made, picture) - run(made, picture, optimize=False)).max() > 1


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_corrected_biases_keep_the_mean_output(groups: int) -> None:
    constants: dict[str, NDArray[np.float32]] = {}
    weight = RNG.normal(size=(8, 8 // groups, 3, 3)).astype(np.float32)
    nodes = convolution("input", "c", weight, constants, groups=groups, activation=None)
    nodes[0].attribute[-2].ints[:] = [0, 0, 0, 0]  # no padding, so that the mean is exact
    nodes += [make_node("GlobalAveragePool", ["c"], ["p"]), make_node("Flatten", ["p"], ["logits"])]
    made = model(nodes, constants, shape=("N", 8, 8, 8), classes=8)
    pictures = RNG.normal(1, 1, size=(20, 8, 8, 8)).astype(np.float32)
    # Constant planes: the means of windows are the means of planes.
    pictures[:] = pictures.mean(axis=(2, 3), keepdims=True)
    steps = {"c.weight": np.full(8, 0.5, np.float32)}
    rounded = np.rint(weight / 0.5).clip(-127, 127) * np.float32(0.5)
    before = run(made, pictures).mean(axis=0)
    weights.correct_biases(made, steps, {"input": pictures.mean(axis=(0, 2, 3), dtype=np.float64)})
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(rounded, "c.weight"))
    after = run(made, pictures).mean(axis=0)
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_biases_are_corrected_for_products_and_shared_biases() -> None:
    made = mobile()
    made.graph.node[-1].input[2] = "fc.bias"
    steps = {"fc.weight": np.full(3, 0.2, np.float32)}
    means = {"flat": tensor(made, "flat").mean(axis=0, dtype=np.float64)}
    before = tensor(made, "logits").mean(axis=0)
    weights.correct_biases(made, steps, means)
    found = {t.name: t for t in made.graph.initializer}
    assert numpy_helper.to_array(found["fc.bias"]).tolist() == [0, 0, 0]
    value = numpy_helper.to_array(found["fc.weight"])
    found["fc.weight"].CopyFrom(
        numpy_helper.from_array(np.rint(value / 0.2).astype(np.float32) * np.float32(0.2), "fc.weight")
    )
    np.testing.assert_allclose(tensor(made, "logits").mean(axis=0), before, atol=1e-4)


# Selection


def test_the_stem_ends_where_the_tensor_is_smallest() -> None:
    assert selection.stem(mobile()) == ["stem", "stem/Relu", "dw", "dw/Relu", "narrow"]


def test_a_deep_first_convolution_and_a_dense_second_are_no_stem() -> None:
    rng, constants = np.random.default_rng(0), {}
    nodes = [
        *convolution("input", "first", rng.normal(size=(8, 3, 3, 3)).astype(np.float32), constants),
        *convolution("first", "second", rng.normal(size=(8, 8, 3, 3)).astype(np.float32), constants),
        make_node("GlobalAveragePool", ["second"], ["p"]), make_node("Flatten", ["p"], ["logits"]),
    ]  # fmt: skip
    assert selection.stem(model(nodes, constants)) == ["first", "first/Relu"]
    constants["first.weight"] = rng.normal(size=(8, 3, 7, 7)).astype(np.float32)
    nodes[0] = convolution("input", "first", constants["first.weight"], {})[0]
    assert selection.stem(model(nodes, constants)) == []


def test_patterns_name_nodes_or_are_told() -> None:
    assert selection.matching(mobile(), ["w*", "fc"]) == ["widen", "widen/Relu", "fc"]
    with pytest.raises(
        ModelError, match=r"exclude 'blocks\.\*': the network has no node of that name \(it has stem, dw"
    ):
        selection.matching(mobile(), ["fc", "blocks.*"])


def test_only_networks_with_products_of_activations_have_attention() -> None:
    assert not selection.attention(mobile())
