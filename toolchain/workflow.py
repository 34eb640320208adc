"""The whole trip: data, artifacts, measurements on val, choice, test, bundle, report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import yaml

from toolchain import graph
from toolchain import report as reports
from toolchain.artifact import Artifact, figure
from toolchain.bundle import Papers, rounding
from toolchain.bundle import remove as remove_bundle
from toolchain.bundle import write as write_bundle
from toolchain.choose import Candidate, Choice, Exam, choose
from toolchain.data.dataset import Data
from toolchain.device import DeviceName, select
from toolchain.errors import DataError, ParityError, ProviderError, RecipeError
from toolchain.learn.settings import Training
from toolchain.measure import accuracy, latency
from toolchain.measure.latency import Condition, Latency
from toolchain.pipeline import Pipeline
from toolchain.progress import Progress, Silent
from toolchain.recipe import Recipe, load
from toolchain.report.assemble import assemble, network
from toolchain.report.card import render_card
from toolchain.report.findings import Findings, Probabilities
from toolchain.report.parts import BundleInfo
from toolchain.report.terminal import render_summary
from toolchain.runtime import providers
from toolchain.runtime.session import OPTIMIZED_FOR, Session
from toolchain.runtime.whole import write_whole
from toolchain.store import Entry, Store, alone, host_faults, size_of


@dataclass(frozen=True)
class Places:
    """Where things are: `out` for report and bundle (runs/NAME when None), the store, other data than the recipe's."""

    out: Path | None = None
    store: Path = Path(".toolchain")
    data: Path | None = None


@dataclass(frozen=True)
class Wishes:
    """What a run is asked besides its recipe; see `toolchain run --help`.

    prefer: the variant to ship if it passes every gate, whatever else is faster.
    """

    overrides: Sequence[str] = ()
    until: str | None = None
    device: DeviceName | None = None
    fresh: bool = False
    prefer: str | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run left. `report` and `bundle` are None when it was stopped early or nothing passed."""

    out: Path
    passed: bool
    summary: str
    report: reports.RunReport | None = None
    bundle: Path | None = None
    artifacts: Mapping[str, Path] = field(default_factory=dict)


def run(
    recipe: str | Path | Recipe,
    places: Places | None = None,
    wishes: Wishes | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Do what a recipe says, from pictures to bundle and report; finished steps are taken from the store.

    Raises ToolchainError (RecipeError, DataError, …) for wrong input; a gate that fails is no exception but
    `passed` = False, with the report written.
    """
    places, wishes = places or Places(), wishes or Wishes()
    shown: Progress = progress or Silent()
    started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    asked = recipe if isinstance(recipe, Recipe) else load(recipe, wishes.overrides, places.data)
    asked = asked.model_copy(update={"device": wishes.device or asked.device})
    names = providers.resolve(asked.measure.providers)
    asked, left_out = asked.for_providers(names)
    pipeline = open_pipeline(asked, places.store, wishes, shown)
    out = (places.out or Path("runs") / asked.name).resolve()
    with host_faults(out):
        out.mkdir(parents=True, exist_ok=True)
    data, checks = pipeline.data()
    pipeline.check_networks()
    check_gates(asked, data)
    for line in (*checks.warnings, *idle(asked)):
        shown.say(f"note: {line}")
    try:
        artifacts = pipeline.build(data, wishes.until)
    except ParityError:  # an export that answers otherwise: nothing of an earlier run may pass for this one's
        with alone(out):
            remove_bundle(out / "bundle")
            for page in out.glob("report.*"):
                page.unlink()
        raise
    if wishes.until:
        pipeline.store.register(f"{asked.name}.until", pipeline.keys)
        folder = artifacts[wishes.until].folder
        lines = f"{wishes.until}: {folder}"
        return RunResult(out, True, lines, artifacts={n: a.folder for n, a in artifacts.items()})
    placement, refused = _place(asked, {name: artifacts[name] for name in _shown(asked)}, names)
    unavailable = (
        _unavailable(asked, names) | {f"variant {name}": why for name, why in left_out.items()} | refused
    )
    measured = _measure(pipeline, artifacts, data, placement, wishes.prefer)
    found = Findings(
        data=data, checks=checks, device=pipeline.device, artifacts=artifacts, unavailable=unavailable,
        reused=frozenset(pipeline.reused), started=started[1], seconds=time.monotonic() - started[0],
        recipe=asked, providers=names, **measured,
    )  # fmt: skip
    return _finish(pipeline, found, out)


