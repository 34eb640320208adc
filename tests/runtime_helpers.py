"""Tiny models, pictures and a whole bundle for the tests of the runtime; made with onnx, no network trained."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from toolchain.runtime import host, manifest
from toolchain.runtime.session import Session

LABELS = ("red", "green", "blue")


def fused_model(scale: float = 0.05) -> onnx.ModelProto:
    """uint8 `pictures` [N, H, W, 3] -> `probabilities` [N, 3]: softmax of the mean colour times `scale`."""
    nodes = [
        helper.make_node("Cast", ["pictures"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32) * np.float32(scale), "weight")
    axes = numpy_helper.from_array(np.array([1, 2], np.int64), "axes")
    return _model(
        nodes,
        helper.make_tensor_value_info("pictures", TensorProto.UINT8, ["N", "H", "W", 3]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3]),
        [weight, axes],
    )


def plain_model() -> onnx.ModelProto:
    """float32 `input` [N, 3, 4, 4] -> `logits` [N, 3]: one convolution over the whole picture, then ReLU."""
    weight = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "weight"], ["spots"]),
        helper.make_node("Relu", ["spots"], ["positive"]),
        helper.make_node("Flatten", ["positive"], ["logits"]),
    ]
    return _model(
        nodes,
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 4, 4]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3]),
        [numpy_helper.from_array(weight, "weight")],
    )


def picture(color: tuple[int, int, int], size: tuple[int, int] = (6, 5)) -> np.ndarray:
    """One colour, uint8 [H, W, 3], with some noise."""
    noise = np.random.default_rng(sum(color)).integers(-5, 6, (*size, 3))
    return np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)


GOLDEN = (picture((220, 30, 30)), picture((20, 200, 40), (9, 3)), picture((90, 90, 250), (2, 2)))


def make_bundle(folder: Path, **fields: Any) -> Path:
    """Write a whole bundle whose manifest has `fields` instead of the usual ones, and return its folder."""
    folder.mkdir(parents=True)
    onnx.save(fused_model(), folder / manifest.MODEL)
    onnx.save(plain_model(), folder / manifest.PLAIN_MODEL)
    (folder / manifest.MEASURED).write_text("{}")
    (folder / manifest.CARD).write_text("# a card\n")
    (folder / manifest.NOTICE).write_text("a notice\n")
    session = Session(folder / manifest.MODEL)
    answers = np.concatenate([session.run({"pictures": p[None]})[0] for p in GOLDEN])
    write_golden(folder, answers)
    content = manifest_of(folder) | fields
    content["identity"] = manifest.identity(content, content["files"])
    write_manifest(folder, content)
    return folder


def write_golden(folder: Path, answers: np.ndarray) -> None:
    arrays = {f"picture_{i}": p for i, p in enumerate(GOLDEN)}
    np.savez(folder / manifest.GOLDEN, count=np.int64(len(GOLDEN)), probabilities=answers, **arrays)


def manifest_of(folder: Path) -> dict[str, Any]:
    """A manifest for the files that lie in `folder`, without its identity."""
    files = {p.name: p for p in folder.iterdir() if p.name != manifest.MANIFEST}
    return {
        "schema_version": 1,
        "name": "colours",
        "task": "image-classification",
        "variant": "fp32",
        "labels": list(LABELS),
        "input": {"name": "pictures", "dtype": "uint8", "layout": "NHWC", "shape": ["N", "H", "W", 3], "color": "RGB"},
        "plain_input": {"name": "input", "dtype": "float32", "shape": ["N", 3, 4, 4]},
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["N", 3]},
        "preprocessing": {"height": 4, "width": 4},
        "temperature": 2.0,
        "thresholds": dict.fromkeys(LABELS, 0.6),
        "minimum_onnxruntime": manifest.MINIMUM_ONNXRUNTIME,
        "lineage": {},
        "licences": [],
        "golden": {"file": "golden.npz", "made_on": host.isa(), "provider": "cpu"},
        "tolerances": {host.isa(): 1e-4},
        "files": {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()},
    }  # fmt: skip


def write_manifest(folder: Path, content: object) -> None:
    (folder / manifest.MANIFEST).write_text(json.dumps(content))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest in place, its identity left as it was."""
    content = json.loads((folder / manifest.MANIFEST).read_text())
    change(content)
    write_manifest(folder, content)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """A picture file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _model(
    nodes: list[onnx.NodeProto],
    given: onnx.ValueInfoProto,
    found: onnx.ValueInfoProto,
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "tiny", [given], [found], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"labels": ",".join(LABELS)})
    onnx.checker.check_model(model)
    return model
