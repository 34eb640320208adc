"""The whole comparison: two models timed and asked, or two records read; one `Comparison` comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import toolchain
from toolchain.compare import accuracy, answers, judge, live, records, sides, unjudged
from toolchain.compare.gates import Gates
from toolchain.compare.live import Series, Timing, Turn
from toolchain.compare.model import Answers, Check, Comparison, Half, PairedTurn, SideInfo
from toolchain.compare.sequential import FEWEST_TURNS
from toolchain.compare.sides import FileKind, Side
from toolchain.errors import ModelError, RecordError, ToolchainError
from toolchain.progress import Progress
from toolchain.report import text
from toolchain.runtime import bench_record, host
from toolchain.runtime.bench_asked import unknown_entries
from toolchain.runtime.bench_input import Wish, load_pictures
from toolchain.runtime.bench_record import BenchRecord, Condition, ModelFile
from toolchain.runtime.session import Session

_DIFFERENCE = "largest difference"
_NO_PROBABILITIES = "the saved answers are classes without probabilities; an .npz can hold them"
_RECORDS = {
    "typical": "records are not turns; compare the models themselves",
    "calibration": _NO_PROBABILITIES,
    "difference": "records keep no outputs; compare the models themselves",
}


@dataclass(frozen=True)
class Question:
    """What to compare and how. kind: which file of a bundle; shapes: sizes of open dimensions; pictures: a
    folder with a folder a class, for accuracy and as input; saved: a file of saved answers instead."""

    base: Path
    candidate: Path
    gates: Gates = field(default_factory=Gates)
    timing: Timing = field(default_factory=Timing)
    kind: FileKind = "fused"
    batch: int = 1
    shapes: Mapping[str, int] = field(default_factory=dict)
    pictures: Path | None = None
    saved: Path | None = None


@dataclass(frozen=True)
class Finding:
    """The comparison, and what ended it early: to be told, and whose exit code counts, once all is written."""

    comparison: Comparison
    failure: ToolchainError | None = None

    @property
    def exit_code(self) -> int:
        """0 pass, 3 regression, 4 inconclusive; the failure's own after one."""
        return self.failure.exit_code if self.failure else self.comparison.exit_code


def compare(question: Question, progress: Progress) -> Finding:
    """Compare two models, bundles or bench records.

    Raises ToolchainError for what cannot be compared at all. A failure after the first turn (a killed process,
    a replaced model) loses nothing: the finding has what was measured until then.
    """
    kept = [path.suffix == ".json" for path in (question.base, question.candidate)]
    if any(kept) and not all(kept):
        raise RecordError("one side is a record and the other a model: give two records, or two models")
    unjudged.require_answers(question.gates, bool(question.saved or (question.pictures and not all(kept))))
    return _records(question) if all(kept) else _models(question, progress)


def _models(question: Question, progress: Progress) -> Finding:
    started, machine, gates = _now(), host.facts(), question.gates
    pictures = load_pictures(question.pictures) if question.pictures else ()
    wish = Wish(question.batch, question.shapes, pictures)
    (base, ours), (candidate, theirs) = sides.find(
        question.base, question.candidate, question.kind, question.timing.setup, wish
    )
    outputs = _outputs((base, ours), (candidate, theirs), gates)
    condition = _condition(question, base)
    del ours, theirs
    scored, apart = _answers(question, base, candidate, progress)
    outputs = [_over_pictures(check, apart, scored) for check in outputs]
    series = live.run(base, candidate, question.timing, _watch(gates), progress)
    checks = [
        *judge.turn_checks(series.turns, gates), judge.size_check(base.found.model, candidate.found.model, gates),
        *(accuracy.checks(scored, gates) if scored else ()), *outputs,
    ]  # fmt: skip
    checks += unjudged.unjudged(gates, checks, _reasons(_same_input(base, candidate)))
    found = Comparison(
        toolchain=toolchain.__version__, started=started, host=machine, base=_info(base.found.model),
        candidate=_info(candidate.found.model), condition=asdict(condition), method="interleaved",
        seconds=round(series.seconds, 3), calls=series.calls, dropped=series.turns[0].dropped,
        checks=tuple(checks), answers=scored, turns=tuple(map(_paired, series.turns)),
        notes=(*_notes(question, base, candidate), *_timing_notes(series, checks)),
        failure=str(series.failure) if series.failure else None,
    )  # fmt: skip
    return Finding(found, series.failure)


