"""Half: an ONNX network in 16-bit floats, for GPUs; on most CPUs it is slower."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from pydantic import Field

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import pictures, ranges, selection, sensitivity
from toolchain.errors import DataError, ModelError
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.runtime.session import Session
from toolchain.step import Context, Step

_GREATEST = float(np.finfo(np.float16).max)


class Half(Step):
    """float16 weights and activations between float32 inputs and outputs; the preprocessing stays float32.

    pictures: how many training pictures are looked at for activations that float16 cannot hold.
    headroom: nodes stay in float32 when a weight, input or output of theirs exceeds 65504 / headroom.
    exclude: patterns of further node names that stay in float32. probe: how many validation pictures are answered.
    Measures `nodes_float32` and, where there are validation pictures, `sqnr` of the logits against before.
    """

    step: Literal["half"] = "half"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"train", "val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx",
        *host.onnxruntimes(),
    )
    pictures: Annotated[int, Field(ge=1)] = 64
    headroom: Annotated[float, Field(ge=1)] = 4.0
    exclude: tuple[str, ...] = ()
    probe: Annotated[int, Field(ge=1)] = 64

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Convert inputs["model"]'s plain network.

        Raises DataError without training pictures, ModelError when the network is no float32 network or its
        answers are not finite after the conversion.
        """
        source, train = inputs["model"].folder, context.data.train
        model = graph.read(source / graph.PLAIN)
        graph.require_float(model)
        chosen = pictures.choose(train, self.pictures)
        if not chosen:
            raise DataError("half looks at training pictures for values that overflow, and there are none")
        preprocess = source / graph.PREPROCESS
        with context.progress.task("look for overflow", len(chosen)) as task:
            found = ranges.observe(
                model, lambda: pictures.prepared(preprocess, train, chosen, task.advance)
            ).ranges
        kept = {*selection.matching(model, self.exclude), *self._overflowing(model, found)}
        half = convert_float_to_float16(model, keep_io_types=True, node_block_list=sorted(kept))
        OnnxModel(half).topological_sort(is_deterministic=True)
        _skip_detours(half)
        hand_on(self, source, half, context.out)
        _require_finite(context.out / graph.PLAIN, pictures.prepared(preprocess, train, chosen[:8]))
        probe = pictures.some(preprocess, context.data.val, self.probe)
        reached = (sensitivity.against(graph.read(source / graph.PLAIN), half, probe),) if probe else ()
        return (Measurement(name="nodes_float32", value=len(kept)), *reached, *graph.sizes(context.out))

    def _overflowing(self, model: ModelProto, found: Mapping[str, ranges.Range]) -> list[str]:
        """Names of the nodes that read or write a value too great for float16."""
        limit = _GREATEST / self.headroom
        great = {name for name, (low, high) in found.items() if max(-low, high) > limit}
        great |= {
            name for name, value in graph.weights(model).items()
            if value.dtype == np.float32 and value.size and np.abs(value).max() > limit
        }  # fmt: skip
        return [node.name for node in model.graph.node if great.intersection((*node.input, *node.output))]


def _require_finite(file: Path, inputs: Iterable[sensitivity.Floats]) -> None:
    session = Session(file)
    for one in inputs:
        if not np.isfinite(session.run({graph.INPUT: one})[0]).all():
            raise ModelError("in float16 the network's answers are not finite: keep more nodes in float32")


def _skip_detours(model: ModelProto) -> None:
    """Let float32 nodes hand their tensors on directly, in place.

    The converter casts every tensor between two float32 nodes to float16 and back, where it overflows.
    """
    net = model.graph
    makers = {name: node for node in net.node for name in node.output}
    direct: dict[str, str] = {}
    for node in net.node:
        before = makers.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if before is not None and _casts_to(before, TensorProto.FLOAT16):
            direct[node.output[0]] = before.input[0]
    for node in net.node:
        node.input[:] = [direct.get(name, name) for name in node.input]
    if graph.LOGITS in direct:
        net.node.remove(makers[graph.LOGITS])
        graph.rename(net, {direct[graph.LOGITS]: graph.LOGITS})
        net.output[0].name = graph.LOGITS
    used = {name for node in net.node for name in node.input} | {value.name for value in net.output}
    for node in [node for node in net.node if node.op_type == "Cast" and node.output[0] not in used]:
        net.node.remove(node)


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and graph.attribute(node, "to", 0) == kind
