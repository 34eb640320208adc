"""The software bill of materials: CycloneDX 1.6 (ECMA-424), the model a component with its card.

Byte-reproducible: the serial number follows from the bundle's identity, the time from SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from toolchain import __version__
from toolchain.package.distribution import DISTRIBUTION
from toolchain.package.wheels import Library
from toolchain.record import JSON
from toolchain.runtime.errors import BundleError
from toolchain.runtime.manifest import MODEL, Manifest


def write(
    manifest: Manifest,
    version: str,
    epoch: int,
    libraries: Sequence[Library],
    system: Sequence[DebianPackage] = (),
) -> bytes:
    """The BOM as JSON: the application, the model, the runtime, each library with its wheel's sha256, and the
    packages of the `system` below them."""
    parts = [_model(manifest), _runtime(), *map(_library, libraries), *map(_debian, system)]
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


@dataclass(frozen=True)
class DebianPackage:
    """A package of a Debian root file system, as its dpkg database says."""

    name: str
    version: str
    arch: str


def installed(status: bytes) -> tuple[DebianPackage, ...]:
    """The packages that a dpkg database (`var/lib/dpkg/status`) names as installed or unpacked, by name."""
    found = []
    for paragraph in status.decode(errors="replace").split("\n\n"):
        lines = (line.partition(": ") for line in paragraph.splitlines() if not line.startswith(" "))
        fields = {key: value for key, _, value in lines}
        if "Version" in fields and "not-installed" not in fields.get("Status", ""):
            found.append(
                DebianPackage(fields["Package"], fields["Version"], fields.get("Architecture", "all"))
            )
    return tuple(sorted(found, key=lambda one: (one.name, one.arch)))


def _debian(package: DebianPackage) -> dict[str, Any]:
    version = quote(package.version, safe="")
    return {
        "type": "library",
        "bom-ref": f"system/{package.name}:{package.arch}",
        "name": package.name,
        "version": package.version,
        "purl": f"pkg:deb/debian/{quote(package.name, safe='')}@{version}?arch={package.arch}",
    }


def stated_licences(manifest: Manifest) -> list[tuple[str, str]]:
    """(what, its licence) for what the manifest says of weights and data. Raises BundleError for another form."""
    stated = manifest.raw.get("licences", [])
    if not isinstance(stated, list) or not all(isinstance(one, dict) for one in stated):
        raise BundleError(f"{manifest.name}: field 'licences' of its manifest must be a list of objects")
    return [(_line(one.get("what")), _line(one["licence"])) for one in stated if one.get("licence")]


def _line(text: object) -> str:
    return " ".join(str(text).split())


def _model(manifest: Manifest) -> dict[str, Any]:
    licences = [licence for _, licence in stated_licences(manifest)]
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
