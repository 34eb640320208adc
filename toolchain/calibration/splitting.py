"""Channels split into copies that are rounded apart, so that the mean of their integers is finer than one step.

R. Zhao et al., Improving Neural Network Quantization without Retraining using Outlier Channel Splitting (ICML 2019,
arXiv 1901.09504). What is split here are not the channels that reach furthest but those whose rounding the logits hear,
and each keeps its range: n copies, shifted against one another by an n-th of a step, round to integers whose mean has
steps an n-th as wide (Hermite's identity). So do the weights that read them, whose sum would else be rounded n times. The
shifts add up to nothing, so the function stays, but for a part of a step at a ReLU's or Clip's edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from toolchain.calibration.chains import Chain, chains, put
from toolchain.calibration.weights import Floats, bias, scales
from toolchain.graph import INPUT, weights
from toolchain.runtime.session import Session

_SHIFTED = frozenset({"Relu", "Clip"})  # pass a shift on, but for their edges
_CHOSEN = "split/chosen"


def splittable(model: ModelProto) -> Iterator[Chain]:
    """Chains with no more than ReLUs and Clips between the last convolution and the reader."""
    for chain in chains(model):
        if _last(model, chain).op_type == "Conv":
            yield chain


def heard(
    model: ModelProto, chain: Chain, step: float, inputs: Sequence[Floats], advance: Callable[[], None] = lambda: None
) -> NDArray[np.float64]:  # fmt: skip
    """The variance of the logits' noise over pictures with one channel of the hidden tensor rounded, [C].

    inputs: float32 [1, 3, h, w] each. What moves all classes alike, or all pictures, is no noise.
    """
    shown, count = _rounding(model, chain, step), chain.channels
    session = Session(shown.SerializeToString())

    def logits(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        feed = {_CHOSEN: chosen.reshape(1, -1, 1, 1).astype(np.float32)}
        found = np.concatenate([session.run({INPUT: one, **feed})[0] for one in inputs]).astype(np.float64)
        advance()
        return np.asarray(found - found.mean(axis=1, keepdims=True))

    exact = logits(np.zeros(count, bool))
    return np.array([(logits(one) - exact).var(axis=0).mean() for one in np.eye(count, dtype=bool)])


def copies(noise: NDArray[np.float64], more: int) -> NDArray[np.int64]:
    """How many of each channel there should be, [C], with `more` in all: n copies leave an n-th squared of its noise."""
    counts = np.ones(len(noise), np.int64)
    for _ in range(more):
        counts[np.argmax(noise * (1 / counts**2 - 1 / (counts + 1) ** 2))] += 1
    return counts


def split(model: ModelProto, chain: Chain, counts: NDArray[np.int64], step: float) -> None:
    """Give the chain `counts` copies of each channel, in place. step: of the integers that the hidden tensor gets."""
    known, values = weights(model), dict[str, Floats]()
    places = np.repeat(np.arange(len(counts)), counts)
    of_each = counts[places]
    turn = np.concatenate([np.arange(count) for count in counts])
    apart = (turn + 0.5) / of_each - 0.5
    for layer in (chain.writer, *chain.depthwise):
        values |= {name: known[name][places] for name in layer.node.input[1:] if name}
    made = _last(model, chain)
    shifted = (bias(model, made)[places] + apart * step).astype(np.float32)
    if not any(made.input[2:]):
        made.input[:] = [*made.input[:2], f"{made.name}.bias_split"]
        model.graph.initializer.append(numpy_helper.from_array(shifted, made.input[2]))
    values[made.input[2]] = shifted
    read = np.asarray(known[chain.reader.weight][:, places] / of_each.reshape(1, -1, 1, 1), np.float32)
    widths = scales(replace(chain.reader, rows=read), 8).reshape(-1, 1, 1, 1)
    values[chain.reader.weight] = (read + apart.reshape(1, -1, 1, 1) * widths).astype(np.float32)
    put(model, values, {layer.node.name: len(places) for layer in chain.depthwise})


def _last(model: ModelProto, chain: Chain) -> NodeProto:
    """What makes the hidden tensor, before ReLUs and Clips."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node: NodeProto = makers[chain.hidden]
    while node.op_type in _SHIFTED:
        node = makers[node.input[0]]
    return node


def _rounding(model: ModelProto, chain: Chain, step: float) -> ModelProto:
    """The network with one input more, [1, C, 1, 1]: 1 where a channel of the hidden tensor is rounded, 0 elsewhere."""
    shown = ModelProto()
    shown.CopyFrom(model)
    width = numpy_helper.from_array(np.array(step, np.float32), "split/step")
    shown.graph.initializer.append(width)
    shown.graph.input.append(make_tensor_value_info(_CHOSEN, TensorProto.FLOAT, [1, chain.channels, 1, 1]))
    nodes: list[NodeProto] = []
    for node in shown.graph.node:
        if node.name == chain.reader.node.name:
            nodes += [
                make_node("Div", [chain.hidden, width.name], ["split/steps"]),
                make_node("Round", ["split/steps"], ["split/whole"]),
                make_node("Mul", ["split/whole", width.name], ["split/rounded"]),
                make_node("Sub", ["split/rounded", chain.hidden], ["split/error"]),
                make_node("Mul", ["split/error", _CHOSEN], ["split/heard"]),
                make_node("Add", [chain.hidden, "split/heard"], ["split/given"]),
            ]
            node.input[0] = "split/given"
        nodes.append(node)
    del shown.graph.node[:]
    shown.graph.node.extend(nodes)
    return shown
