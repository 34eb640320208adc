"""What an ONNX network costs: multiply-accumulates of one picture, and weights."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto

from toolchain.calibration.weights import layers
from toolchain.graph import weights
from toolchain.record import Measurement

# Products that an output value is worth in time, to be rounded and written: MobileNetV2 in int8 on x86 with VNNI.
CONVERTED = 10


def products(model: ModelProto) -> dict[str, int]:
    """Multiply-accumulates of one picture, by the output of each convolution and product with a constant weight."""
    single = ModelProto()
    single.CopyFrom(model)
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(single).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    found: dict[str, int] = {}
    for layer in layers(model):
        name = layer.node.output[0]
        found[name] = int(np.prod([size or 1 for size in shapes.get(name, [1])])) * int(layer.rows[0].size)
    return found


def measured(model: ModelProto) -> tuple[Measurement, Measurement]:
    """`macs` of convolutions and products with a constant weight, and `parameters`, their weights and biases."""
    known = weights(model)
    read = {name for layer in layers(model) for name in layer.node.input[1:] if name in known}
    return (
        Measurement(name="macs", value=sum(products(model).values()), unit="MAC"),
        Measurement(name="parameters", value=sum(int(known[name].size) for name in read)),
    )