def check(
    recipe: str | Path,
    places: Places | None = None,
    wishes: Wishes | None = None,
    progress: Progress | None = None,
) -> str:
    """Check a recipe and its data without training; returns what was found, in lines.

    Raises RecipeError, DataError or BackboneError with everything that stands in the way.
    """
    places, wishes = places or Places(), wishes or Wishes()
    asked = load(recipe, wishes.overrides, places.data)
    providers.resolve(asked.measure.providers)
    shown: Progress = progress or Silent()
    pipeline = open_pipeline(asked, places.store, wishes, shown)
    found, checks = pipeline.data()
    pipeline.check_networks()
    check_gates(asked, found)
    lines = [f"{asked.name}: the recipe is well formed"]
    lines += [f"  {name}: {len(split)} pictures" for name, split in found.splits]
    lines += [f"  classes: {', '.join(found.labels)}"]
    lines += [f"  note: {line}" for line in (*checks.warnings, *idle(asked))]
    lines += [f"  makes: {' -> '.join(asked.nodes())}"]
    return "\n".join(lines)


def open_pipeline(asked: Recipe, store: Path, wishes: Wishes, progress: Progress) -> Pipeline:
    """The pipeline of a recipe over a store, which is made if there is none. Raises HostError, DeviceError."""
    device = select(wishes.device or asked.device, asked.threads)
    with host_faults(store):
        store.mkdir(parents=True, exist_ok=True)
    return Pipeline(asked, Path.cwd(), device, Store(store), progress, wishes.fresh)


def idle(asked: Recipe) -> Iterator[str]:
    """A sentence for each setting of a training that another one switches off."""
    for name, node in asked.nodes().items():
        if isinstance(node.step, Training):
            yield from (f"{name}: {node.step.step}.{line}" for line in node.step.idle())


def check_gates(asked: Recipe, data: Data) -> None:
    """Raise RecipeError or DataError for gates that val cannot be judged by."""
    floors = asked.gates.min_recall
    if isinstance(floors, dict):
        unknown = sorted(set(floors) - set(data.labels))
        if unknown:
            known = ", ".join(data.labels)
            raise RecipeError(f"gates.min_recall: there is no class {', '.join(unknown)}; known: {known}")
        unseen = sorted(name for name in floors if data.labels.index(name) not in data.val.labels)
        if unseen:
            raise DataError(f"gates.min_recall: val has no picture of {', '.join(unseen)} to judge it by")
    if not len(data.val):
        raise DataError("val has no pictures, but val decides everything; give data.split.val a share")


Placement = Mapping[tuple[str, str], Mapping[str, int]]  # (variant, provider) -> nodes by provider


class _Measured(TypedDict):
    """What measuring the files gave; see Findings."""

    files: Mapping[str, Artifact]
    answers: Mapping[tuple[str, str, str], Probabilities]
    placement: Placement
    latencies: Sequence[Latency]
    latency_entry: Entry
    choice: Choice


def _measure(
    pipeline: Pipeline,
    artifacts: Mapping[str, Artifact],
    data: Data,
    placement: Placement,
    prefer: str | None,
) -> _Measured:
    """Measure every variant where it was placed: val and latency, then choose, then test."""
    recipe = pipeline.recipe
    files = {name: artifacts[name] for name in _shown(recipe)}

    def ask(split: str) -> dict[tuple[str, str, str], Probabilities]:
        pictures = dict(data.splits)[split]
        return {
            (name, provider, split): accuracy.load(
                pipeline.answers(files[name], split, pictures, provider).folder
            )
            for name, provider in placement
        }

    on: dict[str, list[str]] = {}
    for name, provider in placement:
        on.setdefault(provider, []).append(name)
    val = ask("val")
    timed = pipeline.latencies(files, data.val, recipe.measure, on)
    latencies = latency.load(timed.folder)
    parity = {name: figure(file, artifacts.values(), "parity_fused") for name, file in files.items()}
    exam = Exam(data.val.labels, data.val.groups, data.labels)
    choice = choose([*candidates(files, val, latencies, parity)], exam, recipe.gates, prefer)
    return _Measured(
        files=files, answers=val | ask("test"), placement=placement,
        latencies=latencies, latency_entry=timed, choice=choice,
    )  # fmt: skip


def _shown(recipe: Recipe) -> list[str]:
    """The names of the variants that are measured."""
    return [name for name, variant in recipe.variants.items() if not variant.intermediate]


