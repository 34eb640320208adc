"""Fewer moves between the layouts of a graph that ONNX Runtime has optimized: blocks of channels, and channels last.

Floats are convolved in blocks of channels (NCHWc, 16 channels with AVX-512), integers with the channels last (NHWC).
Between the two ONNX Runtime (1.31) makes three passes: blocks to NCHW (ReorderOutput), rounding, NCHW to NHWC
(Transpose). The last is never needed, for ReorderOutput can write channels last itself; and where a tensor is one
block wide, the first is not either: its block is NHWC as it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper
from onnx.helper import make_attribute, make_empty_tensor_value_info

from toolchain.errors import ModelError
from toolchain.graph import attribute, consumers
from toolchain.runtime.session import Session

_LAST = [0, 2, 3, 1]
_BLOCKS = {"x86-avx512f": 16}  # channels of a block, by host.layout(), where that was seen


@dataclass(frozen=True)
class _Crossing:
    """Where blocked floats become integers with their channels last; move: the Transpose."""

    reorder: NodeProto
    rounding: NodeProto
    move: NodeProto


def straighten(model: ModelProto, layout: str, feed: Mapping[str, NDArray[Any]]) -> int:
    """Take needless moves out of an optimized graph, in place, and return how many; answers stay the same to the bit.

    layout: of the machine that it was optimized on and is for, as host.layout() says. feed: any input; what the graph reads
    must be of one size, but for the batch and for pictures that it resizes itself. Both graphs answer it: raises ModelError
    where they differ, as they would if a block held another number of channels than is known of this layout.
    """
    found = list(_crossings(model.graph))
    if not found:
        return 0
    before, moved = _run(model, [crossing.move.output[0] for crossing in found], feed)
    one_block = [attribute(c.reorder, "channels", 0) == _BLOCKS.get(layout) for c in found]
    for crossing, lies, tensor in zip(found, one_block, moved, strict=True):
        if lies:
            _as_it_lies(model.graph, crossing, tensor.shape)
        else:
            _write_last(model.graph, crossing)
    after, _ = _run(model, [], feed)
    if not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)):
        raise ModelError(
            "the graph answers otherwise with fewer moves between layouts: ONNX Runtime does not lay tensors out on "
            f"{layout} as it did where this was tried; leave optimize_offline out"
        )
    return len(found) + one_block.count(True)


def _crossings(net: GraphProto) -> Iterator[_Crossing]:
    makers = {name: node for node in net.node for name in node.output}
    readers = consumers(net)
    scalars = {tensor.name for tensor in net.initializer if not list(tensor.dims)}
    ends = {value.name for value in net.output}
    for move in net.node:
        rounding = makers.get(move.input[0]) if move.op_type == "Transpose" else None
        if rounding is None or rounding.op_type != "QuantizeLinear" or rounding.input[1] not in scalars:
            continue
        reorder = makers.get(rounding.input[0])
        if reorder is None or reorder.op_type != "ReorderOutput" or attribute(reorder, "channels_last", 0):
            continue
        between = (reorder.output[0], rounding.output[0])
        alone = all(len(readers[name]) == 1 and name not in ends for name in between)
        if alone and attribute(move, "perm", []) == _LAST:
            yield _Crossing(reorder, rounding, move)


def _run(
    model: ModelProto, names: Sequence[str], feed: Mapping[str, NDArray[Any]]
) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """The outputs, and the inner tensors of these names."""
    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(make_empty_tensor_value_info(name) for name in names)
    made = Session(shown.SerializeToString()).run(feed)
    own = len(model.graph.output)
    return made[:own], made[own:]


def _as_it_lies(net: GraphProto, crossing: _Crossing, shape: Sequence[int]) -> None:
    """Round the one block where it lies, and call what comes out by its right shape, [N, h, w, C]."""
    name = f"{crossing.rounding.output[0]}/channels_last"
    net.initializer.append(numpy_helper.from_array(np.array([0, *shape[1:]]), name))
    crossing.rounding.input[0] = crossing.reorder.input[0]
    crossing.move.op_type = "Reshape"
    del crossing.move.attribute[:]
    crossing.move.input.append(name)
    net.node.remove(crossing.reorder)


def _write_last(net: GraphProto, crossing: _Crossing) -> None:
    """Let the reordering write the channels last, and the rounding hand that on."""
    others = [given for given in crossing.reorder.attribute if given.name != "channels_last"]
    del crossing.reorder.attribute[:]
    crossing.reorder.attribute.extend([*others, make_attribute("channels_last", 1)])
    crossing.rounding.output[0] = crossing.move.output[0]
    net.node.remove(crossing.move)
