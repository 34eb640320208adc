"""Files that are wrong on purpose."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def hollow_picture(width: int, height: int) -> bytes:
    """A PNG that promises far more pixels than it has bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def classifier(classes: int, inputs: int = 1, external: str | None = None) -> ModelProto:
    """A linear classifier of mean colours: float32 [N, 3, 32, 32] -> logits [N, classes].

    inputs: with 2, a second one that is added to the logits. external: where the weights are said to lie.
    """
    weight = numpy_helper.from_array(np.eye(3, classes, dtype=np.float32), "weight")
    if external is not None:
        onnx.external_data_helper.set_external_data(weight, external, 0, len(weight.raw_data))
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
    nodes = [
        helper.make_node("GlobalAveragePool", ["picture"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weight"], ["product"]),
        helper.make_node(
            *(("Add", ["product", "bias"]) if inputs == 2 else ("Identity", ["product"])), ["logits"]
        ),
    ]
    shapes = {"picture": ["N", 3, 32, 32], "bias": ["N", classes]}
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in list(shapes.items())[:inputs]
    ]
    made = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])]
    graph = helper.make_graph(nodes, "linear", given, made, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def tampered(bundle: Path, how: str) -> Path:
    """Damage a bundle: "flip" a byte of the model, "edit" the manifest, or "add" a file."""
    if how == "flip":
        content = bytearray((bundle / "model.onnx").read_bytes())
        content[len(content) // 2] ^= 1
        (bundle / "model.onnx").write_bytes(content)
    elif how == "edit":
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["thresholds"] = dict.fromkeys(manifest["thresholds"], 0.0)
        manifest["temperature"] = 7.5
        (bundle / "manifest.json").write_text(json.dumps(manifest))
    else:
        (bundle / "extra.bin").write_bytes(b"\0")
    return bundle
