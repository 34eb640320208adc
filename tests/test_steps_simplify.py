"""Constants and batch norms into weights, dead nodes away: the same answers, each pass for itself, and told."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from learn_helpers import LABELS, context
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnx.helper import make_node, make_tensor_value_info
from onnx_helpers import SQUARE, exported, model, run
from torch import Tensor, nn

from toolchain import graph
from toolchain.backbones.network import Network, Provenance
from toolchain.errors import ModelError
from toolchain.record import Measurement
from toolchain.steps.adopt import Adopt
from toolchain.steps.export import export_network
from toolchain.steps.quantize import Quantize
from toolchain.steps.simplify import Simplify, fold_batch_norms, fold_constants, remove_dead, require_folded

NETWORK = Network(
    architecture="by hand", labels=LABELS, preprocess=SQUARE, provenance=Provenance(source="random")
)


class Normed(nn.Module):
    """Convolutions with batch norms, one of them transposed, and a norm behind no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
            nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6),
        )  # fmt: skip
        self.head = nn.Linear(6, 3)

    def forward(self, pictures: Tensor) -> Tensor:
        mean: Tensor = self.head(self.body(pictures).mean((2, 3)))
        return mean


def normed() -> nn.Module:
    """Normed with statistics as after a training."""
    torch.manual_seed(0)
    made = Normed().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.3, 3)
            for tensor in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(tensor, 0.2, 0.5)
    return made


@cache
def exports(fold: bool) -> bytes:
    return bytes(export_network(normed(), NETWORK, fold=fold).SerializeToString())


def bare() -> ModelProto:
    """Normed as torch traced it."""
    return onnx.load_from_string(exports(fold=False))


def folded() -> ModelProto:
    """Normed as export gives it."""
    return onnx.load_from_string(exports(fold=True))


def pictures(count: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(count, 3, 16, 16)).astype(np.float32)


def kinds(made: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in made.graph.node)


def simplify(plain: ModelProto, folder: Path, **settings: bool) -> tuple[ModelProto, tuple[Measurement, ...]]:
    source, lent = exported(folder / "source", plain, SQUARE), context(folder)
    measured = Simplify.model_validate(settings).run({"model": source}, lent)
    return graph.read(lent.out / graph.PLAIN), measured


