"""From power-on to an answer: disk images booted by QEMU, without hardware help, by turns.

    make base boot device-wheels && python -m benchmarks.boot.run     # benchmarks/results/boot.ISA.json

Packages the bundle for each architecture, powers the machine on and asks for a picture's label until it is told.
Emulating takes both cores: keep the machine quiet. Pass: the median of every architecture is within 30 s; exit 1
otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.boot.machine import KINDS, free_port, qemu
from toolchain.package import Wish, package
from toolchain.runtime import host

RESULTS = Path(__file__).parents[1] / "results"
BOUND = 30.0
PATIENCE = 300.0


def wish(arch: str, bundle: Path, device: Path) -> Wish:
    """What is packaged, from the base that 'make base' made."""
    base = device / f"base-{arch}.tar"
    pin = hashlib.sha256(base.read_bytes()).hexdigest()
    return Wish(bundle, arch, wheels=device / f"wheels-{arch}", base=base, base_sha256=pin)


def image(arch: str, bundle: Path, device: Path, out: Path) -> None:
    """The disk image of a bundle."""
    boot = device / f"boot-{arch}.tar"
    pin = hashlib.sha256(boot.read_bytes()).hexdigest()
    package(replace(wish(arch, bundle, device), boot=boot, boot_sha256=pin), "disk", out)


def seconds(arch: str, disk: Path) -> float:
    """Power on, ask until there is a label, power off."""
    picture = BytesIO()
    Image.new("L", (32, 32), 128).save(picture, "PNG")
    with tempfile.TemporaryDirectory() as scratch:
        port = free_port()
        begun = time.monotonic()
        with (
            Path(scratch, "qemu.log").open("wb") as complaints,  # a page of warnings at each start
            subprocess.Popen(qemu(arch, disk, Path(scratch), port), stderr=complaints) as machine,
        ):
            try:
                while machine.poll() is None and time.monotonic() - begun < PATIENCE:
                    if _says(port, "GET", "/v2/health/ready") and _says(
                        port, "POST", "/predict", picture.getvalue(), 20.0
                    ):
                        return time.monotonic() - begun
                    time.sleep(0.1)
            finally:
                machine.terminate()
        said = "\n".join(log.read_text(errors="replace")[-2000:] for log in Path(scratch).glob("*.log"))
        raise SystemExit(
            f"{arch}: no answer after {time.monotonic() - begun:.0f} s; QEMU's and its console's end:\n{said}"
        )


def _says(port: int, method: str, path: str, body: bytes | None = None, timeout: float = 0.5) -> bool:
    """Whether it answers with 200. QEMU takes connections at once, also for a machine that does not listen yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> int:
    """Build, boot by turns, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("runs/quickstart/bundle"))
    parser.add_argument(
        "--device", type=Path, default=Path("build/device"), help="what 'make base boot' made"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / f"boot.{host.isa()}.json")
    asked = parser.parse_args()
    if missing := [kind.missing for kind in KINDS.values() if kind.missing]:
        raise SystemExit(missing[0])
    taken: dict[str, list[float]] = {arch: [] for arch in KINDS}
    with tempfile.TemporaryDirectory() as scratch:
        for arch in KINDS:
            image(arch, asked.bundle, asked.device, Path(scratch, arch))
        for _ in range(asked.rounds):
            for arch in KINDS:
                taken[arch].append(seconds(arch, Path(scratch, arch)))
                print(f"{arch}: {taken[arch][-1]:.1f} s", flush=True)
        rows = [_row(arch, times, Path(scratch, arch)) for arch, times in taken.items()]
    record = {
        "what": f"Emulated power-on to a picture's label over HTTP, {asked.bundle.parent.name}, bound {BOUND:g} s",
        "rows": rows,
        "host": host.facts(),
        "note": "Firmware, kernel and server, all of it emulated. EPYC, since for it the kernel keeps no page tables of its "
        "own against Meltdown: as a Haswell, an emulated machine takes some three seconds longer.",
    }
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row["verdict"] == "kept" for row in rows) else 1


def _row(arch: str, times: list[float], disk: Path) -> dict[str, Any]:
    median = statistics.median(times)
    return {
        "architecture": arch,
        "processor": KINDS[arch].processor,
        "image, MB": round(disk.stat().st_size / 1e6, 1),
        "median, s": round(median, 1),
        "all, s": [round(one, 1) for one in times],
        "verdict": "kept" if median <= BOUND else "missed",
    }


if __name__ == "__main__":
    sys.exit(main())
