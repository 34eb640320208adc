"""Bench one model: its speed in raw nanoseconds, its cold start and memory, and where its nodes ran.

The protocol (docs/benchmarking.md): a condition at a time, so that it keeps the machine to itself; a traced run for
placement; warm-up until steady; blocks of calls with every sample kept; then fresh processes for cold start and
memory. Comparing two models is another matter: see `timing.interleave`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolchain.runtime import fresh, host, providers, timing, trace
from toolchain.runtime.bench_asked import (
    Asked,
    Found,
    Sampling,
    examine,
    finite,
    options_for,
    pictures_for,
    unknown_entries,
    usable_provider,
)
from toolchain.runtime.bench_input import Prepared, Wish, prepare
from toolchain.runtime.bench_record import (
    PERCENTILES,
    BenchRecord,
    Case,
    ColdStart,
    Condition,
    Percentile,
)
from toolchain.runtime.errors import HostError, ModelError, ProviderError
from toolchain.runtime.fresh import Setup
from toolchain.runtime.percentiles import percentile
from toolchain.runtime.session import NO_CPU, Session
from toolchain.runtime.warm_up import warm_up

__all__ = [
    "LACKING",
    "STOPPED",
    "Asked",
    "BenchRecord",
    "Sampling",
    "bench",
    "finite",
    "percentiles",
    "was_stopped",
]

Copies = Literal["included", "excluded"]
Told = Callable[[str, int, int], None]
LACKING = "not measured: "
STOPPED = "stopped by hand"
_NAMED = 5
_WAYS: tuple[Copies, ...] = ("included", "excluded")


def bench(model: Path, asked: Asked, told: Told | None = None) -> BenchRecord:
    """Time an ONNX file, or a bundle's, under every condition asked for.

    `told(condition, done, of)` is called before each condition. Raises ProviderError, ModelError, PictureError
    and BundleError: for what cannot be used as asked, answers that are not finite, a model whose file changed
    meanwhile. A fresh process or a trace that fails, and a model that does so under a later condition, costs its own
    figures only, as Ctrl-C does: the record's notes say why, with the words `LACKING` and `STOPPED`.
    """
    found = examine(model, asked)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    machine = host.facts()
    wish = Wish(shapes=asked.shapes, pictures=pictures_for(asked, found))
    notes: list[str] = []
    used = [usable_provider(name, asked, notes) for name in asked.providers]
    settings = [*dict.fromkeys((p, t, b) for p in used for t in asked.threads for b in asked.batches)]
    # A provider that cannot be used as asked is an error: those that may be one come before what takes time for nothing.
    settings.sort(key=lambda one: one[0] == "cpu")
    cases: list[Case] = []
    for done, (provider, threads, batch) in enumerate(settings):
        words = _words(provider, threads, batch)
        if told is not None:
            told(words, done, len(settings))
        setup = Setup(provider, threads, asked.spinning, options_for(provider, asked))
        try:
            cases += _measured(found, setup, replace(wish, batch=batch), asked.sampling, notes)
        except (ModelError, KeyboardInterrupt) as e:  # what was timed before is worth keeping
            if not cases:
                raise
            notes.append(f"{words} is {LACKING}{e if isinstance(e, ModelError) else STOPPED}")
        if was_stopped(notes):
            left = len(settings) - done - 1
            more = "1 further condition is" if left == 1 else f"{left} further conditions are"
            notes += [f"{more} {LACKING}{STOPPED}"] if left else []
            break
    notes += unknown_entries(asked.options.get("", {}))
    cases.sort(key=lambda case: used.index(case.condition.provider))
    version = host.distribution_version("toolchain") or "unknown"
    return BenchRecord(found.model, machine, started, version, tuple(cases), tuple(notes))


def _words(provider: str, threads: int, batch: int) -> str:
    return f"{provider}, {threads} thread{'' if threads == 1 else 's'}, batch {batch}"


def was_stopped(notes: Sequence[str]) -> bool:
    """Whether a record's notes say that Ctrl-C ended it."""
    return any(note.endswith(LACKING + STOPPED) for note in notes)


def percentiles(samples: NDArray[np.int64]) -> dict[str, Percentile | None]:
    """p50 to p99.9 of the samples in ns, None where there are too few; intervals are drawn elsewhere."""
    values = {name: percentile(samples, q) for name, q in PERCENTILES.items()}
    return {name: None if value is None else Percentile(value) for name, value in values.items()}


def _measured(found: Found, setup: Setup, wish: Wish, sampling: Sampling, notes: list[str]) -> list[Case]:
    """The case of one condition; on a provider with its own memory two, with copies and without.

    Raises ModelError saying so when the file was replaced meanwhile, whatever else came of that.
    """
    try:
        cases = _cases(found.path, setup, wish, sampling, notes)
    except ModelError as e:
        raise (e if found.is_unchanged() else _replaced(found)) from e
    if not found.is_unchanged():
        raise _replaced(found)
    return cases


def _replaced(found: Found) -> ModelError:
    return ModelError(
        f"{found.path}: was replaced, cut short or deleted while it was timed, so it has no figures; start again"
    )


