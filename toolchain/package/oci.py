"""An OCI image archive, written without a daemon: the base as one layer, what we carry as the next.

`docker load`, `podman load` and `skopeo copy oci-archive:…` take it. The base is a root file system as a tar,
pinned by sha256, that holds the Python which the libraries are built for. Formats: OCI image-spec 1.1 (layout,
manifest, config), and Docker's manifest.json for engines before 25.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from toolchain.errors import PackageError
from toolchain.package import archive, bytecode, pinned
from toolchain.package.payload import ENVIRONMENT, PORT, Payload, command
from toolchain.package.sbom import DebianPackage, installed
from toolchain.record import JSON

FOLDER = "/opt/toolchain"
USER = "10001:10001"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
HEALTH = ("/usr/bin/python3", "-m", "toolchain.runtime.server.ready", str(PORT))


@dataclass
class Layout:
    """An OCI image layout being filled: blobs by digest. `add` gives the descriptor of what was added."""

    blobs: dict[str, bytes] = field(default_factory=dict)

    def add(self, content: bytes, media: str, **more: JSON) -> dict[str, Any]:
        """Store a blob and return its descriptor, with `more` fields."""
        digest = hashlib.sha256(content).hexdigest()
        self.blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content), **more}

    def tree(self, manifest: dict[str, Any], tag: str) -> dict[str, bytes]:
        """All files of the layout, its index naming `manifest` as `tag`."""
        named = manifest | {"annotations": {"org.opencontainers.image.ref.name": tag}}
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [named]}
        return self.blobs | {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": as_json(index)}


def as_json(value: JSON) -> bytes:
    """JSON of one form: sorted, without spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def write(payload: Payload, out: Path) -> None:
    """Write the archive. Raises PackageError for a base that is missing, not pinned, another, or unfit."""
    base = pinned_base(payload)
    tree = {f"{FOLDER[1:]}/{name}": content for name, content in payload.tree(system=system_of(base)).items()}
    tree |= bytecode.of_base(base, payload.wish.base, payload.python)
    ours = archive.tar(tree, payload.wish.epoch)
    zipped = [base if base.startswith(b"\x1f\x8b") else archive.gzipped(base), archive.gzipped(ours)]
    unpacked = [_plain(base), ours]
    layout = Layout()
    layers = [layout.add(layer, LAYER) for layer in zipped]
    config = layout.add(as_json(_config(payload, unpacked)), _CONFIG)
    content = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    platform = {"architecture": payload.wish.arch, "os": "linux"}
    manifest = layout.add(as_json(content), MANIFEST, platform=platform)
    for_docker = {
        "Config": _place(config),
        "RepoTags": [f"{payload.name}:{payload.tag}"],
        "Layers": [_place(layer) for layer in layers],
    }
    tree = layout.tree(manifest, f"{payload.name}:{payload.tag}") | {"manifest.json": as_json([for_docker])}
    out.write_bytes(archive.tar(tree, payload.wish.epoch))


def _place(descriptor: Mapping[str, Any]) -> str:
    return "blobs/" + str(descriptor["digest"]).replace(":", "/")


def _config(payload: Payload, layers: list[bytes]) -> dict[str, Any]:
    created = datetime.fromtimestamp(payload.wish.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{FOLDER}/lib", **ENVIRONMENT}
    if payload.wish.accelerator != "cpu":  # NVIDIA's runtime gives what these ask for
        environment |= {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    return {
        "architecture": payload.wish.arch,
        "os": "linux",
        "created": created,
        "config": {
            "User": USER,
            "Env": [f"{key}={value}" for key, value in environment.items()],
            "Entrypoint": command(payload.wish, f"{FOLDER}/bundle", host="0.0.0.0"),
            "ExposedPorts": {f"{PORT}/tcp": {}},
            "WorkingDir": FOLDER,
            "StopSignal": "SIGTERM",
            "Healthcheck": {
                "Test": ["CMD", *HEALTH],
                "Interval": 10_000_000_000, "Timeout": 5_000_000_000, "StartPeriod": 10_000_000_000,
            },
            "Labels": {
                "org.opencontainers.image.title": payload.manifest.name,
                "org.opencontainers.image.version": payload.version,
                "toolchain.bundle.identity": payload.manifest.identity,
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(x).hexdigest()}" for x in layers]},
        "history": [{"created": created, "created_by": what} for what in ("base", "toolchain package")],
    }  # fmt: skip


def pinned_base(payload: Payload) -> bytes:
    """The base's content, once its sha256 is the pinned one and it holds the Python that the wheels need.

    Raises PackageError otherwise.
    """
    wish = payload.wish
    content = pinned.content(wish.base, wish.base_sha256, "--base")
    python = "usr/bin/python{}.{}".format(*payload.python)
    if not {python, "usr/bin/python3"} <= pinned.names(content, wish.base):
        raise PackageError(
            f"{wish.base}: has no /{python} as /usr/bin/python3, which the wheels are built for"
        )
    return content


def system_of(base: bytes) -> tuple[DebianPackage, ...]:
    """The packages in a root file system's tar; none where it is no Debian."""
    with tarfile.open(fileobj=io.BytesIO(base)) as root:
        for member in root:
            if member.name.removeprefix("./") == "var/lib/dpkg/status" and (file := root.extractfile(member)):
                return installed(file.read())
    return ()


def _plain(base: bytes) -> bytes:
    """The tar itself, which a layer's diff_id is made from; gzip files may have several members."""
    if not base.startswith(b"\x1f\x8b"):
        return base
    return gzip.decompress(base)
