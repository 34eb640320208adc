"""One LoadGen test of one model: probe, settings, run, read the logs, record."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from toolchain.runtime.bench_asked import (
    Asked,
    Found,
    find,
    finite,
    options_for,
    unknown_entries,
    usable_provider,
)
from toolchain.runtime.bench_input import Feed
from toolchain.runtime.bench_record import Condition
from toolchain.runtime.fresh import Setup
from toolchain.runtime.session import Session
from toolchain.runtime.whole import write_whole

RECORD = "record.json"
_PROBES = 20
_STOPPED, _ENDED = 130, b"\0"
_SHOWN = (
    "min_duration_ms", "min_query_count", "single_stream_target_latency_percentile", "server_target_qps",
    "server_target_latency_ns", "offline_expected_qps", "multi_stream_samples_per_query", "qsl_rng_seed",
    "sample_index_rng_seed", "schedule_rng_seed",
)  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """A model ready for a test: what was found, how it is loaded, its samples, and with labels for an accuracy."""

    found: Found
    setup: Setup
    session: Session
    samples: Samples
    labels: Labels | None
    notes: tuple[str, ...]


def examine(model: Path, asked: Asked, load: Load) -> Opened:
    """Find out before any test whether it can be made: provider, batch, samples, classes. Raises as `run_loadgen`."""
    library()
    found = find(model, asked.file)
    notes = unknown_entries(asked.options.get("", {}))
    provider = usable_provider(asked.providers[0], asked, notes)
    setup = Setup(provider, asked.threads[0], asked.spinning, options_for(provider, asked))
    session = setup.session(found.path)
    samples = Samples(session, found, asked)
    labels = _labels(session, samples, asked, found) if load.mode == "accuracy" else None
    _require_rows(session, samples, asked.batches[0])
    return Opened(found, setup, session, samples, labels, tuple(notes))


def run_loadgen(model: Path, asked: Asked, load: Load, out: Path) -> LoadgenRecord:
    """Run one test and write `record.json` beside LoadGen's logs in the new folder `out`; without a record only where
    LoadGen's own logs are not what they should be.

    The first provider, thread count and batch of `asked` hold; a batch above 1 lets several samples of a query be
    answered together. Raises as `bench` does, ToolchainError when LoadGen is not installed, HostError when `out`
    cannot be written.
    """
    opened, batch = examine(model, asked, load), asked.batches[0]
    settings = own_settings(load, _probe(opened.session, opened.samples, batch), batch)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    _make(out)
    try:
        _run(settings, opened, batch, load, out)
        if not opened.found.is_unchanged():
            raise ModelError(
                f"{opened.found.path}: was replaced, cut short or deleted while it was timed, so it has no figures; start "
                f"again"
            )
        record = _record(opened, load, settings, batch, started, out)
        write_whole(out / RECORD, f"{json.dumps(record.as_json(), indent=1)}\n".encode())
    except OSError as e:
        shutil.rmtree(out, ignore_errors=True)
        raise HostError(f"{out / RECORD}: cannot be written ({e.strerror})") from e
    except ModelError:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return record


def _record(opened: Opened, load: Load, settings: Any, batch: int, started: str, out: Path) -> LoadgenRecord:
    """What LoadGen left in `out`, as our record."""
    setup, prepared = opened.setup, opened.samples.first
    condition = Condition(
        setup.provider, dict(setup.options), setup.threads, batch, setup.spinning, prepared.kind,
        prepared.input,
    )  # fmt: skip
    return LoadgenRecord(
        opened.found.model, host.facts(), started, __version__,
        host.distribution_version("mlcommons-loadgen") or "unknown", condition, load,
        {name: getattr(settings, name) for name in _SHOWN},
        read_summary(out / SUMMARY) if load.mode == "performance" else None,
        None if opened.labels is None else _accuracy(opened.session, opened.labels, out),
        tuple(sorted(path.name for path in out.iterdir())), opened.notes,
    )  # fmt: skip


def folder_name(found: Path, load: Load) -> str:
    """A new folder's name that says what ran when: 20260131T120000Z-model-single-stream-performance."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    return f"{now}-{found.stem}-{load.scenario}-{load.mode}"


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True)
    except OSError as e:
        raise HostError(f"{out}: cannot be written ({e.strerror}); give another folder with --logs") from e


def _feed(samples: Samples, batch: int) -> Feed:
    """`batch` copies of the first sample. Raises ModelError for a model of fixed batch."""
    samples.load([0])
    ((_, feed),) = samples.stacked([0] * batch)
    samples.unload([0])
    return feed


def _require_rows(session: Session, samples: Samples, batch: int) -> None:
    """Raise ModelError for answers that are not numbers by sample [batch, ...]."""
    answer = session.run(_feed(samples, batch))[0]
    if answer.ndim < 2 or len(answer) != batch or not np.issubdtype(answer.dtype, np.number):
        raise ModelError(
            f"{session.label}: output {session.outputs[0].name!r} gives {answer.dtype} {list(answer.shape)} for {batch} "
            f"sample{'' if batch == 1 else 's'}; LoadGen needs one row of numbers a sample: put the batch first"
        )
    finite(session.label, [answer])


def _probe(session: Session, samples: Samples, batch: int) -> float:
    """The median time of a call of `batch` copies of the first sample, in ns."""
    feed = _feed(samples, batch)
    return float(median(timing.time_calls(lambda: session.run(feed), _PROBES)))


def _run(settings: Any, opened: Opened, batch: int, load: Load, out: Path) -> None:
    loadgen, samples = library(), opened.samples
    system = System(loadgen, opened.session, samples, batch=batch, queued=load.scenario == "server")
    logs, output = loadgen.LogSettings(), loadgen.LogOutputSettings()
    output.outdir = str(out)
    output.copy_summary_to_stdout = False
    logs.log_output = output
    logs.enable_trace = False
    sut = loadgen.ConstructSUT(system.issue, system.flush)
    qsl = loadgen.ConstructQSL(samples.total, min(samples.total, MOST_LOADED), system.load, samples.unload)
    try:
        with _interruptible(out):
            loadgen.StartTestWithLogSettings(sut, qsl, settings, logs, str(out / "audit.config"))
    finally:
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)
    system.close()


@contextmanager
def _interruptible(out: Path) -> Iterator[None]:
    """Let Ctrl-C end the process, which LoadGen offers no other way to stop; what it wrote is no test and goes with it.

    LoadGen holds the main thread, where Python would tell of a signal; whatever thread has it, its number is written into
    a pipe, which a thread of our own reads.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        while (told := os.read(reading, 1)) != _ENDED:
            if told == bytes([signal.SIGINT]):
                shutil.rmtree(out, ignore_errors=True)
                os.write(2, b"Stopped.\n")
                os._exit(_STOPPED)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writing)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writing, _ENDED)
        thread.join()
        os.close(reading)
        os.close(writing)


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
