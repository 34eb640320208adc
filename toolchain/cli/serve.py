"""`toolchain serve`: the runtime's server, behind the same words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from toolchain.runtime.server.settings import LIMITS, Limits

_FILE = click.Path(path_type=Path, dir_okay=False)


def _limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option a limit."""
    for field in reversed(fields(Limits)):
        flag, kind = f"--limit-{field.name.replace('_', '-')}", type(field.default)
        about = f"{LIMITS[field.name]}."
        option = click.option(
            flag, type=kind, default=field.default, show_default=True, metavar="N", help=about
        )
        command = option(command)
    return command


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8080, show_default=True, help="0 takes a free one.")
@click.option("--grpc-port", type=int, help="Answer gRPC there as well; 0 takes a free one (needs grpcio).")
@click.option("--provider", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--threads", type=int, help="Of a call; else taken from the bundle's measurements.")
@click.option("--workers", type=int, help="Calls at once; else cores / threads.")
@click.option("--token-file", type=_FILE, help="Clients must bear the token in this file.")
@click.option("--tls-certificate", type=_FILE, help="PEM file with the certificate (chain).")
@click.option("--tls-key", type=_FILE, help="PEM file with its key.")
@click.option(
    "--memory-limit", type=int, metavar="MB", help="Of the whole process; what needs more is refused."
)
@_limits
def serve(bundle: Path, **options: object) -> int:
    """Answer over HTTP: Open Inference Protocol v2, picture posts, metrics, and a page at /.

    The bundle is verified first; SIGTERM drains, SIGHUP swaps to what lies at the bundle's path then, SIGUSR1
    goes back.

    \b
    Example:
      toolchain serve runs/quickstart/bundle --port 8080
      curl --data-binary @picture.jpg http://127.0.0.1:8080/predict
    """
    from toolchain.runtime.__main__ import main as runtime

    given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
    return runtime(["serve", *(f"--{name}={value}" for name, value in given.items()), "--", str(bundle)])
