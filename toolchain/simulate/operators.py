"""The ONNX operators of convolutional classifiers as torch functions that can be differentiated.

Each maker reads a node once and returns a function of the node's input tensors. Specification: the operators' pages
of ONNX, opset 18.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from torch import Tensor
from torch.nn import functional as F

from toolchain.errors import ModelError
from toolchain.graph import attribute

Operator = Callable[..., Tensor]
Constants = Mapping[str, NDArray[Any]]
_CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


def operator(node: NodeProto, constants: Constants) -> Operator:
    """The function of a node; constants: the graph's initializers by name.

    Raises ModelError, naming the node, for an operator or an attribute that is not known here.
    """
    make = _MAKERS.get(node.op_type)
    if make is None or node.domain not in ("", "ai.onnx"):
        raise ModelError(
            f"'{node.name}': the operator {node.op_type} cannot be simulated in training; known are "
            f"{', '.join(sorted(_MAKERS))}"
        )
    return make(node, constants)


def _conv(node: NodeProto, constants: Constants) -> Operator:
    kernel = attribute(node, "kernel_shape", None)
    if kernel is None and node.input[1] not in constants:
        raise ModelError(f"'{node.name}': Conv without kernel_shape cannot be simulated in training")
    rank = len(constants[node.input[1]].shape[2:] if kernel is None else kernel)
    _plain_padding(node)
    pads = attribute(node, "pads", [0] * 2 * rank)
    options = {
        "stride": tuple(attribute(node, "strides", [1] * rank)),
        "dilation": tuple(attribute(node, "dilations", [1] * rank)),
        "groups": attribute(node, "group", 1),
    }
    convolve = _CONVOLUTIONS[rank - 1]
    begin, end = pads[:rank], pads[rank:]

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if begin != end:
            return convolve(F.pad(x, _torch_pads(begin, end)), weight, bias, **options)
        return convolve(x, weight, bias, padding=tuple(begin), **options)

    return run


def _max_pool(node: NodeProto, _: Constants) -> Operator:
    kernel = attribute(node, "kernel_shape", ())
    rank = len(kernel)
    _plain_padding(node)
    pads = attribute(node, "pads", [0] * 2 * rank)
    strides, ceiled = attribute(node, "strides", [1] * rank), bool(attribute(node, "ceil_mode", 0))
    _only(node, "dilations", [1] * rank)
    padding = _torch_pads(pads[:rank], pads[rank:])
    return lambda x: F.max_pool2d(
        F.pad(x, padding, value=float("-inf")), kernel, strides, ceil_mode=ceiled
    )  # fmt: skip


def _average_pool(node: NodeProto, _: Constants) -> Operator:
    kernel = attribute(node, "kernel_shape", ())
    rank = len(kernel)
    _plain_padding(node)
    pads = attribute(node, "pads", [0] * 2 * rank)
    if pads[:rank] != pads[rank:]:
        raise ModelError(f"'{node.name}': AveragePool with unequal pads cannot be simulated in training")
    strides = attribute(node, "strides", [1] * rank)
    ceiled, counted = bool(attribute(node, "ceil_mode", 0)), bool(attribute(node, "count_include_pad", 0))
    return lambda x: F.avg_pool2d(x, kernel, strides, pads[:rank], ceiled, counted)


def _gemm(node: NodeProto, _: Constants) -> Operator:
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    left, right = attribute(node, "transA", 0), attribute(node, "transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product: Tensor = alpha * (a.T if left else a) @ (b.T if right else b)
        return product if c is None else product + beta * c

    return run


def _clip(node: NodeProto, constants: Constants) -> Operator:
    low, high = (
        float(constants[node.input[i]]) if len(node.input) > i and node.input[i] else None for i in (1, 2)
    )
    if low is None and high is None:
        return lambda x, *_: x
    if low is None or high is None:
        return lambda x, *_: torch.clamp(x, low, high)
    return lambda x, *_: F.hardtanh(x, low, high)  # a clamp whose gradient takes half the time on a CPU


def _reduction(reduce: Callable[..., Tensor]) -> Callable[[NodeProto, Constants], Operator]:
    def make(node: NodeProto, constants: Constants) -> Operator:
        listed = constants[node.input[1]] if len(node.input) > 1 else attribute(node, "axes", [])
        axes = tuple(int(axis) for axis in np.asarray(listed).reshape(-1))
        kept = bool(attribute(node, "keepdims", 1))
        return lambda x, *_: reduce(x, axes or tuple(range(x.ndim)), keepdim=kept)

    return make


def _reshape(node: NodeProto, constants: Constants) -> Operator:
    if node.input[1] not in constants:
        raise ModelError(f"'{node.name}': Reshape to a computed shape cannot be simulated in training")
    wanted = [int(size) for size in constants[node.input[1]]]
    if 0 in wanted:
        _only(node, "allowzero", 0)
    return lambda x, _: x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(wanted)])


def _pad(node: NodeProto, constants: Constants) -> Operator:
    _only(node, "mode", b"constant")
    if len(node.input) > 3 and node.input[3]:
        raise ModelError(f"'{node.name}': Pad over named axes cannot be simulated in training")
    pads = [int(pad) for pad in constants[node.input[1]]]
    value = float(constants[node.input[2]]) if len(node.input) > 2 and node.input[2] else 0.0
    half = len(pads) // 2
    return lambda x, *_: F.pad(x, _torch_pads(pads[:half], pads[half:]), value=value)


def _slice(node: NodeProto, constants: Constants) -> Operator:
    if len(node.input) < 4 or not all(name in constants for name in node.input[1:]):
        raise ModelError(
            f"'{node.name}': Slice without named axes or by computed ends cannot be simulated in training"
        )
    first, last, axes, *steps = (np.asarray(constants[name]).reshape(-1).tolist() for name in node.input[1:])
    if any(step != 1 for step in (steps[0] if steps else [])):
        raise ModelError(f"'{node.name}': Slice in steps cannot be simulated in training")
    cuts = [*zip(axes, map(slice, first, last), strict=True)]

    def cut(x: Tensor, *_: Tensor) -> Tensor:
        wanted = {axis % x.ndim: part for axis, part in cuts}
        return x[tuple(wanted.get(axis, slice(None)) for axis in range(x.ndim))]

    return cut


def _flatten(node: NodeProto, _: Constants) -> Operator:
    axis = attribute(node, "axis", 1)
    return lambda x: x.reshape(int(np.prod(x.shape[:axis])), -1)


def _transpose(node: NodeProto, _: Constants) -> Operator:
    order = attribute(node, "perm", None)
    return lambda x: x.permute(order or tuple(reversed(range(x.ndim))))


def _layer_norm(node: NodeProto, _: Constants) -> Operator:
    _only(node, "axis", -1)
    epsilon = attribute(node, "epsilon", 1e-5)
    return lambda x, weight, bias=None: F.layer_norm(x, weight.shape, weight, bias, epsilon)


def _batch_norm(node: NodeProto, _: Constants) -> Operator:
    """One that nothing before it could take up, as in DenseNets; it stays as it is."""
    _only(node, "training_mode", 0)
    epsilon = attribute(node, "epsilon", 1e-5)
    return lambda x, scale, bias, mean, variance: F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def _hard_sigmoid(node: NodeProto, _: Constants) -> Operator:
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


def _joined(node: NodeProto, _: Constants) -> Operator:
    axis = attribute(node, "axis", -1)
    return lambda *parts: torch.cat(parts, dim=axis)


def _softmax(node: NodeProto, _: Constants) -> Operator:
    axis = attribute(node, "axis", -1)
    return lambda x: torch.softmax(x, dim=axis)


def _plain(function: Operator) -> Callable[[NodeProto, Constants], Operator]:
    return lambda _node, _constants: function


def _plain_padding(node: NodeProto) -> None:
    _only(node, "auto_pad", b"NOTSET")


def _only(node: NodeProto, name: str, value: Any) -> None:
    found = attribute(node, name, value)
    if found != value:
        raise ModelError(f"'{node.name}': {name} {found} cannot be simulated in training")


def _torch_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """torch counts pads from the last axis."""
    return [pad for pair in zip(reversed(begin), reversed(end), strict=True) for pad in pair]


_MAKERS: Mapping[str, Callable[[NodeProto, Constants], Operator]] = {
    "Add": _plain(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _joined,
    "Conv": _conv,
    "Div": _plain(torch.div),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _plain(lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(F.hardswish),
    "Identity": _plain(lambda x: x),
    "LayerNormalization": _layer_norm,
    "MatMul": _plain(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _plain(torch.mul),
    "Pad": _pad,
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": _transpose,
}
