"""`toolchain bench`: time models here, on another machine, or under LoadGen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import click
from click.core import ParameterSource

from toolchain.cli.bundles import require_bundle
from toolchain.cli.outputs import require_writable
from toolchain.errors import StoppedError

if TYPE_CHECKING:
    from toolchain.loadgen import Load
    from toolchain.remote import Remote
    from toolchain.runtime.bench import BenchRecord
    from toolchain.runtime.bench_asked import Asked

_PATH = click.Path(path_type=Path)
_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--provider", "providers", multiple=True, type=click.Choice(["cpu", "cuda"]), default=["cpu"],
                 show_default=True, help="Where to run; may be repeated."),
    click.option("--option", "options", multiple=True, metavar="PROVIDER.NAME=VALUE",
                 help="An ONNX Runtime option, e.g. cuda.device_id=0 or session.NAME=VALUE."),
    click.option("--threads", multiple=True, type=click.IntRange(1), default=[1], show_default=True,
                 help="Threads of one call; may be repeated."),
    click.option("--batch", "batches", multiple=True, type=click.IntRange(1), default=[1], show_default=True,
                 help="Pictures in one call; may be repeated."),
    click.option("--spinning/--no-spinning", default=False, show_default=True, help="Whether idle threads spin."),
    click.option("--pictures", type=_FOLDER, help="Real pictures as input [default: a bundle's own, else noise]."),
    click.option("--shape", "shapes", multiple=True, metavar="NAME=SIZE",
                 help="The size of a dimension that the model leaves open, e.g. H=480."),
    click.option("--file", type=click.Choice(["fused", "plain"]), default="fused", show_default=True,
                 help="Which file of a bundle."),
    click.option("--blocks", type=click.IntRange(1), default=20, show_default=True, help="Blocks of calls."),
    click.option("--calls", type=click.IntRange(1), default=50, show_default=True, help="Calls of a block."),
    click.option("--seconds", type=click.FloatRange(0, min_open=True),
                 help="Time blocks until these are over, instead of --blocks; a LoadGen test's least duration."),
    click.option("--cold-starts", type=click.IntRange(0), default=6, show_default=True,
                 help="Fresh processes for cold start and memory."),
    click.option("--allow-fallback", is_flag=True, help="Let nodes or all of it run on the CPU, and say so."),
    click.option("--explain", is_flag=True, help="Say which known pitfalls take the time, and a remedy for each."),
    click.option("--json", "as_json", type=_FILE, metavar="FILE", help="Write the record of one model."),
    click.option("--records", type=_FOLDER, help="Add the records to a history folder."),
    click.option("--on", "address", metavar="ssh://USER@HOST[:PORT]", help="Bench on that machine instead."),
    click.option("--identity", type=_PATH, help="The private key for --on."),
    click.option("--python", default="python3", show_default=True, help="The interpreter to use with --on."),
    click.option("--keep", is_flag=True, help="Leave runtime and model on the other machine."),
    click.option("--loadgen", "scenario", type=click.Choice(["single-stream", "multi-stream", "server", "offline"]),
                 help="Let MLPerf's load generator ask and judge."),
    click.option("--loadgen-mode", "mode", type=click.Choice(["performance", "accuracy"]), default="performance",
                 show_default=True, help="What LoadGen tests."),
    click.option("--mlperf", is_flag=True, help="MLPerf's sizes for --loadgen (10 minutes and more)."),
    click.option("--target-qps", type=click.FloatRange(0, min_open=True), help="Queries a second, server scenario."),
    click.option("--target-latency-ms", type=click.FloatRange(0, min_open=True), help="Bound of the server scenario."),
    click.option("--logs", type=_FOLDER, default=Path("loadgen"), show_default=True,
                 help="Where a LoadGen test makes its folder of logs and record."),
)  # fmt: skip


# Options that mean nothing without another one, by parameter: {the other: these}.
_NEEDED_BY = {
    "address": ("identity", "python", "keep"),
    "scenario": ("mode", "mlperf", "target_qps", "target_latency_ms", "logs"),
}
# Options that would be ignored beside another one: (the other, these, why).
_SHUT_OUT = (
    ("address", ("scenario", "explain"), "works on this machine"),
    ("scenario", ("explain", "blocks", "calls", "cold_starts"), "is for the bench's own timing"),
    ("seconds", ("blocks",), "is what --seconds takes the place of"),
    ("mlperf", ("seconds",), "cannot shorten MLPerf's own sizes"),
)


class _Given(TypedDict):
    providers: tuple[str, ...]
    options: tuple[str, ...]
    threads: tuple[int, ...]
    batches: tuple[int, ...]
    spinning: bool
    pictures: Path | None
    shapes: tuple[str, ...]
    file: Literal["fused", "plain"]
    blocks: int
    calls: int
    seconds: float | None
    cold_starts: int
    allow_fallback: bool
    explain: bool
    as_json: Path | None
    records: Path | None
    address: str | None
    identity: Path | None
    python: str
    keep: bool
    scenario: Literal["single-stream", "multi-stream", "server", "offline"] | None
    mode: Literal["performance", "accuracy"]
    mlperf: bool
    target_qps: float | None
    target_latency_ms: float | None
    logs: Path


def _with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("models", nargs=-1, required=True, type=_PATH, metavar="MODEL|BUNDLE...")
@_with_options
def bench(models: tuple[Path, ...], **given: Unpack[_Given]) -> int:
    """Time ONNX classifiers or bundles: percentiles with intervals, throughput, cold start, memory, placement.

    Every combination of providers, threads and batches is a case. Exit code 1 when a later case, a fresh
    process or the traced run failed (the record is kept), 3 when LoadGen calls its test INVALID, 130 after Ctrl-C
    (the cases that were finished are kept).

    \b
    Example:
      toolchain bench runs/quickstart/bundle
      toolchain bench model.onnx --threads 1 --threads 2 --batch 8 --explain
      toolchain bench model.onnx --loadgen single-stream
      toolchain bench runs/quickstart/bundle --on ssh://me@device --records history
    """
    _check(models, given)
    asked = _asked(given)
    logs = None if given["scenario"] is None else given["logs"]
    require_writable([given["as_json"]], [given["records"], logs])
    _examine(models, asked, given)
    one = _bench if given["scenario"] is None else _loadgen
    codes = []
    for model in models:
        codes.append(one(model, asked, given))
        if codes[-1] == StoppedError.exit_code:
            break
    return max(codes)


def _check(models: tuple[Path, ...], given: _Given) -> None:
    """Options that exclude each other, or need another one: none is ignored silently."""
    require_bundle("file", *models)
    if given["as_json"] is not None and len(models) > 1:
        raise click.UsageError("--json takes the record of one model; --records keeps those of several.")
    context = click.get_current_context()
    flags = {str(option.name): option.opts[0] for option in context.command.params}
    said = {name for name in flags if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    for other, names in _NEEDED_BY.items():
        for name in names if other not in said else ():
            if name in said:
                raise click.UsageError(
                    f"{flags[name]} belongs to {flags[other]}; give that as well, or leave it out."
                )
    for other, names, why in _SHUT_OUT:
        for name in names if other in said else ():
            if name in said:
                raise click.UsageError(f"{flags[name]} {why}; leave {flags[other]} out.")
    for name in ("target_qps", "target_latency_ms"):
        if name in said and given["scenario"] != "server":
            raise click.UsageError(f"{flags[name]} belongs to --loadgen server.")
    if given["mode"] == "accuracy" and given["pictures"] is None:
        raise click.UsageError("--loadgen-mode accuracy needs --pictures, a folder of pictures by class.")
    several = max(len(given["providers"]), len(given["threads"]), len(given["batches"])) > 1
    if given["scenario"] is not None and several:
        raise click.UsageError("a LoadGen test has one provider, one thread count and one batch.")


def _examine(models: tuple[Path, ...], asked: Asked, given: _Given) -> None:
    """Of several models, tell the last one's mistake before the first one is timed."""
    if given["address"] is not None or len(models) == 1:
        return
    if given["scenario"] is None:
        from toolchain.runtime.bench_asked import examine

        for model in models:
            examine(model, asked)
        return
    from toolchain.loadgen.run import examine as examine_test

    for model in models:
        examine_test(model, asked, _load(given))


