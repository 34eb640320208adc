"""A signed RAUC update bundle: a squashfs with bundle, runtime and libraries for the slot class `appfs`.

The slot is mounted at /opt/toolchain, from where the device's unit starts the server. `rauc info` does not read
the payload of a verity bundle: only installing or `rauc extract` finds one that was changed.
Format: RAUC's reference, "Manifest" (format=verity). The unsigned payload, appfs.squashfs, is reproducible; the
signature of the bundle around it is not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from toolchain.errors import PackageError
from toolchain.package import squash, tools
from toolchain.package.payload import Payload

IMAGE = "appfs.squashfs"


def write(payload: Payload, out: Path) -> None:
    """Write the bundle. Raises PackageError without key and certificate, HostError without rauc or mksquashfs."""
    wish = payload.wish
    if wish.key is None or wish.certificate is None:
        raise PackageError(
            "a RAUC bundle is signed: give --key and --certificate ('toolchain trust new' makes them)"
        )
    for tool in ("rauc", "mksquashfs"):
        tools.find(tool)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        content, bundle = Path(scratch, "content"), Path(scratch, "out.raucb")
        content.mkdir()
        squash.write(payload.tree(), wish.epoch, content / IMAGE)
        (content / "manifest.raucm").write_text(manifest(payload))
        words: list[str | Path] = ["rauc", "bundle", f"--cert={wish.certificate}", f"--key={wish.key}"]
        tools.run([*words, content, bundle], epoch=wish.epoch)
        bundle.replace(out)


def manifest(payload: Payload) -> str:
    """manifest.raucm; RAUC fills in the image's hash and size."""
    return (
        f"[update]\ncompatible={payload.device}\nversion={payload.version}\n"
        f"description=bundle {payload.manifest.identity}\n\n"
        f"[bundle]\nformat=verity\n\n[image.appfs]\nfilename={IMAGE}\n"
    )
