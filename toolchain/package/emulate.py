"""Whether a bundle answers on a processor that is not here: its golden pictures under QEMU's user emulation.

    python -m toolchain.package.emulate BUNDLE --isa arm64 --wheels wheels-arm64 --base base.tar --base-sha256 HEX

What ships is run: the runtime, the wheels and the base's own Python. The families: "x86-avx2" as `qemu-x86_64 -cpu
Haswell`, which saturates u8 x s8 sums as that processor does, and "arm64" as `qemu-aarch64`. QEMU 7.2 crashes in
onnxruntime, so 10 or newer is asked for. Answers are what is emulated; speed is not.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from toolchain.errors import HostError, PackageError, ToolchainError, VerificationError
from toolchain.package import pinned, squash, tools
from toolchain.package.oci import pinned_base
from toolchain.package.payload import ENVIRONMENT, Payload, Wish, load

# ISA family: (architecture, emulator and its options).
EMULATORS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "x86-avx2": ("amd64", ("qemu-x86_64", "-cpu", "Haswell")),
    "arm64": ("arm64", ("qemu-aarch64",)),
}
LEAST_QEMU = 10
_SECONDS = 540


def verify(wish: Wish, isa: str) -> str:
    """Verify a bundle on an emulated processor; returns what the runtime said there.

    Raises VerificationError when the bundle claims no tolerance for `isa` or fails it, HostError without QEMU,
    PackageError for wheels or a base that do not fit.
    """
    if isa not in EMULATORS:
        raise PackageError(f"--isa {isa}: cannot be emulated; there are {', '.join(EMULATORS)}")
    emulator = EMULATORS[isa][1]
    tool = tools.find(emulator[0])
    said = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)", said)
    if found is None or int(found[1]) < LEAST_QEMU:
        raise HostError(
            f"{emulator[0]}: version {LEAST_QEMU} or newer is needed: apt-get install {tools.DEBIAN[emulator[0]]}"
        )
    payload = load(wish)
    if payload.manifest.optimized_for:
        raise PackageError(
            f"{wish.bundle}: its model is optimized ahead for {payload.manifest.optimized_for}, and an emulated processor "
            "shows the features of this one: verify it on a device"
        )
    with tempfile.TemporaryDirectory() as scratch:
        root, carried = Path(scratch, "root"), Path(scratch, "toolchain")
        carried.mkdir()
        pinned.unpack(pinned_base(payload), root)
        squash.spread(payload.tree(), carried)
        return _run([tool, *emulator[1:]], payload, root, carried, isa)


def _run(emulator: list[str], payload: Payload, root: Path, carried: Path, isa: str) -> str:
    python = root / "usr/bin/python{}.{}".format(*payload.python)
    words = [*emulator, "-L", str(root), str(python), "-m", "toolchain.runtime", "verify"]
    words += [str(carried / "bundle"), "--isa", isa]
    environment = {
        "PATH": "/usr/bin",
        "HOME": str(carried),
        "PYTHONPATH": str(carried / "lib"),
        **ENVIRONMENT,
    }
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise HostError(f"{payload.wish.bundle}: no answer on emulated {isa} in {_SECONDS} s") from e
    if done.returncode == 0:
        return done.stdout
    lines = [line.removeprefix("Error: ") for line in done.stderr.splitlines() if line.startswith("Error: ")]
    kind = {2: PackageError, VerificationError.exit_code: VerificationError}.get(done.returncode, HostError)
    raise kind(f"on emulated {isa}: {lines[-1] if lines else f'ended with {done.returncode}'}")


def main() -> int:
    """Verify one bundle; exit code 3 when it fails what it claims."""
    parser = argparse.ArgumentParser(
        prog="python -m toolchain.package.emulate", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--isa", required=True, choices=list(EMULATORS))
    parser.add_argument("--wheels", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--base-sha256", required=True)
    asked = parser.parse_args()
    arch = EMULATORS[asked.isa][0]
    wish = Wish(asked.bundle, arch, wheels=asked.wheels, base=asked.base, base_sha256=asked.base_sha256)
    try:
        print(f"emulated {asked.isa}: {verify(wish, asked.isa)}", end="")
    except ToolchainError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
