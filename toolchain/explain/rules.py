"""The known pitfalls, each found in the graph that runs. Rules claim nodes in order, so that shares add up.

Sources: ONNX Runtime's quantization guide (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html:
which pairs of Q and DQ fuse, why S8S8 is slow on x86-64), its fusions (core/optimizer), and what was measured
in this project (docs/benchmarking.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from onnx import ModelProto, TensorProto

from toolchain.explain import forms
from toolchain.explain.findings import Explanation, Finding, Kind, Machine
from toolchain.explain.islands import Island, islands
from toolchain.explain.view import DEQUANTIZE, QUANTIZE, Node, View
from toolchain.runtime.session import misplaced
from toolchain.runtime.trace import Trace

LEAST_SHARE = 0.05
_FAST_SIGNED = frozenset({"amx_int8"})  # AVX-VNNI-INT8 would do as well, but no kernel tells of it
# Operators for which ONNX Runtime's CPU provider has a kernel on 8-bit integers.
_INT8_KERNELS = frozenset({
    "Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Add", "Mul", "Sigmoid", "LeakyRelu",
    "AveragePool", "GlobalAveragePool", "Concat", "Softmax", "Where", "MaxPool", "Resize", "Transpose", "Reshape",
    "Flatten", "Squeeze", "Unsqueeze", "Gather", "Slice", "Split", "Pad", "Identity", "DepthToSpace", "Relu", "Clip",
})  # fmt: skip
_ACTIVATIONS = frozenset({
    "Relu", "Clip", "LeakyRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Mish",
    "Swish", "QuickGelu", "Gelu", "FastGelu", "PRelu", "ThresholdedRelu", "Softsign", "Celu",
})  # fmt: skip
_REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
_CHANNEL_MOVES = frozenset({(0, 2, 3, 1), (0, 3, 1, 2)})
_GATES = {
    "Sigmoid": "SiLU", "QLinearSigmoid": "SiLU", "HardSigmoid": "hard-swish", "QLinearHardSigmoid": "hard-swish"
}  # fmt: skip
_REPLACEABLE = {
    "ReduceMean": "export the pooling as GlobalAveragePool, which has one",
    "HardSigmoid": "choose a network with sigmoid gates or none, or leave these gates out of quantization",
}


def explain(original: ModelProto, optimized: ModelProto, trace: Trace, machine: Machine) -> Explanation:
    """The pitfalls of a model that take at least 5 % of the time of its nodes; copies and fallbacks always.

    original: the file as it was written; optimized: the graph that ONNX Runtime made of it and ran; trace: the
    profile of those runs on `machine`.
    """
    view = View(optimized.graph, trace.nodes)
    claimed: set[Node] = set()
    found: list[Finding] = []
    rules: tuple[Callable[[], Iterator[_Claim]], ...] = (
        lambda: _placement(view, machine),
        lambda: _signed(view, original, machine),
        lambda: _forms(view),
        lambda: _split(view),
        lambda: _islands(view, claimed, machine),
        lambda: _unfused(view),
        lambda: _layout(view),
    )
    for rule in rules:
        for claim in list(rule()):
            nodes = [node for node in dict.fromkeys(claim.nodes) if node not in claimed]
            claimed |= set(nodes)
            share = sum(node.ns for node in nodes) / view.total
            if nodes and (share >= LEAST_SHARE or claim.always):
                found.append(Finding(claim.kind, claim.what, len(nodes), round(share, 4), claim.remedy))
    return Explanation(tuple(sorted(found, key=lambda one: -one.share)))


class _Claim:
    """Nodes that one rule holds guilty of one thing."""

    def __init__(
        self, kind: Kind, nodes: Iterable[Node], what: str, remedy: str, *, always: bool = False
    ) -> None:
        self.kind, self.what, self.remedy, self.always = kind, what, remedy, always
        self.nodes = tuple(nodes)


def _forms(view: View) -> Iterator[_Claim]:
    """Forms of quantizing without a kernel to gain by."""
    yield _Claim(
        "dynamic_convolution", forms.dynamic_convolutions(view),
        "convolutions are quantized dynamically (ConvInteger): slow kernels, and passes that find ranges and scale back",
        "quantize convolutions statically, on calibration pictures; with this toolchain that is 'quantize'. Dynamic "
        "int8 is for products (transformers)",
    )  # fmt: skip
    yield _Claim(
        "float_weights", forms.weights_alone(view),
        "only weights are quantized: every run turns them into floats again, and the layers run in float",
        "quantize activations as well ('quantize'), or keep such weights for large products only ('weight_only')",
    )  # fmt: skip
    yield _Claim(
        "wide_activations", forms.wide(view),
        "activations are quantized to 16 bits, for which there is no integer kernel: layers run in float between them",
        "quantize activations to 8 bits (uint8), and leave in float what does not bear it",
    )  # fmt: skip


def _signed(view: View, original: ModelProto, machine: Machine) -> Iterator[_Claim]:
    """Signed activations on x86: what keeps int8 has no fast kernel, what is turned to uint8 fuses in part only."""
    slow = machine.isa.startswith("x86") and not _FAST_SIGNED & machine.features and machine.provider == "cpu"
    if not slow or not has_signed_activations(original):
        return
    guilty = [node for island in islands(view) for node in island.nodes]
    guilty += [n for n in view.nodes if view.is_int8(n) and view.types.get(n.inputs[0]) == TensorProto.INT8]
    yield _Claim(
        "signed_activations", guilty,
        "activations are signed (s8s8): x86 has no fast kernel for them, and not every pair of Q and DQ fuses",
        "quantize activations as uint8 with weights as int8 (u8s8); with this toolchain that is 'quantize'",
    )  # fmt: skip


def has_signed_activations(original: ModelProto) -> bool:
    """Whether a file quantizes tensors that are no weights to int8."""
    types = {tensor.name: tensor.data_type for tensor in original.graph.initializer}
    types |= {
        node.output[0]: node.attribute[0].t.data_type
        for node in original.graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    for node in original.graph.node:
        at = {QUANTIZE: 2, "QLinearConv": 2, "QLinearMatMul": 2}.get(node.op_type)
        if at is None or node.input[0] in types or len(node.input) <= at:
            continue
        if types.get(node.input[at]) == TensorProto.INT8:
            return True
    return False


def _split(view: View) -> Iterator[_Claim]:
    """x * gate(x) in an int8 graph: a gate whose result meets its own input in a product."""
    parts: dict[str, list[Node]] = {}
    counts: dict[str, int] = {}
    for gate in view.nodes:
        name = _GATES.get(gate.operator)
        product = _own_product(view, gate) if name else None
        if name is None or product is None:
            continue
        crossings = [
            n for n in (*view.before(gate), *view.after(gate)) if n.operator in (QUANTIZE, DEQUANTIZE)
        ]
        if product.operator == "QLinearMul" or crossings:
            parts.setdefault(name, []).extend((gate, product, *crossings))
            counts[name] = counts.get(name, 0) + 1
    for name, nodes in parts.items():
        way = (
            "in float between DQ and Q, and a multiplication"
            if name == "hard-swish"
            else "and a multiplication"
        )
        operator = nodes[0].operator
        yield _Claim(
            "split_activation", nodes, f"{name} fell apart in {counts[name]} places: {operator} {way}",
            f"there is no int8 {name} in one kernel: replace it (steps activations, recover), choose a backbone with "
            "ReLU or ReLU6 (mobilenetv2, efficientnet_lite, resnet), or ship fp32",
        )  # fmt: skip


def _own_product(view: View, gate: Node) -> Node | None:
    """The product of a gate's result and of what the gate was given."""
    given = view.root(gate.inputs[0])
    waiting = list(view.after(gate))
    while waiting:
        node = waiting.pop()
        if node.operator in (QUANTIZE, DEQUANTIZE):
            waiting += view.after(node)
        elif node.operator in ("Mul", "QLinearMul") and given in {view.root(name) for name in node.inputs}:
            return node
    return None


