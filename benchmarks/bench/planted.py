"""Networks with a pitfall planted, and healthy ones: what `--explain` is held against, here and in the tests.

By hand: convolutions of 32 channels at 24 x 24, in fp32 or int8. Of the field: timm's own, with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from toolchain.explain import Explanation
from toolchain.explain.file import explain_file
from toolchain.explain.view import DEQUANTIZE
from toolchain.runtime.bench_input import Wish
from toolchain.runtime.fresh import Setup

CHANNELS, SIDE, LAYERS = 32, 24, 4
HEALTHY_SIDE = (
    48  # at 24 the two transposes of an int8 file take 4.4 % of its time, at the edge of what is told
)
Activation = Callable[[str, str], Sequence[NodeProto]]


def node(operator: str, given: Sequence[str], gives: str, **attributes: object) -> NodeProto:
    """A named node with one output."""
    return helper.make_node(operator, given, [gives], name=f"{gives}/{operator}", **attributes)


def one(operator: str, **attributes: object) -> Activation:
    """A single activation node."""
    return lambda given, gives: [node(operator, [given], gives, **attributes)]


def gated(gate: str, **attributes: object) -> Activation:
    """x * gate(x)."""
    return lambda given, gives: [
        node(gate, [given], f"{gives}/gate", **attributes),
        node("Mul", [given, f"{gives}/gate"], gives),
    ]


def channels_last_norm(given: str, gives: str) -> Sequence[NodeProto]:
    """To NHWC, normalise, and back: as ConvNeXt's are written."""
    return [
        node("Transpose", [given], f"{gives}/last", perm=[0, 2, 3, 1]),
        node("LayerNormalization", [f"{gives}/last", "ones"], f"{gives}/norm", axis=-1),
        node("Transpose", [f"{gives}/norm"], gives, perm=[0, 3, 1, 2]),
    ]


