"""`toolchain verify` and `toolchain predict`: the runtime that ships, behind the same words; and what is a bundle."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

_BUNDLE = click.argument("bundle", type=click.Path(path_type=Path))
_MEMORY_LIMIT = click.option(
    "--memory-limit", type=click.IntRange(min=1), metavar="MB",
    help="Refuse what would need more memory than this, libraries included: for bundles of strangers.",
)  # fmt: skip


@click.command()
@_BUNDLE
@_MEMORY_LIMIT
def verify(bundle: Path, memory_limit: int | None) -> int:
    """Recheck a bundle: every file's hash, and the answers to its golden pictures on this machine.

    Exit code 3 when anything differs.

    \b
    Example:
      toolchain verify runs/quickstart/bundle
    """
    from toolchain.runtime.__main__ import main as runtime

    return runtime(["verify", str(bundle), *_limited(memory_limit)])


@click.command()
@_BUNDLE
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--csv",
    "table",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the answers as CSV as well.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answers as JSON.")
@click.option(
    "--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where to run."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of the session."
)
@_MEMORY_LIMIT
def predict(
    bundle: Path, pictures: tuple[Path, ...], table: Path | None, as_json: bool, provider: str, threads: int,
    memory_limit: int | None,
) -> int:  # fmt: skip
    """Classify pictures (files, or folders of them) with a bundle.

    A picture that cannot be read is told, the others are answered all the same, and the exit code is 2.

    \b
    Example:
      toolchain predict runs/blood-cells/bundle ./new-pictures --csv answers.csv
      toolchain predict runs/blood-cells/bundle photo.jpg --json
    """
    from toolchain.runtime.__main__ import main as runtime

    asked = ["predict", str(bundle), *map(str, pictures), "--provider", provider, "--threads", str(threads)]
    asked += ["--csv", str(table)] if table else []
    return runtime(asked + (["--json"] if as_json else []) + _limited(memory_limit))


def _limited(megabytes: int | None) -> list[str]:
    return [] if megabytes is None else ["--memory-limit", str(megabytes)]


def require_bundle(option: str, *paths: Path) -> None:
    """Raise UsageError when a person gave `option` (a parameter's name), and each of `paths` is a single file.

    The option chooses a file of a bundle, so beside ONNX files it would be ignored.
    """
    said = click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE
    if said and all(path.is_file() for path in paths):
        raise click.UsageError(
            f"--{option} chooses a file of a bundle, but {paths[0]} is a single file; leave it out."
        )