def _islands(view: View, claimed: set[Node], machine: Machine) -> Iterator[_Claim]:
    """What no earlier rule explained of float islands, by what keeps them afloat."""
    if machine.provider != "cpu":
        yield _Claim(
            "float_island", [node for island in islands(view) for node in island.nodes],
            f"layers run in float between DQ and Q: {machine.provider} turns few such pairs into integer kernels",
            "ship 16-bit floats there (step half), or keep int8 for the CPU",
        )  # fmt: skip
        return
    groups: dict[tuple[Kind, str], list[Island]] = {}
    for island in islands(view):
        left = tuple(node for node in island.inner if node not in claimed)
        if any(node.operator not in _REORDERS for node in left):
            rest = Island(left, island.shore)
            groups.setdefault(_culprit(rest), []).append(rest)
    for (kind, culprit), found in groups.items():
        nodes = [node for island in found for node in island.nodes]
        yield _Claim(kind, nodes, *_island_words(kind, culprit, len(found)))


def _culprit(island: Island) -> tuple[Kind, str]:
    """The costliest operator without an int8 kernel, else the costliest of all."""
    stubborn = [name for name in island.operators if name not in _INT8_KERNELS | _REORDERS]
    if stubborn:
        return "no_int8_kernel", stubborn[0]
    working = [name for name in island.operators if name not in _REORDERS]
    if set(working) <= _ACTIVATIONS:
        return "unfused_activation", working[0]
    return "float_island", (working or list(island.operators))[0]


