"""Give single layers of an int8 network back to float, so that onnxruntime leaves them there.

Leaving a convolution out of the quantizer is not enough: where it stands between a DequantizeLinear and a
QuantizeLinear, with or without an activation, onnxruntime (1.31, level 1, `WeightBiasQuantization`) rounds its float
weight to 8 bits after all, with one step for the whole tensor: for depthwise convolutions that is worse than int8.
As onnxruntime's own FusedConv (domain com.microsoft), which it would become later anyway, the convolution is let
alone; the activation inside clips where the QuantizeLinear would. A Gemm meets the same end, also as MatMul and Add,
and becomes a FusedGemm; that one knows no Clip, so its activation is a LeakyRelu that changes nothing. CUDA has no
such kernels, processors have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.helper import make_attribute, make_opsetid

from toolchain.calibration.weights import layers
from toolchain.graph import consumers

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FUSED_DOMAIN = "com.microsoft"


def integer_layers(quantized: ModelProto) -> list[str]:
    """Names of the convolutions and products whose weight is dequantized, in the graph's order."""
    makers = _makers(quantized.graph)
    known = {tensor.name for tensor in quantized.graph.initializer}
    return [
        node.name for node in quantized.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul") and (maker := makers.get(node.input[1])) is not None
        and maker.op_type == DEQUANTIZE and maker.input[0] in known
    ]  # fmt: skip


def in_float(quantized: ModelProto, original: ModelProto, names: Collection[str]) -> ModelProto:
    """A copy of the QDQ network `quantized` in which the layers `names` have `original`'s weights and biases.

    Between two layers in float nothing is rounded; everything else stays as it was.
    """
    model = ModelProto()
    model.CopyFrom(quantized)
    net = model.graph
    originals = {layer.node.name: layer.node for layer in layers(original)}
    tensors = {tensor.name: tensor for tensor in original.graph.initializer}
    for node in net.node:
        if node.name in names:
            _restore(net, node, originals[node.name], tensors)
    makers = _makers(net)
    for node in net.node:
        if node.name in names and _is_kind(makers.get(node.input[0]), DEQUANTIZE):
            _fuse(model, node)
    _bridge(net)
    drop_unread(net)
    return model


def _restore(
    net: GraphProto, node: NodeProto, original: NodeProto, tensors: Mapping[str, TensorProto]
) -> None:
    """Let a layer read copies of its float tensors; their old names belong to what is dequantized."""
    for place, name in enumerate(original.input[1:], 1):
        if name:
            copy = net.initializer.add()
            copy.CopyFrom(tensors[name])
            copy.name = f"{node.name}/float.{place}"
            node.input[place] = copy.name
    if len(node.input) > len(original.input):  # the quantizer was given a corrected bias; float needs none
        del node.input[len(original.input) :]


def _fuse(model: ModelProto, node: NodeProto) -> None:
    """Make a convolution or Gemm that only a QuantizeLinear reads onnxruntime's fused form of it."""
    after = consumers(model.graph).get(node.output[0], [])
    if len(after) != 1 or after[0].op_type != QUANTIZE:
        return
    if node.op_type == "Conv":
        node.op_type = "FusedConv"
        ends = _saturation(model.graph, after[0])
        node.attribute.extend(
            [make_attribute("activation", "Clip"), make_attribute("activation_params", ends)]
        )
    elif node.op_type == "Gemm":
        node.op_type = "FusedGemm"
        node.attribute.extend(
            [make_attribute("activation", "LeakyRelu"), make_attribute("activation_alpha", 1.0)]
        )
    else:
        return
    node.domain = _FUSED_DOMAIN
    if _FUSED_DOMAIN not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(make_opsetid(_FUSED_DOMAIN, 1))


def _saturation(net: GraphProto, rounding: NodeProto) -> tuple[float, float]:
    """The lowest and the highest value that a QuantizeLinear can tell from others."""
    known = {t.name: t for t in net.initializer if t.name in rounding.input}
    step = float(numpy_helper.to_array(known[rounding.input[1]]))
    zero = numpy_helper.to_array(known[rounding.input[2]])
    limits = np.iinfo(zero.dtype)
    return (limits.min - int(zero)) * step, (limits.max - int(zero)) * step


def _bridge(net: GraphProto) -> None:
    """Let layers in float read other layers in float directly, in place."""
    makers = _makers(net)
    known = {tensor.name for tensor in net.initializer}
    for node in _float_layers(net, known):
        back = makers.get(node.input[0])
        rounding = makers.get(back.input[0]) if back is not None and back.op_type == DEQUANTIZE else None
        if rounding is None or rounding.op_type != QUANTIZE:
            continue
        source = makers.get(rounding.input[0])
        while source is not None and source.op_type in ("Clip", "Relu"):
            source = makers.get(source.input[0])
        if source is not None and _is_float_layer(source, known):
            node.input[0] = rounding.input[0]


def _float_layers(net: GraphProto, known: set[str]) -> Iterator[NodeProto]:
    return (node for node in net.node if _is_float_layer(node, known))


def _is_float_layer(node: NodeProto, known: set[str]) -> bool:
    return node.op_type in ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul") and node.input[1] in known


def drop_unread(net: GraphProto) -> None:
    """Remove roundings that nothing reads any more and weights that are not read, in place."""
    ends = {value.name for value in net.output}
    while True:
        read = {name for node in net.node for name in node.input} | ends
        dead = [
            n for n in net.node if n.op_type in (QUANTIZE, DEQUANTIZE) and not read.intersection(n.output)
        ]
        if not dead:
            break
        for node in dead:
            net.node.remove(node)
    for tensor in [tensor for tensor in net.initializer if tensor.name not in read]:
        net.initializer.remove(tensor)


def _makers(net: GraphProto) -> dict[str, NodeProto]:
    return {name: node for node in net.node for name in node.output}


def _is_kind(node: NodeProto | None, kind: str) -> bool:
    return node is not None and node.op_type == kind
