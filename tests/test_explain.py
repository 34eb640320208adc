"""The right culprit on planted pitfalls, silence on healthy files. Shares are medians of nodes, not speeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from explain_helpers import channels_last_norm, explained, gated, network, node, one, quantized
from onnx import TensorProto, helper

from toolchain.explain import Explanation, Finding, Machine, explain
from toolchain.explain.rules import has_signed_activations
from toolchain.explain.view import View
from toolchain.runtime import host
from toolchain.runtime.trace import Trace, TracedNode

X86 = host.isa().startswith("x86") and not {"amx_int8"} & set(host.facts()["features"])
Make = Callable[[Path], Path]

LEFT_OUT = ("layer1/conv/Conv", "layer2/conv/Conv")

# What is planted, the kind of finding that must come first, and the word that it must say.
PLANTED: dict[str, tuple[Make, str, str]] = {
    "SiLU in int8": (lambda p: quantized(network(p, gated("Sigmoid"))), "split_activation", "SiLU"),
    "hard-swish in int8": (
        lambda p: quantized(network(p, gated("HardSigmoid", alpha=1 / 6, beta=0.5))),
        "split_activation",
        "hard-swish",
    ),
    "no int8 kernel": (lambda p: quantized(network(p, one("Elu"))), "no_int8_kernel", "Elu"),
    "two convolutions left out": (
        lambda p: quantized(network(p, one("Relu"), residual=False), leave_out=LEFT_OUT),
        "float_island",
        "Conv",
    ),
    "layout": (lambda p: network(p, channels_last_norm), "layout_conversion", "Transpose"),
    "unfused activation": (lambda p: network(p, one("Softplus")), "unfused_activation", "Softplus"),
}
HEALTHY: dict[str, Make] = {
    "fp32": lambda p: network(p, one("Relu")),
    "u8s8": lambda p: quantized(network(p, one("Relu"))),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_culprit_is_named_first(name: str, tmp_path: Path) -> None:
    make, kind, word = PLANTED[name]
    first = explained(make(tmp_path / "net.onnx")).findings[0]
    assert first.kind == kind
    assert word in first.what
    assert first.share >= 0.05
    assert first.remedy


@pytest.mark.skipif(not X86, reason="signed activations are slow on x86 without AMX only")
def test_signed_activations_are_named_on_x86(tmp_path: Path) -> None:
    first = explained(quantized(network(tmp_path / "net.onnx", one("Relu")), signed=True)).findings[0]
    assert first.kind == "signed_activations"
    assert "u8s8" in first.remedy


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_files_are_met_with_silence(name: str, tmp_path: Path) -> None:
    found = explained(HEALTHY[name](tmp_path / "net.onnx"))
    assert found == Explanation(())
    assert found.text() == "explain: no known pitfall takes 5 % of the time"


# ---- pure: graphs and profiles by hand

ARM = Machine("cpu", "arm64", frozenset())
VNNI = Machine("cpu", "x86-vnni", frozenset({"avx512_vnni"}))


def model(nodes: list[onnx.NodeProto], constants: dict[str, int] | None = None) -> onnx.ModelProto:
    """A graph from `input` to whatever comes last; constants: {name: element type} of one element each."""
    values = [helper.make_tensor(name, kind, [1], [1]) for name, kind in (constants or {}).items()]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("input", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)], values,
    )  # fmt: skip
    return helper.make_model(graph)


def trace(*rows: tuple[str, str, float], provider: str = "cpu") -> Trace:
    return Trace(tuple(TracedNode(name, operator, provider, ns) for name, operator, ns in rows), (1,))


def test_signed_activations_are_no_fault_on_arm_or_with_amx(tmp_path: Path) -> None:
    quant = model(
        [
            node("QuantizeLinear", ["input", "s", "z"], "q"),
            node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z"], "y"),
        ],
        {"s": TensorProto.FLOAT, "z": TensorProto.INT8, "w": TensorProto.INT8},
    )
    assert has_signed_activations(quant)
    profile = trace(("q/QuantizeLinear", "QuantizeLinear", 1), ("y/QLinearConv", "QLinearConv", 9))
    (found,) = explain(quant, quant, profile, VNNI).findings
    assert (found.kind, found.nodes, found.share) == ("signed_activations", 1, 0.9)
    assert explain(quant, quant, profile, ARM).findings == ()
    assert explain(quant, quant, profile, replace(VNNI, features=frozenset({"amx_int8"}))).findings == ()


def test_times_of_nodes_without_a_name_are_shared_by_operator() -> None:
    nameless = [helper.make_node("Relu", ["input"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    graph = model([*nameless, node("Relu", ["b"], "c")]).graph
    view = View(graph, trace(("Relu_7", "Relu", 10), ("Relu_9", "Relu", 30), ("c/Relu", "Relu", 5)).nodes)
    assert [one.ns for one in view.nodes] == [20, 20, 5]
    assert view.total == 45


def test_a_gate_of_another_tensor_is_no_split_activation() -> None:
    """Squeeze and excite multiplies by a gate of something else: SiLU's gate is of its own input."""
    zero = {"s": TensorProto.FLOAT, "z": TensorProto.UINT8}
    quantize = node("QuantizeLinear", ["input", "s", "z"], "q")

    def gate(given: str) -> onnx.ModelProto:
        return model(
            [
                quantize,
                node("QLinearSigmoid", ["q", "s", "z", "s", "z"], "gate"),
                node("QLinearAdd", ["q", "s", "z", "q", "s", "z", "s", "z"], "other"),
                node("QLinearMul", ["gate", "s", "z", given, "s", "z", "s", "z"], "y"),
            ],
            zero,
        )

    profile = trace(
        ("gate/QLinearSigmoid", "QLinearSigmoid", 5), ("other/QLinearAdd", "QLinearAdd", 1),
        ("y/QLinearMul", "QLinearMul", 4),
    )  # fmt: skip
    assert [f.kind for f in explain(gate("q"), gate("q"), profile, ARM).findings] == ["split_activation"]
    assert explain(gate("other"), gate("other"), profile, ARM).findings == ()