def _asked(given: _Given) -> Asked:
    from toolchain.runtime.bench_arguments import parse_options, parse_shapes
    from toolchain.runtime.bench_asked import Asked, Sampling

    sampling = Sampling(given["blocks"], given["calls"], given["seconds"], given["cold_starts"])
    return Asked(
        given["providers"], parse_options(given["options"], given["providers"]), given["threads"], given["batches"],
        given["spinning"], given["pictures"], parse_shapes(given["shapes"]), given["file"], given["allow_fallback"],
        sampling,
    )  # fmt: skip


def _bench(model: Path, asked: Asked, given: _Given) -> int:
    """Time one model, print and keep its record."""
    import toolchain
    from toolchain.measure.bench import with_intervals
    from toolchain.report.bench import render_bench
    from toolchain.runtime.bench import LACKING, was_stopped

    remote = _remote(given)
    if remote is not None:
        record = with_intervals(toolchain.bench_on(remote, model, asked))
    else:
        record = toolchain.bench(model, asked, _told)
    kept = _keep(record.as_json(), given)  # before anything is printed: who reads may have gone
    click.echo("\n".join(filter(None, (render_bench(record), kept))))
    if was_stopped(record.notes):
        return StoppedError.exit_code
    if given["explain"]:
        _explain(model, asked, record)
    lacking = any(LACKING in note for note in record.notes)
    return int(lacking or not all(case.placement for case in record.cases))


