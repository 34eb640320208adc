"""Files that are wrong on purpose, and a bench to run commands on them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import requests
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tiny import TinyRun, tiny_pictures, tiny_recipe

from toolchain.backbones import hub
from toolchain.runtime import providers
from toolchain.store import Store

PREPROCESS = {
    "height": 32, "width": 32, "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
}  # fmt: skip


@dataclass
class Bench:
    """A folder to spoil things in, a finished run to copy from, and what must not exist afterwards.

    Each method returns the arguments of a command, or a file or folder to name in one.
    """

    folder: Path
    done: TinyRun
    patch: pytest.MonkeyPatch
    forbidden: list[Path] = field(default_factory=list)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def run(self, *more: object, pictures: Path | None = None, **changes: Any) -> list[object]:
        """`run` for a tiny recipe with these changes."""
        recipe = tiny_recipe(self.folder, pictures or self.pictures(), **changes)
        return ["run", recipe, "--out", self.out, "--store", self.store, *more]

    def written(self, text: str | bytes) -> list[object]:
        """`run` for a recipe of this text."""
        arguments = self.run()
        self.file("recipe.yaml", text)
        return arguments

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def pictures(self, **options: Any) -> Path:
        return tiny_pictures(self.folder / "pictures", **options)

    def pictures_with(self, name: str, content: str | bytes) -> Path:
        """The pictures, and one more file among them."""
        self.pictures()
        self.file(f"pictures/{name}", content)
        return self.folder / "pictures"

    def pictures_without(self, pattern: str) -> Path:
        """The pictures without those of a pattern; their folders stay."""
        for path in self.pictures().glob(pattern):
            path.unlink()
        return self.folder / "pictures"

    def cut_short(self, pattern: str, suffix: str = "png") -> Path:
        """The pictures, those of a pattern without their ends."""
        folder = self.pictures(suffix=suffix)
        for path in folder.glob(pattern):
            path.write_bytes(path.read_bytes()[:-80])
        return folder

    def adopt(self, model: bytes | ModelProto) -> list[object]:
        """`run` for a foreign ONNX file."""
        file = self.file("foreign.onnx", model if isinstance(model, bytes) else model.SerializeToString())
        variants = {"fp32": {"adopt": {"file": str(file), "preprocess": PREPROCESS}}}
        return self.run(backbone=None, tune=None, variants=variants)

    def weights(self, file: Path, name: str = "resnet10t") -> list[object]:
        """`run` for a backbone with weights from a file."""
        return self.run(backbone={"timm": name, "weights": str(file)})

    def bomb(self) -> Path:
        """Weights that make a folder when they are unpickled; it must not be there afterwards."""
        self.forbidden.append(self.folder / "exploded")
        torch.save({"fc.weight": Bomb(self.folder / "exploded")}, self.folder / "bomb.pth")
        return self.folder / "bomb.pth"

    def tuned(self) -> Path:
        """The network that the finished run trained, as the store keeps it."""
        return next(e.folder for e in Store(self.done.store).entries() if e.record.step == "tune")

    def bundle(self, damage: Callable[[Path], object]) -> Path:
        """A damaged copy of the finished run's bundle."""
        folder = Path(shutil.copytree(self.done.bundle, self.folder / "bundle"))
        damage(folder)
        return folder

    def old_store(self) -> Path:
        """A copy of the finished run's store."""
        return Path(shutil.copytree(self.done.store, self.folder / "old-store"))

    def patched(self, arguments: list[object], owner: object, name: str, value: object) -> list[object]:
        """The same arguments, while something of the machine is not as it should be."""
        self.patch.setattr(owner, name, value)
        return arguments

    def without_gpu(self, arguments: list[object]) -> list[object]:
        self.patch.setattr(torch.cuda, "is_available", lambda: False)  # noqa: TID251
        self.patch.setattr(providers, "_driver", lambda: ((), "the driver shows this process no GPU"))
        return self.patched(arguments, providers, "_why_not", providers._why_not.__wrapped__)

    def without_network(self, arguments: list[object]) -> list[object]:
        def fail(*_: object, **__: object) -> None:
            raise requests.ConnectionError("no route to host")

        self.patch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
        return self.patched(arguments, requests.Session, "request", fail)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_adapter(*_: object) -> None:
    raise RuntimeError("no adapter for Upsample")


def memory_full(*_: object) -> None:
    torch.empty(1 << 50)


def hollow_picture(width: int, height: int) -> bytes:
    """A PNG that promises far more pixels than it has bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def classifier(classes: int, inputs: int = 1, external: str | None = None, opset: int = 18) -> ModelProto:
    """A linear classifier of mean colours: float32 [N, 3, 32, 32] -> logits [N, classes].

    inputs: with 2, a second one that is added to the logits. external: where the weights are said to lie.
    """
    weight = numpy_helper.from_array(np.eye(3, classes, dtype=np.float32), "weight")
    if external is not None:
        onnx.external_data_helper.set_external_data(weight, external, 0, len(weight.raw_data))
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
    last = ("Add", ["product", "bias"]) if inputs == 2 else ("Identity", ["product"])
    nodes = [
        helper.make_node("GlobalAveragePool", ["picture"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weight"], ["product"]),
        helper.make_node(*last, ["logits"]),
    ]
    shapes: dict[str, list[object]] = {"picture": ["N", 3, 32, 32], "bias": ["N", classes]}
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in list(shapes.items())[:inputs]
    ]
    made = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])]
    graph = helper.make_graph(nodes, "linear", given, made, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def flip_a_byte(bundle: Path) -> None:
    """Change one bit of the model."""
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)


def edit_manifest(bundle: Path) -> None:
    """Make every answer count as certain."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["thresholds"] = dict.fromkeys(manifest["thresholds"], 0.0)
    manifest["temperature"] = 7.5
    (bundle / "manifest.json").write_text(json.dumps(manifest))
