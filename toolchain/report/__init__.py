"""One RunReport, three forms: HTML for people, Markdown for pull requests, JSON for programs.

    report = RunReport(...)
    Path("report.html").write_text(render_html(report), encoding="utf-8")

A report reads what was measured and computes nothing new; `report.schema.json` describes its JSON. Names are loaded on
first use (PEP 562): tables of `bench` and `compare` need neither recipes nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain.report.html import render_html
    from toolchain.report.json_form import SCHEMA, parse, render_json, schema_text
    from toolchain.report.markdown import render_markdown
    from toolchain.report.model import RunReport
    from toolchain.report.summary import headline
    from toolchain.report.thumbnails import thumbnail

_HOME = {
    "SCHEMA": "json_form",
    "RunReport": "model",
    "headline": "summary",
    "parse": "json_form",
    "render_html": "html",
    "render_json": "json_form",
    "render_markdown": "markdown",
    "schema_text": "json_form",
    "thumbnail": "thumbnails",
}
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


def __getattr__(name: str) -> Any:
    """Load one of the names of __all__ from its module."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
