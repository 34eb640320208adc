"""Pages in this house's style, from their templates in report/templates: no script, no network, every name escaped."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from toolchain.report import text
from toolchain.report.labels import short

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


def render_page(template: str, **content: object) -> str:
    """A page from its template."""
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
