"""`toolchain run` and `toolchain check`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

import toolchain

_FOLDER = click.Path(path_type=Path, file_okay=False)
_SET = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Change one setting, e.g. tune.epochs=3."
)
_STORE = click.option(
    "--store", type=_FOLDER, envvar="TOOLCHAIN_STORE", default=Path(".toolchain"), show_default=True,
    help="Where finished steps are kept.",
)  # fmt: skip
_DATA = click.option("--data", type=_FOLDER, help="An image folder to use instead of the recipe's data.")


@click.command()
@click.argument("recipe")
@_DATA
@click.option("--out", type=_FOLDER, help="Where report and bundle go [default: runs/NAME].")
@_STORE
@_SET
@click.option(
    "--until",
    metavar="NAME",
    help="Stop when this artifact is made, e.g. tuned ('toolchain check' names them).",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to train.")
@click.option("--fresh", is_flag=True, help="Do everything anew, also what the store has.")
def run(
    recipe: str, data: Path | None, out: Path | None, store: Path, overrides: tuple[str, ...],
    until: str | None, device: Literal["auto", "cpu", "cuda"] | None, fresh: bool,
) -> int:  # fmt: skip
    """Fine-tune, prune, quantize, export, measure, choose and bundle, as RECIPE says.

    RECIPE is a YAML file or the name of a shipped one ('toolchain recipes'). Started again, it goes on
    where it was. Exit code 3 when no file passes the gates; the report is written all the same.

    \b
    Example:
      toolchain run quickstart
      toolchain run recipe.yaml --set tune.epochs=5 --out runs/short
    """
    from toolchain.cli.progress import Bars

    places = toolchain.Places(out=out, store=store, data=data)
    wishes = toolchain.Wishes(overrides=overrides, until=until, device=device, fresh=fresh)
    result = toolchain.run(recipe, places, wishes, Bars())
    click.echo(result.summary)
    return 0 if result.passed else 3


@click.command()
@click.argument("recipe")
@_DATA
@_STORE
@_SET
def check(recipe: str, data: Path | None, store: Path, overrides: tuple[str, ...]) -> int:
    """Check RECIPE and its data without training: settings, pictures, splits, pruning.

    \b
    Example:
      toolchain check recipe.yaml
    """
    from toolchain.cli.progress import Bars

    places, wishes = toolchain.Places(store=store, data=data), toolchain.Wishes(overrides=overrides)
    click.echo(toolchain.check(recipe, places, wishes, Bars()))
    return 0
