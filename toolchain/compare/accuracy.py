"""From paired answers to figures and checks: what is lost, whether that is real, class by class. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from toolchain import stats
from toolchain.compare.answers import Paired
from toolchain.compare.gates import Gates
from toolchain.compare.model import Answers, Check, ClassRow, Outcome
from toolchain.measure.metrics import calibration_error
from toolchain.stats import Interval

_LEVEL = 0.05


def score(paired: Paired, gates: Gates) -> Answers:
    """Every figure of paired answers; see `Answers`. Intervals are drawn by group where there are groups."""
    base, candidate, labels = paired.base, paired.candidate, paired.labels
    first, second = stats.hits(base, labels), stats.hits(candidate, labels)
    loss = stats.accuracy_difference(base, candidate, labels, paired.groups, gates.metric)
    measure = stats.top1 if gates.metric == "top1" else stats.balanced
    same = stats.accuracy_interval(candidate, base.argmax(axis=1), paired.groups)
    chance = stats.mcnemar(base, candidate, labels)
    ece = (100 * calibration_error(base, labels), 100 * calibration_error(candidate, labels))
    return Answers(
        source=paired.source, n=len(labels), groups=len(set(paired.groups)) if paired.groups else None,
        metric=gates.metric, base=100 * measure(base, labels), candidate=100 * measure(candidate, labels),
        loss=loss.value, ci95=loss.ci95, lost=int((first & ~second).sum()), won=int((~first & second).sum()),
        p_value=chance, real=loss.excludes(0.0) and (gates.metric == "balanced" or chance < _LEVEL),
        agreement=100 * same.value, agreement_ci95=(100 * same.low, 100 * same.high),
        ece=ece if paired.sure else None, classes=_classes(paired),
    )  # fmt: skip


def _classes(paired: Paired) -> tuple[ClassRow, ...]:
    """One row a class that has pictures."""
    rows = []
    for index in np.unique(paired.labels):
        own = paired.labels == index
        base, candidate, labels = paired.base[own], paired.candidate[own], paired.labels[own]
        groups = [g for g, mine in zip(paired.groups, own, strict=True) if mine] if paired.groups else None
        first, second = stats.hits(base, labels), stats.hits(candidate, labels)
        loss = stats.accuracy_difference(base, candidate, labels, groups)
        rows.append(
            ClassRow(
                name=paired.classes[index], n=len(labels), base=100 * float(first.mean()),
                candidate=100 * float(second.mean()), loss=loss.value, ci95=loss.ci95,
                lost=int((first & ~second).sum()), won=int((~first & second).sum()),
            )
        )  # fmt: skip
    return tuple(rows)


def checks(answers: Answers, gates: Gates) -> tuple[Check, ...]:
    """Accuracy, agreement, calibration and classes, each against its bound."""
    loss = Interval(answers.loss, *answers.ci95)
    told = "real" if answers.real else "not shown to be real"
    chance = f"McNemar p = {answers.p_value:.2g}; " if gates.metric == "top1" else ""  # a test of top-1
    note = f"{gates.metric}, {told} ({chance}{answers.lost} lost, {answers.won} won)"
    overall = _points("accuracy", loss, gates.accuracy, (answers.base, answers.candidate), note)
    if gates.metric == "top1":
        overall = _sure(overall, answers.real, answers.n)
    found = [overall]
    same = Interval(answers.agreement, *answers.agreement_ci95)
    verdict = _against(
        -same.value, -same.high, -same.low, None if gates.agreement is None else -gates.agreement
    )
    found.append(
        Check(
            name="agreement", verdict=verdict, value=same.value, low=same.low, high=same.high, unit="%",
            bound=gates.agreement, note="pictures with the same answer",
        )
    )  # fmt: skip
    if answers.ece is not None:
        worse = answers.ece[1] - answers.ece[0]
        bound = gates.calibration
        outcome: Outcome = "not judged" if bound is None else "regression" if worse > bound else "pass"
        found.append(
            Check(
                name="calibration error", verdict=outcome, value=worse, unit="points", bound=bound,
                base=answers.ece[0], candidate=answers.ece[1], each="%", note="expected, 15 bins",
            )
        )  # fmt: skip
    return (*found, *_class_checks(answers.classes, gates))


def _class_checks(rows: Sequence[ClassRow], gates: Gates) -> list[Check]:
    """A check for every class that has a bound.

    The more classes, the surer one of them looks worse by chance: a class is a regression only if its flips
    are significant after Holm's correction for all classes that were judged (Holm 1979), too.
    """
    bounds = gates.class_accuracy
    judged = [
        row for row in rows if bounds is not None and (not isinstance(bounds, dict) or row.name in bounds)
    ]
    significant = holm([stats.sign_test(row.lost, row.won) for row in judged])
    found = []
    for row, sure in zip(judged, significant, strict=True):
        bound = bounds[row.name] if isinstance(bounds, dict) else bounds
        check = _points(
            f"class {row.name}", Interval(row.loss, *row.ci95), bound, (row.base, row.candidate),
            f"recall of {row.n} pictures, {row.lost} lost, {row.won} won",
        )  # fmt: skip
        found.append(_sure(check, sure, row.n))
    return found


def _sure(check: Check, significant: bool, pictures: int) -> Check:
    """A red whose flips could be chance is none; and an open check says when so few pictures can never close it."""
    if check.verdict == "regression" and not significant:
        check = check.model_copy(update={"verdict": "inconclusive"})
    if check.verdict != "inconclusive" or check.bound is None:
        return check
    # n pictures without a flip have an interval of 196 / sqrt(n (n + 2)) points each way, see stats.accuracy_difference
    needed = math.ceil(math.hypot(1, 100 * stats.Z95 / check.bound) - 1) if check.bound else None
    if needed is not None and pictures >= needed:
        return check
    told = f"a pass needs {needed} or more" if needed else "no number of them shows that none is lost"
    return check.model_copy(update={"note": f"{check.note}; {pictures} pictures are too few: {told}"})


def holm(p_values: Sequence[float], level: float = _LEVEL) -> list[bool]:
    """Which of several hypotheses are refused, with at most `level` for any false refusal (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    refused = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - rank):
            break
        refused[int(index)] = True
    return refused


def _points(name: str, loss: Interval, bound: float | None, each: tuple[float, float], note: str) -> Check:
    return Check(
        name=name, verdict=_against(loss.value, loss.low, loss.high, bound), value=loss.value, low=loss.low,
        high=loss.high, unit="points", bound=bound, base=each[0], candidate=each[1], each="%", note=note,
    )  # fmt: skip


def _against(value: float, low: float, high: float, bound: float | None) -> Outcome:
    """What an interval says of a greatest value."""
    if bound is None:
        return "not judged"
    if low > bound:
        return "regression"
    return "pass" if high <= bound and value <= bound else "inconclusive"
