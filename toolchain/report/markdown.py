"""The report as Markdown: what fits into a pull request or a terminal. Names in it cannot change its form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from toolchain.report import summary, text
from toolchain.report.model import RunReport
from toolchain.report.page import page, words
from toolchain.report.rows import Row, gain

_SHOWN = 20


def render_markdown(report: RunReport) -> str:
    """The report as GitHub-flavoured Markdown, without pictures."""
    blocks: list[str] = [f"# {text.escape(report.run.name)}", f"**{text.escape(summary.headline(report))}.**"]
    blocks += [f"> {text.escape(line)}" for line in summary.cautions(report)]
    blocks += [
        *_variants(report),
        *_gates(report),
        *_classes(report),
        *_latency(report),
        *_mistakes(report),
        *_transfer(report),
        *_data(report),
        *_reproduce(report),
    ]
    return "\n\n".join(blocks) + "\n"


def _variants(report: RunReport) -> list[str]:
    found = page(report)
    score = f"{summary.METRIC_WORDS[report.run.metric]}, test"
    head = (
        "Variant", "Status", score, "95 %", "Loss val, points", "Loss test, points",
        "p50", "Speed-up", "File", "Params", "MACs",
    )  # fmt: skip
    told = [f"Latency and speed-up: plain file, {found.condition}."] if found.condition else []
    told.append(
        f"Loss: points against {report.run.baseline} on the same pictures, with the paired 95 % interval."
    )
    return [
        "## Variants",
        _table(head, [_variant_cells(row) for row in found.rows], right_from=2),
        text.escape(" ".join(told)),
        "\n".join(f"- **{text.escape(v.name)}**: {text.escape(v.reason)}" for v in report.variants),
        *(["\n".join(f"- {text.escape(line)}" for line in report.noticed)] if report.noticed else []),
    ]


def _variant_cells(row: Row) -> list[str]:
    def with_range(value: str, ends: str) -> str:
        return f"{value} ({ends})" if ends else value

    return [
        f"**{text.escape(row.variant.name)}**"
        if row.variant.status == "chosen"
        else text.escape(row.variant.name),
        row.status,
        row.accuracy,
        row.accuracy_range,
        with_range(row.loss_val, row.loss_val_range),
        with_range(row.loss_test, row.loss_test_range),
        row.latency,
        with_range(row.speedup, row.speedup_range),
        text.size(row.variant.bytes),
        text.amount(row.variant.params),
        text.amount(row.variant.macs),
    ]


def _gates(report: RunReport) -> list[str]:
    if not report.gates:
        return []
    rows = [
        [
            text.escape(gate.variant),
            text.escape(gate.name),
            text.measured(gate.value, gate.unit),
            ("≤ " if gate.at_most else "≥ ") + text.measured(gate.bound, gate.unit),
            gate.split,
            "pass" if gate.passed else "**fail**",
        ]
        for gate in page(report).gates
    ]
    return ["## Gates", _table(("Variant", "Gate", "Measured", "Bound", "Split", "Result"), rows)]


def _classes(report: RunReport) -> list[str]:
    found = page(report)
    if not found.classes:
        return []
    rows = [
        [text.escape(row.name), str(row.n), *(text.percent(cell.share) for cell in row.cells)]
        for row in found.classes[:_SHOWN]
    ]
    head = ("Class", "Pictures", *map(text.escape, found.class_variants))
    left_out = len(found.classes) + found.classes_left_out - len(rows)
    more = [f"{left_out} more classes are in report.json."] if left_out else []
    return ["## Recall by class, test", _table(head, rows, right_from=1), *more]


def _latency(report: RunReport) -> list[str]:
    rows = [
        [
            text.escape(name), provider, row.file, row.input, str(row.threads), str(row.batch),
            text.duration(row.p50_ns), text.duration(row.p90_ns), text.duration(row.p99_ns),
            text.duration(row.alternating_p50_ns), str(row.n),
        ]
        for name, provider, row in page(report).latency_rows
    ]  # fmt: skip
    head = (
        "Variant", "Provider", "File", "Input", "Threads", "Batch", "p50", "p90", "p99", "Alternating", "Samples"
    )  # fmt: skip
    return ["## Latency", _table(head, rows, right_from=3)] if rows else []


def _mistakes(report: RunReport) -> list[str]:
    if not report.mistakes:
        return []
    rows = [
        [text.escape(m.name), text.escape(m.label), text.escape(m.predicted), text.percent(m.probability)]
        for m in report.mistakes[:_SHOWN]
    ]
    return ["## Worst mistakes", _table(("Picture", "Is", "Said", "Probability"), rows, right_from=3)]


def _transfer(report: RunReport) -> list[str]:
    if report.transfer is None:
        return []
    rows = []
    for row in map(gain, report.transfer.rows):
        rows.append(
            [
                str(row.per_class),
                f"{text.percent(row.pretrained.mean)} ({row.pretrained_range})",
                f"{text.percent(row.random.mean)} ({row.random_range})",
                f"{row.gain} ({row.verdict})",
            ]
        )
    told = f"{report.transfer.task}; {report.transfer.weights} against random weights. {report.transfer.note}"
    head = ("Pictures a class", "Pretrained", "Random", "Brings, points")
    return ["## What pretraining brings", text.escape(told), _table(head, rows, right_from=0)]


def _data(report: RunReport) -> list[str]:
    counts = report.data.counts
    told = ", ".join(f"{split} {text.whole(sum(by.values()))}" for split, by in counts.items())
    lines = [
        f"- {check.level}: **{text.escape(check.name)}**: {text.escape(check.summary)}"
        for check in report.data.checks
    ]
    classes = text.plural(len(report.data.labels), "class")
    blocks = ["## Data", f"{text.escape(report.data.name)}, {classes}; pictures: {told}."]
    return [*blocks, "\n".join(lines)] if lines else blocks


def _reproduce(report: RunReport) -> list[str]:
    facts = [*page(report).run_facts, *((name, words(value)) for name, value in report.host.items())]
    blocks = [
        "## How to get this again",
        "\n".join(f"- {text.escape(n)}: {text.escape(v)}" for n, v in facts),
    ]
    if report.reproduce:
        commands = "\n".join(report.reproduce)
        longest = max(map(len, re.findall("`+", commands)), default=0)
        fence = "`" * max(3, longest + 1)
        blocks.append(f"{fence}sh\n{commands}\n{fence}")
    return blocks


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right_from: int = 99) -> str:
    """A table whose columns from `right_from` on are aligned to the right."""
    marks = ["---:" if k >= right_from else "---" for k in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *rows])
