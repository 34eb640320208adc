"""A LoadGen record in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from toolchain.loadgen.record import LoadgenRecord
from toolchain.loadgen.summary import Summary
from toolchain.report import text


def render_loadgen(record: LoadgenRecord) -> str:
    """A few lines: what ran and how long, LoadGen's verdict and figures, or the accuracy."""
    load, condition = record.load, record.condition
    size = "MLPerf-sized" if load.mlperf else "SHORTENED, no MLPerf figure"
    lines = [
        f"{record.model.name}: LoadGen {record.loadgen}, {load.scenario}, {load.mode} ({size})",
        f"  {condition.provider}, {text.plural(condition.threads, 'thread')}, batches of at most {condition.batch}, "
        f"{condition.input.kind} {'x'.join(map(str, condition.input.shape))} {condition.input.source}",
    ]
    if load.scenario == "server":
        asked, bound = record.settings["server_target_qps"], record.settings["server_target_latency_ns"]
        lines.append(f"  asked {asked:.4g} queries a second, p99 to be within {text.duration(bound)}")
    if record.summary is not None:
        lines += _verdict(record.summary)
    if record.accuracy is not None:
        found = record.accuracy
        top1 = f"{text.percent(found.top1)} [{text.percent_range(found.ci95)}]"
        lines.append(f"  top-1 {top1} of {text.plural(found.pictures, 'picture')}, labels {found.labels}")
    return "\n".join([*lines, *(f"  note: {note}" for note in record.notes)])


def _verdict(summary: Summary) -> list[str]:
    name, value = summary.result
    figure = text.duration(value) if name.endswith("(ns)") else f"{value:.4g}"
    failed = [condition for condition, fine in summary.satisfied.items() if not fine]
    unmet = f" (not satisfied: {', '.join(failed)})" if failed else ""
    lines = [f"  {summary.verdict}{unmet}: {name.removesuffix(' (ns)')} {figure}"]
    percentiles = ", ".join(f"{q} {text.duration(ns)}" for q, ns in summary.percentiles_ns.items())
    lines.append(f"  {percentiles}")
    if summary.early_stopping_ns:
        early = ", ".join(f"{q} {text.duration(ns)}" for q, ns in summary.early_stopping_ns.items())
        lines.append(f"  early-stopping estimate: {early}")
    if summary.advice:
        lines.append(f"  LoadGen's advice: {summary.advice}{_how(failed)}")
    return lines


def _how(failed: Sequence[str]) -> str:
    """Which options of ours change what LoadGen advises to change."""
    if "Performance constraints" not in failed:
        return ""
    return " (--target-qps; or allow more with --target-latency-ms)"
