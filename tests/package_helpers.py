"""Small stand-ins for what packages are made from: wheels, and a root file system."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from runtime_helpers import make_bundle

from toolchain.package import Wish, archive

VERSIONS = {"numpy": "2.4.6", "onnxruntime": "1.32.0", "pillow": "12.3.0"}
PURE = ("click", "h11", "uvicorn")


def wheel(folder: Path, name: str, machine: str = "x86_64", python: str = "cp311", **more: bytes) -> Path:
    """A wheel with one module and a licence; `more` names files by their path with / as __."""
    version = VERSIONS.get(name, "1.0")
    about = f"{name}-{version}.dist-info"
    tree = {
        f"{name}/__init__.py": b"",
        f"{name}/tests/test_it.py": b"",
        f"{about}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n".encode(),
        f"{about}/licenses/LICENSE": b"MIT, as it is written\n",
        **{path.replace("__", "/"): content for path, content in more.items()},
    }
    lines = [f"{path},sha256={digest(content)},{len(content)}\n" for path, content in tree.items()]
    tree[f"{about}/RECORD"] = "".join([*lines, f"{about}/RECORD,,\n"]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    tag = "py3-none-any" if name in PURE else f"{python}-{python}-manylinux_2_28_{machine}"
    path = folder / f"{name}-{version}-{tag}.whl"
    path.write_bytes(archive.zipped(tree, 0))
    return path


def digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def wheels(folder: Path, machine: str = "x86_64") -> Path:
    for name in (*VERSIONS, *PURE, "httptools", "uvloop"):
        wheel(folder, name, machine)
    return folder


def base(path: Path) -> tuple[Path, str]:
    """A tar that holds a file where Python is looked for, and its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        archive.tar({"usr/bin/python3": b"", "usr/bin/python3.11": b"#!/bin/false\n"}, 0, prefix="./")
    )
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def wish(folder: Path, **fields: object) -> Wish:
    """Everything that any target needs, below `folder`."""
    root, pinned = base(folder / "base.tar")
    bundle = folder / "bundle"
    if not bundle.exists():
        make_bundle(bundle, name="Colours, red")
    given = {"wheels": wheels(folder / "wheels"), "base": root, "base_sha256": pinned} | fields
    return Wish(bundle, **given)  # type: ignore[arg-type]
