"""One self-contained HTML file: no script, no network (its own policy forbids both), all inside."""

from __future__ import annotations

from toolchain.report.model import RunReport
from toolchain.report.page import page
from toolchain.report.style import render_page


def render_html(report: RunReport) -> str:
    """The report as one HTML page; every name in it is escaped."""
    return render_page("report.html.j2", report=report, page=page(report))
