"""The committed record of a case: rows from what was made, answered and timed, and the bars of issue 5 held against them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.answering import answers
from benchmarks.peers.entrants import FP32, OURS, Entrant, entrants
from benchmarks.peers.places import BUILD, case_folder, parts, read_json, record_path, task, write_json
from toolchain import stats
from toolchain.runtime import host

FLOAT = f"{OURS}.{FP32}"
WHAT = {
    "imagenet_sample": "Rivals, after training only: ImageNet's MobileNetV2 at 224 pixels, 744 held-back pictures",
    "blood_cells": "Rivals: MobileNetV2 fine-tuned by recipes/blood-cells.yaml, 128 pixels, test split",
    "blood_cells_seeds": "Rivals on blood cells, MobileNetV2, three seeds: the settings that came near with the first",
    "blood_cells_small": "Rivals: the bundled `small` fine-tuned by recipes/blood-cells-small.yaml, 64 pixels, test split",
    "blood_cells_small_seeds": "Rivals on blood cells, `small`, three seeds: the settings that came near with the first",
    "magnetic_tile": "Rivals: MobileNetV2 fine-tuned by recipes/surface-inspection.yaml, 160 pixels, out of five folds",
    "magnetic_tile_seeds": "Rivals on magnetic tile, five folds, three seeds: the settings that came near with the first",
}
MOST_WAITING = 1  # processes that may have waited for a core while files were timed
FEWEST_DRAWN = 10  # processes for intervals to draw processes: of fewer, they would spread too little
# What the gates of the case's recipe are of.
METRICS: dict[str, stats.Metric] = {
    "imagenet_sample": "top1",
    "blood_cells": "top1",
    "blood_cells_small": "top1",
    "magnetic_tile": "balanced",
}
BY: dict[stats.Metric, str] = {"top1": "By top-1", "balanced": "By balanced accuracy"}
DOCUMENTED = ", without the settings whose layers we chose"
# How many times faster than the best rival, and than fp32, ours shall be.
BARS: dict[str, tuple[float, float | None]] = {
    "imagenet_sample": (1.2, None),
    "blood_cells": (3.0, 6.0),
    "blood_cells_small": (2.0, 4.0),
    "magnetic_tile": (2.0, 4.0),
}


@dataclass(frozen=True)
class Scored:
    """A row that answered, a file a part: logits [n, C] of all parts, and raw nanoseconds [blocks, calls] and [calls] where
    all were timed."""

    entrants: Sequence[Entrant]
    logits: Any
    blocks: Any = None
    mixed: Any = None

    @property
    def entrant(self) -> Entrant:
        """The first part's: tool, setting and words are the same for all."""
        return self.entrants[0]


@dataclass(frozen=True)
class Truth:
    """The held-back pictures' labels [n], and their groups where they have some."""

    labels: Any
    groups: tuple[str, ...] | None


def write(case: str, build: Path = BUILD) -> Path:
    """Put the record of a case together from build/peers. Times are taken only where every file is still the one timed."""
    inputs = {part: read_json(case_folder(part, build) / "case.json") or {} for part in parts(case)}
    truth, timed = truth_of(inputs, build), together(inputs, build)
    every = list(zip(*(entrants(part, build) for part in inputs), strict=True))
    found = {files[0].name: scored_row(files, timed, build) for files in every}
    scored = {name: each for name, each in found.items() if isinstance(each, Scored)}
    metric = METRICS[task(case)]
    first, load = next(iter(timed.values())), busiest(timed.values())
    processes = first.processes if len(timed) == 1 else 1
    said = verdicts(case, scored, truth, processes)
    calibration = min(each["calibration"] for each in inputs.values())
    counts = {"calibration": calibration, "scored": len(truth.labels), "parts": len(inputs)}
    content = {
        "what": WHAT[case],
        "rows": [
            row(each, scored[FLOAT], truth, metric, processes) if isinstance(each, Scored) else failed(files[0], each)
            for files, each in zip(every, found.values(), strict=True)
        ],
        "verdict": said[BY[metric]],
        "verdict by top-1": said[BY["top1"]],
        "verdict on documented choices": said.get(BY[metric] + DOCUMENTED),
        "note": " ".join([note(said, load, counts), *absent(found.keys() - scored.keys())]),
        "threads": 1, "batch": 1, "blocks": first.count, "processes": first.processes,
        "intervals draw": "processes" if processes >= FEWEST_DRAWN else "rounds",
        "host": first.host or host.facts(), "load": load,
        **digests(inputs, scored),
    }  # fmt: skip
    write_json(record_path(case), content)
    return record_path(case)