def _records(question: Question) -> Finding:
    base, candidate = (bench_record.read(path) for path in (question.base, question.candidate))
    gates = question.gates
    scored = accuracy.score(answers.read(question.saved), gates) if question.saved else None
    _require_known_classes(gates, scored)
    checks = [
        *records.record_checks(base, candidate, gates),
        judge.size_check(base.model, candidate.model, gates),
        *(accuracy.checks(scored, gates) if scored else ()),
    ]
    checks += unjudged.unjudged(gates, checks, _RECORDS)
    found = Comparison(
        toolchain=toolchain.__version__, started=_now(), host=candidate.host, base=_info(base.model),
        candidate=_info(candidate.model), condition=_common(base), method="records",
        checks=tuple(checks), answers=scored,
        notes=(
            records.NOT_INTERLEAVED, *records.left_out(base, candidate), *_changes(base, candidate),
            *(() if scored else ("accuracy was not compared: give --answers",)),
        ),
    )  # fmt: skip
    return Finding(found)


def _reasons(same_input: bool) -> dict[str, str]:
    """Why a figure of two models may be missing."""
    return {
        "memory": "the kernel does not tell the peak of a process",
        "calibration": _NO_PROBABILITIES,
        "difference": "the outputs are no numbers of one shape"
        if same_input
        else "the inputs differ in shape or type, so outputs were not compared",
    }


def _answers(
    question: Question, base: Side, candidate: Side, progress: Progress
) -> tuple[Answers | None, float | None]:
    """What both answered, scored, and how far their outputs are apart over all pictures, where pictures were given."""
    if question.saved:
        paired = answers.read(question.saved)
    elif question.pictures:
        paired = answers.ask(base, candidate, question.pictures, question.timing.setup, progress)
    else:
        return None, None
    scored = accuracy.score(paired, question.gates)
    _require_known_classes(question.gates, scored)
    return scored, paired.farthest


def _over_pictures(check: Check, apart: float | None, scored: Answers | None) -> Check:
    """The largest difference of the timed input, or of all pictures that were asked for."""
    if check.name != _DIFFERENCE or apart is None or scored is None:
        return check
    return judge.exact(_DIFFERENCE, apart, check.bound, f"absolute, over {scored.source}")


def _require_known_classes(gates: Gates, scored: Answers | None) -> None:
    asked = gates.class_accuracy
    if not scored or not isinstance(asked, dict):
        return
    known = [row.name for row in scored.classes]
    if unknown := sorted(set(asked) - set(known)):
        raise ToolchainError(
            f"class_accuracy.{unknown[0]}: no such class in {scored.source}; there are {', '.join(known)}"
        )


def _outputs(base: tuple[Side, Session], candidate: tuple[Side, Session], gates: Gates) -> list[Check]:
    """What both answer to the input that they are timed with, first output by first output."""
    ours, theirs = base[0], candidate[0]
    given = [np.asarray(s.run(side.prepared.feed)[0]) for side, s in (base, candidate)]
    if any(answer.dtype.kind not in "fiub" for answer in given):
        return []  # texts, sequences
    left, right = (answer.astype(np.float64) for answer in given)
    if not np.isfinite(left).all():
        raise ModelError(f"{ours.file}: answers NaN or infinity; a base must answer, mend it first")
    lost = int((~np.isfinite(right)).sum())
    found = [judge.exact("finite answers", lost, 0.0, "values of the candidate that are NaN or infinite")]
    if left.shape != right.shape:
        return [
            *found,
            judge.exact("same shape", 1, 0.0, f"the base answers {left.shape}, the candidate {right.shape}"),
        ]
    if not _same_input(ours, theirs):
        return found
    bound = gates.difference
    note = f"absolute, for the input that was timed ({ours.prepared.input.source})"
    return [*found, judge.exact(_DIFFERENCE, answers.farthest(left, right), bound, note)]


