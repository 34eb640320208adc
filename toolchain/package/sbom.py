"""The software bill of materials: CycloneDX 1.6 (ECMA-424), the model a component with its card.

Byte-reproducible: the serial number follows from the bundle's identity, the time from SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from toolchain import __version__
from toolchain.package.distribution import DISTRIBUTION
from toolchain.package.wheels import Library
from toolchain.record import JSON
from toolchain.runtime.manifest import MODEL, Manifest


def write(manifest: Manifest, version: str, epoch: int, libraries: Sequence[Library]) -> bytes:
    """The BOM as JSON: the application, the model, the runtime, and each library with its wheel's sha256."""
    model = _model(manifest)
    parts = [model, _runtime(), *(_library(one) for one in libraries)]
    serial = uuid.uuid5(uuid.NAMESPACE_OID, f"{manifest.identity} {version} {[p['bom-ref'] for p in parts]}")
    content: dict[str, JSON] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": "toolchain", "version": __version__}]},
            "component": {
                "type": "application", "bom-ref": "application", "name": manifest.name, "version": version,
            },
        },
        "components": parts,
        "dependencies": [
            {"ref": "application", "dependsOn": [str(part["bom-ref"]) for part in parts]},
        ],
    }  # fmt: skip
    return (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _model(manifest: Manifest) -> dict[str, Any]:
    licences = [str(one["licence"]) for one in manifest.raw.get("licences", []) if one.get("licence")]
    files = [
        {
            "type": "file", "bom-ref": f"model/{name}", "name": name,
            "hashes": [{"alg": "SHA-256", "content": digest}],
        }
        for name, digest in sorted(manifest.files.items())
    ]  # fmt: skip
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": f"{manifest.name} ({manifest.variant})",
        "version": manifest.identity[:12],
        "hashes": [{"alg": "SHA-256", "content": manifest.files[MODEL]}],
        "licenses": [{"license": {"name": name}} for name in dict.fromkeys(licences)],
        "modelCard": {
            "modelParameters": {
                "task": str(manifest.raw["task"]),
                "inputs": [{"format": f"{manifest.input.dtype} {list(manifest.input.shape)}"}],
                "outputs": [{"format": f"{manifest.output.dtype} {list(manifest.output.shape)}"}],
            }
        },
        "components": files,
    }


def _runtime() -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": "runtime",
        "name": DISTRIBUTION,
        "version": __version__,
        "purl": f"pkg:pypi/{DISTRIBUTION}@{__version__}",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }


def _library(library: Library) -> dict[str, Any]:
    name = library.name.lower()
    return {
        "type": "library",
        "bom-ref": f"library/{name}",
        "name": library.name,
        "version": library.version,
        "purl": f"pkg:pypi/{name}@{library.version}",
        "hashes": [{"alg": "SHA-256", "content": library.sha256}],
        "licenses": [{"license": {"name": library.licence}}],
    }
