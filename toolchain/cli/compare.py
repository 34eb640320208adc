"""`toolchain compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import click
from click.core import ParameterSource

from toolchain.cli.bundles import require_bundle
from toolchain.cli.outputs import require_writable
from toolchain.errors import HostError

if TYPE_CHECKING:
    from toolchain.compare.comparison import Question
    from toolchain.compare.model import Comparison

_REGRESSION = 3
_PATH = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--gates", type=_FILE, help="A gates.yaml with bounds (docs/ci.md); without one, the defaults."),
    click.option("--set", "overrides", multiple=True, metavar="NAME=VALUE", help="Change one bound, e.g. latency=2."),
    click.option("--max-seconds", type=click.FloatRange(0, 1e6, min_open=True), default=120.0, show_default=True,
                 help="When to stop timing without a verdict."),
    click.option("--pictures", type=_FOLDER, help="Test pictures, a folder a class: accuracy of files that take them."),
    click.option("--answers", type=_FILE, help="Saved answers of both (.npz or .csv) instead of pictures."),
    click.option("--file", type=click.Choice(["fused", "plain"]), default="fused", show_default=True,
                 help="Which file of a bundle."),
    click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
                 help="Where to run."),
    click.option("--option", "options", multiple=True, metavar="PROVIDER.NAME=VALUE",
                 help="An ONNX Runtime option, e.g. cuda.device_id=0 or session.NAME=VALUE."),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads of one call."),
    click.option("--spinning/--no-spinning", default=False, show_default=True, help="Whether idle threads spin."),
    click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Pictures in one call."),
    click.option("--shape", "shapes", multiple=True, metavar="NAME=SIZE",
                 help="The size of a dimension that the model leaves open, e.g. H=480."),
    click.option("--seed", type=int, help="Of the random orders [default: another each time]."),
    click.option("--json", "as_json", type=_FILE, metavar="FILE", help="Write the whole comparison, raw samples too."),
    click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML for a CI's test report."),
    click.option("--markdown", type=_FILE, metavar="FILE", help="Write Markdown for a pull request."),
    click.option("--record", type=_FOLDER, metavar="DIR", help="Add the comparison to this folder of records."),
)  # fmt: skip


class _Given(TypedDict):
    gates: Path | None
    overrides: tuple[str, ...]
    max_seconds: float
    pictures: Path | None
    answers: Path | None
    file: Literal["fused", "plain"]
    provider: str
    options: tuple[str, ...]
    threads: int
    spinning: bool
    batch: int
    shapes: tuple[str, ...]
    seed: int | None
    as_json: Path | None
    junit: Path | None
    markdown: Path | None
    record: Path | None


def _declared(function: Callable[..., int]) -> Callable[..., int]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command()
@click.argument("base", type=_PATH)
@click.argument("candidate", type=_PATH)
@_declared
def compare(base: Path, candidate: Path, **given: Unpack[_Given]) -> int:
    """Compare CANDIDATE with BASE: latency, cold start, memory, size, answers, accuracy.

    Each is an ONNX file, a bundle, or a bench record (.json) of the same machine. Exit code 0: every judged
    bound is kept for certain; 3: one is broken for certain; 4: it cannot be told in the time given; 130: stopped by
    Ctrl-C, with what was measured until then told and written.

    \b
    Example:
      toolchain compare main/bundle branch/bundle --pictures tiles --markdown comment.md
      toolchain compare old.onnx new.onnx --set latency=2 --max-seconds 300
      toolchain compare monday.json today.json
    """
    require_bundle("file", base, candidate)
    if base.suffix == candidate.suffix == ".json":
        _require_models(base)
    from toolchain.cli.progress import Bars
    from toolchain.compare.comparison import compare as compared

    outputs = (given["as_json"], given["junit"], given["markdown"])
    require_writable(outputs, [given["record"]])
    finding = compared(_question(base, candidate, given), Bars())
    refused = _written(finding.comparison, given)
    for failure in filter(None, (finding.failure, *refused)):
        if finding.exit_code != _REGRESSION:
            raise failure  # the first; whatever could be written is written
        click.echo(f"Error: {failure}", err=True)  # what was found for certain counts more than a file
    return finding.exit_code


def _written(found: Comparison, given: _Given) -> list[HostError | None]:
    """Print the comparison and write it wherever it was asked for; what could not be written."""
    from toolchain import history
    from toolchain.compare import forms

    click.echo(forms.terminal(found))
    written = (
        (given["as_json"], forms.as_json),
        (given["junit"], forms.junit),
        (given["markdown"], forms.markdown),
    )
    refused = [_write(path, form(found)) for path, form in written if path is not None]
    if given["record"] is not None:
        try:
            click.echo(f"Recorded: {history.add(given['record'], found.record())}", err=True)
        except HostError as error:
            refused.append(error)
    return refused


# What times or asks a model: beside two records it would be ignored.
_OF_MODELS = (
    "max_seconds",
    "pictures",
    "file",
    "provider",
    "options",
    "threads",
    "spinning",
    "batch",
    "shapes",
    "seed",
)


def _require_models(base: Path) -> None:
    """Raise UsageError when an option was given that two records leave nothing to do for."""
    context = click.get_current_context()
    for option in context.command.params:
        said = context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
        if said and option.name in _OF_MODELS:
            raise click.UsageError(
                f"{option.opts[0]} says how models are timed or asked, but {base} is a record; leave it out"
                f"{', or give --answers' if option.name == 'pictures' else ''}."
            )


def _question(base: Path, candidate: Path, given: _Given) -> Question:
    """The options as one settings object."""
    from toolchain.compare import gates
    from toolchain.compare.comparison import Question
    from toolchain.compare.live import Timing
    from toolchain.runtime.bench_arguments import parse_options, parse_shapes
    from toolchain.runtime.fresh import Setup

    provider = given["provider"]
    told = parse_options(given["options"], (provider,))
    setup = Setup(provider, given["threads"], given["spinning"], told.get("", {}) | told.get(provider, {}))
    return Question(
        base, candidate, gates=gates.load(given["gates"], given["overrides"]),
        timing=Timing(setup, max_seconds=given["max_seconds"], seed=given["seed"]), kind=given["file"],
        batch=given["batch"], shapes=parse_shapes(given["shapes"]), pictures=given["pictures"],
        saved=given["answers"],
    )  # fmt: skip


def _write(path: Path, content: str) -> HostError | None:
    """Write one form, whole or not at all, or say why not: the others shall be written all the same."""
    from toolchain.runtime.whole import write_out

    try:
        write_out(path, content.encode())
    except OSError as error:
        return HostError(f"{path}: cannot be written ({error.strerror}); mend that and start again")
    return None
