"""One RunReport, three forms: HTML for people, Markdown for pull requests, JSON for programs.

    report = RunReport(...)
    Path("report.html").write_text(render_html(report), encoding="utf-8")

A report reads what was measured and computes nothing new; `report.schema.json` describes its JSON.
"""

from __future__ import annotations

from toolchain.report.html import render_html
from toolchain.report.json_form import SCHEMA, parse, render_json, schema_text
from toolchain.report.markdown import render_markdown
from toolchain.report.model import RunReport
from toolchain.report.summary import headline
from toolchain.report.thumbnail import thumbnail

__all__ = [
    "SCHEMA",
    "RunReport",
    "headline",
    "parse",
    "render_html",
    "render_json",
    "render_markdown",
    "schema_text",
    "thumbnail",
]
