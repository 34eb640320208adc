"""How fast this toolchain itself is, against the record of an earlier version on the same kind of machine.

    python -m benchmarks.bench.own [--rounds 12] [--bound 15]    # measures, compares
    python -m benchmarks.bench.own --write                       # keeps benchmarks/results/own.ISA-KIND.json instead

Each round does every part once, in random order, on one thread: training a small network for two epochs on digits, its
export, its quantization, loading the plain file, a call (the median of 200), and the start of the command line in a
process of its own. A round before warms up. Compared are medians; the interval of their ratio draws rounds of both
records, at 98.3 %: there are up to three looks, and 5 % is what all of them may err. Regression: the whole interval lies
above the bound (in %); pass: it lies below; else inconclusive, and as many rounds more are measured, twice at most. Two
runs at different times also differ by what the machine did meanwhile, so the bound is wide: `toolchain compare` is for
less. Each kind of machine (`host.fingerprint`) has a record of its own, and is compared with no other; where none is
committed, the first run keeps one below build/bench, for the next to be compared with. Where there is a bundle to serve
(`--bundle`), a request to the server that asks no model is a part as well.
Exit 3: a regression; 4: it cannot be told.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.serve import served
from toolchain import __version__, graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import build, save
from toolchain.backbones.settings import Backbone, PreprocessOverrides
from toolchain.data.dataset import Data
from toolchain.data.settings import DataSettings
from toolchain.data.sources import load
from toolchain.device import select
from toolchain.errors import RecordError
from toolchain.learn.loop import fit
from toolchain.learn.settings import Training
from toolchain.progress import Silent
from toolchain.record import Record
from toolchain.runtime import host, timing
from toolchain.runtime.session import Session
from toolchain.runtime.whole import write_whole
from toolchain.step import Context, Step
from toolchain.steps.export import Export
from toolchain.steps.quantize import Quantize

RESULTS = Path(__file__).resolve().parents[1] / "results"
KEPT = Path("build/bench")  # where a kind of machine without a committed record has its own
REGRESSION, INCONCLUSIVE = 3, 4
_TURNS = 3
_ERROR = 0.05 / _TURNS  # of a look
_CALLS = 200
_BACKBONE = Backbone(
    timm="resnet10t", weights="random", kwargs={"channels": [16, 32, 64, 128]},
    preprocess=PreprocessOverrides(size=32, crop_pct=1.0),
)  # fmt: skip
_ALIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
_START = (sys.executable, "-c", "from toolchain.cli import main; main()", "--version")

Parts = Mapping[str, Callable[[], float]]
Seconds = Mapping[str, list[float]]


class Bench:
    """The parts, and what they need: digits, a network in a folder, its exported files."""

    def __init__(self, folder: Path) -> None:
        digits = load(DataSettings(source="digits"), Path())
        self._data = Data(
            "digits",
            digits.labels,
            digits.train.subset(range(320)),
            digits.val.subset(range(64)),
            digits.test,
        )
        self._device = select("cpu", 1)
        self._network = folder / "network"
        self._network.mkdir()
        save(*build(_BACKBONE, self._data.labels), self._network)
        self._exported = folder / "exported"
        self._step(Export(), self._network, Form.TORCH, self._exported)
        self._session = Session(self._exported / graph.PLAIN)
        self._feed = {self._session.inputs[0].name: np.zeros((1, 3, 32, 32), np.float32)}

    @property
    def parts(self) -> Parts:
        """{what: run it once and return its seconds}."""
        return {
            "train, 2 epochs of 320 pictures": self._train,
            "export": partial(self._step, Export(), self._network, Form.TORCH),
            "quantize": partial(self._step, Quantize().resolved(), self._exported, Form.ONNX),
            "load a session": lambda: _seconds(partial(Session, self._exported / graph.PLAIN)),
            "a call of a session": self._call,
            "start of the command line": lambda: _seconds(
                partial(subprocess.run, _START, check=True, capture_output=True)
            ),
        }

    @contextlib.contextmanager
    def served(self, bundle: Path) -> Iterator[Parts]:
        """All parts, with the server's where there is a bundle."""
        if not bundle.is_dir():
            print(f"the server is not measured: 'make demo' makes {bundle}", file=sys.stderr)
            yield self.parts
            return
        with served.serving(bundle) as server, contextlib.closing(served.Client(server.port)) as client:
            ask = partial(client.ask, _ALIVE)
            yield {**self.parts, "a request to the server": lambda: median(served.seconds_of(ask, _CALLS))}

    def _train(self) -> float:
        model, network = build(_BACKBONE, self._data.labels)
        training = Training(epochs=2, batch_size=32, lr=1e-3, workers=0)
        with tempfile.TemporaryDirectory() as folder:
            return _seconds(partial(fit, model, network, training, self._context(Path(folder, "out"))))

    def _step(self, step: Step, source: Path, form: Form, out: Path | None = None) -> float:
        about = Record(key="", step="", version=0, settings={}, parents={}, libraries={}, seconds=0.0)
        inputs = {"model": Artifact(form, source, about)}
        with tempfile.TemporaryDirectory() as folder:
            return _seconds(partial(step.run, inputs, self._context(out or Path(folder, "out"))))

    def _call(self) -> float:
        return median(timing.time_calls(partial(self._session.run, self._feed), _CALLS)) / 1e9

    def _context(self, out: Path) -> Context:
        out.mkdir()
        scratch = out.with_name(f"{out.name}.scratch")
        scratch.mkdir()
        return Context(out, scratch, self._data, self._device, 0, Silent())


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def measure(parts: Parts, rounds: int, before: Seconds | None = None) -> dict[str, list[float]]:
    """Seconds of each part by round, after those of `before`."""
    chance = random.Random(0)
    taken: dict[str, list[float]] = {name: list(before[name]) if before else [] for name in parts}
    for number in range(0 if before else -1, rounds):  # round -1 warms up
        for name in chance.sample(list(parts), len(parts)):
            seconds = parts[name]()
            if number >= 0:
                taken[name].append(seconds)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return taken


