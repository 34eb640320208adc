"""One self-contained HTML file: no script, no network (its own policy forbids both), all inside."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from toolchain.report import text
from toolchain.report.labels import short
from toolchain.report.model import RunReport
from toolchain.report.page import page

_FILTERS = (
    "amount",
    "duration",
    "measured",
    "percent",
    "percent_range",
    "plural",
    "size",
    "times",
    "wall",
    "whole",
)


def render_html(report: RunReport) -> str:
    """The report as one HTML page; every name in it is escaped."""
    return render_page("report.html.j2", report=report, page=page(report))


def render_page(template: str, **content: object) -> str:
    """Any page of this house's style from its template in report/templates."""
    return _environment().get_template(template).render(content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("toolchain.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(text, name) for name in _FILTERS} | {"short": short})
    return environment