def digests(
    inputs: Mapping[str, Mapping[str, Any]], scored: Mapping[str, Scored]
) -> dict[str, dict[str, str | None]]:
    """sha256 of what went in and of the files that answered, by part and name."""
    files = {
        f"{part}/{name}": entrant.sha256
        for name, each in scored.items() for part, entrant in zip(inputs, each.entrants, strict=True)
    }  # fmt: skip
    given = {f"{part}/{name}": sha for part, each in inputs.items() for name, sha in each["sha256"].items()}
    return {"inputs": given, "files": files}


def together(names: Collection[str], build: Path) -> dict[str, Times]:
    """The times of all parts; none of any part, where one has none or they are of several processors or block counts."""
    timed = {part: times(part, build) for part in names}
    if len({(each.count, (each.host or {}).get("cpu")) for each in timed.values()}) > 1:
        return dict.fromkeys(names, Times())
    return timed


def busiest(timed: Collection[Times]) -> list[list[float]] | None:
    """The highest load before and after a part; None where one was not timed."""
    loads = [each.load for each in timed if each.load is not None]
    return [max(ends) for ends in zip(*loads, strict=True)] if len(loads) == len(timed) else None


def truth_of(inputs: Mapping[str, Mapping[str, Any]], build: Path) -> Truth:
    """Labels and groups of all parts, one after the other."""
    labels = np.concatenate([np.load(case_folder(part, build) / "labels.npy") for part in inputs])
    groups = [each["groups"] for each in inputs.values()]
    return Truth(labels, tuple(name for part in groups for name in part) if all(groups) else None)


def scored_row(files: Sequence[Entrant], timed: Mapping[str, Times], build: Path) -> Scored | str:
    """A row over all parts of its case; why not, where one of them has no file that runs."""
    logits, samples = [], []
    for part, entrant in zip(timed, files, strict=True):
        given, error = answers(part, entrant, build)
        if error is not None:
            return f"{part}: {error}" if len(files) > 1 else error
        logits.append(given)
        samples.append(timed[part].samples(entrant))
    if any(blocks is None for blocks, _ in samples):
        return Scored(files, np.concatenate(logits))
    blocks, mixed = (np.concatenate(each) for each in zip(*samples, strict=True))
    return Scored(files, np.concatenate(logits), blocks, mixed)


@dataclass(frozen=True)
class Times:
    """What a timing run left: the host then, the load before and after, blocks in how many processes, raw samples."""

    host: dict[str, Any] | None = None
    load: list[list[float]] | None = None
    count: int | None = None
    raw: Mapping[str, Any] | None = None
    processes: int = 1

    def samples(self, entrant: Entrant) -> tuple[Any, Any]:
        """(blocks, mixed) of a row, or (None, None)."""
        if self.raw is None or f"blocks/{entrant.name}" not in self.raw:
            return None, None
        return self.raw[f"blocks/{entrant.name}"], self.raw[f"mixed/{entrant.name}"]


def times(part: str, build: Path = BUILD) -> Times:
    """The last timing run of a part; empty when one of its files has been made anew since, without samples when the
    machine was so busy that they say nothing."""
    folder = build / "times" / part
    state = read_json(folder / "times.json")
    if state is None:
        return Times()
    now = {entrant.name: entrant.sha256 for entrant in entrants(part, build)}
    if any(now.get(name) != sha for name, sha in state["sha256"].items()):
        return Times()
    raw = dict(np.load(folder / "raw.npz"))
    load = [[round(value, 2) for value in at] for at in raw.pop("load").tolist()]
    crowded = max(at[0] for at in load) > state["host"]["cores"] + MOST_WAITING
    samples = None if crowded else raw
    return Times(state["host"], load, state["blocks"], samples, state.get("processes", 1))


