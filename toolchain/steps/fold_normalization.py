"""Fold normalisation: the first convolution divides by the deviation, and takes the mean where it does not pad. Exact."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import read
from toolchain.data.preprocess import Preprocess
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.runtime.session import Session
from toolchain.runtime.timing import interleave
from toolchain.step import Context, Step
from toolchain.steps.export import export_preprocessing

_UNIT = (1 / 255,) * 3  # the deviation at which (x / 255 - mean) / std is x - 255 mean
_ZERO = (0.0,) * 3


class FoldNormalization(Step):
    """`export`, then this: preprocessing no longer multiplies a picture's values, nor subtracts where nothing pads.

    With w the weights, (x - m) / s * w = (x - m) * (w / s), also at borders, where x - m is padded with zeros. The mean
    goes into the bias only where the convolution does not pad (patches of a transformer), because zeros of x are not
    zeros of x - m. The plain file then takes values of 0 to 255 less the mean; what is made from this one agrees.
    Measures `folded` (passes over the picture that went, 0 when something else than convolutions reads the input) and
    `price`, how many times the fused file's latency of before, on a picture of val where there is one.
    """

    step: Literal["fold_normalization"] = "fold_normalization"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"val"})
    libraries: ClassVar[tuple[str, ...]] = (
        "torch", "onnx", "onnxscript", "numpy",
        *host.onnxruntimes(),
    )  # fmt: skip

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Fold inputs["model"]'s normalisation. Raises ModelError for a network that is quantized."""
        source = inputs["model"].folder
        plain, given = graph.read(source / graph.PLAIN), read(source).preprocess
        graph.require_float(plain)
        settings = fold(plain, given)
        passes = _passes(given) - _passes(settings)
        if not passes:
            hand_on(self, source, plain, context.out)
            return (Measurement(name="folded", value=0), *graph.sizes(context.out))
        preprocess = export_preprocessing(settings, graph.opset(plain))
        batch = plain.graph.input[0].type.tensor_type.shape.dim[0]
        if batch.dim_value:  # a foreign file may take one picture at a time
            for end in (*preprocess.graph.input, *preprocess.graph.output):
                end.type.tensor_type.shape.dim[0].CopyFrom(batch)
        hand_on(self, source, plain, context.out, (settings, preprocess))
        return (
            Measurement(name="folded", value=passes), *_price(source, context), *graph.sizes(context.out),
        )  # fmt: skip


def fold(model: ModelProto, preprocess: Preprocess) -> Preprocess:
    """Take what can be taken of the normalisation into the convolutions that read the input, in place.

    Returns what is left to do before them; the same settings where something else reads the input.
    """
    readers = graph.consumers(model.graph).get(graph.INPUT, [])
    known = graph.weights(model)
    if not readers or not all(_takes(node, known) for node in readers) or graph.nested(model):
        return preprocess
    mean = None if any(map(_pads, readers)) else np.array(preprocess.mean)
    left = preprocess.model_copy(update={"std": _UNIT} | ({} if mean is None else {"mean": _ZERO}))
    if left != preprocess:
        scale = 1 / (255 * np.array(preprocess.std))
        for node in readers:
            _fold_into(model, node, known, scale, mean)
    return left


def _takes(node: NodeProto, known: Mapping[str, NDArray[np.generic]]) -> bool:
    """Whether a node is a convolution whose own weights see every channel, and whose bias is known."""
    return (
        node.op_type == "Conv" and node.input[0] == graph.INPUT and graph.attribute(node, "group", 1) == 1
        and all(name in known for name in node.input[1:] if name)
    )  # fmt: skip


def _pads(node: NodeProto) -> bool:
    automatic = graph.attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    return automatic or any(graph.attribute(node, "pads", []))


def _fold_into(
    model: ModelProto, node: NodeProto, known: Mapping[str, NDArray[np.generic]],
    scale: NDArray[np.float64], mean: NDArray[np.float64] | None,
) -> None:  # fmt: skip
    """New weights for one convolution, under names of its own: another layer may share the old ones."""
    weight = known[node.input[1]].astype(np.float64) * scale[None, :, None, None]
    new = {f"{node.name}.weight_normalised": weight}
    bias = node.input[2] if len(node.input) > 2 else ""
    if mean is not None:
        given = known[bias].astype(np.float64) if bias else np.zeros(len(weight))
        bias = f"{node.name}.bias_normalised"
        new[bias] = given - np.einsum("ocij,c->o", weight, 255 * mean)
    node.input[:] = [graph.INPUT, f"{node.name}.weight_normalised", *([bias] if bias else [])]
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in new.items()
    )


def _passes(preprocess: Preprocess) -> int:
    """How often normalisation goes over the picture: to subtract, to multiply."""
    return int(any(preprocess.mean)) + int(preprocess.std != _UNIT)


def _price(source: Path, context: Context) -> list[Measurement]:
    """The fused file's latency now over before, interleaved, one thread; a first impression."""
    val = context.data.val
    if not len(val):
        return []
    feed = {graph.PICTURES: np.ascontiguousarray(val.picture(0)[None])}
    sides = {
        str(folder): partial(Session(folder / graph.FUSED).run, feed) for folder in (source, context.out)
    }
    times = {name: float(np.median(taken)) for name, taken in interleave(sides, blocks=6, calls=15).items()}
    return [Measurement(name="price", value=round(times[str(context.out)] / times[str(source)], 3))]
