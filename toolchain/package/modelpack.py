"""The bundle as an OCI artifact for registries: CNCF ModelPack's model-spec, in an OCI layout.

Each file is a layer of its own, raw and so addressed by its own sha256; `org.cncf.model.filepath` says where
it lies. Push it with `skopeo copy oci-archive:FILE docker://…` or oras.
Format: https://github.com/modelpack/model-spec, docs/spec.md and docs/config.md.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from toolchain.package import archive
from toolchain.package.oci import MANIFEST, Layout, as_json
from toolchain.package.payload import Payload
from toolchain.package.sbom import stated_licences

_TYPE = "application/vnd.cncf.model.manifest.v1+json"
_CONFIG = "application/vnd.cncf.model.config.v1+json"
_KINDS = {
    "weight": "application/vnd.cncf.model.weight.v1.raw",
    "doc": "application/vnd.cncf.model.doc.v1.raw",
}


def write(payload: Payload, out: Path) -> None:
    """Write the artifact as an OCI archive."""
    layout = Layout()
    tree = payload.tree(libraries=False)
    layers = [
        layout.add(
            content,
            _KINDS["weight" if name.endswith((".onnx", ".npz")) else "doc"],
            annotations={"org.cncf.model.filepath": name},
        )
        for name, content in sorted(tree.items())
    ]
    created = datetime.fromtimestamp(payload.wish.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {
        "descriptor": {
            "name": payload.name, "version": payload.version, "createdAt": created,
            "licenses": list(dict.fromkeys(licence for _, licence in stated_licences(payload.manifest))),
        },
        "config": {"format": "onnx", "capabilities": {"inputTypes": ["image"], "outputTypes": ["other"]}},
        "modelfs": {
            "type": "layers",
            "diffIds": [f"sha256:{hashlib.sha256(tree[name]).hexdigest()}" for name in sorted(tree)],
        },
    }  # fmt: skip
    content = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": _TYPE,
        "config": layout.add(as_json(about), _CONFIG),
        "layers": layers,
    }
    manifest = layout.add(as_json(content), MANIFEST, artifactType=_TYPE)
    out.write_bytes(archive.tar(layout.tree(manifest, f"{payload.name}:{payload.tag}"), payload.wish.epoch))
