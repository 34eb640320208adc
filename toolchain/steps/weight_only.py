"""Weight-only: matrix products whose weights are 4 or 8 bits and whose activations stay in float (MatMulNBits)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.helper import make_node, make_opsetid
from pydantic import Field

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.calibration import pictures, selection, sensitivity
from toolchain.calibration.price import latency_ratio
from toolchain.calibration.weights import Layer, layers
from toolchain.errors import ModelError
from toolchain.graph import attribute
from toolchain.lineage import hand_on
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.step import Context, Step

_DOMAIN = "com.microsoft"


class WeightOnly(Step):
    """Blocks of a row's weights share one step; no picture is needed. May follow `quantize`, for layers left in float.

    bits: 8 or 4. block: how many weights share a step (a power of two). layers: patterns of node names.
    products: "int8" rounds activations to 8 bits by block while running (onnxruntime's accuracy_level 4), "float"
    doesn't; with 8 bits "float" has no kernel of its own on x86 and is many times slower than the float file.
    probe: how many validation pictures are answered for `sqnr`.
    Measures `layers` that changed and, where there are validation pictures, `sqnr` of the logits against before and
    `price`, how many times the latency of before (one thread, a first impression).
    """

    step: Literal["weight_only"] = "weight_only"
    takes: ClassVar[Mapping[str, Form]] = {"model": Form.ONNX}
    gives: ClassVar[Form] = Form.ONNX
    uses: ClassVar[frozenset[str]] = frozenset({"val"})
    version: ClassVar[int] = 2
    libraries: ClassVar[tuple[str, ...]] = (
        "onnx", "numpy", *host.onnxruntimes(),
    )  # fmt: skip
    bits: Literal[4, 8] = 8
    block: Literal[16, 32, 64, 128, 256] = 32
    products: Literal["int8", "float"] = "int8"
    layers: tuple[str, ...] = ("*",)
    probe: Annotated[int, Field(ge=1)] = 64

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> tuple[Measurement, ...]:
        """Convert the products of inputs["model"]'s plain network that have constant float weights.

        Raises ModelError when there is none among `layers`, or one of them names no node.
        """
        source = inputs["model"].folder
        model = graph.read(source / graph.PLAIN)
        original = ModelProto()
        original.CopyFrom(model)
        selection.matching(model, self.layers, "layers")
        changed = self.convert(model)
        if not changed:
            raise ModelError(
                f"weight_only: no product with constant float weights matches {', '.join(self.layers)}"
            )
        hand_on(self, source, model, context.out)
        return (
            Measurement(name="layers", value=len(changed)),
            *self._told(original, model, source / graph.PREPROCESS, context),
            *graph.sizes(context.out),
        )

    def _told(
        self, original: ModelProto, model: ModelProto, preprocess: Path, context: Context
    ) -> tuple[Measurement, ...]:
        probe = pictures.some(preprocess, context.data.val, self.probe)
        if not probe:
            return ()
        price = round(latency_ratio(original, model, probe[0]), 3)
        return sensitivity.against(original, model, probe), Measurement(name="price", value=price)

    def convert(self, model: ModelProto) -> list[str]:
        """Replace the layers' nodes in place; returns their names."""
        known = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        changed = []
        for layer in list(layers(model)):
            if _convertible(layer, known) and any(
                fnmatchcase(layer.node.name, pattern) for pattern in self.layers
            ):
                place = list(model.graph.node).index(layer.node)
                integers, steps = quantize_blocks(layer.rows, self.bits, self.block)
                constants: dict[str, NDArray[Any]] = {f"{layer.node.name}.nbits": integers}
                constants[f"{layer.node.name}.steps"] = steps.reshape(-1)
                bias = layer.node.input[2] if len(layer.node.input) > 2 else ""
                model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
                made = self._node(layer, list(constants), bias)
                model.graph.node[place].CopyFrom(made)
                changed.append(made.name)
        if changed and _DOMAIN not in {entry.domain for entry in model.opset_import}:
            model.opset_import.append(make_opsetid(_DOMAIN, 1))
        return changed

    def _node(self, layer: Layer, constants: Sequence[str], bias: str) -> NodeProto:
        inputs = [layer.node.input[0], *constants, *(["", "", bias] if bias else [])]
        return make_node(
            "MatMulNBits", inputs, list(layer.node.output), name=layer.node.name, domain=_DOMAIN,
            K=layer.rows.shape[1], N=len(layer.rows), bits=self.bits, block_size=self.block,
            accuracy_level=4 if self.products == "int8" else 1,
        )  # fmt: skip


def quantize_blocks(
    rows: NDArray[np.float32], bits: int, block: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Weights [N, K] as MatMulNBits stores them: [N, blocks, block * bits / 8] and their steps [N, blocks].

    Values lie around 2^(bits - 1), which stands for zero; of two 4-bit values in a byte the first is the low one.
    The end of a block that is greatest in size is met exactly, so that all 2^bits values are used.
    """
    middle = 2 ** (bits - 1)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block))).reshape(len(rows), -1, block)
    greatest = np.take_along_axis(padded, np.abs(padded).argmax(axis=2)[..., None], axis=2)[..., 0]
    steps = (-greatest / middle).astype(np.float32)
    safe = np.where(steps == 0, 1, steps)[..., None]
    integers = (np.rint(padded / safe) + middle).clip(0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        integers = integers[..., ::2] | (integers[..., 1::2] << 4)
    return integers, steps


def _convertible(layer: Layer, known: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether MatMulNBits can stand for it: float32, and as bias nothing or a constant with a value an output."""
    node = layer.node
    if layer.rows.dtype != np.float32:
        return False
    if node.op_type == "MatMul":
        return True
    if len(node.input) > 2 and node.input[2] and known.get(node.input[2]) != (len(layer.rows),):
        return False
    plain = all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta")) and not attribute(
        node, "transA", 0
    )
    return node.op_type == "Gemm" and plain