def _same_input(base: Side, candidate: Side) -> bool:
    """Whether both were asked for the same: equal arrays in order, or the same pictures in each one's own size."""
    if base.prepared.input.source == candidate.prepared.input.source == "pictures":
        return True
    ours, theirs = (list(side.prepared.feed.values()) for side in (base, candidate))
    return len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _watch(gates: Gates) -> live.Done:
    """Stops the turns once more of them would not change the outcome."""

    def done(turns: Sequence[Turn]) -> Mapping[str, float | str] | None:
        checks = judge.turn_checks(turns, gates)
        if judge.settled(checks):
            return None
        return shown(checks[0])

    return done


def shown(latency: Check) -> dict[str, float | str]:
    """The ratio and its interval as far as it is known, for the bar."""
    low, high = ("?" if end is None else f"{end:.3f}" for end in (latency.low, latency.high))
    return {"ratio": float(latency.value or 1.0), "interval": f"[{low}, {high}]"}


def _condition(question: Question, base: Side) -> Condition:
    setup = question.timing.setup
    return Condition(
        setup.provider, dict(setup.options), setup.threads, question.batch, setup.spinning, base.prepared.kind,
        base.prepared.input,
    )  # fmt: skip


def _notes(question: Question, base: Side, candidate: Side) -> tuple[str, ...]:
    found = []
    if question.pictures is None and question.saved is None:
        found.append("accuracy was not compared: give --pictures or --answers")
    if base.prepared.input.source == "noise":
        found.append("timed with noise; speed of some models depends on their input")
    if not _same_input(base, candidate):
        found.append("the inputs differ in shape or type, so outputs were not compared")
    found += unknown_entries(question.timing.setup.options)
    return tuple(found)


def _timing_notes(series: Series, checks: Sequence[Check]) -> list[str]:
    """Why what was timed is open, and what a green does not promise."""
    timed, found = {c.name: c for c in checks if c.name in judge.TIMED}, []
    still_open = any(check.verdict == "inconclusive" for check in timed.values())
    if still_open and len(series.turns) < FEWEST_TURNS and not series.failure:
        found.append(
            f"only {text.plural(len(series.turns), 'turn')} fitted into the time; {FEWEST_TURNS} are needed before "
            f"a ratio can be told from its bound"
        )
    if judge.MEMORY not in timed:
        found.append("memory was not compared: the kernel does not tell the peak of a process")
    return found


def _changes(base: BenchRecord, candidate: BenchRecord) -> list[str]:
    """What else differs between the two measurements."""

    def facts(record: BenchRecord) -> dict[str, Any]:
        libraries = record.host.get("libraries")
        own = {name: record.host.get(name) for name in ("kernel", "python")}
        return own | (dict(libraries) if isinstance(libraries, Mapping) else {})

    first, second = facts(base), facts(candidate)
    return [
        f"{name} differs: {first.get(name)} and {second.get(name)}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    ]


def _common(base: BenchRecord) -> dict[str, Any]:
    return asdict(base.cases[0].condition) if len(base.cases) == 1 else {}


def _info(model: ModelFile) -> SideInfo:
    return SideInfo(**asdict(model))


def _paired(turn: Turn) -> PairedTurn:
    def half(one: live.Half) -> Half:
        return Half(
            samples_ns=one.samples_ns, session_ns=one.session_ns, first_answer_ns=one.first_answer_ns,
            peak_bytes=one.peak_bytes,
        )  # fmt: skip

    return PairedTurn(base=half(turn.base), candidate=half(turn.candidate))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
