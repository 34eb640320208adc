"""`toolchain history`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("history.html"),
    show_default=True,
    help="The page to write.",
)
@click.option(
    "--json",
    "as_json",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write every trend and change as well.",
)
@click.option(
    "--strict", is_flag=True, help="Exit code 2 when a record is damaged; the page is written first."
)
def history(folder: Path, out: Path, as_json: Path | None, strict: bool) -> int:
    """Draw the records in FOLDER: a trend for each model, condition and kind of machine, changes marked.

    Records come from `toolchain bench --records`, of LoadGen's tests too, and `toolchain compare --record`. One that
    is damaged is named and left out; of others that are not drawn, like LoadGen's INVALID tests, it says how many.

    \b
    Example:
      toolchain history records --out history.html
      toolchain history records --json history.json --strict
    """  # fmt: skip
    from toolchain.cli.outputs import require_writable
    from toolchain.errors import RecordError
    from toolchain.history import read
    from toolchain.history.page import not_drawn, render
    from toolchain.history.trends import history as trends
    from toolchain.report import text
    from toolchain.runtime.whole import write_out
    from toolchain.store import host_faults

    require_writable([out, as_json])
    found = trends(read(folder))
    with host_faults(out):
        write_out(out, render(found, folder.resolve().name).encode())
        if as_json is not None:
            write_out(as_json, (json.dumps(found.as_json(), indent=1) + "\n").encode())
    count, records = text.plural(len(found.trends), "trend"), text.plural(found.records, "record")
    click.echo(f"Wrote {out}: {count} of {records}")
    for line in found.damaged:
        click.echo(f"  left out: {line}", err=True)
    for line in not_drawn(found):
        click.echo(f"  {line}", err=True)
    return RecordError.exit_code if strict and found.damaged else 0