def candidates(
    files: Mapping[str, Artifact],
    answers: Mapping[tuple[str, str, str], Probabilities],
    latencies: Sequence[Latency],
    parity: Mapping[str, float | None],
) -> Iterator[Candidate]:
    """Each file as it is judged: on val, by the plain latency under the first condition."""
    first: Condition = next(x.condition for x in latencies if x.condition.file == "plain")
    samples = {x.variant: x.samples for x in latencies if x.condition == first}
    for name, file in files.items():
        yield Candidate(
            name=name,
            bytes=(file.folder / latency.FILES["fused"]).stat().st_size,
            probabilities=answers[name, first.provider, "val"],
            latency=samples[name],
            parity=parity[name],
        )


def _unavailable(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """Providers that `auto` left out, and why."""
    if "auto" not in recipe.measure.providers:
        return {}
    return {name: why for name, why in providers.usable().items() if name not in names and why}


def _place(
    recipe: Recipe, files: Mapping[str, Artifact], names: Sequence[str]
) -> tuple[Placement, dict[str, str]]:
    """Where each provider runs the nodes of each variant, and why it cannot take the others.

    One that cannot be taken is an error where the provider was named or decides the choice; where "auto" found
    it beside the first, it is told as not measured.
    """
    placement: dict[tuple[str, str], Mapping[str, int]] = {}
    refused: dict[str, str] = {}
    for provider in names:
        for name, file in files.items():
            try:
                session = Session(file.folder / latency.FILES["fused"], provider=provider)
                placement[name, provider] = session.placement
            except ProviderError as error:
                if provider == names[0] or provider in recipe.measure.providers:
                    raise
                refused[f"variant {name} on {provider}"] = str(error)
    return placement, refused


def _finish(pipeline: Pipeline, found: Findings, out: Path) -> RunResult:
    """Write bundle, report and the run's entry in the store; one run at a time, so that the two belong together."""
    with host_faults(out), alone(out):
        return _write(pipeline, found, out)


def _write(pipeline: Pipeline, found: Findings, out: Path) -> RunResult:
    recipe, chosen = pipeline.recipe, found.choice.chosen
    folder = out / "bundle"
    text = yaml.safe_dump(recipe.model_dump(mode="json", by_alias=True, exclude_unset=True), sort_keys=False)
    report = assemble(found, text)
    if chosen is None:
        remove_bundle(folder)
    else:
        papers = _papers(found, report, chosen)
        identity = write_bundle(folder, found.files[chosen], found.data.val, papers)
        about = BundleInfo(
            path=str(folder), identity=identity, bytes=size_of(folder), temperature=papers.temperature
        )
        report = report.model_copy(update={"bundle": about})
    write_whole(out / "recipe.yaml", text.encode())
    write_whole(out / "report.json", reports.render_json(report).encode())
    write_whole(out / "report.md", reports.render_markdown(report).encode())
    write_whole(out / "report.html", reports.render_html(report).encode())
    pipeline.store.register(recipe.name, pipeline.keys)
    return RunResult(
        out, chosen is not None, _summary(report, out), report, folder if chosen else None,
        {name: artifact.folder for name, artifact in found.artifacts.items()},
    )  # fmt: skip


def _papers(found: Findings, report: reports.RunReport, chosen: str) -> Papers:
    """What goes into the bundle beside the model."""
    artifact = found.files[chosen]
    described = network(artifact)
    lineage = {
        "run": found.recipe.name, "variant": chosen, "key": artifact.key, "parents": dict(artifact.record.parents),
        "weights": described.provenance.model_dump(mode="json"), "made_on": report.host["cpu"],
        "data": {name: split.fingerprint for name, split in found.data.splits},
    }  # fmt: skip
    variant = report.variant(chosen)
    measured = {
        "variant": json.loads(variant.model_dump_json(exclude={"path", "plain_path"})) if variant else {},
        "host": report.host,
        "speedups": [json.loads(s.model_dump_json()) for s in report.speedups if s.of == chosen],
    }
    model = graph.read(artifact.folder / graph.FUSED)
    quantized, saturating = rounding(model)
    return Papers(
        name=found.recipe.name, variant=chosen, network=described,
        temperature=report.calibration[0].temperature,
        thresholds={label: limit.value for label, limit in report.thresholds.items()},
        lineage=lineage, measured=measured, card=render_card(report),
        saturating=saturating, quantized=quantized, bound=OPTIMIZED_FOR in graph.metadata(model),
    )  # fmt: skip


def _summary(report: reports.RunReport, out: Path) -> str:
    return f"{render_summary(report)}\nreport: {out / 'report.html'}" + (
        f"\nbundle: {report.bundle.path}" if report.bundle else ""
    )
