"""`toolchain optimize`: search under a budget, then make the chosen point a bundle as `run` does, and report."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from toolchain import workflow
from toolchain.bundle import remove as remove_bundle
from toolchain.choose import BASE
from toolchain.errors import RecipeError
from toolchain.measure.settings import Measure
from toolchain.optimize import session
from toolchain.optimize.asked import Asked
from toolchain.optimize.budget import Deadline, Durations, OutOfTimeError
from toolchain.optimize.design import Design
from toolchain.optimize.outcome import Found, Tested
from toolchain.optimize.own import flattened
from toolchain.optimize.page import render_json, render_page, summary
from toolchain.optimize.points import (
    Failure,
    Outcome,
    Point,
    Probe,
    closest,
    front,
    pick,
    points,
    reasons,
    told,
    would_do,
)
from toolchain.optimize.race import race
from toolchain.optimize.search import Search
from toolchain.optimize.trials import Trials
from toolchain.progress import Progress, Silent
from toolchain.recipe import LONGEST, TRUNK, Recipe, Variant, load
from toolchain.recipe_problems import problems
from toolchain.report.model import RunReport
from toolchain.report.summary import contended
from toolchain.runtime import host, providers
from toolchain.runtime.whole import write_whole
from toolchain.steps import Tune
from toolchain.store import host_faults
from toolchain.workflow import Places, Wishes

_EPOCH = 30.0  # seconds, for as long as nothing was trained
_ENDING = 20.0  # seconds for bundle and report, beside what reading the test pictures takes
_SHARE = 0.25  # most of the budget that is kept for the ending while nothing is known
_SLACK = 1.5
_PART = re.compile(r"([nsteu]\d+|relu|own|fp\d+|int8)(-|$)")  # of a point's name (Design.name)
JSON_FILE, PAGE = "optimize.json", "optimize.html"
_OF_A_RUN = ("report.html", "report.md", "report.json", "recipe.yaml")


@dataclass(frozen=True)
class OptimizeResult:
    """What a search left in `out`. `chosen` and `bundle` are None when no point keeps the bounds."""

    out: Path
    passed: bool
    summary: str
    found: Found
    chosen: Point | None
    bundle: Path | None


def optimize(
    recipe: str | Path | Recipe, asked: Asked, places: Places | None = None, wishes: Wishes | None = None,
    progress: Progress | None = None, started: float | None = None,
) -> OptimizeResult:  # fmt: skip
    """Search for the file that is best for the goal within the bounds, and make it a bundle.

    Everything is decided on val; test is read once, for the chosen point. What was finished before, also by a run that
    was killed, comes from the store. started: when the budget began (time.monotonic()), now if not given.
    Raises ToolchainError for wrong input, OutOfTimeError when the budget ends before fp32 was measured; bounds that no
    point keeps are no exception but `passed` = False, with the report written.
    """
    begun = time.monotonic() if started is None else started
    return _Optimize(
        recipe, asked, places or Places(), wishes or Wishes(), Deadline(progress or Silent(), begun)
    ).go()


class _Optimize:
    def __init__(
        self, recipe: str | Path | Recipe, asked: Asked, places: Places, wishes: Wishes, deadline: Deadline
    ) -> None:
        self.started, self.deadline, self.progress = deadline.at, deadline, deadline.behind
        self.asked, self.places, self.wishes = asked, places, wishes
        given = recipe if isinstance(recipe, Recipe) else load(recipe, wishes.overrides, places.data)
        _check(asked)
        providers.require(asked.provider)
        self.recipe = prepared(given, asked, wishes)
        self.out = folder(places, given.name).resolve()
        if not isinstance(recipe, Recipe) and Path(recipe).resolve() == self.out / "recipe.yaml":
            raise RecipeError(
                f"--out {self.out}: the chosen point's recipe would take the place of the one given: name another folder"
            )
        self.deadline.at = self.started + (1 - _SHARE) * asked.budget
        self.begun = 0.0
        self.searches: list[Search] = []
        self.threads: dict[int, float] = {}
        self.notes: list[str] = []

    def go(self) -> OptimizeResult:
        """Search, choose, bundle, report."""
        with host_faults(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        searching = self.recipe.model_copy(update={"name": f"{self.recipe.name}.search"})
        pipeline = workflow.open_pipeline(searching, self.places.store, self.wishes, self.deadline)
        data, checks = pipeline.data()
        workflow.check_gates(self.recipe, data)
        for line in (*checks.warnings, *workflow.idle(self.recipe)):
            self.progress.say(f"note: {line}")
        self.begun = time.monotonic()
        durations = Durations(_EPOCH)
        given = (searching, self.asked, data, pipeline, self.deadline)
        self.searches = [Search(Trials(*given, durations), self._tell)]
        self.searches += [
            Search(Trials(*given, durations, name), self._tell, self.history) for name in searching.networks
        ]
        for search in self.searches:
            search.among = len(self.searches)
        if chosen_here := self.searches[0].trials.template.chooses:
            pruned = any(name.startswith("prune.") for name in chosen_here)
            more = "; prune.ignore names layers to leave whole" if pruned else ""
            self.notes.append(f"{' and '.join(chosen_here)} of the recipe: chosen by the search{more}")
        stopped = race(self.searches)
        chosen = self._confirmed()
        found = self._found(stopped, chosen, None)
        self._write(found)
        if chosen is None:
            self._forget()
            return OptimizeResult(self.out, False, summary(found, self.out), found, None, None)
        return self._ship(chosen, found)

    @property
    def history(self) -> dict[Design, Outcome]:
        """All that was found, of every backbone; the searches share it."""
        return self.searches[0].history if self.searches else {}

    def _confirmed(self) -> Point | None:
        """The best point that keeps the bounds when it is timed anew, with all thread counts; None if there is none.

        A point at the edge of a bound may miss it then: the next best takes its place.
        """
        threads = session.counts(self.asked.threads)
        self.deadline.at = self.started + self.asked.budget - min(self._rest(), 0.5 * self.asked.budget)
        while (best := pick(points(self.history), self.asked.goal)) is not None:
            try:
                again = self._search(best.design).trials.again(best.design, threads)
            except OutOfTimeError as error:
                self.notes.append(f"{best.name} was not timed once more: {error}")
                break
            self.history[best.design] = again
            if again.feasible:
                return again
            missed = (
                ", ".join(told(miss) for miss in again.misses) or "it is not shown to be faster than fp32"
            )
            self.notes.append(
                f"{best.name}: when it was timed once more, {missed}; the next best takes its place"
            )
        return best

    def _search(self, design: Design) -> Search:
        """The search that a design is of."""
        return next(search for search in self.searches if search.trials.backbone == design.backbone)

    def _tell(self, outcome: Outcome) -> None:
        """Say what was found and how the front stands; keep the report so far; know better when to end."""
        if outcome.design == Design():
            self.deadline.at = self.started + self.asked.budget - self._ending(self.searches[0].trials)
        found = points(self.history)
        for line in _lines(outcome, found, self.asked):
            self.progress.say(f"[{time.monotonic() - self.started:5.0f} s] {line}")
        best = pick(found, self.asked.goal)
        self._write(self._found("the search is not at its end yet", best, None))

    def _ending(self, trials: Trials) -> float:
        """Seconds for what comes after the search, the timing with several thread counts included."""
        timing = session.seconds(self.asked.threads, 2 * trials.durations.of("latency"))
        return min(timing + self._rest(), 0.5 * self.asked.budget)

    def _rest(self) -> float:
        """Seconds for test pictures through two files, bundle and report."""
        trials = self.searches[0].trials
        val, test = len(trials.data.val), len(trials.data.test)
        answering = 2 * trials.durations.of("answers") * test / max(val, 1)
        return _ENDING + _SLACK * (answering + self.begun - self.started)

    def _found(self, stopped: str, chosen: Point | None, tested: Tested | None) -> Found:
        history, measured = tuple(self.history.values()), points(self.history)
        costs = self._search(chosen.design if chosen else Design()).trials.costs
        return Found(
            name=self.recipe.name, metric=self.recipe.gates.metric, asked=self.asked, outcomes=history,
            front=tuple(p.name for p in front(measured)), chosen=chosen.name if chosen else None,
            reasons=tuple(reasons(chosen, measured, self.asked.goal)) if chosen else (),
            closest=() if chosen else tuple(p.name for p in closest(measured)),
            would_do=() if chosen else tuple(would_do(measured)), stopped=stopped,
            notes=(*(note for search in self.searches for note in search.notes), *self.notes),
            seconds=time.monotonic() - self.started, tested=tested, host=host.facts(), widths=self._widths(chosen),
            costs=costs, threads=self.threads, sensitive=self.searches[0].sensitive if self.searches else None,
        )  # fmt: skip

    def _widths(self, chosen: Point | None) -> dict[str, float]:
        if chosen is None or chosen.design.shape != "table" or not chosen.design.ratio:
            return {}
        return dict(self._search(chosen.design).trials.widths(chosen.design))

    def _ship(self, chosen: Point, found: Found) -> OptimizeResult:
        """The run of fp32 and the chosen variant. The store has all of it but the answers to the test pictures."""
        threads = session.counts(self.asked.threads)
        variants = self._search(chosen.design).trials.variants(chosen.design)
        needed = self.recipe.model_copy(update={"variants": variants}).nodes()  # as backbones and as teachers
        final = self.recipe.model_copy(
            update={
                "variants": variants,
                "networks": {n: network for n, network in self.recipe.networks.items() if n in needed},
                "measure": session.timed_anew(self.recipe, threads),
            }
        )
        wishes = replace(self.wishes, overrides=(), fresh=False, prefer=chosen.name)
        result = workflow.run(final, replace(self.places, out=self.out), wishes, self.progress)
        ships = self._shipped(chosen, result.report)
        tested = _tested(result.report, ships.name, self.asked.provider) if ships else None
        if len(threads) > 1:
            self.threads = _by_threads(result.report, chosen.name, self.asked.provider)
        self.notes += contended(result.report) if result.report else []
        found = self._found(found.stopped, ships, tested)
        self._write(found)
        return OptimizeResult(self.out, result.passed, summary(found, self.out), found, ships, result.bundle)

    def _shipped(self, chosen: Point, report: RunReport | None) -> Point | None:
        """The point that the bundle is of: the chosen one, unless it did not pass when it was measured once more."""
        name = report.chosen if report else None
        if name != chosen.name:
            self.notes.append(
                f"{chosen.name} did not pass when it was measured again; {name or 'nothing'} ships"
            )
        return next((point for point in points(self.history) if point.name == name), None)

    def _write(self, found: Found) -> None:
        with host_faults(self.out):
            write_whole(self.out / JSON_FILE, render_json(found).encode())
            write_whole(self.out / PAGE, render_page(found).encode())

    def _forget(self) -> None:
        """Take away an older search's bundle and report, so that they are not taken for this one's."""
        remove_bundle(self.out / "bundle")
        with host_faults(self.out):
            for name in _OF_A_RUN:
                (self.out / name).unlink(missing_ok=True)


def folder(places: Places, recipe: str) -> Path:
    """Where the search of a recipe of this name leaves its report and bundle."""
    return places.out or Path("runs") / _name(recipe)


def _name(recipe: str) -> str:
    return f"{recipe[:47]}-optimized"


def _check(asked: Asked) -> None:
    bounds = (asked.max_latency_ms, asked.max_megabytes, asked.max_memory_mb)
    if asked.goal == "accuracy" and not any(bounds):
        raise RecipeError(
            "--goal accuracy: give a bound as well (--max-latency, --max-size or --max-memory), or fp32 wins"
        )


def prepared(recipe: Recipe, asked: Asked, wishes: Wishes) -> Recipe:
    """The recipe with the bounds as gates, and measured where it was asked; one batch size decides. What ends its fp32 is
    left out: everything is built on that."""
    measure = recipe.measure.model_dump(exclude_unset=True)
    measure |= {
        "providers": (asked.provider,),
        "threads": (asked.threads,),
        "batch": recipe.measure.batch[:1],
    }
    gates = asked.gates(recipe.gates)
    if gates.max_drop is None and asked.goal != "accuracy":
        raise RecipeError(
            "--max-drop: give the points that may be lost; the recipe's gates have no max_drop either"
        )
    whole = _whole(recipe)
    recipe = recipe.model_copy(update={"variants": {**recipe.variants, BASE: whole}})
    return recipe.model_copy(
        update={
            "name": _name(recipe.name),
            "measure": Measure.model_validate(measure),
            "gates": gates,
            "networks": {**recipe.networks, **_networks(recipe, asked.backbones)},
            "device": wishes.device or recipe.device,
        }
    )


def _whole(recipe: Recipe) -> Variant:
    """fp32 as one chain from where it starts, since the search keeps no other variant; what ends it is left out.

    Raises RecipeError for steps behind an adopted file.
    """
    fp32 = flattened(recipe, recipe.variants[BASE])
    if fp32.source in recipe.variants:
        raise RecipeError(
            f"variants.fp32: is made by steps from the adopted file '{fp32.source}'; a search starts from an adopted file "
            "as it is: give 'adopt' to fp32 itself"
        )
    return fp32.model_copy(update={"steps": tuple(step for step in fp32.steps if not step.ends)})


def _require_names(names: Sequence[str]) -> None:
    """Raise RecipeError where a network's name, at the head of a point's, could be taken for another part of it."""
    for name in names:
        if _PART.match(name) or any(other.startswith(f"{name}-") for other in names):
            raise RecipeError(
                f"networks.{name}: points of the search could not be told apart by this name, take another"
            )


def _networks(recipe: Recipe, backbones: Sequence[str]) -> dict[str, Tune]:
    """Networks for the backbones asked for by name, trained as the recipe trains its own."""
    named = [*recipe.networks, *backbones]
    if named and (recipe.tune is None or recipe.variants[BASE].source != TRUNK):
        raise RecipeError(
            f"{', '.join(named)}: other backbones are trained as the recipe's 'tune' says, and its fp32 is not made so"
        )
    found: dict[str, Tune] = {}
    for given in backbones:
        kind, _, model = given.partition("/")
        name = model.partition(".")[0].lower()
        if kind not in ("bundled", "timm") or not name:
            raise RecipeError(f"--backbone {given}: write bundled/NAME or timm/NAME, e.g. bundled/small")
        if len(name) > LONGEST or name in {TRUNK, BASE, *recipe.networks, *found}:
            raise RecipeError(f"--backbone {given}: give it a name of its own under 'networks' in the recipe")
        training = recipe.tune.model_dump(exclude_unset=True, by_alias=True) if recipe.tune else {}
        try:
            found[name] = Tune.model_validate(training | {"backbone": {kind: model}})
        except ValidationError as error:
            raise RecipeError(f"--backbone {given}: {'; '.join(problems(error, Tune))}") from None
    _require_names([*recipe.networks, *found])
    return found


def _lines(outcome: Outcome, found: Sequence[Point], asked: Asked) -> list[str]:
    """An outcome in a line, and the front when it stands on it."""
    match outcome:
        case Failure():
            return [f"{outcome.design.name}: could not be made: {outcome.why}"]
        case Probe():
            return [
                f"{outcome.design.name}: {outcome.latency_ms:.3f} ms before training, too slow to be trained"
            ]
    best = pick(found, asked.goal)
    words = f"{outcome.name}: {outcome.latency_ms:.3f} ms ({1 / outcome.share:.2f} times faster), "
    words += f"loses {outcome.drop:.2f} points, {outcome.megabytes:.2f} MB"
    if outcome.misses:
        words += f"; misses {', '.join(told(miss) for miss in outcome.misses)}"
    elif outcome.slower:
        words += "; not shown to be faster than fp32"
    elif outcome == best:
        words += "; best so far"
    line = front(found)
    if outcome not in line:
        return [words]
    return [words, "  front: " + " · ".join(f"{p.name} {p.latency_ms:.3f} ms {p.drop:+.2f}" for p in line)]


def _by_threads(report: RunReport | None, name: str, provider: str) -> dict[int, float]:
    """The median ms of a variant's plain file by thread count."""
    variant = report.variant(name) if report else None
    rows = variant.latency.get(provider, ()) if variant else ()
    return {row.threads: row.p50_ns / 1e6 for row in rows if row.file == "plain" and row.p50_ns is not None}


def _tested(report: RunReport | None, name: str, provider: str) -> Tested | None:
    variant = report.variant(name) if report else None
    if variant is None or report is None:
        return None
    accuracy, drop = variant.accuracy[provider], variant.drop.get("test")
    return Tested(
        n=accuracy.n, top1=100 * accuracy.top1, balanced=100 * accuracy.balanced,
        drop=drop.points if drop else 0.0, drop_ends=drop.ci95 if drop else None,
    )  # fmt: skip
