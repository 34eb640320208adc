"""What a report says first: which file ships, how much faster it is and what it loses, in sentences."""

from __future__ import annotations

from toolchain.measure.metrics import Accuracy
from toolchain.report import text
from toolchain.report.model import Gate, Latency, RunReport, Speedup, Variant
from toolchain.runtime.host import CONTENDED

STATUS_WORDS = {
    "chosen": "chosen",
    "passed": "passes",
    "failed": "fails a gate",
    "slower": "not faster",
}


METRIC_WORDS = {"top1": "Top-1", "balanced": "Balanced accuracy"}


def metric(report: RunReport, accuracy: Accuracy) -> tuple[float, tuple[float, float]]:
    """The figure that the run's gates go by, with its interval."""
    if report.run.metric == "balanced":
        return accuracy.balanced, accuracy.balanced_ci95
    return accuracy.top1, accuracy.ci95


def main_latency(variant: Variant, provider: str | None = None) -> Latency | None:
    """The plain file's first latency on a provider (the first one, if not named): what choice goes by."""
    rows = variant.latency.get(provider, ()) if provider else next(iter(variant.latency.values()), ())
    return next((row for row in rows if row.file == "plain"), None)


def main_accuracy(variant: Variant, split: str = "test") -> Accuracy | None:
    """Accuracy on the first provider."""
    return next(iter((variant.accuracy if split == "test" else variant.validation).values()), None)


def main_speedup(report: RunReport, name: str) -> Speedup | None:
    """The plain file's speed-up over the baseline under the condition that choice goes by."""
    found = [s for s in report.speedups if s.of == name and s.over == report.run.baseline]
    return next((s for s in found if s.file == "plain"), None)


def providers(report: RunReport) -> list[str]:
    """Every provider that something was measured on, in order of appearance."""
    named = [p for v in report.variants for p in (*v.latency, *v.accuracy)]
    return list(dict.fromkeys(named))


def failed_gates(report: RunReport, name: str) -> list[Gate]:
    """The gates that a variant does not keep."""
    return [gate for gate in report.gates if gate.variant == name and not gate.passed]


def headline(report: RunReport) -> str:
    """The outcome in one line."""
    statuses = [variant.status for variant in report.variants if variant.name != report.chosen]
    if report.chosen is None:
        faster = " and is shown to be faster" if "slower" in statuses else ""
        return f"No file passes the gates{faster}, so nothing ships"
    if report.chosen == report.run.baseline:
        if "passed" in statuses:
            tail = "; what else passes is within 5 % of it, and less accurate or larger"
        else:
            tail = "; no compressed file passes the gates and is faster" if statuses else ""
        return f"{report.chosen} ships{tail}"
    speedup = main_speedup(report, report.chosen)
    faster = f": {text.times(speedup.ratio)} as fast as {speedup.over}" if speedup else ""
    return f"{report.chosen} ships{faster}{_loss(report)}"


def _loss(report: RunReport) -> str:
    chosen = report.variant(report.chosen)
    drop = chosen.drop.get("test") if chosen else None
    if drop is None:
        return ""
    lost = drop.points >= 0
    ends = drop.ci95 if lost else (-drop.ci95[1], -drop.ci95[0])
    amount = f"{abs(drop.points):.1f} point{'' if f'{abs(drop.points):.1f}' == '1.0' else 's'}"
    return f", test accuracy {amount} {'lower' if lost else 'higher'} (95 %: {text.points_range(ends, 1)})"


def contended(report: RunReport) -> list[str]:
    """What to know where other processes had the core while files were timed; nothing otherwise."""
    share = report.host.get("waited")
    if not isinstance(share, float) or share <= CONTENDED:
        return []
    return [
        f"While files were timed, others had the core for {100 * share:.0f} % of the time: short calls escape that and long "
        "ones do not, so latencies and speed-ups are wrong. Time them again on a quiet machine: --set measure.take=N, a "
        "number not yet used."
    ]


def cautions(report: RunReport) -> list[str]:
    """What a reader must know before trusting the figures."""
    found = []
    weights = report.run.weights
    if weights is not None and weights.source == "random":
        found.append(
            f"Training started from random weights ({weights.architecture}), not from a pretrained network."
        )
    found += [f"Data: {check.summary}" for check in report.data.checks if check.level == "problem"]
    baseline = report.baseline
    scored = main_accuracy(baseline) if baseline else None
    if scored is not None and scored.n < 200:
        found.append(
            f"Test has only {text.plural(scored.n, 'picture')}: one flip is {100 / scored.n:.1f} points, "
            "so read the intervals, not the points."
        )
    found += contended(report)
    found += [f"Not measured: {item.what} ({item.why})." for item in report.not_measured]
    return found


def drop_words(variant: Variant, split: str) -> str:
    """A loss with its interval: "0.37 (−0.40 to 1.10)"; empty for the baseline."""
    drop = variant.drop.get(split)
    return f"{text.points(drop.points)} ({text.points_range(drop.ci95)})" if drop else ""
