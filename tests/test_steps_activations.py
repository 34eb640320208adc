"""SiLU and sigmoid gates give way to what integer kernels do for nothing, and the network remembers it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.helper import make_node
from onnx_helpers import exported, operators
from onnx_helpers import model as made
from onnx_helpers import run as answered
from test_steps_prune import context
from test_steps_rescale import saved
from torch import nn

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.backbones.network import load
from toolchain.data.preprocess import Preprocess
from toolchain.errors import BackboneError
from toolchain.steps import Activations, FoldGates, Prune
from toolchain.steps.fold_gates import fold

SQUEEZED = {
    "timm": "resnet10t", "weights": "random", "preprocess": {"size": 32},
    "kwargs": {
        "channels": [16, 16, 32, 32], "layers": [1, 1, 1, 1], "stem_width": 8, "act_layer": "silu",
        "block_args": {"attn_layer": "se"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(tmp_path_factory.mktemp("silu") / "network", **SQUEEZED)


@pytest.fixture(scope="module")
def replaced(network: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("relu") / "network"
    measured = Activations().run({"model": network}, context(folder))
    return folder, {f"{m.name} {m.where.get('by') or m.where.get('form')}": m.value for m in measured}


def kinds(network: nn.Module) -> set[str]:
    return {type(module).__name__ for module in network.modules()}


def test_the_network_has_other_activations_and_the_same_weights(
    network: Artifact, replaced: tuple[Path, dict[str, float]]
) -> None:
    before, _ = load(network.folder)
    after, description = load(replaced[0])
    assert {"SiLU", "Sigmoid"} <= kinds(before)
    assert not {"SiLU", "Sigmoid"} & kinds(after)
    assert {"ReLU", "Hardsigmoid"} <= kinds(after)
    state = after.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())
    assert set(description.activations.values()) == {"relu", "hard-sigmoid"}
    picture = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(before(picture), after(picture), atol=1e-3)


def test_it_tells_how_many_were_replaced_and_what_it_gained(
    replaced: tuple[Path, dict[str, float]],
) -> None:
    told = replaced[1]
    assert told["replaced hard-sigmoid"] == 4
    assert told["replaced relu"] > 4
    assert told["speedup float"] > 0
    assert told["speedup int8"] > 0


def test_a_speedup_is_above_one_where_the_latency_fell(
    network: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolchain.steps.activations.latency_ratio", lambda *_: 0.5)
    monkeypatch.setattr("toolchain.steps.activations.int8_price", lambda *_: ())
    told = Activations().run({"model": network}, context(tmp_path / "network"))
    assert [(m.value, m.where) for m in told if m.name == "speedup"] == [(2.0, {"form": "float"})]


def test_a_replaced_network_can_be_pruned_and_read_again(
    replaced: tuple[Path, dict[str, float]], network: Artifact, tmp_path: Path
) -> None:
    source = Artifact(network.form, replaced[0], network.record)
    Prune(ratio=0.5).run({"model": source}, context(tmp_path / "pruned"))
    small, description = load(tmp_path / "pruned")
    assert description.plan is not None
    assert "SiLU" not in kinds(small)


def test_some_can_be_kept(network: Artifact, tmp_path: Path) -> None:
    step = Activations(to="relu6", gates="kept", keep=("layer1.*",), timed=False)
    step.run({"model": network}, context(tmp_path / "out"))
    after, description = load(tmp_path / "out")
    assert {"Sigmoid", "SiLU", "ReLU6"} <= kinds(after)
    assert set(description.activations.values()) == {"relu6"}
    assert not any(name.startswith("layer1.") for name in description.activations)


def test_what_is_not_there_is_told(network: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"keep 'layer9\.\*': matches no activation \(.*\.act"):
        Activations(keep=("layer9.*",)).run({"model": network}, context(tmp_path / "a"))
    plain = saved(tmp_path / "relu")
    with pytest.raises(BackboneError, match="'resnet10t' has no SiLU, hard-swish or sigmoid to replace"):
        Activations().run({"model": plain}, context(tmp_path / "b"))


def gated(*, outside: bool = False, product: bool = False) -> onnx.ModelProto:
    """input -> pool -> layer with bias -> hard-sigmoid; `outside`: the layer's own output is read as well."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 3) if product else (3, 3, 1, 1)).astype(np.float32)
    constants = {"w": weight, "b": np.array([-1, 0, 1], np.float32)}
    layer = (
        make_node("Gemm", ["flat", "w", "b"], ["x"], name="fc", alpha=0.5, beta=2.0)
        if product
        else make_node("Conv", ["pooled", "w", "b"], ["x"], name="expand")
    )
    nodes = [
        make_node("GlobalAveragePool", ["input"], ["pooled"], name="pool"),
        make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        layer,
        make_node("HardSigmoid", ["x"], ["gate"], name="gate", alpha=1 / 6, beta=0.5),
        make_node("Flatten", ["gate"], ["y"], name="last"),
        make_node("Flatten", ["x"], ["again"], name="again"),
        make_node("Add", ["y", "again"] if outside else ["y", "y"], ["logits"], name="sum"),
    ]
    return made([n for n in nodes if outside or n.name != "again"], constants)


@pytest.mark.parametrize("product", [False, True])
def test_a_hard_sigmoid_behind_a_layer_becomes_a_clip_that_answers_alike(product: bool) -> None:
    before, after = gated(product=product), gated(product=product)
    assert fold(after) == ["gate"]
    assert "HardSigmoid" not in {node.op_type for node in after.graph.node}
    pictures = np.random.default_rng(1).normal(0, 60, (5, 3, 8, 8)).astype(np.float32)
    wanted = answered(before, pictures)
    assert wanted.min() == 0 or wanted.max() == 2  # both ends of the gate are met
    np.testing.assert_allclose(answered(after, pictures), wanted, atol=1e-6)


def test_a_layer_that_somebody_else_reads_is_left_alone() -> None:
    model = gated(outside=True)
    assert fold(model) == []
    assert "HardSigmoid" in {node.op_type for node in model.graph.node}


def test_the_step_tells_how_many_it_folded(tmp_path: Path) -> None:
    source = exported(tmp_path / "gated", gated(), Preprocess(height=8, width=8))
    told = FoldGates().run({"model": source}, context(tmp_path / "out"))
    assert told[0].value == 1
    assert "HardSigmoid" not in operators(tmp_path / "out" / graph.PLAIN)
    again = Artifact(source.form, tmp_path / "out", source.record)
    assert FoldGates().run({"model": again}, context(tmp_path / "again"))[0].value == 0