def _explain(model: Path, asked: Asked, record: BenchRecord) -> None:
    """Explain the first case's condition."""
    import toolchain

    click.echo(toolchain.explain_case(model, asked, record.cases[0].condition).text())


def _loadgen(model: Path, asked: Asked, given: _Given) -> int:
    import toolchain
    from toolchain.loadgen.run import folder_name
    from toolchain.report.loadgen import render_loadgen

    load = _load(given)
    out = given["logs"] / folder_name(model, load)
    record = toolchain.run_loadgen(model, asked, load, out)
    kept = _keep(record.as_json(), given)
    click.echo("\n".join(filter(None, (render_loadgen(record), f"  logs and record: {out}", kept))))
    return 0 if record.valid else 3


def _load(given: _Given) -> Load:
    from toolchain.loadgen import Load

    scenario = given["scenario"] or "single-stream"
    return Load(
        scenario, given["mode"], given["mlperf"], given["seconds"] or 10.0, given["target_qps"],
        given["target_latency_ms"],
    )  # fmt: skip


def _remote(given: _Given) -> Remote | None:
    from toolchain.remote import Remote

    if given["address"] is None:
        return None
    return Remote(given["address"], given["identity"], given["python"], given["keep"])


def _told(condition: str, done: int, of: int) -> None:
    click.echo(f"  {done + 1} of {of}: {condition}", err=True)


def _keep(raw: dict[str, Any], given: _Given) -> str:
    """Write the record wherever it was asked for, each place whatever becomes of the other; returns what to say of it.

    Raises HostError for the first place that failed.
    """
    from toolchain.errors import HostError

    said, failed = "", []
    try:
        if given["as_json"] is not None:
            from toolchain.runtime.whole import write_out
            from toolchain.store import host_faults

            with host_faults(given["as_json"]):
                write_out(given["as_json"], f"{json.dumps(raw)}\n".encode())
    except HostError as error:
        failed.append(error)
    try:
        if given["records"] is not None:
            from toolchain.history import add

            said = f"  kept as {add(given['records'], raw)}"
    except HostError as error:
        failed.append(error)
    if failed:
        raise failed[0]
    return said
