"""`toolchain store`: how large it is, and making it smaller."""

from __future__ import annotations

from pathlib import Path

import click

import toolchain

_STORE = click.option(
    "--store", "root", type=click.Path(path_type=Path, file_okay=False), envvar="TOOLCHAIN_STORE",
    default=Path(".toolchain"), show_default=True, help="Where finished steps are kept.",
)  # fmt: skip


@click.group(invoke_without_command=True)
@_STORE
@click.pass_context
def store(ctx: click.Context, root: Path) -> int:
    """Show what the store of finished steps holds, or clean it.

    \b
    Example:
      toolchain store
      toolchain store clean --keep quickstart
    """
    ctx.obj = root
    if ctx.invoked_subcommand is None:
        click.echo(toolchain.store_table(root))
    return 0


@store.command()
@click.option("--keep", multiple=True, metavar="RUN", help="A named run to keep [default: all named runs].")
@click.pass_obj
def clean(root: Path, keep: tuple[str, ...]) -> int:
    """Delete what no kept run needs. Work in progress is left alone.

    \b
    Example:
      toolchain store clean                      # keeps what any named run needs
      toolchain store clean --keep quickstart    # keeps that run only
    """
    freed = toolchain.clean_store(root, keep)
    click.echo(f"Freed {freed / 1e6:.1f} MB")
    return 0
