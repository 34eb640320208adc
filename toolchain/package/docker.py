"""A build context for docker or buildah: Dockerfile and files, as a tar that `docker build - < FILE` takes.

The Dockerfiles (docker/*.Dockerfile) run nothing while building: they only copy, so that a base without a
shell will do, and so that the result depends on the base and the context alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from toolchain.errors import PackageError
from toolchain.package import archive
from toolchain.package.payload import Payload


def dockerfile(accelerator: str) -> bytes:
    """The shipped Dockerfile for "cpu", "cuda" or "jetson"."""
    checkout = Path(__file__).resolve().parents[2] / "docker"
    folder = checkout if checkout.is_dir() else Path(sys.prefix, "share", "toolchain", "docker")
    path = folder / f"{accelerator}.Dockerfile"
    try:
        return path.read_bytes()
    except OSError as e:
        raise PackageError(f"{path}: cannot be read ({e.strerror}); install the toolchain again") from e


def write(payload: Payload, out: Path) -> None:
    """Write the context. Raises PackageError where libraries are missing."""
    tree = {f"toolchain/{name}": content for name, content in payload.tree().items()}
    tree["Dockerfile"] = dockerfile(payload.wish.accelerator)
    out.write_bytes(archive.tar(tree, payload.wish.epoch))
