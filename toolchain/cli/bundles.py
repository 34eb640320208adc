"""`toolchain verify` and `toolchain predict`: the runtime that ships, behind the same words; and what is a bundle."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

_BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))


@click.command()
@_BUNDLE
def verify(bundle: Path) -> int:
    """Recheck a bundle: every file's hash, and the answers to its golden pictures on this machine.

    Exit code 3 when anything differs.

    \b
    Example:
      toolchain verify runs/quickstart/bundle
    """
    from toolchain.runtime.__main__ import main as runtime

    return runtime(["verify", str(bundle)])


@click.command()
@_BUNDLE
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--csv", "table", type=click.Path(path_type=Path, dir_okay=False), help="Write the answers as CSV."
)
def predict(bundle: Path, pictures: tuple[Path, ...], table: Path | None) -> int:
    """Classify pictures (files, or folders of them) with a bundle.

    \b
    Example:
      toolchain predict runs/blood-cells/bundle ./new-pictures --csv answers.csv
    """
    from toolchain.runtime.__main__ import main as runtime

    asked = ["predict", str(bundle), *map(str, pictures)]
    return runtime(asked + (["--csv", str(table)] if table else []))


def require_bundle(option: str, *paths: Path) -> None:
    """Raise UsageError when a person gave `option` (a parameter's name), and each of `paths` is a single file.

    The option chooses a file of a bundle, so beside ONNX files it would be ignored.
    """
    said = click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE
    if said and all(path.is_file() for path in paths):
        raise click.UsageError(
            f"--{option} chooses a file of a bundle, but {paths[0]} is a single file; leave it out."
        )