def row(
    scored: Scored, base: Scored, truth: Truth, metric: stats.Metric = "top1", processes: int = 1
) -> dict[str, Any]:
    """Accuracy in percent, losses against fp32 in points (paired), times in ms, speed over fp32.

    metric: what "within 1 point" is of, as in the case's recipe. processes: whose rounds follow one another.
    """
    own, logits = scored.entrant, scored.logits
    lost = stats.accuracy_difference(base.logits, logits, truth.labels, truth.groups)
    balanced = stats.accuracy_difference(base.logits, logits, truth.labels, truth.groups, "balanced")
    return {
        "tool": own.tool,
        "setting": own.setting,
        "what": own.what,
        "top-1, %": round(100 * stats.top1(logits, truth.labels), 2),
        "balanced, %": round(100 * stats.balanced(logits, truth.labels), 2),
        "lost, points": round(lost.value, 2),
        "lost ci95": [round(end, 2) for end in lost.ci95],
        "balanced lost": round(balanced.value, 2),
        "agrees, %": round(100 * stats.agreement(base.logits, logits).value, 2),
        "within 1 point": within(balanced if metric == "balanced" else lost),
        **speed(scored, base, processes),
        **making(scored.entrants),
        "remark": own.documented,
    }


def speed(scored: Scored, base: Scored, processes: int = 1) -> dict[str, Any]:
    """p50 in ms and speed over fp32, interleaved and with every call after another file's; nothing when not timed."""
    if scored.blocks is None or base.blocks is None:
        return {}
    ratio = faster(base, scored, processes)
    return {
        "p50, ms": round(float(np.median(scored.blocks)) / 1e6, 3),
        "faster": round(ratio.value, 2),
        "faster ci95": [round(end, 2) for end in ratio.ci95],
        "faster, alternating": round(float(np.median(base.mixed) / np.median(scored.mixed)), 2),
    }


def faster(slow: Scored, fast: Scored, processes: int) -> stats.Ratio:
    """The ratio of medians; its interval draws processes where there are FEWEST_DRAWN, else rounds."""
    units = processes if processes >= FEWEST_DRAWN else len(slow.blocks)
    return stats.ratio_of_medians(slow.blocks.reshape(units, -1), fast.blocks.reshape(units, -1))


def making(files: Sequence[Entrant]) -> dict[str, Any]:
    """Size, and what making the file took; means over the parts of a case."""
    seconds, cpu, peak = (
        mean([getattr(file, name) for file in files]) for name in ("seconds", "cpu_seconds", "peak_bytes")
    )
    return {
        "bytes": round(sum(size(file) for file in files) / len(files)),
        "made in, s": seconds,
        "CPU, s": cpu,
        "peak, MB": round(peak / 1e6) if peak else None,
        "made with": files[0].needs,
    }


def size(own: Entrant) -> int:
    """Bytes of a file, and of the weights beside it in OpenVINO's form."""
    weights = own.file.with_suffix(".bin") if own.foreign else None
    return own.file.stat().st_size + (weights.stat().st_size if weights else 0)


def mean(values: Sequence[float | None]) -> float | None:
    """To a tenth; None where one is not known."""
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 1) if len(known) == len(values) else None


def absent(names: Collection[str]) -> list[str]:
    """A sentence naming the rows of which the verdict knows nothing; none when there are none."""
    return [f"Not in the comparison (their rows say why): {', '.join(sorted(names))}."] if names else []


def failed(own: Entrant, why: str) -> dict[str, Any]:
    """A row that has no figures, and says why."""
    return {"tool": own.tool, "setting": own.setting, "what": own.what, "remark": why}


def within(lost: stats.Interval) -> bool:
    """ "Within 1 point" (docs/measuring.md): at most 1 point lost, and 3 at the interval's bad end."""
    return lost.value <= 1 and lost.high <= 3