def _island_words(kind: Kind, culprit: str, count: int) -> tuple[str, str]:
    places = f"{count} place{'' if count == 1 else 's'}"
    if kind == "no_int8_kernel":
        what = f"{culprit} has no int8 kernel here and runs in float between DQ and Q in {places}"
        return what, _REPLACEABLE.get(
            culprit, f"choose a network without {culprit}, or leave its neighbours out of quantization too"
        )
    if kind == "unfused_activation":
        what = f"{culprit} was not fused and runs in float between DQ and Q in {places}"
        return what, f"quantize what {culprit} gives, not what it takes, with one Q/DQ pair after it"
    what = f"{culprit} runs in float between DQ and Q in {places}, although it has an int8 kernel"
    return what, (
        f"give {culprit} Q/DQ pairs at its input, weight and output and an int32 bias, so that the pattern fuses"
    )


def _unfused(view: View) -> Iterator[_Claim]:
    """Activations that stand alone behind a convolution whose only reader they are."""
    parts: dict[str, list[Node]] = {}
    for node in view.nodes:
        if node.operator not in _ACTIVATIONS:
            continue
        source = view.producers.get(node.inputs[0])
        if source is not None and source.operator == "ReorderOutput":
            source = view.producers.get(source.inputs[0])
        if (
            source is not None
            and source.operator in ("Conv", "FusedConv")
            and len([*view.after(source)]) == 1
        ):
            parts.setdefault(node.operator, []).append(node)
    for name, nodes in parts.items():
        yield _Claim(
            "unfused_activation", nodes, f"{name} stands alone behind {len(nodes)} convolutions",
            "choose an activation that ONNX Runtime fuses into the convolution: ReLU, ReLU6, LeakyReLU, hard-swish",
        )  # fmt: skip


def _layout(view: View) -> Iterator[_Claim]:
    """Moving channels: between NCHW, NCHWc (ONNX Runtime's own blocks) and NHWC."""
    nodes = [
        node
        for node in view.nodes
        if node.operator in _REORDERS
        or (node.operator == "Transpose" and node.integers("perm") in _CHANNEL_MOVES)
    ]
    names = ", ".join(sorted({node.operator for node in nodes}))
    yield _Claim(
        "layout_conversion", nodes, f"layout conversions: {len(nodes)} nodes move channels ({names})",
        "keep one layout: write the graph in NCHW, and avoid operators between convolutions that no blocked "
        "kernel has (means, gates, transposes)",
    )  # fmt: skip


def _placement(view: View, machine: Machine) -> Iterator[_Claim]:
    """Nodes on the CPU beside another provider, and the copies that they cause."""
    copies = [node for node in view.nodes if node.operator.startswith("Memcpy")]
    yield _Claim(
        "copies", copies, f"{len(copies)} copies of tensors between providers",
        "keep the operators around the copies on one provider: see which nodes the placement shows on the CPU",
        always=True,
    )  # fmt: skip
    if machine.provider == "cpu":
        return
    behind = [node for node in view.nodes if node.provider == "cpu"]
    heavy = set(misplaced(node.operator for node in behind))
    yield _Claim(
        "fallback", [node for node in behind if node.operator in heavy],
        f"{', '.join(sorted(heavy))} fell back to the CPU",
        f"replace these operators by ones that {machine.provider} has, or take another opset or data type",
        always=True,
    )  # fmt: skip
