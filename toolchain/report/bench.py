"""A bench record in a terminal: one row a case, below it what a reader of the row must know."""

from __future__ import annotations

from statistics import median

from toolchain.report import text
from toolchain.runtime.bench_record import BenchRecord, Case, ColdStart, Memory, Percentile

_COLUMNS = ("provider", "threads", "batch", "input", "p50 [95 %]", "p90", "p99", "p99.9", "pictures/s")
_NEEDED = {"p50": 20, "p90": 100, "p99": 1000, "p999": 10_000}
_OPERATORS = 6


def render_bench(record: BenchRecord) -> str:
    """The model, the machine, a table of cases, then warm-up, cold start, memory and placement of each."""
    rows = [_COLUMNS, *(_row(case) for case in record.cases)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_COLUMNS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines = [_model(record), _machine(record), "", *(line.rstrip() for line in table), ""]
    for number, case in enumerate(record.cases, 1):
        lines += [f"  {number}. {line}" if not k else f"     {line}" for k, line in enumerate(_about(case))]
    return "\n".join([*lines, *(f"  note: {note}" for note in record.notes)])


def _model(record: BenchRecord) -> str:
    model = record.model
    return f"{model.name}: {model.path}, {text.size(model.bytes)}, sha256 {model.sha256[:12]}"


def _machine(record: BenchRecord) -> str:
    host = record.host
    libraries = host.get("libraries", {})
    runtime = next((f"{n} {v}" for n, v in libraries.items() if n.startswith("onnxruntime")), "onnxruntime")
    load = host.get("load", [0.0])[0]
    return f"on {host.get('cpu')}, {host.get('isa')}, {host.get('cores')} cores, load {load:.1f}; {runtime}"


def _row(case: Case) -> tuple[str, ...]:
    condition = case.condition
    shape = "x".join(map(str, condition.input.shape))
    provider = condition.provider + (f", copies {case.copies}" if case.copies else "")
    spinning = " spinning" if condition.spinning else ""
    return (
        provider,
        f"{condition.threads}{spinning}",
        str(condition.batch),
        f"{condition.input.kind} {shape} {condition.input.source}",
        _with_interval(case.percentiles.get("p50")),
        *(_percentile(case.percentiles.get(name)) for name in ("p90", "p99", "p999")),
        f"{case.throughput_per_s:.4g}",
    )


def _with_interval(found: Percentile | None) -> str:
    if found is None or found.ci95 is None:
        return _percentile(found)
    low, high = map(text.duration, found.ci95)
    return f"{text.duration(found.ns)} [{low}, {high}]"


def _percentile(found: Percentile | None) -> str:
    return text.duration(None if found is None else found.ns)


def _about(case: Case) -> list[str]:
    """Sentences below the table."""
    warm = case.warm_up
    settled = "steady after" if warm.steady else "NOT steady after"
    samples = case.blocks.size
    lines = [
        f"{settled} {text.plural(warm.calls, 'call')}, {warm.seconds:.1f} s; {text.whole(samples)} samples"
    ]
    missing = [
        f"p{name[1:3]}{'.9' * (name == 'p999')}" for name in _NEEDED if case.percentiles.get(name) is None
    ]
    if missing:
        needed = ", ".join(text.whole(_NEEDED[n]) for n in _NEEDED if case.percentiles.get(n) is None)
        lines[0] += f" ({', '.join(missing)} would need {needed})"
    if case.cold_start_ns is not None and case.memory is not None:
        lines.append(_cold(case.cold_start_ns, case.memory))
    lines.append(_placed(case))
    return lines


def _cold(cold: ColdStart, memory: Memory) -> str:
    first, session = median(cold.first_answer), median(cold.session)
    calls = ""
    if cold.call:
        calls = (
            f"; typical calls {text.duration(min(cold.call))} to {text.duration(max(cold.call))} by process"
        )
    return (
        f"fresh process: first answer after {text.duration(first)}, session alone {text.duration(session)} "
        f"(medians of {len(cold.session)}); memory {text.size(memory.peak_bytes)} at most, "
        f"{text.size(memory.steady_bytes)} then{calls}"
    )


def _placed(case: Case) -> str:
    if not case.placement:
        return "placement is not known"
    where = ", ".join(f"{text.plural(n, 'node')} on {name}" for name, n in case.placement.items())
    most = ", ".join(f"{row.operator} {100 * row.share:.1f} %" for row in case.operators[:_OPERATORS])
    line = f"{where}; time: {most}"
    if not case.elsewhere:
        return line
    named = ", ".join(case.elsewhere[:_OPERATORS]) + (", …" if len(case.elsewhere) > _OPERATORS else "")
    return f"{line}; {case.copies_between} copies between providers; not where asked: {named}"
