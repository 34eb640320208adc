"""An ONNX network as a torch module; where it has integers, with their rounding simulated in floats.

Rounding is simulated as in B. Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference (arXiv:1712.05877), section 3: forward as the integers would, backward as if nothing
were rounded, except that what saturates gets no gradient. Because the module is read from the very graph that ships,
each rounding stands where ONNX Runtime rounds, and the trained weights go back into the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from toolchain.errors import ModelError
from toolchain.graph import INPUT, LOGITS, attribute, weights
from toolchain.simulate.operators import operator
from toolchain.simulate.rounding import rounded

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_SUFFIX = "_quantized"  # what onnxruntime's quantizer adds to a tensor's name
_WIDE = 2**31 - 128  # for biases in 32 bits: the greatest that float32 holds exactly
_TRAINED = ("Conv", "Gemm", "MatMul", "LayerNormalization")
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Rounded:
    """A constant that is stored in integers: its value is parameter `index`, rounded to `scale` times an integer.

    tensor, integers: names of the dequantized constant and of the initializer. axis: of the scales [M], or None.
    limit: no integer may be greater.
    """

    tensor: str
    integers: str
    scale: str
    index: int
    axis: int | None
    limit: int


@dataclass(frozen=True)
class _Call:
    """A node: function of the tensors `inputs`, makes `output`."""

    function: Callable[..., Tensor]
    inputs: tuple[str, ...]
    output: str


class Simulated(nn.Module):
    """float32 [N, 3, h, w] -> logits [N, C], as the network in `model` answers.

    Weights and biases of convolutions, products and norms are parameters; everything else is constant.
    floats: float values by tensor name, for what `model` holds only in integers; else these are dequantized.
    Raises ModelError for an operator that is not known (see operators.py).
    """

    def __init__(self, model: ModelProto, floats: Arrays | None = None) -> None:
        super().__init__()
        self._known = weights(model)
        read = {name for node in model.graph.node if node.op_type in _TRAINED for name in node.input[1:]}
        self._learnt = {
            n.input[0] for n in model.graph.node if n.op_type == DEQUANTIZE and n.output[0] in read
        }
        self._floats = floats or {}
        self.values = nn.ParameterList()
        self.rounded: list[Rounded] = []
        self.plain: dict[str, int] = {}
        self._stored: dict[str, int] = {}  # parameters by the name of their integers
        self._steps: dict[
            str, tuple[float, int]
        ] = {}  # scale and zero of tensors that the file holds in integers
        self._calls: list[_Call] = []
        for node in model.graph.node:
            self._read(node)
        used = {name for call in self._calls for name in call.inputs} - self.plain.keys()
        self._buffers_of = {name: f"constant{i}" for i, name in enumerate(sorted(used & self._known.keys()))}
        for name, own in self._buffers_of.items():
            self.register_buffer(own, torch.from_numpy(np.array(self._known[name])))
        for number, one in enumerate(self.rounded):
            self.register_buffer(f"scale{number}", torch.from_numpy(np.array(self._known[one.scale])))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of a batch."""
        tensors: dict[str, Tensor] = {INPUT: pictures}
        tensors |= {name: getattr(self, own) for name, own in self._buffers_of.items()}
        tensors |= {name: self.values[index] for name, index in self.plain.items()}
        tensors |= {one.tensor: self.value(number) for number, one in enumerate(self.rounded)}
        for call in self._calls:
            tensors[call.output] = call.function(*(tensors[name] for name in call.inputs))
        return tensors[LOGITS]

    def value(self, number: int) -> Tensor:
        """A rounded constant as it counts now."""
        one, scale = self.rounded[number], getattr(self, f"scale{number}")
        value: Tensor = self.values[one.index]
        if one.axis is None:
            return rounded(value, float(scale), 0, -one.limit, one.limit)
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(value, scale, zeros, one.axis, -one.limit, one.limit)

    def get_classifier(self) -> tuple[nn.Module, ...]:
        """No layer is set apart as the classifier."""
        return ()

    def _read(self, node: NodeProto) -> None:
        if node.op_type == QUANTIZE:
            self._calls.append(self._rounding(node))
        elif node.op_type == DEQUANTIZE and node.input[0] in self._known:
            self._constant(node)
        elif node.op_type == DEQUANTIZE:
            self._calls.append(_Call(lambda x: x, (node.input[0],), node.output[0]))
        elif node.op_type == "Pad" and node.input[0] in self._steps:
            self._calls.append(self._padding(node))
        else:
            for name in node.input[1:] if node.op_type in _TRAINED else ():
                if name in self._known and name not in self.plain:
                    self.plain[name] = self._parameter(self._known[name])
            inputs = tuple(name for name in node.input if name)
            self._calls.append(_Call(operator(node, self._known), inputs, node.output[0]))

    def _rounding(self, node: NodeProto) -> _Call:
        """A QuantizeLinear together with the DequantizeLinear that follows it."""
        scale, zero = self._known[node.input[1]], self._known[node.input[2]]
        if scale.size != 1:
            raise ModelError(f"'{node.name}': activations with a scale a channel cannot be simulated")
        limits = np.iinfo(zero.dtype)
        settings = (float(scale), int(zero), int(limits.min), int(limits.max))
        self._steps[node.output[0]] = settings[:2]
        return _Call(lambda x: rounded(x, *settings), (node.input[0],), node.output[0])

    def _padding(self, node: NodeProto) -> _Call:
        """A Pad of integers (see calibration/padding.py): what it pads with counts by scale and zero as well."""
        scale, zero = self._steps[node.output[0]] = self._steps[node.input[0]]
        given = self._known[node.input[2]] if len(node.input) > 2 and node.input[2] else 0
        plain = NodeProto()
        plain.CopyFrom(node)
        plain.input[:] = [*node.input[:2], "value"]
        value = np.asarray((int(given) - zero) * scale, np.float32)
        function = operator(plain, {**self._known, "value": value})
        return _Call(function, (node.input[0],), node.output[0])

    def _constant(self, node: NodeProto) -> None:
        """A weight or bias in integers, or what stays as it is: a constant that nothing trained reads."""
        name, scale = node.input[0], node.input[1]
        integers, steps = self._known[name], self._known[scale]
        axis = attribute(node, "axis", 1) % max(integers.ndim, 1) if steps.size > 1 else None
        zero = self._known[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros((), np.int32)
        shape = () if axis is None else _along(axis, integers.ndim)
        exact = ((integers.astype(np.float64) - zero.reshape(shape)) * steps.reshape(shape)).astype(
            np.float32
        )
        if name not in self._learnt:
            self._known[node.output[0]] = exact
            return
        if np.any(zero):
            raise ModelError(f"'{node.name}': weights with a zero point cannot be trained, take weight: s8")
        value = self._floats.get(name.removesuffix(_SUFFIX))
        if value is None:
            value = exact
        wide = integers.dtype == np.int32
        limit = _WIDE if wide else int(np.abs(integers.astype(np.int32)).max(initial=1))
        if name not in self._stored:  # one tensor that several read stays one
            self._stored[name] = self._parameter(np.asarray(value, np.float32))
        index = self._stored[name]
        self.rounded.append(Rounded(node.output[0], name, scale, index, axis, limit))

    def _parameter(self, value: NDArray[Any]) -> int:
        self.values.append(nn.Parameter(torch.from_numpy(np.array(value, np.float32))))
        return len(self.values) - 1


def trained(module: Simulated, model: ModelProto) -> ModelProto:
    """A copy of `model`, which the module was made from, with the module's weights in its tensors."""
    written = ModelProto()
    written.CopyFrom(model)
    found: dict[str, NDArray[Any]] = {
        name: module.values[index].detach().cpu().numpy() for name, index in module.plain.items()
    }
    known = weights(model)
    for one in module.rounded:
        value, steps = module.values[one.index].detach().cpu().numpy(), known[one.scale]
        kind = known[one.integers].dtype
        shaped = steps if one.axis is None else steps.reshape(_along(one.axis, value.ndim))
        found[one.integers] = np.rint(value / shaped).clip(-one.limit, one.limit).astype(kind)
    for tensor in written.graph.initializer:
        if tensor.name in found:
            tensor.CopyFrom(numpy_helper.from_array(found[tensor.name], tensor.name))
    return written


def _along(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(-1 if place == axis else 1 for place in range(rank))
