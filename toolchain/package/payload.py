"""What every target carries: bundle, runtime and its libraries, SBOM, licences; laid out once, in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from toolchain import __version__
from toolchain.errors import PackageError
from toolchain.package import bytecode, distribution, sbom, wheels
from toolchain.runtime import sealed, verification
from toolchain.runtime.bundle import Bundle
from toolchain.runtime.manifest import MANIFEST, Manifest

ARCHES = tuple(wheels.MACHINES)
# Which distribution of onnxruntime each kind of device takes.
ACCELERATORS: Mapping[str, str] = {
    "cpu": "onnxruntime",
    "cuda": "onnxruntime-gpu",
    "jetson": "onnxruntime-gpu",
}
PORT = 8080
# Python neither reads the current folder or the user's, nor writes beside what was verified.
ENVIRONMENT: Mapping[str, str] = {
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Wish:
    """What is to be packaged, and how.

    arch: "amd64" or "arm64". accelerator: "cpu", "cuda" or "jetson". wheels: the folder with the libraries'
    wheels. base, base_sha256: a root file system as tar, pinned; boot, boot_sha256: a kernel, an EFI stub and a
    busybox, as Debian installs them, likewise. version: the package's; by default the
    toolchain's with the bundle's identity. device: what update bundles say that they fit; by default
    "toolchain-ARCH". key, certificate: who signs. epoch: the time that everything carries, in seconds.
    """

    bundle: Path
    arch: str = "amd64"
    accelerator: str = "cpu"
    wheels: Path | None = None
    base: Path | None = None
    base_sha256: str | None = None
    boot: Path | None = None
    boot_sha256: str | None = None
    version: str | None = None
    device: str | None = None
    key: Path | None = None
    certificate: Path | None = None
    epoch: int = distribution.REPRODUCIBLE_EPOCH


@dataclass(frozen=True)
class Payload:
    """A checked bundle with all that goes along; paths are relative to a folder of the target's choice."""

    wish: Wish
    manifest: Manifest
    bundle: Mapping[str, bytes]

    @property
    def name(self) -> str:
        """The bundle's name in letters that every package format takes: a-z, 0-9, and - between."""
        return re.sub(r"[^a-z0-9]+", "-", self.manifest.name.lower()).strip("-") or "model"

    @property
    def version(self) -> str:
        """As wished, or the toolchain's version, `+` and 12 digits of the bundle's identity."""
        version = self.wish.version or f"{__version__}+{self.manifest.identity[:12]}"
        if not re.fullmatch(r"[0-9][A-Za-z0-9.+~]{,63}", version):
            raise PackageError(
                f"--version {version}: must begin with a digit and hold letters, digits, . + ~ only, 64 at most"
            )
        return version

    @property
    def tag(self) -> str:
        """The version in what registries and Mender take: without + and ~."""
        return re.sub(r"[+~]", "-", self.version)

    @property
    def device(self) -> str:
        """What an update client compares with its own kind of device."""
        device = self.wish.device or f"toolchain-{self.wish.arch}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", device):
            raise PackageError(f"--device {device}: letters, digits, '.', '_' and '-' only")
        return device

    @cached_property
    def libraries(self) -> tuple[wheels.Library, ...]:
        """numpy, pillow and onnxruntime as unpacked wheels.

        Raises PackageError where they are missing, or of another version than the model was optimized ahead for.
        """
        if self.wish.wheels is None:
            raise PackageError(
                "this target carries the libraries: give --wheels FOLDER ('make device-wheels')"
            )
        runtime = ACCELERATORS[self.wish.accelerator]
        found = wheels.libraries(self.wish.wheels, self.wish.arch, runtime)
        meant, versions = self.manifest.optimized_for, [one.version for one in found if runtime in one.name]
        if meant and not any(meant.startswith(f"onnxruntime {version} ") for version in versions):
            raise PackageError(
                f"{self.wish.bundle}: was optimized ahead for {meant}, and {self.wish.wheels} has onnxruntime "
                f"{', '.join(versions)}: put the former's wheel there, or leave optimize_offline out"
            )
        return found

    @property
    def python(self) -> tuple[int, int]:
        """The Python that the libraries need, (3, 11)."""
        if self.wish.wheels is None:
            raise PackageError(
                "this target carries the libraries: give --wheels FOLDER ('make device-wheels')"
            )
        return wheels.python_of(self.wish.wheels, self.wish.arch)

    def tree(
        self, *, libraries: bool = True, system: tuple[sbom.DebianPackage, ...] = ()
    ) -> dict[str, bytes]:
        """bundle/…, sbom.cdx.json, licences/…, and with `libraries` lib/… (runtime and libraries, with byte code).

        system: what lies below in an image, for the bill of materials.
        """
        carried = self.libraries if libraries else ()
        found = {f"bundle/{name}": content for name, content in self.bundle.items()}
        for library in carried:
            found |= {f"lib/{name}": content for name, content in library.files.items()}
            found |= {f"licences/{library.name}/{n}": c for n, c in library.licences.items()}
        if libraries:
            found |= {f"lib/{name}": content for name, content in distribution.sources().items()}
            found |= bytecode.compiled(found, self.python)
        found["licences/toolchain/LICENSE"] = _licence()
        found["sbom.cdx.json"] = sbom.write(self.manifest, self.version, self.wish.epoch, carried, system)
        return found


def load(wish: Wish) -> Payload:
    """Read a bundle and check every hash. Raises BundleError, VerificationError, PackageError."""
    if wish.accelerator == "jetson" and wish.arch != "arm64":
        raise PackageError("--accelerator jetson: those are arm64 devices; give --arch arm64")
    declared = Bundle.load(wish.bundle).manifest
    families = "arm64" if wish.arch == "arm64" else "x86-"
    if not any(family.startswith(families) for family in declared.tolerances):
        raise PackageError(
            f"{wish.bundle}: promises answers on {', '.join(sorted(declared.tolerances))} only, not on {wish.arch}"
        )
    if declared.optimized_for and wish.accelerator != "cpu":
        raise PackageError(
            f"{wish.bundle}: its model is optimized ahead for CPUs, not for {wish.accelerator}"
        )
    verification.check_files(wish.bundle, declared)
    names = [MANIFEST, *declared.files]
    content = {name: (wish.bundle / name).read_bytes() for name in sorted(names)}
    for name, digest in declared.files.items():  # what was read is what is carried
        if hashlib.sha256(sealed.opened(content[name], name)).hexdigest() != digest:
            raise PackageError(f"{wish.bundle / name}: changed while it was read; try again")
    return Payload(wish, declared, content)


def command(wish: Wish, folder: str, *, host: str, port: str = str(PORT)) -> list[str]:
    """How a target starts the server, which verifies the bundle in `folder` before it is ready."""
    words = ["/usr/bin/python3", "-m", "toolchain.runtime", "serve", folder, "--host", host, "--port", port]
    return words if wish.accelerator == "cpu" else [*words, "--provider", "cuda"]


def _licence() -> bytes:
    """The toolchain's own licence, of the checkout or as the installed distribution carries it."""
    from importlib import metadata

    checkout = Path(__file__).resolve().parents[2] / "LICENSE"
    if checkout.is_file():
        return checkout.read_bytes()
    text = metadata.distribution("toolchain").read_text("licenses/LICENSE")
    if text is None:
        raise PackageError("the installed toolchain lacks its LICENSE; install it again")
    return text.encode()
