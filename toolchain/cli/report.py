"""`toolchain report`."""

from __future__ import annotations

from pathlib import Path

import click

import toolchain


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "md", "json"]),
    default="md",
    show_default=True,
    help="What to print.",
)
def report(run: Path, form: str) -> int:
    """Print the report of a finished run again.

    \b
    Example:
      toolchain report runs/quickstart --format md
      toolchain report runs/quickstart --format html > report.html
    """
    click.echo(toolchain.render(run, form), nl=False)
    return 0
