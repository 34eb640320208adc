"""The model card that travels in a bundle (Mitchell et al. 2019, Model Cards for Model Reporting)."""

from __future__ import annotations

from toolchain.report import text
from toolchain.report.model import RunReport, Variant
from toolchain.report.summary import cautions, drop_words, main_accuracy, main_latency, main_speedup


def render_card(report: RunReport) -> str:
    """Markdown: what the model is for, made of, how it was measured, and its limits."""
    variant = report.variant(report.chosen)
    if variant is None:
        raise ValueError("a model card needs a chosen file")
    labels = [text.escape(label) for label in report.data.labels]
    about = text.escape(report.run.description or "An image classifier.")
    lines = [f"# {text.escape(report.run.name)}: {text.escape(variant.name)}", "", about, ""]
    lines += ["## Use", "", f"Tells {len(labels)} classes apart: {', '.join(labels)}.",
              "For pictures like those it was trained on; on others its answers mean nothing.", ""]  # fmt: skip
    lines += ["## Made of", "", *_made_of(report, variant), ""]
    lines += ["## Measured", "", *_measured(report, variant), ""]
    notes = [*cautions(report), "Answers on processors of another ISA family were not measured here."]
    lines += ["## Limits", "", *(f"- {text.escape(line)}" for line in notes), ""]
    return "\n".join(lines)


def _made_of(report: RunReport, variant: Variant) -> list[str]:
    rows = [f"- Steps: {' -> '.join(variant.made_by)}"]
    weights = report.run.weights
    if weights is not None:
        origin = (
            "random weights (not pretrained)" if weights.source == "random" else f"{weights.source} weights"
        )
        network = text.escape(f"{weights.architecture}, from {origin} {weights.weights or ''}")
        licence = text.escape(weights.licence or "not stated")
        rows.append(f"- Network: {network}; licence: {licence}")
    counts = {split: sum(row.values()) for split, row in report.data.counts.items()}
    rows.append("- Pictures: " + ", ".join(f"{split} {text.whole(n)}" for split, n in counts.items()))
    rows.append(
        f"- Parameters: {text.amount(variant.params)}, multiply-accumulates: {text.amount(variant.macs)}"
    )
    return rows


def _measured(report: RunReport, variant: Variant) -> list[str]:
    rows = []
    scored = main_accuracy(variant)
    if scored is not None:
        rows.append(
            f"- Test, {text.whole(scored.n)} pictures, read once: top-1 {text.percent(scored.top1)} "
            f"({text.percent_range(scored.ci95)}), balanced {text.percent(scored.balanced)}"
        )
        recalls = [f"{text.escape(label)} {text.percent(value)}" for label, value in scored.per_class.items()]
        rows.append(f"- Recall by class: {', '.join(recalls)}")
    if words := drop_words(variant, "test"):
        rows.append(f"- Lost against fp32 on the same pictures, in points: {words}")
    latency, speedup = main_latency(variant), main_speedup(report, variant.name)
    if latency is not None:
        rows.append(
            f"- Latency of the plain file: median {text.duration(latency.p50_ns)}, {latency.threads} thread(s), "
            f"batch {latency.batch}, on {report.host.get('cpu')} ({report.host.get('isa')})"
        )
    if speedup is not None:
        rows.append(
            f"- {text.times(speedup.ratio)} as fast as fp32 ({speedup.ci95[0]:.2f} to {speedup.ci95[1]:.2f})"
        )
    return rows
