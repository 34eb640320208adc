"""Bench one model: its speed in raw nanoseconds, its cold start and memory, and where its nodes ran.

The protocol (docs/benchmarking.md): a condition at a time, so that it keeps the machine to itself; warm-up
until steady; blocks of calls with every sample kept; then fresh processes for cold start and memory, and a
traced run for placement. Comparing two models is another matter: see `timing.interleave`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolchain.runtime import external, fresh, host, providers, timing, trace
from toolchain.runtime.bench_input import Picture, Prepared, Wish, load_pictures, prepare
from toolchain.runtime.bench_record import (
    PERCENTILES,
    BenchRecord,
    Case,
    ColdStart,
    Condition,
    Memory,
    ModelFile,
    Percentile,
)
from toolchain.runtime.bundle import Bundle
from toolchain.runtime.errors import HostError, ModelError, ProviderError
from toolchain.runtime.fresh import Setup
from toolchain.runtime.manifest import MODEL, PLAIN_MODEL
from toolchain.runtime.percentiles import percentile
from toolchain.runtime.session import NO_CPU, Session
from toolchain.runtime.verification import check_file, read_golden, sha256_of
from toolchain.runtime.warm_up import Steadiness, warm_up

__all__ = [
    "Asked",
    "BenchRecord",
    "Sampling",
    "bench",
    "find",
    "finite",
    "hashes",
    "options_for",
    "percentiles",
    "pictures_for",
]

Copies = Literal["included", "excluded"]
Told = Callable[[str, int, int], None]
LACKING = "not measured: "
_NAMED = 5
_WAYS: tuple[Copies, ...] = ("included", "excluded")


@dataclass(frozen=True)
class Sampling:
    """How much is timed: `blocks` of `calls`, or blocks until `seconds` are over (a condition).

    cold_starts: fresh processes a condition; 0 leaves cold start and memory out. traced: profiled runs.
    """

    blocks: int = 20
    calls: int = 50
    seconds: float | None = None
    cold_starts: int = 5
    traced: int = 10
    warm_up: Steadiness = field(default_factory=Steadiness)


@dataclass(frozen=True)
class Asked:
    """Every combination of providers, threads and batches is timed.

    options: {provider: {name: value}} for that provider, and under "" session entries for all. pictures: a
    folder to take the input from; shapes: sizes of dimensions that the model leaves open. file: which one of
    a bundle. allow_fallback: nodes may run on the CPU although another provider was asked for, and a provider
    that cannot be used is replaced by the CPU, which the record says.
    """

    providers: tuple[str, ...] = ("cpu",)
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    spinning: bool = False
    pictures: Path | None = None
    shapes: Mapping[str, int] = field(default_factory=dict)
    file: Literal["fused", "plain"] = "fused"
    allow_fallback: bool = False
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Found:
    """The file to bench, what it is, the hashes of its parts by name; of a bundle also its golden pictures and
    its labels."""

    path: Path
    model: ModelFile
    hashes: Mapping[str, str]
    pictures: tuple[Picture, ...] = ()
    labels: tuple[str, ...] = ()


def bench(model: Path, asked: Asked, told: Told | None = None) -> BenchRecord:
    """Time an ONNX file, or a bundle's, under every condition asked for.

    `told(condition, done, of)` is called before each condition. Raises ProviderError, ModelError, PictureError
    and BundleError: for what cannot be used as asked, answers that are not finite, a model whose file changed
    meanwhile. A fresh process or a trace that fails, and a model that does so under a later condition, costs its own
    figures only: the record's notes say why, with the word `LACKING`.
    """
    found = find(model, asked.file)
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
        words = f"{provider}, {threads} thread{'' if threads == 1 else 's'}, batch {batch}"
        if told is not None:
            told(words, done, len(settings))
        setup = Setup(provider, threads, asked.spinning, options_for(provider, asked))
        try:
            cases += _measured(found.path, setup, replace(wish, batch=batch), asked.sampling, notes)
        except ModelError as e:  # what was timed before is worth keeping
            if not cases:
                raise
            notes.append(f"{words} is {LACKING}{e}")
    if hashes(found.path) != found.hashes:
        raise ModelError(f"{found.path}: was replaced while it was timed; nothing is recorded, start again")
    cases.sort(key=lambda case: used.index(case.condition.provider))
    version = host.distribution_version("toolchain") or "unknown"
    return BenchRecord(found.model, machine, started, version, tuple(cases), tuple(notes))


def find(model: Path, file: Literal["fused", "plain"]) -> Found:
    """The ONNX file that `model` names: itself, or a bundle's `file`, checked against its manifest's hash.

    Raises ModelError for no such file, BundleError and VerificationError for a bundle that is none, or changed.
    """
    if not model.is_dir():
        parts = hashes(model)
        return Found(model, _model_file(model, _called(model), "onnx", parts), parts)
    bundle = Bundle.load(model)
    path = model / (MODEL if file == "fused" else PLAIN_MODEL)
    parts = hashes(path)
    for name in parts:
        check_file(model, name, bundle.manifest)
    check_file(model, bundle.manifest.golden, bundle.manifest)
    golden = read_golden(model / bundle.manifest.golden)
    name = f"{bundle.manifest.name}/{bundle.manifest.variant}"
    return Found(
        path, _model_file(path, name, "bundle", parts), parts, golden.pictures, bundle.manifest.labels
    )


def _called(file: Path) -> str:
    """A file's name without suffix; "model" says nothing, as most exporters call it so: its folder's name goes before."""
    return f"{file.resolve().parent.name}/{file.stem}" if file.stem == "model" else file.stem


def hashes(model: Path) -> dict[str, str]:
    """sha256 of the ONNX file and of its external weights, by their names in its folder."""
    try:
        external.check(model)
        names = (model.name, *sorted(set(external.locations(model))))
        return {name: sha256_of(model.parent / name) for name in names}
    except OSError as e:
        raise ModelError(f"{model}: cannot be read ({e.strerror})") from e


def percentiles(samples: NDArray[np.int64]) -> dict[str, Percentile | None]:
    """p50 to p99.9 of the samples in ns, None where there are too few; intervals are drawn elsewhere."""
    values = {name: percentile(samples, q) for name, q in PERCENTILES.items()}
    return {name: None if value is None else Percentile(value) for name, value in values.items()}


def _model_file(
    path: Path, name: str, form: Literal["bundle", "onnx"], parts: Mapping[str, str]
) -> ModelFile:
    size = sum((path.parent / part).stat().st_size for part in parts)
    return ModelFile(name, path.name, parts[path.name], size, form)


def pictures_for(asked: Asked, found: Found) -> tuple[Picture, ...]:
    """The pictures that the input is made from: the folder's, else a bundle's own, else none."""
    if asked.pictures is not None:
        return load_pictures(asked.pictures)
    return found.pictures


def usable_provider(name: str, asked: Asked, notes: list[str]) -> str:
    """The provider to use for `name`. Raises ProviderError unless `allow_fallback`, which leaves a note."""
    if not asked.allow_fallback or name not in providers.NAMES or providers.usable()[name] is None:
        return providers.require(name)
    notes.append(f"provider {name!r} was asked for; 'cpu' was timed, because {providers.usable()[name]}")
    return "cpu"


def options_for(provider: str, asked: Asked) -> dict[str, str]:
    """Session's options on this provider."""
    fallback = {NO_CPU: "0"} if asked.allow_fallback and provider != "cpu" else {}
    return {**fallback, **asked.options.get("", {}), **asked.options.get(provider, {})}