def network(path: Path, activation: Activation, *, residual: bool = True, side: int = SIDE) -> Path:
    """A chain of convolutions, each with the activation behind it, and a classifier, for pictures of `side` pixels."""
    rng = np.random.default_rng(0)
    constants = {"ones": np.ones(CHANNELS, np.float32)}
    nodes: list[NodeProto] = []
    at, width = "input", 3
    for layer in range(LAYERS):
        name = f"layer{layer}"
        weight = rng.normal(size=(CHANNELS, width, 3, 3)) / np.sqrt(9 * width)
        constants |= {f"{name}.w": weight.astype(np.float32), f"{name}.b": np.zeros(CHANNELS, np.float32)}
        nodes.append(
            node("Conv", [at, f"{name}.w", f"{name}.b"], f"{name}/conv", pads=[1] * 4, kernel_shape=[3, 3])
        )
        nodes += activation(f"{name}/conv", name)
        at, width = name, CHANNELS
        if residual and layer == 2:
            nodes.append(node("Add", ["layer1", at], "sum"))
            at = "sum"
    constants |= {
        "fc.w": rng.normal(size=(CHANNELS, 10)).astype(np.float32),
        "fc.b": np.zeros(10, np.float32),
    }
    nodes += [
        node("GlobalAveragePool", [at], "pooled"),
        node("Flatten", ["pooled"], "flat"),
        node("Gemm", ["flat", "fc.w", "fc.b"], "logits"),
    ]
    used = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes, "main", [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def quantized(
    model: Path, *, signed: bool = False, leave_out: Sequence[str] = (), wide: bool = False
) -> Path:
    """onnxruntime's own static quantization to QDQ, per channel: u8s8, s8s8, or with activations of 16 bits (`wide`)."""
    out = model.with_suffix(".int8.onnx")
    activation = QuantType.QUInt16 if wide else QuantType.QInt8 if signed else QuantType.QUInt8
    quantize_static(
        model, out, _Noise(model), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
        activation_type=activation, nodes_to_exclude=list(leave_out),
    )  # fmt: skip
    return out


def dynamic(model: Path) -> Path:
    """onnxruntime's own dynamic quantization, without arguments but the weights' type (it has no kernel for s8)."""
    out = model.with_suffix(".int8.onnx")
    quantize_dynamic(model, out, weight_type=QuantType.QUInt8)
    return out


def weights_alone(model: Path) -> Path:
    """Weights of convolutions in 8 bits with a DequantizeLinear before their layers, and nothing else."""
    net = onnx.load(model)
    graph, known = net.graph, {tensor.name: tensor for tensor in net.graph.initializer}
    for layer in [node for node in graph.node if node.op_type == "Conv"]:
        name = layer.input[1]
        value = numpy_helper.to_array(known[name])
        step = np.float32(np.abs(value).max() / 127)
        graph.initializer.remove(known[name])
        graph.initializer.extend([
            numpy_helper.from_array(np.rint(value / step).astype(np.int8), f"{name}.q"),
            numpy_helper.from_array(step, f"{name}.s"), numpy_helper.from_array(np.int8(0), f"{name}.z"),
        ])  # fmt: skip
        graph.node.insert(0, node(DEQUANTIZE, [f"{name}.q", f"{name}.s", f"{name}.z"], name))
    out = model.with_suffix(".weights.onnx")
    onnx.save(net, out)
    return out


def explained(model: Path) -> Explanation:
    """What is said of a file on this machine, one thread, noise in."""
    return explain_file(model, Setup(), Wish())


@dataclass(frozen=True)
class Case:
    """A file that `make` writes to a path, the kind of finding that must come first (None: none at all), and a
    word that it must say. x86: the pitfall exists on x86 only."""

    make: Callable[[Path], Path]
    kind: str | None = None
    word: str = ""
    x86: bool = False

    def right(self, found: Explanation) -> bool:
        """Whether the explanation names the culprit first, or is silent on a healthy file."""
        if self.kind is None:
            return not found.findings
        return (
            bool(found.findings)
            and found.findings[0].kind == self.kind
            and self.word in found.findings[0].what
        )


def from_timm(name: str, *, signed: bool | None) -> Callable[[Path], Path]:
    """An architecture of timm at 64 x 64 with random weights: fp32 (None), u8s8 (False) or s8s8 (True)."""

    def make(path: Path) -> Path:
        import timm
        import torch

        torch.manual_seed(0)
        module = timm.create_model(name, pretrained=False, num_classes=10).eval()
        torch.onnx.export(
            module, (torch.randn(2, 3, 64, 64),), path, dynamo=True, input_names=["input"], external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
        )  # fmt: skip
        return path if signed is None else quantized(path, signed=signed)

    return make


_LEFT_OUT = ("layer1/conv/Conv", "layer2/conv/Conv")
BY_HAND: Mapping[str, Case] = {
    "SiLU in int8": Case(lambda p: quantized(network(p, gated("Sigmoid"))), "split_activation", "SiLU"),
    "hard-swish in int8": Case(
        lambda p: quantized(network(p, gated("HardSigmoid", alpha=1 / 6, beta=0.5))), "split_activation", "hard-swish"
    ),
    "Elu without an int8 kernel": Case(lambda p: quantized(network(p, one("Elu"))), "no_int8_kernel", "Elu"),
    "two convolutions left out": Case(
        lambda p: quantized(network(p, one("Relu"), residual=False), leave_out=_LEFT_OUT), "float_island", "Conv"
    ),
    "LayerNorm in NHWC": Case(lambda p: network(p, channels_last_norm), "layout_conversion", "Transpose"),
    "Softplus not fused": Case(lambda p: network(p, one("Softplus")), "unfused_activation", "Softplus"),
    "signed activations": Case(
        lambda p: quantized(network(p, one("Relu")), signed=True), "signed_activations", "s8s8", x86=True
    ),
    "dynamic int8": Case(lambda p: dynamic(network(p, one("Relu"))), "dynamic_convolution", "ConvInteger"),
    "weights alone": Case(lambda p: weights_alone(network(p, one("Relu"), side=4)), "float_weights", "only weights"),
    "activations of 16 bits": Case(
        lambda p: quantized(network(p, one("Relu")), wide=True), "wide_activations", "16 bits"
    ),
    "healthy fp32": Case(lambda p: network(p, one("Relu"), side=HEALTHY_SIDE)),
    "healthy u8s8": Case(lambda p: quantized(network(p, one("Relu"), side=HEALTHY_SIDE))),
}  # fmt: skip
OF_THE_FIELD: Mapping[str, Case] = {
    "efficientnet_b0 u8s8": Case(from_timm("efficientnet_b0", signed=False), "split_activation", "SiLU"),
    "mobilenetv3_small_100 u8s8": Case(
        from_timm("mobilenetv3_small_100", signed=False), "split_activation", "hard-swish"
    ),
    "resnet10t s8s8": Case(from_timm("resnet10t", signed=True), "signed_activations", "s8s8", x86=True),
    "resnet10t u8s8": Case(from_timm("resnet10t", signed=False)),
    "resnet10t fp32": Case(from_timm("resnet10t", signed=None)),
}


class _Noise(CalibrationDataReader):
    def __init__(self, model: Path) -> None:
        given = onnx.load(model, load_external_data=False).graph.input[0]
        shape = [max(1, d.dim_value) for d in given.type.tensor_type.shape.dim]
        rng = np.random.default_rng(1)
        self._left = iter([{given.name: rng.normal(size=shape).astype(np.float32)} for _ in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)
