"""A Mender artifact (version 3) that installs our Debian package by Mender's update module `deb`.

With a key the artifact is signed inside, as `mender-artifact validate -k PUBLIC` and the client check it. The .deb
in it is reproducible; the artifact around it carries mender-artifact's own times.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from toolchain.package import deb, tools
from toolchain.package.payload import Payload


def write(payload: Payload, out: Path) -> None:
    """Write the artifact. Raises HostError without mender-artifact, PackageError as `deb.write`."""
    tools.find("mender-artifact")
    name = deb.package_name(payload)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        package = Path(scratch, f"{name}_{payload.tag}_{payload.wish.arch}.deb")
        deb.write(payload, package)
        artifact = Path(scratch, "out.mender")
        words: list[str | Path] = ["mender-artifact", "write", "module-image", "-T", "deb", "-f", package]
        words += ["-n", f"{name}-{payload.version}", "-t", payload.device, "-o", artifact]
        words += ["--compression", "none"]  # the .deb is compressed
        if payload.wish.key is not None:  # mender-artifact 3.9 reads EC keys in their older form only
            key = Path(scratch, "key")
            tools.run(["openssl", "pkey", "-in", payload.wish.key, "-traditional", "-out", key])
            words += ["-k", key]
        tools.run(words, epoch=payload.wish.epoch)
        artifact.replace(out)