def _measured(model: Path, setup: Setup, wish: Wish, sampling: Sampling, notes: list[str]) -> list[Case]:
    """The case of one condition; on a provider with its own memory two, with copies and without."""
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
    session.run(prepared.feed)  # a model that cannot be run at all is told as that
    traced = trace.Trace((), ())
    try:
        traced = trace.trace(model, prepared.feed, sampling.traced, **setup.as_json())
    except (HostError, ModelError) as e:  # what is timed is worth having without
        notes.append(f"placement is {LACKING}{e}")
    _require_placement(traced, setup, model)
    timed = _timed(session, prepared, condition, sampling)
    del session
    cold: ColdStart | None = None
    memory: Memory | None = None
    if sampling.cold_starts:
        try:
            cold, memory = fresh.measure(model, setup, prepared.feed, sampling.cold_starts)
        except HostError as e:
            notes.append(f"cold start and memory are {LACKING}{e}")
    return [
        replace(
            case, placement=traced.placement, operators=traced.operators, copies_between=traced.copies_between,
            elsewhere=traced.elsewhere(setup.provider), memory=memory, cold_start_ns=cold,
        )
        for case in timed
    ]  # fmt: skip


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


def _timed(session: Session, prepared: Prepared, condition: Condition, sampling: Sampling) -> list[Case]:
    sides: dict[Copies | None, tuple[timing.Side, Callable[[], list[NDArray[Any]]]]]
    if providers.has_own_memory(condition.provider):
        bound = {way: session.bind(prepared.feed, copies=way == "included") for way in _WAYS}
        sides = {way: (binding.call, binding.outputs) for way, binding in bound.items()}
    else:
        ask = partial(session.run, prepared.feed)
        sides = {None: (ask, ask)}
    try:
        return [_case(side, outputs, way, condition, sampling) for way, (side, outputs) in sides.items()]
    except providers.ORT_ERRORS as e:  # of a binding, which is called bare
        raise ModelError(f"{session.label}: failed while it was timed ({str(e).splitlines()[0]})") from e


def _case(
    side: timing.Side, outputs: Callable[[], Sequence[NDArray[Any]]], way: Copies | None,
    condition: Condition, sampling: Sampling,
) -> Case:  # fmt: skip
    warm = warm_up(side, sampling.warm_up)
    finite("the model", outputs())
    blocks = timing.repeat(side, sampling.calls, _enough(sampling))
    finite("the model", outputs())
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


def finite(label: str, outputs: Sequence[NDArray[Any]]) -> None:
    """Raise ModelError for NaN or infinity: a model that answers so does other work than one that answers, and neither
    its time nor its accuracy is a figure."""
    for index, output in enumerate(outputs):
        if np.issubdtype(output.dtype, np.floating) and not np.isfinite(output).all():
            raise ModelError(
                f"{label}: output {index} has values that are not finite (NaN or infinite): mend the model "
                f"before it is timed"
            )
