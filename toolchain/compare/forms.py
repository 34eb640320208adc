"""A comparison as terminal lines, as JSON, as Markdown for a pull request, and as JUnit XML for a CI's test report.

JUnit: one test case a judged check; a regression is a failure, an inconclusive check is skipped with its
reason, so that a CI shows both, and neither is taken for the other. Schema: the de-facto one of
https://github.com/testmoapp/junitxml.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from xml.etree import ElementTree

from toolchain.compare import words
from toolchain.compare.model import Check, Comparison
from toolchain.report.text import escape, printable

_SHOWN_CLASSES = 20


def terminal(found: Comparison) -> str:
    """Headline, table, notes."""
    rows: list[Sequence[str]] = [words.HEAD, *(words.row(check) for check in found.checks)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(words.HEAD))]
    table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    told = [f"  note: {line}" for line in (*_reasons(found), *found.notes)]
    return "\n".join([words.headline(found), "", *table, "", words.how(found), *told])


def markdown(found: Comparison) -> str:
    """Headline, table, classes that changed, and how it was measured."""
    blocks = [
        f"### {words.sign(found.verdict)} {escape(words.headline(found))}",
        _table(words.HEAD, [list(map(escape, words.row(check))) for check in found.checks]),
    ]
    if found.failure:
        blocks.append(f"> {escape(found.failure)}")
    if changed := _classes(found):
        blocks.append(_details("Classes with changed answers", changed))
    lines = [words.how(found), *_reasons(found), *found.notes]
    blocks.append(_details("How this was measured", "\n".join(f"- {escape(line)}" for line in lines)))
    return "\n\n".join(blocks) + "\n"


def as_json(found: Comparison) -> str:
    """The record, laid out."""
    return json.dumps(found.record(), indent=1, ensure_ascii=False) + "\n"


def _details(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{content}\n\n</details>"


def _reasons(found: Comparison) -> list[str]:
    """What stands beside checks that were not passed, and of accuracy always."""
    shown = [
        c
        for c in found.checks
        if c.note and (c.verdict in ("regression", "inconclusive") or c.name == "accuracy")
    ]
    return [f"{check.name}: {check.note}" for check in shown]


def _classes(found: Comparison) -> str:
    rows = [row for row in (found.answers.classes if found.answers else ()) if row.lost or row.won]
    rows = sorted(rows, key=lambda row: -row.loss)[:_SHOWN_CLASSES]
    cells = [
        [escape(r.name), str(r.n), f"{r.base:.1f} %", f"{r.candidate:.1f} %", f"{r.lost} / {r.won}"]
        for r in rows
    ]
    return _table(("class", "pictures", "base", "candidate", "lost / won"), cells) if cells else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def junit(found: Comparison) -> str:
    """One suite with a case for every judged check."""
    judged = [check for check in found.checks if check.verdict != "not judged"]
    counts = {name: str(sum(c.verdict == verdict for c in judged)) for name, verdict in _KINDS.items()}
    failed = int(found.failure is not None)  # a case of its own
    attributes = {
        "name": f"toolchain compare {found.candidate.name}", "tests": str(len(judged) + failed), **counts,
        "errors": str(failed), "time": f"{found.seconds:.1f}", "timestamp": found.started,
    }  # fmt: skip
    suite = ElementTree.Element("testsuite", {k: str(printable(v)) for k, v in attributes.items()})
    for check in judged:
        _case(suite, check, found)
    if found.failure:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "compare", "name": "finished"})
        ElementTree.SubElement(case, "error", {"message": str(printable(found.failure))})
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


_KINDS = {"failures": "regression", "skipped": "inconclusive"}


def _case(suite: ElementTree.Element, check: Check, found: Comparison) -> None:
    name = f"{found.base.name} -> {found.candidate.name}"  # of no build alone: a history of tests goes by it
    case = ElementTree.SubElement(
        suite, "testcase", {"classname": str(printable(name)), "name": str(printable(check.name))}
    )
    interval = words.interval(check)
    parts = [words.value(check), *([f"[{interval}]"] if interval else [])]
    said = f"{' '.join(parts)}, bound {words.bound(check)}; {check.note}".removesuffix("; ")
    if check.verdict == "regression":
        ElementTree.SubElement(case, "failure", {"message": str(printable(said)), "type": "regression"})
    elif check.verdict == "inconclusive":
        ElementTree.SubElement(case, "skipped", {"message": f"inconclusive: {printable(said)}"})
    else:
        ElementTree.SubElement(case, "system-out").text = str(printable(said))
