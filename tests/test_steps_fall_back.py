"""Falling back to float: what is given back is float in the session that ships, and the gate decides how much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from learn_helpers import context, data
from onnx import ModelProto
from onnx_helpers import SQUARE, exported, mobile, noise_ratio, run, values
from pydantic import ValidationError
from tiny import command, tiny_pictures, tiny_recipe

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration import float_layers, sensitivity
from toolchain.calibration.pictures import prepared
from toolchain.errors import DataError, RecipeError
from toolchain.progress import Silent, Task
from toolchain.recipe import Recipe, load
from toolchain.steps.fall_back import FallBack
from toolchain.steps.quantize import Quantize

COARSE = Quantize(weight_bits=7, per_channel=False, correct_bias=False, float_stem=False)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A network with one convolution whose weights for a dead input are so great that all others round to zero."""
    plain = mobile(side=16)
    for tensor in plain.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "widen.bias":
            value[0] = -100
        if tensor.name == "dense.weight":
            value[:, 0] = 100
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    first = exported(tmp_path_factory.mktemp("biased"), plain, SQUARE)
    logits = run(plain, np.concatenate(inputs(first)))
    # Every class is the answer to some pictures, so that noise changes answers.
    bias = next(tensor for tensor in plain.graph.initializer if tensor.name == "fc.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(-logits.mean(axis=0), "fc.bias"))
    return exported(tmp_path_factory.mktemp("mobile"), plain, SQUARE)


@pytest.fixture(scope="module")
def both(network: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelProto, ModelProto]:
    """The float network and its int8 form."""
    lent = context(tmp_path_factory.mktemp("int8"))
    COARSE.run({"model": network}, lent)
    return graph.read(network.folder / graph.PLAIN), graph.read(lent.out / graph.PLAIN)


def inputs(network: Artifact) -> list[np.ndarray]:
    val = data().val
    return list(prepared(network.folder / graph.PREPROCESS, val, list(range(len(val)))))


def test_a_layer_given_back_stays_in_float_with_default_optimizations(
    network: Artifact, both: tuple[ModelProto, ModelProto]
) -> None:
    original, quantized = both
    feed = np.concatenate(inputs(network))
    names = float_layers.integer_layers(quantized)
    assert names == ["stem", "dw", "narrow", "widen", "dense", "fc"]
    for name in names:
        mixed = float_layers.in_float(quantized, original, {name})
        onnx.checker.check_model(mixed)
        assert float_layers.integer_layers(mixed) == [other for other in names if other != name]
        plain, optimized = run(mixed, feed, optimize=False), run(mixed, feed)
        # An integer more or less may round another way, no more: a weight that was rounded again would be far off.
        assert noise_ratio(plain, optimized) > 30, name


def test_all_layers_given_back_answer_as_float(
    network: Artifact, both: tuple[ModelProto, ModelProto]
) -> None:
    original, quantized = both
    feed = np.concatenate(inputs(network))
    everything = float_layers.in_float(quantized, original, set(float_layers.integer_layers(quantized)))
    before, after = (noise_ratio(run(original, feed), run(model, feed)) for model in (quantized, everything))
    assert after > before + 20
    assert after > 25


def test_the_layer_that_breaks_int8_is_found(network: Artifact, both: tuple[ModelProto, ModelProto]) -> None:
    original, quantized = both
    found = sensitivity.measure(quantized, original, inputs(network))
    assert found[0].name == "dense"
    assert found[0].gain > found[1].gain + 10
    assert len(found) == 6


def test_layers_fall_back_until_the_gate_holds(network: Artifact, tmp_path: Path) -> None:
    lent = context(tmp_path)
    measured = FallBack(quantize=COARSE, min_agreement=100).run({"model": network}, lent)
    agreements = [m for m in measured if m.name == "agreement"]
    assert agreements[0].value < 1, "the plain int8 file must not keep the gate"
    assert agreements[-1].value == 1
    assert all(m.value < 1 for m in agreements[:-1])
    assert values(measured)["layers_int8"] == 6 - (len(agreements) - 1)
    assert len([m for m in measured if m.name == "price"]) == len(agreements) - 1
    feed = np.concatenate(inputs(network))
    fp32, int8 = run(network.folder / graph.PLAIN, feed), run(lent.out / graph.PLAIN, feed)
    assert (fp32.argmax(axis=1) == int8.argmax(axis=1)).all()


def test_every_part_given_back_is_told_so_that_a_budget_can_end_it(network: Artifact, tmp_path: Path) -> None:
    """A Progress that raises when a task advances (optimize/budget.py) must get the chance after each part."""
    units: dict[str, float] = {}

    class Counted(Silent):
        @contextmanager
        def task(self, name: str, total: float) -> Iterator[Task]:
            def advance(units_done: float = 1, **shown: float | str) -> None:
                units[name] = units.get(name, 0) + units_done

            yield SimpleNamespace(advance=advance)  # type: ignore[misc]

    adaptive = COARSE.model_copy(update={"rounding": "adaptive"})
    lent = replace(context(tmp_path), progress=Counted())
    measured = FallBack(quantize=adaptive, min_agreement=100).run({"model": network}, lent)
    prices = [m for m in measured if m.name == "price"]
    assert units["fall back"] == len(prices) > 0
    assert units["rounding"] == 6  # layers with weights


def test_nothing_falls_back_where_the_gate_holds(network: Artifact, tmp_path: Path) -> None:
    measured = FallBack(quantize=COARSE, min_agreement=1).run({"model": network}, context(tmp_path))
    assert values(measured)["layers_int8"] == 6


def test_parts_are_layers_or_modules() -> None:
    names = ["stem", "blocks.1.0.conv_pw", "blocks.1.0.conv_dw", "fc"]
    assert sensitivity.parts(names, "layer") == {name: (name,) for name in names}
    together = {"stem": ("stem",), "blocks.1.0": ("blocks.1.0.conv_pw", "blocks.1.0.conv_dw"), "fc": ("fc",)}
    assert sensitivity.parts(names, "block") == together


def test_what_cannot_fall_back_is_told(network: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="layer by layer"):
        FallBack(quantize=Quantize(scheme="dynamic"))
    with pytest.raises(ValidationError, match="refit_head is fitted to one network"):
        FallBack(quantize=Quantize(refit_head=True))
    with pytest.raises(DataError, match="validation pictures"):
        FallBack().run({"model": network}, context(tmp_path, data(val=(0, 0, 0))))


def two_products(folder: Path) -> Artifact:
    """A network with a Gemm in its middle, whose weights one step for the whole tensor would ruin."""
    plain = mobile(side=16)
    random = np.random.default_rng(5)
    spread = 10.0 ** np.linspace(-2.5, 0.5, 24)
    hidden = (random.normal(size=(24, 32)) * spread[:, None]).astype(np.float32)
    last = (random.normal(size=(3, 24)) / spread).astype(np.float32)
    net = plain.graph
    head = next(node for node in net.node if node.op_type == "Gemm")
    weight = next(tensor for tensor in net.initializer if tensor.name == "fc.weight")
    weight.CopyFrom(onnx.numpy_helper.from_array(last, "fc.weight"))
    for name, value in (("hidden.weight", hidden), ("hidden.bias", np.zeros(24, np.float32))):
        net.initializer.append(onnx.numpy_helper.from_array(value, name))
    made = [
        onnx.helper.make_node(
            "Gemm", [head.input[0], "hidden.weight", "hidden.bias"], ["h"], name="hidden", transB=1
        ),
        onnx.helper.make_node("Relu", ["h"], ["hr"], name="hidden/Relu"),
    ]
    head.input[0] = "hr"
    for offset, node in enumerate(made):
        net.node.insert(len(net.node) - 1 + offset, node)
    ordered = [node for node in net.node if node.name not in ("hidden", "hidden/Relu", "fc")]
    graph._replace(net, [*ordered, *made, head])
    return exported(folder, plain, SQUARE)


def test_a_gemm_given_back_stays_in_float_with_default_optimizations(tmp_path: Path) -> None:
    found = two_products(tmp_path / "in")
    lent = context(tmp_path)
    COARSE.run({"model": found}, lent)
    original, quantized = graph.read(found.folder / graph.PLAIN), graph.read(lent.out / graph.PLAIN)
    feed = np.concatenate(inputs(found))
    mixed = float_layers.in_float(quantized, original, {"hidden"})
    onnx.checker.check_model(mixed)
    plain, optimized = run(mixed, feed, optimize=False), run(mixed, feed)
    assert noise_ratio(plain, optimized) > 30
    before, after = (noise_ratio(run(original, feed), run(model, feed)) for model in (quantized, mixed))
    assert after > before + 1


def test_the_nested_form_reaches_the_step(tmp_path: Path) -> None:
    recipe = read(tmp_path, {"fall_back": {"min_agreement": 97.5, "quantize": {"calibration": "mse"}}})
    step = recipe.nodes()["int8"].step
    assert isinstance(step, FallBack)
    assert step.min_agreement == 97.5
    assert step.quantize == Quantize(calibration="mse")
    bare = read(tmp_path, "fall_back").nodes()["int8"].step
    assert bare == FallBack()


def test_a_wrong_nested_setting_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"variants\.int8\.steps.*quantize\.calibratoin"):
        read(tmp_path, {"fall_back": {"quantize": {"calibratoin": "mse"}}})


def test_a_gate_that_no_float_share_keeps_ends_with_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are compared on val as they come; here they never agree, whatever is in float."""
    agreeing = sensitivity.fidelity
    monkeypatch.setattr(sensitivity, "fidelity", lambda *sides: replace(agreeing(*sides), agreement=0.25))
    pictures = tiny_pictures(tmp_path / "pictures")
    variants = {
        "fp32": {"from": "tuned", "steps": ["export"]},
        "int8": {"from": "fp32", "steps": [{"fall_back": {"min_agreement": 99, "probe": 4}}]},
    }
    recipe = tiny_recipe(tmp_path, pictures, variants=variants)
    answer = command("run", recipe, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert answer.code == 3, answer.err
    assert "fall_back.min_agreement: with every layer in float, 25.0 % of the answers" in answer.err


def read(folder: Path, step: object) -> Recipe:
    """A recipe with this step after the export."""
    variants = {"fp32": {"from": "tuned", "steps": ["export"]}, "int8": {"from": "fp32", "steps": [step]}}
    return load(tiny_recipe(folder, folder / "pictures", variants=variants))
