"""From what a run found to its RunReport. Pure: nothing is measured here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from toolchain import __version__, stats
from toolchain.artifact import Artifact, lineage
from toolchain.backbones import bundled
from toolchain.backbones.network import Network, read
from toolchain.choose import BASE
from toolchain.measure.calibration import (
    Calibration,
    Threshold,
    calibration,
    fit_temperature,
    fit_thresholds,
    heat,
)
from toolchain.measure.latency import FILES, HOST, Condition
from toolchain.measure.metrics import accuracy, worst_mistakes
from toolchain.record import JSON
from toolchain.report.data_section import data_section
from toolchain.report.findings import Findings
from toolchain.report.model import (
    Agreement,
    Drop,
    Gate,
    Latency,
    RunReport,
    Speedup,
    Variant,
)
from toolchain.report.noticed import noticed
from toolchain.report.parts import (
    Curve,
    NotMeasured,
    Parity,
    Picture,
    RunInfo,
    Spread,
    StepTime,
    Transfer,
    TransferRow,
    Weights,
)
from toolchain.report.pruning import prunings
from toolchain.report.sensitivity import sensitivities
from toolchain.report.thumbnails import thumbnail


def assemble(found: Findings, recipe_text: str) -> RunReport:
    """The whole report but its bundle, which is written after it. `recipe_text` is the recipe as it was resolved."""
    chosen = found.choice.chosen
    first = found.providers[0]
    return RunReport(
        run=_run(found, recipe_text),
        variants=tuple(_variant(found, name) for name in found.files),
        speedups=tuple(_speedups(found)),
        chosen=chosen,
        gates=tuple(_gates(found)),
        data=data_section(found),
        host=_host(found),
        curves=tuple(_curves(found)),
        calibration=_calibration(found, chosen, first) if chosen else (),
        thresholds=_thresholds(found, chosen, first) if chosen else {},
        mistakes=tuple(_mistakes(found, chosen or BASE, first)),
        sensitivity=tuple(sensitivities(found)),
        pruning=tuple(prunings(found)),
        noticed=tuple(noticed(found)),
        transfer=_transfer(found),
        not_measured=tuple(NotMeasured(what=what, why=why) for what, why in found.unavailable.items()),
        steps=tuple(_steps(found)),
        reproduce=_reproduce(),
    )


def network(artifact: Artifact) -> Network:
    """The description that travels with an artifact."""
    return Network.model_validate_json((artifact.folder / "network.json").read_bytes())


def _temperature(found: Findings, variant: str, provider: str) -> float:
    return fit_temperature(found.answers[variant, provider, "val"], found.pictures("val").labels)


def _host(found: Findings) -> dict[str, JSON]:
    """The machine as it was when the files were timed: facts, with the load before and after."""
    facts: dict[str, JSON] = json.loads((found.latency_entry.folder / HOST).read_text())
    return facts


def _run(found: Findings, recipe_text: str) -> RunInfo:
    described = network(found.files[BASE])
    origin = described.provenance
    weights = Weights(
        architecture=described.architecture, source=origin.source, weights=origin.weights,
        sha256=origin.sha256, licence=origin.licence,
    )  # fmt: skip
    return RunInfo(
        name=found.recipe.name, description=found.recipe.description, started=found.started,
        seconds=round(found.seconds, 1), toolchain=__version__, seed=found.recipe.seed,
        device=found.device.name, threads=found.device.threads, metric=found.recipe.gates.metric,
        weights=weights, recipe=recipe_text,
    )  # fmt: skip


def _variant(found: Findings, name: str) -> Variant:
    artifact = found.files[name]
    verdict = found.choice.verdict(name)
    params, macs = found.measurement(name, "parameters"), found.measurement(name, "macs")
    measured = [(p, s) for n, p, s in found.answers if n == name]
    scores = {
        (p, s): accuracy(
            found.answers[name, p, s], found.pictures(s).labels, found.data.labels, found.groups(s), s
        )
        for p, s in measured
    }
    return Variant(
        name=name,
        path=str(artifact.folder / FILES["fused"]),
        bytes=(artifact.folder / FILES["fused"]).stat().st_size,
        plain_path=str(artifact.folder / FILES["plain"]),
        plain_bytes=(artifact.folder / FILES["plain"]).stat().st_size,
        params=None if params is None else int(params),
        macs=None if macs is None else int(macs),
        status=verdict.status,
        reason=verdict.reason,
        made_by=tuple(_made_by(found, artifact)),
        accuracy={p: score for (p, s), score in scores.items() if s == "test"},
        validation={p: score for (p, s), score in scores.items() if s == "val"},
        latency={p: tuple(_latencies(found, name, p)) for n, p in found.placement if n == name},
        parity=_parity(found, name),
        drop=dict(_drops(found, name)) if name != BASE else {},
        agreement=dict(_agreements(found, name)) if name != BASE else {},
        placement={p: nodes for (n, p), nodes in found.placement.items() if n == name},
    )


def _made_by(found: Findings, artifact: Artifact) -> list[str]:
    """The steps from the trunk to a file."""
    return [one.record.step for one in lineage(artifact, found.artifacts.values())][::-1]


def _latencies(found: Findings, name: str, provider: str) -> Iterable[Latency]:
    for condition in found.conditions:
        if condition.provider != provider:
            continue
        latency = found.latency(name, condition)
        samples = latency.samples.ravel()
        p50, p90, p99 = (stats.percentile(samples, q) for q in (0.5, 0.9, 0.99))
        yield Latency(
            file=condition.file, threads=condition.threads, batch=condition.batch, input=condition.input,
            p50_ns=_whole(p50), p90_ns=_whole(p90), p99_ns=_whole(p99), n=samples.size,
            alternating_p50_ns=int(np.median(latency.alternating)), samples_ns=tuple(stats.thin(samples)),
        )  # fmt: skip


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _parity(found: Findings, name: str) -> dict[str, Parity]:
    """What the export step found when it held its files against the network."""
    named = {m.name: m for m in found.files[name].record.measurements}
    results = {}
    for what in ("plain", "fused"):
        difference = named.get(f"parity_{what}")
        if difference is not None:
            agreed = named.get(f"agreement_{what}")
            results[f"{what} against torch"] = Parity(
                max_difference=difference.value, n=int(difference.where.get("pictures", 0)),
                bound=found.recipe.gates.parity, agreement=agreed.value if agreed else None,
            )  # fmt: skip
    return results


def _drops(found: Findings, name: str) -> Iterable[tuple[str, Drop]]:
    first, metric = found.providers[0], found.recipe.gates.metric
    for split in ("val", "test"):
        if (name, first, split) in found.answers:
            base, own = found.answers[BASE, first, split], found.answers[name, first, split]
            labels = found.pictures(split).labels
            groups = found.groups(split)
            lost = stats.accuracy_difference(base, own, labels, groups, metric)
            chance = stats.mcnemar(base, own, labels) if groups is None else None
            yield split, Drop(points=lost.value, ci95=lost.ci95, metric=metric, p_value=chance)


def _agreements(found: Findings, name: str) -> Iterable[tuple[str, Agreement]]:
    first = found.providers[0]
    for split in ("val", "test"):
        if (name, first, split) in found.answers:
            same = stats.agreement(found.answers[BASE, first, split], found.answers[name, first, split])
            yield split, Agreement(share=same.value, ci95=same.ci95)


def _speedups(found: Findings) -> Iterable[Speedup]:
    for condition in found.conditions:
        names = [name for name, provider in found.placement if provider == condition.provider]
        if BASE not in names:
            continue
        base = found.latency(BASE, condition)
        for name in names:
            if name != BASE:
                yield _speedup(found, name, condition, base.samples, base.alternating)


def _speedup(
    found: Findings, name: str, condition: Condition, base: stats.Ints, alternating: stats.Ints
) -> Speedup:
    own = found.latency(name, condition)
    ratio = stats.ratio_of_medians(base, own.samples)
    return Speedup(
        of=name, over=BASE, provider=condition.provider, ratio=ratio.value, ci95=ratio.ci95,
        file=condition.file, threads=condition.threads, batch=condition.batch,
        block_p10=ratio.block_p10, block_p90=ratio.block_p90,
        alternating=float(np.median(alternating) / np.median(own.alternating)),
    )  # fmt: skip


def _gates(found: Findings) -> Iterable[Gate]:
    for verdict in found.choice.verdicts:
        for gate in verdict.gates:
            yield Gate(
                name=gate.name, bound=gate.bound, value=gate.value, passed=gate.passed, variant=verdict.name,
                unit=gate.unit, at_most=gate.at_most, note=gate.note,
            )  # fmt: skip


def _curves(found: Findings) -> Iterable[Curve]:
    """The learning curves of every artifact that was trained."""
    for name, artifact in found.artifacts.items():
        path = artifact.folder / "curves.json"
        if not path.exists():
            continue
        rows: list[Mapping[str, JSON]] = json.loads(path.read_text())
        shown = [key for key in rows[0] if key in _CURVES]
        yield Curve(
            artifact=name, epochs=tuple(int(row["epoch"]) for row in rows),
            series={key: tuple(row[key] for row in rows) for key in shown},
            kept=_kept(rows), seconds=round(sum(float(row["seconds"]) for row in rows), 1),
        )  # fmt: skip


_CURVES = ("train_loss", "val_loss", "train_top1", "val_top1", "val_balanced", "lr")


def _kept(rows: list[Mapping[str, JSON]]) -> int | None:
    return next((int(row["epoch"]) for row in rows if row.get("kept")), None)


def _calibration(found: Findings, chosen: str, provider: str) -> tuple[Calibration, ...]:
    fitted = _temperature(found, chosen, provider)
    splits = [s for s in ("val", "test") if (chosen, provider, s) in found.answers]
    return tuple(
        calibration(found.answers[chosen, provider, s], found.pictures(s).labels, fitted, s) for s in splits
    )


def _thresholds(found: Findings, chosen: str, provider: str) -> dict[str, Threshold]:
    hot = heat(found.answers[chosen, provider, "val"], _temperature(found, chosen, provider))
    return fit_thresholds(hot, found.pictures("val").labels, found.data.labels)


def _mistakes(found: Findings, name: str, provider: str) -> Iterable[Picture]:
    if (name, provider, "test") not in found.answers:
        return
    pictures, labels = found.pictures("test"), found.data.labels
    for wrong in worst_mistakes(found.answers[name, provider, "test"], pictures.labels):
        yield Picture(
            name=pictures.samples[wrong.index].name, label=labels[wrong.label],
            predicted=labels[wrong.predicted], probability=wrong.probability,
            png=thumbnail(pictures.picture(wrong.index)),
        )  # fmt: skip


def _transfer(found: Findings) -> Transfer | None:
    """What pretraining brings, for the bundled weights that the network began with: measured once for their model card,
    shown with its protocol."""
    begun = read(found.artifacts[BASE].folder).provenance
    if begun.source != "bundled" or begun.weights is None:
        return None
    name = begun.weights.removeprefix("bundled/")
    measured = (bundled.card(name).model_extra or {}).get("transfer")
    if not measured:
        return None
    protocol, rows = measured["protocol"], measured["rows"]
    counts = dict.fromkeys(row["per_class"] for row in rows)
    return Transfer(
        task=protocol["task"],
        weights=begun.weights,
        n=protocol["n_test"],
        rows=tuple(
            TransferRow(per_class=n, pretrained=_spread(rows, n, name), random=_spread(rows, n, "random"))
            for n in counts
        ),
        note=f"{protocol['optimizer']}; learning rate chosen {protocol['chosen']}. Measured when the weights were "
        "made (benchmarks/transfer), not in this run.",
    )


def _spread(rows: Sequence[Mapping[str, JSON]], per_class: int, start: str) -> Spread:
    """One cell of the card's table, whose accuracies are percent, as fractions."""
    row = next(row for row in rows if row["per_class"] == per_class and row["start"] == start)
    return Spread(mean=row["mean"] / 100, seeds=tuple(value / 100 for value in row["top1"]))


def _steps(found: Findings) -> Iterable[StepTime]:
    for name, artifact in found.artifacts.items():
        record = artifact.record
        yield StepTime(
            artifact=name,
            step=record.step,
            seconds=record.seconds,
            reused=name in found.reused,
            key=record.key,
        )
    record = found.latency_entry.record
    yield StepTime(artifact="all files", step="latency", seconds=record.seconds, key=record.key)


def _reproduce() -> tuple[str, ...]:
    return (
        f"make setup   # toolchain {__version__} with the versions of constraints.txt",
        "toolchain run recipe.yaml --fresh   # recipe.yaml lies beside this report; it is the recipe above",
    )
