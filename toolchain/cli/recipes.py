"""`toolchain init`, `toolchain recipes`, `toolchain schema`."""

from __future__ import annotations

import json
from pathlib import Path

import click

import toolchain


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace a recipe.yaml that is there.")
def init(folder: Path, force: bool) -> int:
    """Write a commented recipe.yaml for the pictures in FOLDER.

    FOLDER holds one folder a class, or train/, val/ and test/ with those. A groups.csv or split.csv there (columns
    path and group) says which pictures belong together. For a CSV of labels, copy a recipe ('toolchain recipes') and
    write data: {csv: FILE}.

    \b
    Example:
      toolchain init ./pictures && toolchain run ./pictures/recipe.yaml
    """
    path = toolchain.propose(folder, force=force)
    click.echo(f"Wrote {path}. Next: toolchain check {path}, then toolchain run {path}")
    return 0


@click.command()
def recipes() -> int:
    """List the recipes that come with the toolchain.

    \b
    Example:
      toolchain recipes
    """
    for name, path in toolchain.shipped().items():
        lines = path.read_text().splitlines()
        about = next(
            (x.removeprefix("description:").strip() for x in lines if x.startswith("description:")), ""
        )
        click.echo(f"{name:22} {about}\n{'':22} {path}")
    return 0


@click.command()
def schema() -> int:
    """Print the JSON schema of recipes, for editors that complete and check YAML.

    \b
    Example:
      toolchain schema > recipe.schema.json
    """
    click.echo(json.dumps(toolchain.recipe_schema(), indent=1))
    return 0
