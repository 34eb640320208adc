"""A machine that QEMU emulates, with UEFI firmware, booting a disk image; one port of it is reached from here."""

from __future__ import annotations

import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

SHARE = Path("/usr/share")


@dataclass(frozen=True)
class Kind:
    """What is emulated, and the firmware's files below /usr/share."""

    emulator: str
    machine: str
    processor: str
    code: str
    variables: str

    @property
    def missing(self) -> str | None:
        """What has to be installed first."""
        if shutil.which(self.emulator) is None:
            return f"{self.emulator} is missing: apt-get install qemu-system-x86 qemu-system-arm"
        if not (SHARE / self.code).exists():
            return f"{SHARE / self.code} is missing: apt-get install ovmf qemu-efi-aarch64"
        return None


# EPYC: AVX2 without VNNI, and a processor for which the kernel keeps no page tables of its own (Meltdown), whose
# switching costs an emulated one far more than a real one. Cortex-A72: that of a Raspberry Pi 4.
KINDS = {
    "amd64": Kind("qemu-system-x86_64", "q35", "EPYC", "OVMF/OVMF_CODE_4M.fd", "OVMF/OVMF_VARS_4M.fd"),
    "arm64": Kind("qemu-system-aarch64", "virt", "cortex-a72", "AAVMF/AAVMF_CODE.fd", "AAVMF/AAVMF_VARS.fd"),
}


# How a container is started on a device: no network but its own loopback, a read-only root, no rights.
CONTAINER = [
    "podman",
    "--cgroup-manager=cgroupfs",
    "--runtime",
    "runc",
    "run",
    "--network",
    "none",
    "--read-only",
]
CONTAINER += ["--cap-drop=all", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def qemu(arch: str, image: Path, folder: Path, port: int) -> list[str]:
    """How it is powered on: two cores, 1 GB; its port 8080 is `port` here, its console `folder`/serial.log."""
    kind = KINDS[arch]
    variables = folder / "vars.fd"
    shutil.copy(SHARE / kind.variables, variables)
    drives = (
        f"if=pflash,format=raw,readonly=on,file={SHARE / kind.code}",
        f"if=pflash,format=raw,file={variables}",
        f"if=virtio,format=raw,readonly=on,file={image}",
    )
    words = [kind.emulator, "-machine", kind.machine, "-cpu", kind.processor, "-accel", "tcg,thread=multi"]
    words += ["-m", "1024", "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot"]
    words += ["-serial", f"file:{folder / 'serial.log'}"]
    words += [word for drive in drives for word in ("-drive", drive)]
    words += ["-netdev", f"user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:8080"]
    return [*words, "-device", "virtio-net-pci,netdev=n,romfile="]
