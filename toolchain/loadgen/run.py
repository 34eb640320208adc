"""One LoadGen test of one model: probe, settings, run, read the logs, record."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from toolchain import __version__, stats
from toolchain.errors import HostError, ModelError, ToolchainError
from toolchain.loadgen.record import Accuracy, LoadgenRecord
from toolchain.loadgen.samples import MOST_LOADED, Labels, Samples, label_names
from toolchain.loadgen.settings import Load, library, own_settings
from toolchain.loadgen.summary import ACCURACY, SUMMARY, read_answers, read_summary
from toolchain.loadgen.system import System
from toolchain.runtime import host, timing
from toolchain.runtime.bench import finite
from toolchain.runtime.bench_asked import Asked, Found, find, options_for, unknown_entries, usable_provider
from toolchain.runtime.bench_record import Condition
from toolchain.runtime.fresh import Setup
from toolchain.runtime.session import Session
from toolchain.runtime.whole import write_whole

RECORD = "record.json"
_PROBES = 20
_SHOWN = (
    "min_duration_ms", "min_query_count", "single_stream_target_latency_percentile", "server_target_qps",
    "server_target_latency_ns", "offline_expected_qps", "multi_stream_samples_per_query", "qsl_rng_seed",
    "sample_index_rng_seed", "schedule_rng_seed",
)  # fmt: skip


def run_loadgen(model: Path, asked: Asked, load: Load, out: Path) -> LoadgenRecord:
    """Run one test and write `record.json` beside LoadGen's logs in the new folder `out`.

    The first provider, thread count and batch of `asked` hold; a batch above 1 lets several samples of a query be
    answered together. Raises as `bench` does, ToolchainError when LoadGen is not installed, HostError when `out`
    cannot be written.
    """
    loadgen = library()
    found = find(model, asked.file)
    told = unknown_entries(asked.options.get("", {}))
    provider = usable_provider(asked.providers[0], asked, told)
    setup = Setup(provider, asked.threads[0], asked.spinning, options_for(provider, asked))
    session = setup.session(found.path)
    batch = asked.batches[0]
    samples = Samples(session, found, asked)
    labels = _labels(session, samples, asked, found) if load.mode == "accuracy" else None
    probe_ns = _probe(session, samples, batch)
    settings = own_settings(load, probe_ns, batch)
    started, machine = datetime.now(UTC).isoformat(timespec="seconds"), host.facts()
    _make(out)
    _run(
        loadgen,
        settings,
        System(loadgen, session, samples, batch=batch, queued=load.scenario == "server"),
        samples,
        out,
    )
    if not found.is_unchanged():
        raise ModelError(
            f"{found.path}: was replaced, cut short or deleted while it was timed; nothing is recorded, start again"
        )
    accuracy = None if labels is None else _accuracy(session, labels, out)
    prepared = samples.first
    condition = Condition(
        setup.provider, dict(setup.options), setup.threads, batch, setup.spinning, prepared.kind, prepared.input
    )  # fmt: skip
    record = LoadgenRecord(
        found.model, machine, started, __version__, host.distribution_version("mlcommons-loadgen") or "unknown",
        condition, load, {name: getattr(settings, name) for name in _SHOWN},
        read_summary(out / SUMMARY) if load.mode == "performance" else None, accuracy,
        tuple(sorted(path.name for path in out.iterdir())), tuple(told),
    )  # fmt: skip
    try:
        write_whole(out / RECORD, f"{json.dumps(record.as_json(), indent=1)}\n".encode())
    except OSError as e:
        raise HostError(f"{out / RECORD}: cannot be written ({e.strerror})") from e
    return record


def folder_name(found: Path, load: Load) -> str:
    """A new folder's name that says what ran when: 20260131T120000Z-model-single-stream-performance."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    return f"{now}-{found.stem}-{load.scenario}-{load.mode}"


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True)
    except OSError as e:
        raise HostError(f"{out}: cannot be written ({e.strerror}); give another folder with --logs") from e


def _probe(session: Session, samples: Samples, batch: int) -> float:
    """The median time of a call of `batch` copies of the first sample, in ns.

    Raises ModelError for a model of fixed batch, and for answers that are not numbers by sample [batch, ...].
    """
    samples.load([0])
    ((_, feed),) = samples.stacked([0] * batch)
    samples.unload([0])
    answer = session.run(feed)[0]
    if answer.ndim < 2 or len(answer) != batch or not np.issubdtype(answer.dtype, np.number):
        raise ModelError(
            f"{session.label}: output {session.outputs[0].name!r} gives {answer.dtype} {list(answer.shape)} for {batch} "
            f"sample{'' if batch == 1 else 's'}; LoadGen needs one row of numbers a sample: put the batch first"
        )
    finite(session.label, [answer])
    return float(median(timing.time_calls(lambda: session.run(feed), _PROBES)))


def _run(loadgen: Any, settings: Any, system: System, samples: Samples, out: Path) -> None:
    logs, output = loadgen.LogSettings(), loadgen.LogOutputSettings()
    output.outdir = str(out)
    output.copy_summary_to_stdout = False
    logs.log_output = output
    logs.enable_trace = False
    sut = loadgen.ConstructSUT(system.issue, system.flush)
    qsl = loadgen.ConstructQSL(samples.total, min(samples.total, MOST_LOADED), system.load, samples.unload)
    try:
        with _interruptible():
            loadgen.StartTestWithLogSettings(sut, qsl, settings, logs, str(out / "audit.config"))
    finally:
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
    system.close()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process, which LoadGen offers no other way to stop; what it wrote has no record and is no test."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _labels(session: Session, samples: Samples, asked: Asked, found: Found) -> Labels:
    """The class of every picture. Raises ToolchainError for an output that is no row of classes a picture, and for
    pictures whose classes cannot be known: there would be no accuracy in the end."""
    answer = session.outputs[0]
    classes = answer.shape[-1] if answer.shape else None
    if answer.dtype != "float32" or not isinstance(classes, int) or len(answer.shape) != 2:
        raise ToolchainError(
            f"{session.label}: output {answer.name!r} is no float32 [N, classes], so it has no top-1"
        )
    return samples.labels(asked.pictures, found.labels or label_names(session.metadata), classes)


def _accuracy(session: Session, labels: Labels, out: Path) -> Accuracy:
    """Top-1 of what LoadGen logged."""
    answers = read_answers(out / ACCURACY, len(labels.indices), labels.classes)
    finite(session.label, [answers])
    right = stats.hits(answers, labels.indices)
    interval = stats.wilson(int(right.sum()), len(right))
    return Accuracy(interval.value, interval.ci95, len(right), labels.how)
