"""Simulated networks answer as onnxruntime does, in float and in integers, and give their weights back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from learn_helpers import context
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.helper import make_node
from onnx_helpers import SQUARE, exported, mobile, model, run

from toolchain import graph
from toolchain.backbones.network import build
from toolchain.backbones.settings import Backbone
from toolchain.calibration import padding
from toolchain.errors import ModelError
from toolchain.simulate.network import Simulated, trained
from toolchain.simulate.operators import operator
from toolchain.steps.export import export_network
from toolchain.steps.quantize import Quantize

PICTURES = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
EIGHT = Quantize(weight_bits=8, float_stem=False)


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelProto, ModelProto]:
    """A small network in float, its biases corrected, and in integers."""
    folder = tmp_path_factory.mktemp("mobile")
    source = exported(folder / "float", mobile(side=16), SQUARE)
    plain = graph.read(source.folder / graph.PLAIN)
    quantized = EIGHT.integers(plain, source.folder / graph.PREPROCESS, context(folder / "int8"))
    return plain, quantized


def simulated(source: ModelProto, pictures: np.ndarray, floats: ModelProto | None = None) -> np.ndarray:
    network = Simulated(source, graph.weights(floats) if floats else None).eval()
    with torch.inference_mode():
        return np.asarray(network(torch.from_numpy(pictures)).numpy())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet10t", {"channels": [8, 8, 16, 16], "stem_width": 8}),
        ("mobilenetv2_035", {}),
        pytest.param("mobilenetv3_small_050", {}, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", {}, marks=pytest.mark.slow),
        pytest.param("regnety_002", {}, marks=pytest.mark.slow),
        pytest.param("densenet121", {"growth_rate": 8, "block_config": [2, 2]}, marks=pytest.mark.slow),
    ],
)
def test_float_networks_answer_alike(name: str, options: dict[str, object]) -> None:
    kinds = {"timm": name, "weights": "random", "kwargs": options, "preprocess": {"size": 32}}
    source = export_network(*build(Backbone.model_validate(kinds), ("a", "b", "c")))
    pictures = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
    expected = run(source, pictures)
    np.testing.assert_allclose(
        simulated(source, pictures), expected, atol=1e-4 * float(np.abs(expected).max())
    )


def test_integers_answer_as_without_onnxruntimes_optimizations(
    integers: tuple[ModelProto, ModelProto],
) -> None:
    plain, quantized = integers
    expected = run(quantized, PICTURES, optimize=False)
    assert np.abs(expected - run(plain, PICTURES)).max() > 1e-3  # it does round
    np.testing.assert_allclose(simulated(quantized, PICTURES, plain), expected, atol=1e-5)


def test_a_pad_of_integers_pads_with_what_they_stand_for(tmp_path: Path) -> None:
    plain = mobile(side=16)
    assert padding.pad(plain) == 1
    next(t for t in plain.graph.initializer if t.name == "stem.weight_padded").CopyFrom(
        numpy_helper.from_array(
            np.random.default_rng(2).normal(size=(16, 4, 3, 3)).astype(np.float32), "stem.weight_padded"
        )
    )
    source = exported(tmp_path / "float", plain, SQUARE)
    quantized = EIGHT.integers(plain, source.folder / graph.PREPROCESS, context(tmp_path / "int8"))
    pad = next(node for node in quantized.graph.node if node.op_type == "Pad")
    assert graph.weights(quantized)[pad.input[2]] != 0  # it does pad integers
    expected = run(quantized, PICTURES, optimize=False)
    near = 1e-5 * float(np.abs(expected).max())
    np.testing.assert_allclose(simulated(quantized, PICTURES, plain), expected, atol=near)


def shifted(tmp_path: Path) -> tuple[ModelProto, ModelProto]:
    """A small network that adds a constant of its own to every channel, in float and in integers."""
    plain = mobile(side=16)
    at = next(i for i, node in enumerate(plain.graph.node) if "widen" in node.output)
    plain.graph.node[at].output[0] = "bare"
    plain.graph.node.insert(at + 1, make_node("Add", ["bare", "mean"], ["widen"], name="add"))
    mean = np.random.default_rng(2).normal(size=(1, 32, 1, 1)).astype(np.float32)
    plain.graph.initializer.append(numpy_helper.from_array(mean, "mean"))
    source = exported(tmp_path / "float", plain, SQUARE)
    return plain, EIGHT.integers(plain, source.folder / graph.PREPROCESS, context(tmp_path / "int8"))


def test_a_constant_in_integers_that_no_layer_reads_stays_as_it_is(tmp_path: Path) -> None:
    plain, quantized = shifted(tmp_path)
    assert "mean_quantized" in graph.weights(quantized)
    network = Simulated(quantized, graph.weights(plain)).eval()
    assert "mean_quantized" not in {one.integers for one in network.rounded}
    expected = run(quantized, PICTURES, optimize=False)
    with torch.inference_mode():
        np.testing.assert_allclose(network(torch.from_numpy(PICTURES)).numpy(), expected, atol=1e-5)
    written = trained(network, quantized)
    assert written.SerializeToString(deterministic=True) == quantized.SerializeToString(deterministic=True)


def test_weights_with_a_zero_point_are_refused(integers: tuple[ModelProto, ModelProto]) -> None:
    changed = ModelProto()
    changed.CopyFrom(integers[1])
    reading = next(n for n in changed.graph.node if n.input[0] == "dense.weight_quantized")
    zero = graph.weights(changed)[reading.input[2]] + np.int8(1)
    changed.graph.initializer.append(numpy_helper.from_array(zero, "one"))
    reading.input[2] = "one"
    with pytest.raises(ModelError, match="weights with a zero point cannot be trained"):
        Simulated(changed)


def test_integers_that_two_nodes_read_stay_one_parameter(integers: tuple[ModelProto, ModelProto]) -> None:
    plain, quantized = integers
    twice = ModelProto()
    twice.CopyFrom(quantized)
    reading = next(n for n in twice.graph.node if n.input[0] == "dense.weight_quantized")
    again = make_node("DequantizeLinear", list(reading.input), ["again"], name="again", axis=0)
    twice.graph.node.insert(0, again)
    network = Simulated(twice, graph.weights(plain))
    same = [one.index for one in network.rounded if one.integers == "dense.weight_quantized"]
    assert len(same) == 2
    assert same[0] == same[1]


def test_a_convolution_takes_its_kernel_from_its_weight() -> None:
    """kernel_shape may be missing in foreign files."""
    weight = {"w": np.random.default_rng(3).normal(size=(3, 3, 3, 3)).astype(np.float32)}
    node = make_node("Conv", ["input", "w"], ["logits"], name="c", pads=[1, 1, 1, 1])
    single = model([node], weight, shape=(4, 3, 16, 16))
    single.graph.output[0].type.tensor_type.ClearField("shape")
    given = torch.from_numpy(PICTURES), torch.from_numpy(weight["w"])
    np.testing.assert_allclose(operator(node, weight)(*given).numpy(), run(single, PICTURES), atol=1e-4)


def test_a_slice_counts_axes_and_ends_as_onnx_does() -> None:
    ends = {"first": np.array([1, -9]), "last": np.array([-1, 2**62]), "axes": np.array([-1, 1])}
    node = make_node("Slice", ["input", *ends], ["logits"], name="it")
    sliced = model([node], ends, shape=(4, 3, 16, 16))
    sliced.graph.output[0].type.tensor_type.ClearField("shape")
    assert np.array_equal(operator(node, ends)(torch.from_numpy(PICTURES)).numpy(), run(sliced, PICTURES))


def test_a_clip_without_ends_changes_nothing() -> None:
    x = torch.from_numpy(PICTURES)
    assert torch.equal(operator(make_node("Clip", ["input"], ["logits"], name="it"), {})(x), x)


def test_untrained_weights_go_back_as_the_same_integers(integers: tuple[ModelProto, ModelProto]) -> None:
    plain, quantized = integers
    written = trained(Simulated(quantized, graph.weights(plain)), quantized)
    assert written.SerializeToString(deterministic=True) == quantized.SerializeToString(deterministic=True)


def test_trained_weights_go_back_and_saturate(integers: tuple[ModelProto, ModelProto]) -> None:
    plain, quantized = integers
    network = Simulated(quantized, graph.weights(plain)).eval()
    one = next(one for one in network.rounded if one.integers.startswith("dense.weight"))
    with torch.no_grad():
        network.values[one.index] *= 1.5
    written = trained(network, quantized)
    before, after = (graph.weights(m)[one.integers].astype(int) for m in (quantized, written))
    assert after.max() == 127
    assert after.min() == -127
    small = np.abs(before) < 60
    assert np.abs(after[small] - 1.5 * before[small]).max() <= 1.25
    with torch.inference_mode():
        answers = network(torch.from_numpy(PICTURES)).numpy()
    np.testing.assert_allclose(answers, run(written, PICTURES, optimize=False), atol=1e-5)


def test_what_saturates_gets_no_gradient(integers: tuple[ModelProto, ModelProto]) -> None:
    plain, quantized = integers
    network = Simulated(quantized, graph.weights(plain))
    one = next(one for one in network.rounded if one.integers.startswith("dense.weight"))
    weight = network.values[one.index]
    with torch.no_grad():
        weight[0, 0] *= 100
    network(torch.from_numpy(PICTURES)).sum().backward()
    assert weight.grad is not None
    assert not weight.grad[0, 0].any()
    assert weight.grad[1:].any()


def test_without_float_values_the_integers_are_dequantized(integers: tuple[ModelProto, ModelProto]) -> None:
    plain, quantized = integers
    np.testing.assert_allclose(
        simulated(quantized, PICTURES), simulated(quantized, PICTURES, plain), atol=1e-5
    )


@pytest.mark.parametrize(
    ("node", "constants", "sentence"),
    [
        (make_node("LSTM", ["input"], ["logits"], name="memory"), {}, "'memory': the operator LSTM cannot be"),
        (make_node("Conv", ["input", "w"], ["logits"], name="c", kernel_shape=[1, 1], auto_pad="SAME_UPPER"),
         {"w": np.zeros((3, 3, 1, 1), np.float32)}, "'c': auto_pad b'SAME_UPPER'"),
        (make_node("Reshape", ["input", "shape"], ["logits"], name="r"), {}, "'r': Reshape to a computed shape"),
        (make_node("Slice", ["input", "a", "b"], ["logits"], name="s"),
         {"a": np.array([0]), "b": np.array([1])}, "'s': Slice without named axes or by computed ends"),
        (make_node("Slice", ["input", "a", "b", "b", "c"], ["logits"], name="s"),
         {"a": np.array([0]), "b": np.array([1]), "c": np.array([2])}, "'s': Slice in steps"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_told(
    node: onnx.NodeProto, constants: dict[str, np.ndarray], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        Simulated(model([node], constants))


@pytest.mark.parametrize(
    ("kind", "options", "inputs"),
    [
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}, 1),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}, 1),
        ("HardSigmoid", {"alpha": 0.25}, 1),
        ("HardSwish", {}, 1),
        ("Transpose", {"perm": [0, 2, 3, 1]}, 1),
        ("Concat", {"axis": 1}, 2),
        ("Softmax", {"axis": 1}, 1),
        ("Flatten", {"axis": 2}, 1),
    ],
)
def test_operators_follow_onnx(kind: str, options: dict[str, object], inputs: int, tmp_path: Path) -> None:
    node = make_node(kind, ["input"] * inputs, ["logits"], name="it", **options)
    single = model([node], {}, shape=(4, 3, 16, 16))
    del single.graph.output[0].type.tensor_type.shape.dim[:]
    single.graph.output[0].type.tensor_type.ClearField("shape")
    given = [torch.from_numpy(PICTURES)] * inputs
    np.testing.assert_allclose(operator(node, {})(*given).numpy(), run(single, PICTURES), atol=1e-5)


def test_reductions_take_axes_as_attribute_or_tensor() -> None:
    axes = {"axes": np.array([2, 3], np.int64)}
    node = make_node("ReduceMax", ["input", "axes"], ["logits"], name="it", keepdims=0)
    single = model([node], axes, shape=(4, 3, 16, 16))
    x = torch.from_numpy(PICTURES)
    np.testing.assert_allclose(operator(node, axes)(x).numpy(), run(single, PICTURES), atol=1e-6)
    old = make_node("ReduceMean", ["input"], ["logits"], name="it", keepdims=1, axes=[2, 3])
    torch.testing.assert_close(operator(old, {})(x), x.mean((2, 3), keepdim=True))


def test_constants_are_kept_as_they_are(integers: tuple[ModelProto, ModelProto]) -> None:
    plain, _ = integers
    network = Simulated(plain)
    names = {tensor.name for tensor in plain.graph.initializer}
    assert set(network.plain) <= names
    weight = next(t for t in plain.graph.initializer if t.name == "fc.weight")
    found = network.values[network.plain["fc.weight"]].detach().numpy()
    np.testing.assert_array_equal(found, numpy_helper.to_array(weight))


def test_biases_of_more_than_30_bits_are_kept(integers: tuple[ModelProto, ModelProto]) -> None:
    changed = ModelProto()
    changed.CopyFrom(integers[1])
    bias = next(t for t in changed.graph.initializer if t.data_type == TensorProto.INT32 and len(t.dims) == 1)
    value = numpy_helper.to_array(bias).copy()
    value[:2] = (2_000_000_000, -2_000_000_000)
    bias.CopyFrom(numpy_helper.from_array(value, bias.name))
    network = Simulated(changed).eval()
    with torch.inference_mode():
        network(torch.from_numpy(PICTURES))
        number = next(i for i, one in enumerate(network.rounded) if one.integers == bias.name)
        counted = network.value(number).numpy() / numpy_helper.to_array(
            next(t for t in changed.graph.initializer if t.name == network.rounded[number].scale)
        )
    np.testing.assert_allclose(counted[:2], value[:2], rtol=1e-6)
    after = next(t for t in trained(network, changed).graph.initializer if t.name == bias.name)
    np.testing.assert_allclose(numpy_helper.to_array(after)[:2], value[:2], rtol=1e-6)


def test_a_norm_of_its_own_answers_as_in_onnxruntime_and_stays_as_it_is() -> None:
    rng = np.random.default_rng(3)
    constants = {name: rng.uniform(0.5, 2, size=3).astype(np.float32) for name in ("s", "b", "m", "v")}
    node = make_node("BatchNormalization", ["input", *constants], ["logits"], name="norm", epsilon=1e-3)
    source = model([node], constants, shape=("N", 3, 16, 16))
    np.testing.assert_allclose(simulated(source, PICTURES), run(source, PICTURES), atol=1e-5)
    assert not list(Simulated(source).parameters())
