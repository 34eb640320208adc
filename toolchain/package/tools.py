"""Outside programs: found, or told with the Debian package that brings them; run, or told why not."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from toolchain.errors import HostError, PackageError

DEBIAN = {
    "openssl": "openssl",
    "mksquashfs": "squashfs-tools",
    "rauc": "rauc",
    "mender-artifact": "mender-artifact",
    "qemu-aarch64": "qemu-user (10 or newer)",
    "qemu-x86_64": "qemu-user (10 or newer)",
}


def find(tool: str) -> str:
    """The program's path. Raises HostError naming the Debian package that brings it."""
    path = shutil.which(tool)
    if path is None:
        raise HostError(f"{tool} is not installed on this machine: apt-get install {DEBIAN[tool]}")
    return path


def run(words: Sequence[str | Path], *, epoch: int | None = None) -> None:
    """Run a program, SOURCE_DATE_EPOCH set. Raises HostError (missing) or PackageError with its last line."""
    environment = dict(os.environ) if epoch is None else os.environ | {"SOURCE_DATE_EPOCH": str(epoch)}
    said = failure(words, environment)
    if said is not None:
        raise PackageError(f"{words[0]} failed: {said}")


def failure(words: Sequence[str | Path], environment: dict[str, str] | None = None) -> str | None:
    """Run a program; the last line of what it said when it failed, else None."""
    command = [find(str(words[0])), *map(str, words[1:])]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, env=environment
    )
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {done.returncode}"
