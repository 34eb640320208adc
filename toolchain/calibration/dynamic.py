"""Dynamic int8, through optimum's quantizer: ranges of activations are found anew for every input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import ModelProto
from onnxruntime.quantization import QuantType

OPERATORS = ("MatMul",)
_MATMUL = "_MatMul"  # onnxruntime makes a MatMul and an Add of a Gemm first, and so names the former


def integers(
    model: ModelProto, kept: Sequence[str], operators: Sequence[str] | None, *,
    weights: QuantType, per_channel: bool, reduce_range: bool,
) -> ModelProto:  # fmt: skip
    """The float network with dynamic int8 products. kept: nodes that stay; they keep their names.

    operators: those to quantize [OPERATORS]; a Gemm counts as a MatMul. reduce_range: weights of 7 bits.
    """
    # Imported here because optimum loads all of transformers, ten seconds that only this needs.
    from optimum.onnxruntime import AutoQuantizationConfig, ORTQuantizer
    from transformers import PretrainedConfig

    gemms = {node.name for node in model.graph.node if node.op_type == "Gemm"}
    left = [f"{name}{_MATMUL}" if name in gemms else name for name in kept]
    chosen = ["MatMul" if name == "Gemm" else name for name in operators or OPERATORS]
    config = AutoQuantizationConfig.avx512_vnni(
        is_static=False, per_channel=per_channel, nodes_to_exclude=left,
        operators_to_quantize=list(dict.fromkeys(chosen)),
    )  # fmt: skip
    config = replace(config, weights_dtype=weights, reduce_range=reduce_range)
    with TemporaryDirectory() as folder:
        before = Path(folder, "model.onnx")
        onnx.save(model, before)
        quantizer = ORTQuantizer(before, config=PretrainedConfig())
        quantizer.quantize(config, Path(folder, "int8"), file_suffix=None)
        quantized = onnx.load(Path(folder, "int8", before.name))
    for node in quantized.graph.node:
        if node.op_type == "MatMul" and node.name in left:
            node.name = node.name.removesuffix(_MATMUL)
    return quantized
