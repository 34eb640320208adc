"""What steps found out about their own worth, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from toolchain.record import JSON, Measurement
from toolchain.report.findings import Findings


def noticed(found: Findings) -> Iterator[str]:
    """One sentence a step that measured what it gains or costs, in the order of the artifacts."""
    for name, artifact in found.artifacts.items():
        record = artifact.record
        sentence = told(record.step, record.settings, record.measurements)
        if sentence:
            yield f"{name}: {sentence}"


def told(step: str, settings: Mapping[str, JSON], measured: Sequence[Measurement]) -> str:
    """The sentence for one step, or nothing."""
    match step:
        case "activations":
            return _activations(measured)
        case "quantize":
            return _targets(settings, measured)
        case "optimize_offline":
            return _offline(settings, measured)
        case "half" | "weight_only":
            return _rounded(step, measured)
        case _:
            return _price(step, measured)


def _price(step: str, measured: Sequence[Measurement]) -> str:
    """What a change of the graph costs or gains, where a step timed it against the file before."""
    price = next((m for m in measured if m.name == "price" and "layer" not in m.where), None)
    if price is None or round(price.value, 2) == 1.0:
        return ""
    form = f", both in {price.where['form']}" if "form" in price.where else ""
    return f"{step}: {price.value:.2f} times the latency of the file before{form} (timed once)"


def _rounded(step: str, measured: Sequence[Measurement]) -> str:
    """How far the answers moved, and what that costs or gains in time."""
    sqnr = next((m.value for m in measured if m.name == "sqnr"), None)
    if sqnr is None:
        return ""
    price = _price(step, measured).removeprefix(f"{step}: ")
    return f"{step}: logits with {sqnr:.1f} dB of signal over noise against the file before" + (
        price and f", {price}"
    )


def _offline(settings: Mapping[str, JSON], measured: Sequence[Measurement]) -> str:
    loads = {(m.where["state"], m.where["file"]): m.value for m in measured if m.name == "load"}
    price = _price("optimize_offline", measured).removeprefix("optimize_offline: ")
    return (
        f"optimize_offline: a session of the fused file is ready in {loads['after', 'fused']:.1f} ms instead of "
        f"{loads['before', 'fused']:.1f}, on {settings['target']} only"
    ) + (price and f"; {price}")


def _activations(measured: Sequence[Measurement]) -> str:
    counts = [f"{m.value:.0f} by {m.where['by']}" for m in measured if m.name == "replaced"]
    speeds = [f"{m.value:.2f} times as fast in {m.where['form']}" for m in measured if m.name == "speedup"]
    gained = f"; {', '.join(speeds)} (timed once, with the weights of before)" if speeds else ""
    return f"activations replaced: {', '.join(counts)}{gained}"


def _targets(settings: Mapping[str, JSON], measured: Sequence[Measurement]) -> str:
    def figure(name: str, weights: str) -> float | None:
        return next((m.value for m in measured if m.name == name and m.where.get("weights") == weights), None)

    kept, whole = figure("agreement", "portable"), figure("agreement", "8 bits")
    price = figure("price", "portable")
    if kept is None or whole is None or price is None:
        return ""
    return (
        f"one file for {', '.join(settings['targets'])}: on this processor {100 * kept:.1f} % of the answers are float's "
        f"instead of {100 * whole:.1f} % with 8 bits in full, at {price:.2f} times its latency (timed once)"
    )
