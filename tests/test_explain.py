"""The right culprit on planted pitfalls, silence on healthy files. Shares are medians of nodes, not speeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.bench.planted import BY_HAND, OF_THE_FIELD, Case, explained, node
from toolchain.explain import Explanation, Finding, Machine, explain
from toolchain.explain.rules import has_signed_activations
from toolchain.explain.view import View
from toolchain.runtime import host
from toolchain.runtime.trace import Trace, TracedNode

X86 = host.isa().startswith("x86") and not {"amx_int8"} & set(host.facts()["features"])


def check(case: Case, folder: Path) -> None:
    if case.x86 and not X86:
        pytest.skip("signed activations are slow on x86 without AMX only")
    found = explained(case.make(folder / "net.onnx"))
    assert case.right(found), found.text()
    assert all(one.share >= 0.05 and one.remedy for one in found.findings)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_planted_culprit_is_named_first_and_healthy_files_are_met_with_silence(
    name: str, tmp_path: Path
) -> None:
    check(BY_HAND[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_THE_FIELD)
def test_networks_of_the_field(name: str, tmp_path: Path) -> None:
    check(OF_THE_FIELD[name], tmp_path)


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


def test_signed_zero_points_may_be_constants() -> None:
    quant = model([node("QuantizeLinear", ["input", "s", "z"], "q")], {"s": TensorProto.FLOAT})
    zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
    quant.graph.node.insert(0, helper.make_node("Constant", [], ["z"], value=zero))
    assert has_signed_activations(quant)


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


def test_what_a_claimed_gate_leaves_of_an_island_is_told_as_well() -> None:
    made = {"s": TensorProto.FLOAT, "z": TensorProto.UINT8, "w": TensorProto.FLOAT}
    graph = model([
        node("QuantizeLinear", ["input", "s", "z"], "q0"), node("DequantizeLinear", ["q0", "s", "z"], "x"),
        node("HardSigmoid", ["x"], "gate"), node("Mul", ["x", "gate"], "swish"),
        node("Conv", ["swish", "w"], "wide"), node("QuantizeLinear", ["wide", "s", "z"], "y"),
    ], made)  # fmt: skip
    profile = trace(("gate/HardSigmoid", "HardSigmoid", 1), ("swish/Mul", "Mul", 1), ("wide/Conv", "Conv", 8))
    found = {one.kind: one for one in explain(graph, graph, profile, VNNI).findings}
    assert set(found) == {"split_activation", "float_island"}
    assert found["float_island"].share == 0.8
    assert found["float_island"].what.startswith("Conv runs in float")


def test_pairs_that_a_provider_keeps_in_float_are_no_fault_of_the_file() -> None:
    made = {"s": TensorProto.FLOAT, "z": TensorProto.UINT8, "w": TensorProto.FLOAT}
    graph = model([
        node("QuantizeLinear", ["input", "s", "z"], "q0"), node("DequantizeLinear", ["q0", "s", "z"], "x"),
        node("Conv", ["x", "w"], "a"), node("MemcpyToHost", ["a"], "b"), node("QuantizeLinear", ["b", "s", "z"], "y"),
    ], made)  # fmt: skip
    rows = (("a/Conv", "Conv", 8), ("b/MemcpyToHost", "MemcpyToHost", 2))
    machine = Machine("cuda", "x86-vnni", frozenset())
    found = {one.kind: one for one in explain(graph, graph, trace(*rows, provider="cuda"), machine).findings}
    assert set(found) == {"copies", "float_island"}
    assert "step half" in found["float_island"].remedy


def test_an_activation_behind_what_others_read_too_is_no_unfused_one() -> None:
    def behind(operator: str, *more: onnx.NodeProto) -> onnx.ModelProto:
        return model(
            [node(operator, ["input", "w"], "a"), node("Elu", ["a"], "b"), *more], {"w": TensorProto.FLOAT}
        )

    profile = trace(("a/Conv", "Conv", 5), ("b/Elu", "Elu", 5))
    (found,) = explain(behind("Conv"), behind("Conv"), profile, VNNI).findings
    assert found.kind == "unfused_activation"
    branch = behind("Conv", node("Add", ["a", "b"], "c"))
    assert explain(branch, branch, profile, VNNI).findings == ()


def test_words_show_share_and_remedy() -> None:
    text = Explanation((Finding("layout_conversion", "nodes move", 3, 0.123, "do not"),)).text()
    assert " 12.3 % of the time: nodes move" in text
    assert "-> do not" in text
    assert Explanation(()).text() == "explain: no known pitfall takes 5 % of the time"
