"""How much of the bare sessions' throughput is left when the server is asked more than it can answer.

    python -m benchmarks.serve.saturation --bundle BUNDLE [--rounds 40] [--seconds 4] [--out FILE]

By turns: *bare*, as many threads as the server has workers call one session in a process of its own; *server*, four
clients a worker keep it busy. Clients run on the same processors, so throughput is counted by the CPU seconds of the
answering process alone: calls a CPU second, server over bare. Pass: the 95 % interval (rounds are drawn) of the ratio lies
above 0.9. The bar is meant for ResNet-50 in int8; the smaller the model, the larger the server's share.
Writes benchmarks/results/serve_saturation.ISA.json unless --out says another; exit code 1 when the bar is
missed, 4 when the interval reaches across it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.serve import served
from toolchain.runtime import host
from toolchain.runtime.bundle import Bundle

RESULT = Path(__file__).resolve().parents[1] / "results" / f"serve_saturation.{host.isa()}.json"
BAR = 0.9
_BARE = """
import sys, threading, time
from pathlib import Path
from benchmarks.serve import served
from toolchain.runtime.bundle import Bundle
bundle, workers, seconds = Bundle.load(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3])
session, feed = bundle.session(), {bundle.manifest.input.name: served.picture()[None]}
session.run(feed)
counts, end, start = [0] * workers, time.monotonic() + seconds, time.process_time()
def work(index):
    while time.monotonic() < end:
        session.run(feed)
        counts[index] += 1
threads = [threading.Thread(target=work, args=(i,)) for i in range(workers)]
for one in threads: one.start()
for one in threads: one.join()
print(sum(counts) / (time.process_time() - start))
"""


def bare(bundle: Path, workers: int, seconds: float) -> float:
    """Calls a CPU second of bare sessions."""
    words = [sys.executable, "-c", _BARE, str(bundle), str(workers), str(seconds)]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def answered(server: served.Server, request: bytes, clients: int, seconds: float) -> float:
    """Answers a CPU second of the server's process; refusals (503) do not count."""
    counts, end, start = [0] * clients, time.monotonic() + seconds, server.cpu()

    def work(index: int) -> None:
        client = served.Client(server.port)
        while time.monotonic() < end:
            counts[index] += client.ask(request)[0] == 200
        client.close()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(clients)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return sum(counts) / (server.cpu() - start)


def main() -> int:
    """Measure, record, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    bundle = Bundle.load(asked.bundle)
    request = served.infer(bundle, served.picture())
    rates: dict[str, list[float]] = {"bare": [], "server": []}
    with served.serving(asked.bundle, "--threads", "1", "--workers", str(asked.workers)) as server:
        answered(server, request, 4 * asked.workers, 1)
        for number in range(asked.rounds):
            for name in sorted(rates, reverse=bool(number % 2)):
                rates[name].append(
                    bare(asked.bundle, asked.workers, asked.seconds) if name == "bare"
                    else answered(server, request, 4 * asked.workers, asked.seconds)
                )  # fmt: skip
    ratios = np.array(rates["server"]) / np.array(rates["bare"])
    drawn = np.random.default_rng(1).integers(0, len(ratios), (4000, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    row = {
        "model": f"{bundle.manifest.name} ({bundle.manifest.variant})",
        "bare, calls a CPU s": round(median(rates["bare"]), 1),
        "server, calls a CPU s": round(median(rates["server"]), 1), "ratio": round(float(np.median(ratios)), 3),
        "ci95": [round(float(low), 3), round(float(high), 3)], "verdict": served.verdict(low >= BAR, high < BAR),
    }  # fmt: skip
    what = "Throughput at saturation against bare sessions, by CPU seconds of the answering process"
    record = {"what": what, "rows": [row], "rates": rates, "interpreter": sys.version, "host": host.facts()}
    asked.out.write_text(json.dumps(record, indent=1) + "\n")
    print(row)
    return served.exit_code([row["verdict"]])


if __name__ == "__main__":
    sys.exit(main())