def rows(now: Seconds) -> list[dict[str, Any]]:
    """A line of the table a part."""
    return [
        {
            "part": name,
            "median, ms": _ms(median(taken)),
            "quickest, ms": _ms(min(taken)),
            "rounds": len(taken),
        }
        for name, taken in now.items()
    ]


def _ms(seconds: float) -> float:
    return float(f"{1000 * seconds:.4g}")


def against(now: Seconds, then: Seconds, bound: float) -> list[dict[str, Any]]:
    """Median now over median then with its interval and verdict, for every part that both have; bound in %."""
    found = []
    for name in (name for name in now if name in then):
        ratios = _medians(now[name], 1) / _medians(then[name], 2)
        low, high = (float(end) for end in np.quantile(ratios, (_ERROR / 2, 1 - _ERROR / 2)))
        limit = 1 + bound / 100
        found.append({
            "part": name, "ratio": median(now[name]) / median(then[name]), "ci95": (low, high),
            "verdict": "regression" if low > limit else "pass" if high < limit else "inconclusive",
        })  # fmt: skip
    return found


def _medians(taken: list[float], seed: int) -> NDArray[np.float64]:
    """Medians of rounds drawn with replacement [4000]."""
    drawn = np.random.default_rng(seed).integers(0, len(taken), (4000, len(taken)))
    medians: NDArray[np.float64] = np.median(np.array(taken)[drawn], axis=1)
    return medians


def record_of(facts: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Where the record of a kind of machine lies."""
    kind = hashlib.sha256(host.fingerprint(facts).encode()).hexdigest()[:6]
    return folder / f"own.{facts['isa']}-{kind}.json"


def kept_for(facts: Mapping[str, Any], places: Sequence[Path]) -> dict[str, Any] | None:
    """The first of these records that is there and of this kind of machine. Ends the program for a damaged one."""
    for place in filter(Path.exists, places):
        try:
            kept: dict[str, Any] = json.loads(place.read_text())
            own = host.fingerprint(kept["host"]) == host.fingerprint(facts) and kept["seconds"]
        except (ValueError, LookupError, TypeError, RecordError) as error:
            sys.exit(f"{place}: damaged, it is no record of this bench ({error!r}); delete it")
        if own:
            return kept
    return None


def judged(now: Seconds, kept: Mapping[str, Any], bound: float) -> int:
    """Print the comparison with a record; the exit code."""
    compared = against(now, kept["seconds"], bound)
    for row in compared:
        low, high = row["ci95"]
        print(
            f"{row['verdict']:12} {row['part']}: {row['ratio']:.3f} [{low:.3f}, {high:.3f}] of {kept['toolchain']}"
        )
    for name in sorted(set(now) ^ set(kept["seconds"])):
        print(f"{'not compared':12} {name}: only one of the two has it")
    verdicts = {row["verdict"] for row in compared}
    return REGRESSION if "regression" in verdicts else INCONCLUSIVE if "inconclusive" in verdicts else 0


def compared(parts: Parts, rounds: int, kept: Mapping[str, Any], bound: float) -> int:
    """Measure until each part's verdict is known, `_TURNS` times the rounds at most; print, and return the exit code."""
    now: dict[str, list[float]] | None = None
    for _ in range(_TURNS):
        now = measure(parts, rounds, now)
        if all(row["verdict"] != "inconclusive" for row in against(now, kept["seconds"], bound)):
            break
    show(now or {})
    return judged(now or {}, kept, bound)


def show(now: Seconds) -> None:
    """Print the medians."""
    for row in rows(now):
        print(f"{row['median, ms']:10} ms  {row['part']}")


def keep(now: Seconds, place: Path) -> None:
    """Write the record of this machine."""
    what = "This toolchain's own work, one thread: what `make bench` compares a new version with"
    record = {"what": what, "toolchain": __version__, "rows": rows(now), "seconds": now, "host": host.facts()}
    write_whole(place, f"{json.dumps(record, indent=1)}\n".encode())


def main() -> int:
    """Measure, then compare or record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--bound", type=float, default=15.0, help="percent [default: %(default)s]")
    parser.add_argument("--write", action="store_true", help="keep the record instead of comparing with it")
    parser.add_argument("--bundle", type=Path, default=served.BUNDLE, help="[default: %(default)s]")
    asked = parser.parse_args()
    if asked.rounds < 2:
        parser.error("--rounds must be at least 2: an interval is drawn from them")
    facts = host.facts()
    committed, local = record_of(facts), record_of(facts, KEPT)
    kept = None if asked.write else kept_for(facts, (committed, local))
    with tempfile.TemporaryDirectory() as folder, Bench(Path(folder)).served(asked.bundle) as parts:
        if kept is not None:
            return compared(parts, asked.rounds, kept, asked.bound)
        now = measure(parts, asked.rounds)
    show(now)
    keep(now, committed if asked.write else local)
    if not asked.write:
        print(
            f"no record of this kind of machine, so nothing was compared; {local} is what the next run is compared with"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