def verdict(
    scored: Mapping[str, Scored], truth: Truth, bar: tuple[float, float | None], metric: stats.Metric = "top1",
    processes: int = 1,
) -> dict[str, Any] | None:  # fmt: skip
    """Our fastest file that loses at most 1 point of the metric against the fastest such file of a rival (OpenVINO's
    runtime apart), for certain (by the intervals' low ends); where the bar names no speed over fp32, ours must be within
    1 point of that file as well, paired. processes: whose rounds follow one another; each one's own ratio is told.

    None when nothing was timed; without figures when one side has no such file.
    """
    base = scored[FLOAT]
    good = [
        each
        for name, each in scored.items()
        if name != FLOAT and each.blocks is not None and not each.entrant.foreign
        and within(stats.accuracy_difference(base.logits, each.logits, truth.labels, truth.groups, metric))
    ]  # fmt: skip
    ours = fastest([each for each in good if each.entrant.tool == OURS])
    rival = fastest([each for each in good if each.entrant.tool != OURS])
    if base.blocks is None:
        return None
    if ours is None or rival is None:
        names = [each.entrant.name if each else None for each in (ours, rival)]
        return {"ours": names[0], "best rival": names[1], "met": False}
    over_rival, over_float = (faster(other, ours, processes) for other in (rival, base))
    lost = stats.accuracy_difference(rival.logits, ours.logits, truth.labels, truth.groups, metric)
    wanted, wanted_float = bar
    enough = within(lost) if wanted_float is None else over_float.ci95[0] >= wanted_float
    by_process = (
        {"faster than the best rival by process": apart(rival, ours, processes)} if processes > 1 else {}
    )
    return {
        "ours": ours.entrant.setting,
        "best rival": rival.entrant.name,
        "faster than the best rival": round(over_rival.value, 2),
        "faster than the best rival ci95": [round(end, 2) for end in over_rival.ci95],
        **by_process,
        "wanted": wanted,
        "faster than fp32": round(over_float.value, 2),
        "faster than fp32 ci95": [round(end, 2) for end in over_float.ci95],
        "wanted over fp32": wanted_float,
        "points lost to the best rival": round(lost.value, 2),
        "points lost to the best rival ci95": [round(end, 2) for end in lost.ci95],
        "metric": metric,
        "met": over_rival.ci95[0] >= wanted and enough,
    }


def verdicts(
    case: str, scored: Mapping[str, Scored], truth: Truth, processes: int
) -> dict[str, dict[str, Any] | None]:
    """By the recipe's metric, by top-1, and by the former without the rivals' settings whose layers were
    found here, where there are such."""
    metric, bar = METRICS[task(case)], BARS[task(case)]
    theirs = {name: each for name, each in scored.items() if not each.entrant.found}
    said = {BY[each]: verdict(scored, truth, bar, each, processes) for each in (metric, "top1")}
    if len(theirs) < len(scored):
        said[BY[metric] + DOCUMENTED] = verdict(theirs, truth, bar, metric, processes)
    return said


def apart(rival: Scored, ours: Scored, processes: int) -> list[float]:
    """The ratio of medians of each process."""
    pairs = zip(np.array_split(rival.blocks, processes), np.array_split(ours.blocks, processes), strict=True)
    return [round(float(np.median(theirs) / np.median(own)), 2) for theirs, own in pairs]


def fastest(files: list[Scored]) -> Scored | None:
    """The file with the smallest median."""
    return min(files, key=lambda each: float(np.median(each.blocks)), default=None)


def note(
    said: Mapping[str, dict[str, Any] | None],
    load: list[list[float]] | None,
    inputs: Mapping[str, Any],
) -> str:
    """The circumstances in words, and each verdict."""
    lines = [
        f"{inputs['calibration']} training pictures calibrate, {inputs['scored']} others score; lost: points, paired."
        if inputs["parts"] == 1
        else f"{inputs['calibration']} training pictures calibrate in each of {inputs['parts']} trainings, "
        f"{inputs['scored']} answers to held-back pictures score; lost: points, paired."
    ]
    told = {words: one for words, one in said.items() if one is not None}
    if load is None:
        return " ".join([*lines, "Times not measured with these files."])
    if not told:
        return " ".join(
            [*lines, f"Timed at load {load[0][0]} to {load[1][0]}: too busy a machine, times left out."]
        )
    busy = "a busy machine, so times are noisy" if max(load[0][0], load[1][0]) > 1.5 else "a quiet machine"
    lines.append(f"Timed on one thread at load {load[0][0]} to {load[1][0]}: {busy}.")
    return " ".join([*lines, *(f"{words}: {outcome(one)}" for words, one in told.items())])


def outcome(said: dict[str, Any]) -> str:
    """A verdict in words."""
    if "faster than fp32" not in said:
        lacking = [
            whose for whose, name in (("ours", said["ours"]), ("rivals'", said["best rival"])) if name is None
        ]
        return f"no verdict, no file of {' or '.join(lacking)} that was timed is within 1 point."
    met = "met" if said["met"] else "not met"
    bar = f"{said['wanted']}" + (
        f", and {said['wanted over fp32']} over fp32" if said["wanted over fp32"] else ""
    )
    return (
        f"ours ({said['ours']}) is {said['faster than the best rival']} "
        f"{said['faster than the best rival ci95']} times as fast as the best rival within 1 point "
        f"({said['best rival']}) and {said['faster than fp32']} times as fast as fp32; bar ({bar}): {met}."
    )
