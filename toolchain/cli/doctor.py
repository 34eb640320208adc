"""`toolchain doctor`."""

from __future__ import annotations

import json

import click

import toolchain


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def doctor(as_json: bool) -> int:
    """Say what this machine can do: versions, providers that really work, instruction sets, what is missing.

    Exit code 3 when something is broken; each finding names the command that mends it.

    \b
    Example:
      toolchain doctor
    """
    health = toolchain.examine()
    click.echo(json.dumps(health.as_json(), indent=1) if as_json else health.text())
    return 3 if health.broken else 0
