"""The OCI image: its size, and from a container's start to its server being ready.

    make base device-wheels && python -m benchmarks.boot.container     # benchmarks/results/container.ISA.json

Wants root, podman, runc and skopeo, no daemon. The archive is loaded and started ROUNDS times as on a device: no network but
its own loopback, a read-only root, no rights. Ready is the first 200 of /v2/health/ready, asked from within the container's
network; start is what podman notes as the container's own (from the command on, podman's work is in it, and told beside).
Keep the machine quiet. Pass: at most 65 MB, and ready within 2 s in the median; exit 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from benchmarks.boot.machine import CONTAINER
from benchmarks.boot.run import RESULTS, wish
from toolchain.package import package
from toolchain.runtime import host

MEGABYTES, SECONDS = 65.0, 2.0
ASK = """
import http.client, time
end = time.time() + 60
while time.time() < end:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=5)
        connection.request("GET", "/v2/health/ready")
        if connection.getresponse().status == 200:
            print(time.time())
            break
    except OSError:
        pass
    time.sleep(0.005)
"""


def said(*words: object) -> str:
    """What a command says; SystemExit with its complaint when it fails."""
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def start(image: str) -> tuple[float, float]:
    """Seconds until it is ready: from the container's start, and from the command that starts it."""
    name = f"toolchain-boot-{os.getpid()}"
    begun = time.time()
    try:
        said(*CONTAINER, "-d", "--name", name, image)
        pid = said("podman", "inspect", "-f", "{{.State.Pid}}", name)
        ready = said("nsenter", "-n", "-t", pid, sys.executable, "-S", "-c", ASK)
        if not ready:
            raise SystemExit(f"not ready after a minute:\n{said('podman', 'logs', name)}")
        noted = said(
            "podman", "inspect", "-f", '{{.State.StartedAt.Format "2006-01-02T15:04:05.000000Z07:00"}}', name
        )
        return float(ready) - datetime.fromisoformat(noted).timestamp(), float(ready) - begun
    finally:
        subprocess.run(["podman", "rm", "-f", "-t", "5", name], capture_output=True, check=False)


def started(bundle: Path, device: Path, rounds: int) -> tuple[float, list[tuple[float, float]]]:
    """The archive's megabytes, and of each start the seconds until it is ready."""
    image = f"localhost/toolchain-boot-{os.getpid()}:1"
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, "image.tar")
        package(wish("amd64", bundle, device), "oci", archive)
        said("skopeo", "copy", "-q", f"oci-archive:{archive}", f"containers-storage:{image}")
        megabytes = archive.stat().st_size / 1e6
    try:
        return megabytes, [start(image) for _ in range(rounds)]
    finally:
        subprocess.run(["podman", "rmi", "-f", image], capture_output=True, check=False)


def main() -> int:
    """Build, load, start, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("runs/quickstart/bundle"))
    parser.add_argument("--device", type=Path, default=Path("build/device"), help="what 'make base' made")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / f"container.{host.isa()}.json")
    asked = parser.parse_args()
    if missing := [tool for tool in ("podman", "runc", "skopeo", "nsenter") if shutil.which(tool) is None]:
        raise SystemExit(f"{', '.join(missing)}: not installed")
    if platform.machine() != "x86_64":
        raise SystemExit("the amd64 image starts on x86-64 only")
    megabytes, found = started(asked.bundle, asked.device, asked.rounds)
    own, whole = ([round(seconds, 3) for seconds in column] for column in zip(*found, strict=True))
    kept = megabytes <= MEGABYTES and statistics.median(own) <= SECONDS
    row = {
        "image, MB": round(megabytes, 1), "ready after its start, median, s": round(statistics.median(own), 2),
        "slowest, s": max(own), "from the command, median, s": round(statistics.median(whole), 2),
        "verdict": "kept" if kept else "missed",
    }  # fmt: skip
    bounds = f"size (bound {MEGABYTES:g} MB), and seconds until its server is ready (bound {SECONDS:g} s)"
    record = {
        "what": f"OCI image of {asked.bundle.parent.name}, amd64: {bounds}", "rows": [row], "all, s": own,
        "host": host.facts(), "note": "podman with runc, no network, read-only root.",
    }  # fmt: skip
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    print(row)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
