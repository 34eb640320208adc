"""A model repository for Triton Inference Server: config.pbtxt, the model as version 1, golden inputs to warm up.

Triton compares nothing at start: it only runs the golden pictures (model_warmup), so a load that cannot
answer at all fails. What the answers are is for `toolchain verify` to check before, and the package carries
the whole bundle for that. Format: Triton's model_repository and model_config documentation.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from toolchain.errors import PackageError
from toolchain.package import archive
from toolchain.package.payload import Payload
from toolchain.runtime import manifest as names
from toolchain.runtime import sealed, verification
from toolchain.runtime.errors import BundleError

# numpy's names in Triton's: triton-inference-server/common, model_config.proto, enum DataType.
_TYPES: Mapping[str, str] = {
    "uint8": "TYPE_UINT8",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int64": "TYPE_INT64",
}
_WARM_UPS = 4


def write(payload: Payload, out: Path) -> None:
    """Write the repository as a tar whose one folder is the model's."""
    if sealed.is_sealed(payload.bundle[names.MODEL]):
        raise PackageError(f"{payload.wish.bundle}: its model is sealed, which Triton cannot open")
    if payload.manifest.optimized_for:
        raise PackageError(
            f"{payload.wish.bundle}: its model is optimized ahead for {payload.manifest.optimized_for}, and Triton has an "
            "onnxruntime of its own"
        )
    golden = verification.read_golden_bytes(payload.bundle[payload.manifest.golden], "golden answers")
    pictures = golden.pictures[:_WARM_UPS]
    tree = {
        "config.pbtxt": config(payload, [picture.shape for picture in pictures]).encode(),
        "labels.txt": "".join(f"{' '.join(label.split())}\n" for label in payload.manifest.labels).encode(),
        "1/model.onnx": payload.bundle[names.MODEL],
        **{f"warmup/picture_{i}": np.ascontiguousarray(p).tobytes() for i, p in enumerate(pictures)},
        **{f"toolchain/{name}": content for name, content in payload.tree(libraries=False).items()},
    }
    extra = set(payload.bundle) - {
        names.MODEL,
        names.PLAIN_MODEL,
        names.MANIFEST,
        *names.BESIDE,
        payload.manifest.golden,
    }
    tree |= {f"1/{name}": payload.bundle[name] for name in extra}  # external weights
    tree = {f"{payload.name}/{name}": content for name, content in tree.items()}
    out.write_bytes(archive.tar(tree, payload.wish.epoch))


def config(payload: Payload, warm_ups: list[tuple[int, ...]]) -> str:
    """config.pbtxt. Pictures differ in size, so the batch is a dimension of its own and Triton does not batch."""
    ports = {"input": payload.manifest.input, "output": payload.manifest.output}
    text = io.StringIO()
    text.write(f'name: "{payload.name}"\nbackend: "onnxruntime"\nmax_batch_size: 0\n')
    for role, port in ports.items():
        dims = ", ".join(str(n) if isinstance(n, int) else "-1" for n in port.shape)
        more = ', label_filename: "labels.txt"' if role == "output" else ""
        if port.dtype not in _TYPES:
            raise BundleError(
                f"{payload.wish.bundle}: {role} {port.name!r} is {port.dtype}, which Triton does not take"
            )
        text.write(
            f"{role} [ {{ name: {_quoted(port.name)}, data_type: {_TYPES[port.dtype]}, dims: [ {dims} ]{more} }} ]\n"
        )
    kind = "KIND_CPU" if payload.wish.accelerator == "cpu" else "KIND_GPU"
    text.write(f"instance_group [ {{ kind: {kind}, count: 1 }} ]\n")
    for key in ("intra_op_thread_count", "inter_op_thread_count"):
        text.write(f'parameters {{ key: "{key}" value: {{ string_value: "1" }} }}\n')
    name = payload.manifest.input.name
    for index, shape in enumerate(warm_ups):
        dims = ", ".join(map(str, (1, *shape)))
        given = f'data_type: TYPE_UINT8, dims: [ {dims} ], input_data_file: "picture_{index}"'
        text.write(
            f'model_warmup [ {{ name: "golden {index}", inputs {{ key: {_quoted(name)} value: {{ {given} }} }} }} ]\n'
        )
    return text.getvalue()


def _quoted(text: str) -> str:
    """A string of protobuf's text format; JSON's escapes are a part of its."""
    return json.dumps(text, ensure_ascii=False)
