"""Trace a file on this machine and explain it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from toolchain.explain.findings import Explanation, Machine
from toolchain.explain.rules import explain
from toolchain.runtime import host
from toolchain.runtime.bench_asked import Asked, find, pictures_for
from toolchain.runtime.bench_input import Wish, prepare
from toolchain.runtime.bench_record import Condition
from toolchain.runtime.fresh import Setup
from toolchain.runtime.trace import OPTIMIZED, TracedSession

_RUNS = 20


def explain_case(model: Path, asked: Asked, condition: Condition) -> Explanation:
    """Explain a file or bundle under one condition of its bench."""
    found = find(model, asked.file)
    setup = Setup(condition.provider, condition.threads, condition.spinning, condition.options)
    return explain_file(found.path, setup, Wish(condition.batch, asked.shapes, pictures_for(asked, found)))


def explain_file(model: Path, setup: Setup, wish: Wish) -> Explanation:
    """Why this ONNX file takes its time, under Session's settings and the feed that `wish` says.

    Raises ModelError and ProviderError as Session and `prepare` do.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = TracedSession(model, Path(folder), **setup.as_json())
        feed = prepare(session.inputs, session.metadata, wish, session.label).feed
        trace = session.trace(feed, _RUNS)
        optimized = onnx.load(Path(folder, OPTIMIZED), load_external_data=False)
    original = onnx.load(model, load_external_data=False)
    machine = Machine(setup.provider, host.isa(), frozenset(host.facts()["features"]))
    return explain(original, optimized, trace, machine)
