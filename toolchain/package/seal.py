"""A copy of a bundle whose model files are encrypted at rest; see toolchain/runtime/sealed.py for what that is worth."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from toolchain.errors import PackageError
from toolchain.runtime import external, manifest, sealed, verification
from toolchain.runtime.bundle import Bundle
from toolchain.store import host_faults

MODELS = (manifest.MODEL, manifest.PLAIN_MODEL)


def write(bundle: Path, out: Path) -> None:
    """Write the copy to `out`, a folder that is not there yet, whole or not at all.

    Manifest, hashes and identity stay as they are. Raises PackageError for a bundle that is sealed already or keeps
    weights in other files, and as Bundle.load, verification.check_files and sealed.seal do.
    """
    if out.exists():
        raise PackageError(f"{out}: is there already; name another folder")
    declared = Bundle.load(bundle).manifest
    verification.check_files(bundle, declared)
    for name in MODELS:
        if sealed.starts_sealed(bundle / name):
            raise PackageError(f"{bundle / name}: is sealed already")
        if external.locations(bundle / name):
            raise PackageError(f"{bundle / name}: keeps weights in another file, which would not be sealed")
    with host_faults(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            copy = Path(scratch, out.name)
            shutil.copytree(bundle, copy)
            for name in MODELS:
                content = sealed.seal((bundle / name).read_bytes(), name)
                (copy / name).write_bytes(content)
            copy.rename(out)
