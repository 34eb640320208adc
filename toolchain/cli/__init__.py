"""The command line: parse, call the library, print. Errors are told once, here."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module

import click

from toolchain.errors import ToolchainError

# Where each command lives; a command's file is imported only when it is called or asked for help.
_COMMANDS = {
    "run": "toolchain.cli.run",
    "check": "toolchain.cli.run",
    "optimize": "toolchain.cli.optimize",
    "init": "toolchain.cli.recipes",
    "recipes": "toolchain.cli.recipes",
    "schema": "toolchain.cli.recipes",
    "report": "toolchain.cli.report",
    "verify": "toolchain.cli.bundles",
    "predict": "toolchain.cli.bundles",
    "serve": "toolchain.cli.serve",
    "bench": "toolchain.cli.bench",
    "compare": "toolchain.cli.compare",
    "history": "toolchain.cli.history",
    "package": "toolchain.cli.package",
    "trust": "toolchain.cli.package",
    "store": "toolchain.cli.store",
    "doctor": "toolchain.cli.doctor",
}

# What keeps each finished step, so that a stopped command goes on.
_RESUMED = {"run", "optimize"}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of a first day's work."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the file of one command."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say which command was probably meant."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], _COMMANDS, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else " 'toolchain --help' lists them."
            raise click.UsageError(f"There is no command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="toolchain", message="toolchain %(version)s")
def cli() -> None:
    """From labelled pictures to a measured, verified ONNX model for an edge device.

    \b
    Example:
      toolchain run quickstart            # the whole trip on bundled pictures, no network needed
      toolchain init ./pictures           # a recipe for your own image folder
      toolchain run ./pictures/recipe.yaml

    \b
    Exit codes: 0 well, 1 the machine failed, 2 wrong input, 3 a gate or check failed,
    4 a comparison undecided, 130 stopped by Ctrl-C.
    \b
    Environment: TOOLCHAIN_DATA, where recipes find data sets and weights; TOOLCHAIN_STORE, the store;
    TOOLCHAIN_MODEL_KEY or TOOLCHAIN_MODEL_KEY_FILE, the key of a sealed bundle.
    """


def _machine_failed(error: OSError) -> int:
    """Tell what the operating system refused where no room knew better. Nobody reads any more: say nothing."""
    if error.errno == errno.EPIPE:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes it once more when it ends
    else:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"Error: {where}{error.strerror or error}; mend that and start again", err=True)
    return 1


def main() -> None:
    """Run the command line.

    Exit codes: 0 well, 1 the machine failed, 2 wrong input, 3 a gate or check failed, 4 a comparison undecided.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        code = cli(standalone_mode=False)
    except ToolchainError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except OSError as error:
        sys.exit(_machine_failed(error))
    except MemoryError:
        click.echo("Error: this machine has no memory left; take smaller batches or pictures", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        again = " Start the same command again to go on where it was."
        click.echo(f"Stopped.{again if set(sys.argv[1:2]) & _RESUMED else ''}", err=True)
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)
