"""A bundle, made into what a device installs. One file a target; a new one is listed in TARGETS.

Every target carries bundle, runtime, SBOM and licences, is the same bytes for the same inputs (signatures lie
beside), and starts the runtime's server, which verifies the bundle's hashes and golden answers before it is ready.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from toolchain.errors import PackageError
from toolchain.package import deb, disk, docker, mender, modelpack, oci, rauc, triton, trust
from toolchain.package.payload import ACCELERATORS, ARCHES, Payload, Wish, load
from toolchain.store import host_faults

__all__ = ["ACCELERATORS", "ARCHES", "TARGETS", "Wish", "package"]

TARGETS: Mapping[str, Callable[[Payload, Path], None]] = {
    "docker": docker.write,
    "oci": oci.write,
    "deb": deb.write,
    "triton": triton.write,
    "modelpack": modelpack.write,
    "rauc": rauc.write,
    "mender": mender.write,
    "disk": disk.write,
}


def package(wish: Wish, target: str, out: Path) -> list[Path]:
    """Write the package to `out`, whole or not at all, with its signature where a key is given.

    Returns what was written. Raises PackageError, BundleError, VerificationError, HostError.
    """
    if target not in TARGETS:
        raise PackageError(f"--target {target}: unknown; there are {', '.join(TARGETS)}")
    if out.is_dir():
        raise PackageError(f"{out}: is a folder; --out names the file to write")
    if wish.certificate is not None and wish.key is None:
        raise PackageError("--certificate goes with --key: the private key that belongs to it")
    payload = load(wish)
    with host_faults(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
            made = Path(scratch, out.name)
            TARGETS[target](payload, made)
            signed = [] if wish.key is None else [trust.sign(made, wish.key, wish.certificate)]
            # An older signature must never lie beside a newer file.
            for suffix in (".sig", ".p7s"):
                Path(f"{out}{suffix}").unlink(missing_ok=True)
            written = [out.parent / one.name for one in (made, *signed)]
            for one in (made, *signed):
                one.replace(out.parent / one.name)
    return written