def layers(made: ModelProto) -> list[str]:
    return [node.name for node in made.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")]


def gone(measured: tuple[Measurement, ...]) -> dict[str, float]:
    return {str(m.where["gone"]): m.value for m in measured if m.name == "nodes"}


def test_it_gives_what_export_gives_by_itself_and_tells_what_each_part_brought(tmp_path: Path) -> None:
    found, measured = simplify(bare(), tmp_path)
    whole = folded()
    assert kinds(found) == kinds(whole)
    assert layers(found) == layers(whole)
    np.testing.assert_allclose(run(found, pictures()), run(whole, pictures()), atol=1e-5)
    counts = gone(measured)
    assert counts["batch_norms"] == 3
    assert counts["constants"] > 10
    assert sum(counts.values()) == len(bare().graph.node) - len(found.graph.node)
    assert {str(m.where["state"]) for m in measured if m.name == "load" and m.value > 0} == {
        "before",
        "after",
    }
    assert [m.value > 0 for m in measured if m.name == "price"] == [True]


@pytest.mark.parametrize(
    ("off", "stays"), [("constants", "CastLike"), ("batch_norms", "BatchNormalization"), ("dead", "Exp")]
)
def test_each_can_be_switched_off(off: str, stays: str, tmp_path: Path) -> None:
    plain, also_off = bare(), {}
    if off == "dead":
        plain, also_off = folded(), {"constants": False}  # which takes dead nodes along
        plain.graph.node.append(make_node("Exp", ["logits"], ["unread"], name="unread"))
    with_it, measured = simplify(plain, tmp_path / "off", **{off: False}, **also_off)
    without, _ = simplify(plain, tmp_path / "on")
    assert off not in gone(measured)
    assert kinds(with_it)[stays] > kinds(without)[stays]
    np.testing.assert_allclose(run(with_it, pictures()), run(without, pictures()), atol=1e-5)


def test_dead_nodes_go_alone_of_all(tmp_path: Path) -> None:
    plain = folded()
    plain.graph.node.append(make_node("Exp", ["logits"], ["unread"], name="unread"))
    plain.graph.node.append(make_node("Neg", ["unread"], ["unread either"], name="unread either"))
    found, measured = simplify(plain, tmp_path, constants=False, batch_norms=False)
    assert gone(measured) == {"dead": 2}
    assert kinds(found) == kinds(folded())


def shared(readers: int) -> ModelProto:
    """Two convolutions of one weight, a norm behind each; readers: of the first one's result."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(size=(3, 3, 3, 3)).astype(np.float32) / 5}
    nodes = []
    for name, source in (("first", "input"), ("second", "first.normed")):
        for role in ("gamma", "beta", "mean", "variance"):
            constants[f"{name}.{role}"] = rng.uniform(0.5, 1.5, size=3).astype(np.float32)
        norms = [f"{name}.{role}" for role in ("gamma", "beta", "mean", "variance")]
        nodes += [
            make_node("Conv", [source, "w"], [name], name=name, pads=[1] * 4),
            make_node(
                "BatchNormalization", [name, *norms], [f"{name}.normed"], name=f"{name}.bn", epsilon=1e-3
            ),
        ]
    last = "second.normed"
    if readers == 2:
        nodes.append(make_node("Add", [last, "first"], ["sum"], name="sum"))
        last = "sum"
    nodes.append(make_node("GlobalAveragePool", [last], ["pooled"], name="pool"))
    nodes.append(make_node("Flatten", ["pooled"], ["logits"], name="flat"))
    return model(nodes, constants, shape=("N", 3, 16, 16))


@pytest.mark.parametrize(("readers", "left"), [(1, 0), (2, 1)])
def test_a_shared_weight_is_folded_for_each_and_a_result_read_elsewhere_stays(
    readers: int, left: int
) -> None:
    given, changed = shared(readers), shared(readers)
    fold_batch_norms(changed)
    assert kinds(changed)["BatchNormalization"] == left
    np.testing.assert_allclose(run(changed, pictures()), run(given, pictures()), atol=1e-5)


def test_norms_in_a_row_are_all_folded_and_one_that_cannot_be_is_no_hindrance() -> None:
    given = shared(1)
    second = next(node for node in given.graph.node if node.name == "second.bn")
    norms = list(second.input[1:])
    graph.rename(given.graph, {"second.normed": "between"})
    again = make_node("BatchNormalization", ["between", *norms], ["second.normed"], name="third")
    given.graph.node.insert(4, again)
    pool = next(node for node in given.graph.node if node.name == "pool")
    pool.input[0] = "second.normed"
    wanted = run(given, pictures())
    fold_batch_norms(given)
    assert kinds(given)["BatchNormalization"] == 0
    onnx.checker.check_model(given)
    np.testing.assert_allclose(run(given, pictures()), wanted, atol=1e-5)


def test_a_norm_that_cannot_be_folded_does_not_hinder_quantization(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(6, 2, 2, 2)).astype(np.float32),
        "up": np.ones((3, 6, 1, 1), np.float32),
    }
    constants |= {role: rng.uniform(0.5, 1.5, size=6).astype(np.float32) for role in ("g", "b", "m", "v")}
    nodes = [
        make_node("Conv", ["input", "up.t"], ["wide"], name="wide"),
        make_node("ConvTranspose", ["wide", "w"], ["grouped"], name="grouped", group=3),
        make_node("BatchNormalization", ["grouped", "g", "b", "m", "v"], ["normed"], name="bn"),
        make_node("GlobalAveragePool", ["normed"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["logits"], name="flat"),
    ]
    constants["up.t"] = constants.pop("up").transpose(1, 0, 2, 3).copy()
    given = model(nodes, constants, shape=("N", 3, 16, 16), classes=6)
    fold_batch_norms(given)
    assert kinds(given)["BatchNormalization"] == 1
    require_folded(given)


def test_graphs_with_graphs_inside_keep_what_only_those_may_read() -> None:
    given = shared(1)
    branch = onnx.helper.make_graph(
        [make_node("Identity", ["first"], ["chosen"])], "branch", [],
        [make_tensor_value_info("chosen", onnx.TensorProto.FLOAT, None)],
    )  # fmt: skip
    given.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    given.graph.node.append(
        make_node("If", ["yes"], ["either"], name="if", then_branch=branch, else_branch=branch)
    )
    before = kinds(given)
    fold_batch_norms(given)
    remove_dead(given)
    assert kinds(given) == before


def test_constants_of_every_kind_become_weights() -> None:
    nodes = [
        make_node("GlobalAveragePool", ["input"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["flat"], name="flat"),
        make_node("Constant", [], ["two"], name="two", value_float=2.0),
        make_node("Constant", [], ["three"], name="three", value_floats=[3.0, 4.0, 5.0]),
        make_node("Mul", ["two", "three"], ["six"], name="six"),
        make_node("Mul", ["flat", "six"], ["logits"], name="scaled"),
    ]
    given = model(nodes, {}, shape=("N", 3, 16, 16))
    wanted = run(given, pictures())
    fold_constants(given)
    assert kinds(given) == {"GlobalAveragePool": 1, "Flatten": 1, "Mul": 1}
    np.testing.assert_allclose(run(given, pictures()), wanted, rtol=1e-6)


def test_unfolded_networks_are_not_quantized_and_quantized_ones_not_folded(tmp_path: Path) -> None:
    source = exported(tmp_path / "source", bare(), SQUARE)
    with pytest.raises(
        ModelError, match=r"^3 batch norms stand behind convolutions: put simplify before this"
    ):
        Quantize().run({"model": source}, context(tmp_path / "early"))
    lent, int8 = context(tmp_path / "simplified"), context(tmp_path / "int8")
    Simplify().run({"model": source}, lent)
    Quantize().run({"model": exported(tmp_path / "again", graph.read(lent.out / graph.PLAIN), SQUARE)}, int8)
    assert "QuantizeLinear" in kinds(graph.read(int8.out / graph.PLAIN))
    quantized = exported(tmp_path / "quantized", graph.read(int8.out / graph.PLAIN), SQUARE)
    with pytest.raises(ModelError, match="quantized"):
        Simplify().run({"model": quantized}, context(tmp_path / "late"))


def test_an_adopted_file_can_keep_its_norms_and_tells_what_went(tmp_path: Path) -> None:
    given = bare()
    graph.strip(given)
    onnx.save(given, tmp_path / "their.onnx")
    counts = {}
    for fold in (True, False):
        step = Adopt.model_validate({"file": tmp_path / "their.onnx", "preprocess": SQUARE, "fold": fold})
        lent = context(tmp_path / str(fold))
        counts[fold] = gone(step.run({}, lent)), kinds(graph.read(lent.out / graph.PLAIN))
    assert counts[True][0]["folded"] > counts[True][1]["Conv"]
    assert counts[False][0] == {}
    assert (counts[True][1]["BatchNormalization"], counts[False][1]["BatchNormalization"]) == (1, 4)
