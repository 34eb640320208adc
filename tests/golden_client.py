"""Ask a server for a bundle's golden pictures, and compare: python golden_client.py BUNDLE URL [SECONDS [ISA]]

Waits until the server is ready, at most SECONDS. Prints seconds waited, pictures, and the largest difference of a
probability; exit code 1 when one differs by more than the bundle's tolerance for ISA (by default this machine's), or
it never was ready.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from toolchain.runtime import host
from toolchain.runtime.bundle import Bundle
from toolchain.runtime.verification import read_golden


def ready(url: str, seconds: float) -> float | None:
    """Seconds until the server said that it is ready; None when it did not in time."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5):
                return time.monotonic() - start
        except OSError:
            time.sleep(0.05)
    return None


def ask(url: str, bundle: Bundle, picture: np.ndarray) -> np.ndarray:
    """The probabilities that the server answers with, by the binary tensor extension, [C]."""
    given = {"name": bundle.manifest.input.name, "datatype": "UINT8", "shape": [1, *picture.shape]}
    given["parameters"] = {"binary_data_size": picture.size}
    content = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(content))}
    where = f"{url}/v2/models/{bundle.manifest.name}/infer"
    request = urllib.request.Request(where, content + np.ascontiguousarray(picture).tobytes(), headers)
    with urllib.request.urlopen(request, timeout=60) as reply:
        length = int(reply.headers["Inference-Header-Content-Length"])
        return np.frombuffer(reply.read()[length:], np.float32)


def main() -> int:
    """Compare; the exit code."""
    bundle, url = Bundle.load(Path(sys.argv[1])), sys.argv[2]
    waited = ready(url, float(sys.argv[3]) if len(sys.argv) > 3 else 60)
    if waited is None:
        print("never ready")
        return 1
    golden = read_golden(bundle.folder / bundle.manifest.golden)
    found = np.stack([ask(url, bundle, picture) for picture in golden.pictures])
    worst = float(np.abs(found - golden.probabilities).max())
    print(f"ready after {waited:.2f} s; {len(found)} golden pictures, largest difference {worst:.3g}")
    isa = sys.argv[4] if len(sys.argv) > 4 else host.isa()
    return int(not worst <= bundle.manifest.tolerances[isa])


if __name__ == "__main__":
    sys.exit(main())
