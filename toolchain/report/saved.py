"""The report of a finished run, read from its folder and drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from toolchain.errors import RecipeError
from toolchain.report.html import render_html
from toolchain.report.json_form import parse, render_json
from toolchain.report.markdown import render_markdown

_FORMS = {"html": render_html, "md": render_markdown, "json": render_json}


def render(folder: Path, form: Literal["html", "md", "json"] | str) -> str:
    """A finished run's report in another form; RecipeError when there is no report in the folder."""
    path = folder / "report.json"
    if not path.is_file():
        raise RecipeError(
            f"{folder}: no report.json here; give the folder of a finished run, e.g. runs/quickstart"
        )
    return _FORMS[form](parse(path.read_bytes(), str(path)))