def test_small_shares_are_not_worth_a_word_but_copies_always_are() -> None:
    graph = model([node("Conv", ["input", "w"], "a"), node("MemcpyToHost", ["a"], "b"), node("TopK", ["b"], "c")],
                  {"w": TensorProto.FLOAT})  # fmt: skip
    rows = (
        TracedNode("a/Conv", "Conv", "cuda", 1000.0),
        TracedNode("b/MemcpyToHost", "MemcpyToHost", "cuda", 1.0),
        TracedNode("c/TopK", "TopK", "cpu", 2.0),
    )
    found = explain(graph, graph, Trace(rows, (1,)), Machine("cuda", "x86-vnni", frozenset())).findings
    assert {one.kind for one in found} == {"copies", "fallback"}
    assert "TopK fell back" in next(one.what for one in found if one.kind == "fallback")


def test_words_show_share_and_remedy() -> None:
    text = Explanation((Finding("layout_conversion", "nodes move", 3, 0.123, "do not"),)).text()
    assert " 12.3 % of the time: nodes move" in text
    assert "-> do not" in text


# ---- the pitfalls of the field, on timm's own networks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "signed", "kind", "word"),
    [
        ("efficientnet_b0", False, "split_activation", "SiLU"),
        ("mobilenetv3_small_100", False, "split_activation", "hard-swish"),
        pytest.param(
            "resnet10t",
            True,
            "signed_activations",
            "s8s8",
            marks=pytest.mark.skipif(not X86, reason="x86 only"),
        ),
        ("resnet10t", False, None, None),
        ("resnet10t", None, None, None),
    ],
)
def test_networks_of_the_field(
    tmp_path: Path, name: str, signed: bool | None, kind: str | None, word: str | None
) -> None:
    import timm
    import torch

    network_ = timm.create_model(name, pretrained=False, num_classes=10).eval()
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        network_, (torch.randn(2, 3, 64, 64),), path, dynamo=True, input_names=["input"], external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
    )  # fmt: skip
    findings = explained(path if signed is None else quantized(path, signed=signed)).findings
    if kind is None:
        assert findings == ()
    else:
        assert findings[0].kind == kind
        assert str(word) in findings[0].what