def _cases(model: Path, setup: Setup, wish: Wish, sampling: Sampling, notes: list[str]) -> list[Case]:
    session = setup.session(model)
    prepared = prepare(session.inputs, session.metadata, wish, session.label)
    condition = Condition(
        setup.provider,
        dict(setup.options),
        setup.threads,
        wish.batch,
        setup.spinning,
        prepared.kind,
        prepared.input,
    )
    traced = trace.Trace((), ())
    try:
        traced = trace.trace(model, prepared.feed, sampling.traced, **setup.as_json())
    except (HostError, ModelError) as e:  # what is timed is worth having without
        notes.append(f"placement is {LACKING}{e}")
    _require_placement(traced, setup, model)
    timed = _timed(session, prepared, condition, sampling, notes)
    del session
    starts = _starts(model, setup, prepared, sampling.cold_starts, notes)
    return [
        replace(
            case, placement=traced.placement, operators=traced.operators, copies_between=traced.copies_between,
            elsewhere=traced.elsewhere(setup.provider), memory=starts.memory, cold_start_ns=_of_case(starts, case),
        )
        for case in timed
    ]  # fmt: skip


def _starts(model: Path, setup: Setup, prepared: Prepared, count: int, notes: list[str]) -> fresh.Starts:
    """Fresh processes, and a note where there are fewer than were asked for."""
    if not count:
        return fresh.Starts()
    starts = fresh.measure(model, setup, prepared.feed, count)
    why = STOPPED if starts.stopped else starts.failure
    if why is not None:
        had = len(starts.cold.session) if starts.cold else 0
        what = f"{count - had} of {count} fresh processes are" if had else "cold start and memory are"
        notes.append(f"{what} {LACKING}{why}")
    return starts


def _of_case(starts: fresh.Starts, case: Case) -> ColdStart | None:
    """What fresh processes say of a case: their calls copy, so they say nothing of one that leaves copies out."""
    if starts.cold is None or case.copies != "excluded":
        return starts.cold
    return replace(starts.cold, call=())


def _require_placement(traced: trace.Trace, setup: Setup, model: Path) -> None:
    """Raise ProviderError where nodes that work on data ran elsewhere, unless fallback is allowed; Session has judged
    by operator alone."""
    strayed = traced.strayed(setup.provider)
    if strayed and setup.options.get(NO_CPU) != "0":
        more = f" and {len(strayed) - _NAMED} more" if len(strayed) > _NAMED else ""
        raise ProviderError(
            f"{model}: {', '.join(strayed[:_NAMED])}{more} although {setup.provider!r} was asked for, and they work on "
            f"whole tensors; --allow-fallback (the option {NO_CPU}=0) lets them"
        )


def _timed(
    session: Session, prepared: Prepared, condition: Condition, sampling: Sampling, notes: list[str]
) -> list[Case]:  # fmt: skip
    sides: dict[Copies | None, tuple[timing.Side, Callable[[], list[NDArray[Any]]]]]
    if providers.has_own_memory(condition.provider):
        bound = {way: session.bind(prepared.feed, copies=way == "included") for way in _WAYS}
        sides = {way: (binding.call, binding.outputs) for way, binding in bound.items()}
    else:
        ask = partial(session.run, prepared.feed)
        sides = {None: (ask, ask)}
    try:
        return [
            _case(session.label, side, outputs, way, condition, sampling, notes)
            for way, (side, outputs) in sides.items()
        ]
    except providers.ORT_ERRORS as e:  # of a binding, which is called bare
        raise ModelError(f"{session.label}: failed while it was timed ({str(e).splitlines()[0]})") from e


def _case(
    label: str, side: timing.Side, outputs: Callable[[], Sequence[NDArray[Any]]], way: Copies | None,
    condition: Condition, sampling: Sampling, notes: list[str],
) -> Case:  # fmt: skip
    warm = warm_up(side, sampling.warm_up)
    finite(label, outputs())
    with host.Contention() as contention:
        blocks = timing.repeat(side, sampling.calls, _enough(sampling))
    finite(label, outputs())
    waited = contention.share or 0.0
    if waited > host.CONTENDED and condition.threads <= host.cores():  # more threads wait for each other
        words = _words(condition.provider, condition.threads, condition.batch) + (
            f", copies {way}" if way else ""
        )
        notes.append(
            f"{words}: others had the core for {100 * waited:.0f} % of the time, so its latencies are wrong; "
            "time it again on a quiet machine"
        )
    samples = np.array(blocks, np.int64)
    per_second = condition.batch * samples.size / (float(samples.sum()) / 1e9)
    return Case(
        condition,
        warm,
        tuple(map(tuple, blocks)),
        way,
        percentiles(samples),
        round(per_second, 3),
        {},
        None,
        None,
    )


def _enough(sampling: Sampling) -> Callable[[int], bool]:
    """Whether more blocks are wanted; seconds count from the end of the first block."""
    end: list[float] = []

    def more(done: int) -> bool:
        if sampling.seconds is None:
            return done < sampling.blocks
        if not end:
            end.append(monotonic() + sampling.seconds)
        return monotonic() < end[0]

    return more
