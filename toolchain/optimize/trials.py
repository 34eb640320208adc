"""One trial: a design made through the pipeline, timed together with fp32, and judged on val as a run judges."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolchain.artifact import Artifact, figure
from toolchain.backbones.activations import replaceable
from toolchain.backbones.network import load as load_network
from toolchain.choose import BASE, Candidate, Exam, choose, metric
from toolchain.data.dataset import Data
from toolchain.device import memory_ran_out
from toolchain.errors import (
    BackboneError,
    DataError,
    HostError,
    ModelError,
    ParityError,
    ProviderError,
    RecipeError,
    TrainingError,
)
from toolchain.graph import read
from toolchain.measure import latency
from toolchain.measure.accuracy import load as load_answers
from toolchain.optimize.asked import Asked
from toolchain.optimize.budget import Deadline, Durations
from toolchain.optimize.design import Design, Template
from toolchain.optimize.narrowing import Narrowing, narrowing
from toolchain.optimize.own import own_variants
from toolchain.optimize.points import Failure, Miss, Outcome, Point, Probe
from toolchain.optimize.sensitivity import Sensitive, probe
from toolchain.optimize.session import timed_anew
from toolchain.optimize.widths import Costs
from toolchain.pipeline import Pipeline, host_kind, runtime_libraries
from toolchain.recipe import TRUNK, Node, Recipe, Variant
from toolchain.record import JSON
from toolchain.runtime import fresh
from toolchain.steps import Qat
from toolchain.steps.narrow import TooNarrowError
from toolchain.store import Entry, Job
from toolchain.workflow import candidates

_MEMORY = "memory.json"
_REFUSED = "refused.json"
_SENSITIVE = "sensitivity.json"
_STARTS = 3
_WORTH_NARROWING = 0.5  # of the products, that narrowing must be about
_UNSURE = 0.15  # a bound nearer than this to the prediction is tried before training
UNMADE = (BackboneError, ModelError, ParityError, TrainingError)
_OWN_UNMADE = (*UNMADE, DataError, ProviderError, RecipeError)  # the recipe's own variants may have any step


@dataclass
class Trials:
    """Makes and measures designs of one backbone (none named: `tuned`) over one store."""

    recipe: Recipe
    asked: Asked
    data: Data
    pipeline: Pipeline
    deadline: Deadline
    durations: Durations
    backbone: str = ""
    costs: Costs | None = None
    _allotted: dict[float, Mapping[str, float]] = field(default_factory=dict)

    @cached_property
    def template(self) -> Template:
        """The recipe's steps."""
        return Template(self.recipe, self.recipe.gates.max_drop, self.asked.targets, self.backbone)

    @property
    def whole(self) -> Design:
        """The backbone as it was tuned, in float."""
        return Design(backbone=self.backbone)

    @property
    def trunk(self) -> str:
        """The name of the artifact that it starts from."""
        return self.backbone or TRUNK

    @property
    def where(self) -> dict[str, JSON]:
        """What a figure of time or memory depends on beside files and pictures."""
        return {"host": host_kind(), "provider": self.asked.provider, "threads": self.asked.threads}

    def widths(self, design: Design) -> Mapping[str, float]:
        """Shares by layer for a design of shape "table"."""
        if self.costs is None:
            raise BackboneError("the network has no latency table to choose widths by")
        if design.ratio not in self._allotted:
            self._allotted[design.ratio] = self.costs.allot(design.ratio, self.template.most)
        return self._allotted[design.ratio]

    @cached_property
    def own(self) -> dict[str, Variant]:
        """The recipe's variants that are tried as they are; none where targets were asked for, which are not theirs."""
        return {} if self.backbone or self.asked.targets else own_variants(self.recipe, self.asked.provider)

    def variant(self, design: Design) -> Variant:
        """The recipe's variant for a design."""
        if design.own:
            return self.own[design.own]
        if design.narrowed:
            return self._narrowed.variant(design)
        return self.template.variant(design, self.widths)

    @cached_property
    def narrowing(self) -> Narrowing | None:
        """How the network is narrowed; None where it can't be, on CUDA (it ends in integers), and for another backbone
        (whose pictures fp32 does not answer)."""
        if self.asked.provider != "cpu" or self.backbone:
            return None
        return self._narrowed if self.reach >= _WORTH_NARROWING else None

    @cached_property
    def reach(self) -> float:
        """The share of fp32's products that narrowing is about."""
        return self._reach(inverted=False)

    @cached_property
    def narrows_first(self) -> bool:
        """Whether narrowing promises more than pruning: most products are in blocks that are widest inside."""
        return self._reach(inverted=True) >= _WORTH_NARROWING

    def _reach(self, *, inverted: bool) -> float:
        return self._narrowed.reach(read(self.base[BASE].folder / latency.FILES["plain"]), inverted=inverted)

    @cached_property
    def _narrowed(self) -> Narrowing:
        return narrowing(self.recipe, self.template.qat, own=not self.asked.targets)

    def variants(self, design: Design) -> dict[str, Variant]:
        """fp32 and the design by their names, and the network that it narrows, if that is not fp32's."""
        found = {BASE: self.template.fp32}
        if design.narrowed and design.network != Design():
            between = self.variant(design.network)
            found[design.network.name] = between.model_copy(update={"intermediate": True})
        return found if design == Design() else found | {design.name: self.variant(design)}

    def trial(self, design: Design, predicted: float | None = None) -> Outcome:
        """Make a design, measure and judge it. predicted: its latency in ms, where known.

        A network that must be trained is timed before, where the prediction is near a bound. Raises OutOfTimeError; what
        a step refuses becomes a Failure, but for fp32, where it is raised. A refusal is kept and not asked for again; a
        design that memory did not suffice for is tried again in the next start, and so is a backbone that could not be
        made: its weights may be there by then.
        """
        refused = self._refused(design)
        if refused is not None:
            return refused
        try:
            return self._tried(design, predicted)
        except (*_OWN_UNMADE, HostError, MemoryError, RuntimeError) as error:
            short = memory_ran_out(error)
            unmade = isinstance(error, _OWN_UNMADE if design.own or design.narrowed else UNMADE)
            if design == Design() or not (short or unmade):
                raise  # without fp32 there is nothing to compare with
            if short:
                gc.collect()
                return Failure(design, f"there was not memory enough ({error})")
            found = Failure(design, str(error), too_small=isinstance(error, TooNarrowError))
            if design != self.whole and not isinstance(error, ProviderError):
                self._refuse(found)
            return found

    def again(self, design: Design, threads: Sequence[int]) -> Point:
        """A design that was tried, timed anew with each of these thread counts and judged once more; the first decides.

        Raises OutOfTimeError.
        """
        measure = timed_anew(self.recipe, threads)
        there = replace(self, recipe=self.recipe.model_copy(update={"measure": measure}))
        return there._judged(design, there._artifacts(design))

    def _tried(self, design: Design, predicted: float | None) -> Outcome:
        bound = self.asked.max_latency_ms
        if design.trained and bound and predicted and abs(predicted / bound - 1) < _UNSURE:
            plain = design.untrained
            samples = self._timed(plain, self._artifacts(plain))
            untrained = float(np.median(samples[plain.name])) / 1e6
            if untrained > bound:
                return Probe(design, untrained)
        return self._judged(design, self._artifacts(design))

    def _refused(self, design: Design) -> Failure | None:
        """What a step refused of this design in an earlier start, if one did."""
        if design in (Design(), self.whole) or self.pipeline.fresh:
            return None
        entry = self.pipeline.store.find(self._refusal(design).key)
        if entry is None:
            return None
        told = json.loads((entry.folder / _REFUSED).read_text())
        return Failure(design, str(told["why"]), bool(told["too_small"]))

    def _refuse(self, found: Failure) -> None:
        def write(out: Path) -> None:
            (out / _REFUSED).write_text(json.dumps({"why": found.why, "too_small": found.too_small}))

        self.pipeline.measured(self._refusal(found.design), write)

    def _refusal(self, design: Design) -> Job:
        """The job whose result is a refusal: what would be made, from what, with what."""
        variants = self.variants(design)
        steps = [step for name, variant in variants.items() if name != BASE for step in variant.steps]
        given: dict[str, JSON] = {
            "versions": [step.version for step in steps], "train": self.data.train.fingerprint,
            "val": self.data.val.fingerprint, "seed": self.recipe.seed, "device": self.pipeline.device.fingerprint,
        }  # fmt: skip
        settings = {"steps": [step.resolved().model_dump(mode="json") for step in steps]}
        libraries = sorted({name for step in steps for name in step.libraries})
        parents = {name: self.base[name].key for name in (self.trunk, BASE) if name in self.base}
        return Job("refused", 2, settings, parents, given, tuple(libraries))

    @cached_property
    def base(self) -> dict[str, Artifact]:
        """fp32, the whole backbone, and what they are made from."""
        return self._artifacts(self.whole)

    @cached_property
    def replaceable(self) -> bool:
        """Whether the network has activations without integer kernels, and was trained here."""
        if self.asked.provider != "cpu" or not self.template.trainable:
            return False
        return bool(replaceable(load_network(self.base[self.trunk].folder)[0], "relu", gates=False))

    def _artifacts(self, design: Design) -> dict[str, Artifact]:
        """fp32's artifact and the design's, and all they were made from, by node name."""
        self.pipeline.recipe = self.recipe.model_copy(update={"variants": self.variants(design)})
        made = self.pipeline.build(self.data)
        for name, artifact in made.items():
            # How much of the network's work an own variant has left, is not known.
            if (name != TRUNK or not self.backbone) and not design.own:
                trains = design if artifact.record.step == "qat" else design.network
                self.durations.learn(artifact.record, self.share(trains))
        return made

    def share(self, design: Design) -> float:
        """About what share of the network's work a design has left."""
        width = 1.0
        if design.ratio:
            costs = self.costs if design.shape == "table" else None
            width = costs.target(design.ratio) if costs else (1 - design.ratio) ** 2
        if design.narrowed:
            width *= 1 - self.reach * design.narrow
        return width * ((design.size / self.recipe_side) ** 2 if design.size else 1.0)

    @cached_property
    def recipe_side(self) -> int:
        """The input's smaller side in pixels, as the recipe has it."""
        artifact = self.base[self.whole.name if self.backbone else BASE]
        found = json.loads((artifact.folder / "network.json").read_text())["preprocess"]
        return int(min(found["height"], found["width"]))

    def _timed(self, design: Design, made: Mapping[str, Artifact]) -> dict[str, NDArray[np.int64]]:
        """Raw nanoseconds of the plain files under the first condition, fp32 and the design interleaved."""
        entry = self._latencies(design, made)
        found = latency.load(entry.folder)
        first = next(x.condition for x in found if x.condition.file == "plain")
        return {x.variant: x.samples for x in found if x.condition == first}

    def _latencies(self, design: Design, made: Mapping[str, Artifact]) -> Entry:
        files = {name: made[name] for name in _measured(design)}
        on: dict[str, list[str]] = {self.asked.provider: list(files)}
        entry = self.pipeline.latencies(files, self.data.val, self.recipe.measure, on)
        self.durations.learn(entry.record)
        return entry

    def _judged(self, design: Design, made: Mapping[str, Artifact]) -> Point:
        names = _measured(design)
        files = {name: made[name] for name in names}
        timed = self._latencies(design, made)
        answers: dict[tuple[str, str, str], NDArray[np.float32]] = {}
        seconds = timed.record.seconds
        for name in names:
            entry = self.pipeline.answers(files[name], "val", self.data.val, self.asked.provider)
            self.durations.learn(entry.record)
            seconds += entry.record.seconds if name != BASE or design == Design() else 0.0
            answers[name, self.asked.provider, "val"] = load_answers(entry.folder)
        known = {BASE, TRUNK, self.trunk}
        if design == self.whole:
            known = {BASE, TRUNK} if self.backbone else set()
        seconds += sum(made[node].record.seconds for node in made if node not in known)
        parity = {name: figure(files[name], made.values(), "parity_fused") for name in names}
        judged = list(candidates(files, answers, latency.load(timed.folder), parity))
        point = self._point(design, judged, files[names[-1]], seconds)
        in_float = design.trained and not design.narrowed  # while it was trained
        told = figure(files[names[-1]], made.values(), self.recipe.gates.metric) if in_float else None
        if told is None:
            return point
        whole = 100 * metric(self.recipe.gates.metric, judged[0].probabilities, self.data.val.labels)
        return replace(point, plain_drop=whole - 100 * told)

    def _point(self, design: Design, judged: list[Candidate], file: Artifact, seconds: float) -> Point:
        gates, val = self.recipe.gates, self.data.val
        choice = choose(judged, Exam(val.labels, val.groups, self.data.labels), gates)
        base, own = judged[0], judged[-1]
        verdict = choice.verdict(own.name)
        misses = [Miss(g.name, g.bound, g.value, g.unit) for g in verdict.gates if not g.passed]
        memory = self._memory(file) if self.asked.weighs_memory else None
        if memory is not None and self.asked.max_memory_mb is not None and memory > self.asked.max_memory_mb:
            misses.append(Miss("max_memory_mb", self.asked.max_memory_mb, memory, "MB"))
        speedup, drop = verdict.speedup, verdict.drop
        return Point(
            design=design, latency_ms=float(np.median(own.latency)) / 1e6,
            share=1.0 if speedup is None else 1 / speedup.value,
            accuracy=100 * metric(gates.metric, own.probabilities, val.labels),
            drop=0.0 if drop is None else drop.value, speedup=speedup, drop_ends=None if drop is None else drop.ci95,
            megabytes=own.bytes / 1e6, memory_mb=memory, misses=tuple(misses),
            slower=own is not base and speedup is not None and speedup.low <= 1,
            seconds=seconds, key=file.key,
        )  # fmt: skip

    def _memory(self, file: Artifact) -> float:
        """Peak resident 10^6 bytes of a fresh process that answers one picture; measured once a file and host kind."""
        given = self.where | {"pictures": self.data.val.fingerprint}
        job = Job("memory", 1, {}, {"model": file.key}, given, runtime_libraries())

        def measure(out: Path) -> None:
            feed = {"pictures": np.ascontiguousarray(latency.typical(self.data.val)[None])}
            setup = fresh.Setup(provider=self.asked.provider, threads=self.asked.threads)
            told = fresh.measure(file.folder / latency.FILES["fused"], setup, feed, _STARTS)
            if told.stopped:
                raise KeyboardInterrupt
            if told.failure is not None:
                raise told.failure
            found = told.memory
            if found is None:
                raise HostError(
                    "this kernel does not tell the memory of a process, so memory can be no bound or goal here"
                )
            (out / _MEMORY).write_text(json.dumps({"peak_bytes": found.peak_bytes}))

        entry = self.pipeline.measured(job, measure)
        return float(json.loads((entry.folder / _MEMORY).read_text())["peak_bytes"]) / 1e6

    def sensitivity(self, *, pruning: bool, int8: bool) -> Sensitive:
        """What the tuned network loses to `pruning` and to the recipe's `int8`, part by part; measured once.

        Raises OutOfTimeError, and what pruning refuses.
        """
        made = self._artifacts(Design(scheme="int8") if int8 else Design())
        trunk = made[TRUNK] if pruning else None
        file = made[Design(scheme="int8").name] if int8 else None
        given: dict[str, JSON] = {"train": self.data.train.fingerprint, "libraries": host_kind()}
        settings = self.template.prune.model_dump(mode="json")
        parents = {
            name: one.key for name, one in (("trunk", trunk), (BASE, made[BASE]), ("int8", file)) if one
        }
        job = Job(
            "sensitivity", 1, settings, parents, given, (*runtime_libraries(), "torch", "torch-pruning")
        )

        def measure(out: Path) -> None:
            train, progress = self.data.train, self.pipeline.progress
            found = probe(trunk, made[BASE], file, self.template.prune, train, progress)
            (out / _SENSITIVE).write_text(found.model_dump_json())

        entry = self.pipeline.measured(job, measure)
        return Sensitive.model_validate_json((entry.folder / _SENSITIVE).read_bytes())

    def seconds(self, design: Design) -> float:
        """What a design is predicted to take now; what the store has costs nothing."""
        if self._refused(design) is not None:
            return 0.0
        self.pipeline.recipe = self.recipe.model_copy(update={"variants": self.variants(design)})
        missing: list[Node] = self.pipeline.missing(self.data)
        if not missing:
            return self.durations.of("latency") + self.durations.of("answers")
        whole, own = self.share(design.network), self.share(design)
        making = sum(self.durations.node(n, own if isinstance(n.step, Qat) else whole) for n in missing)
        probing = 2 if design.trained and self.asked.max_latency_ms else 1
        measuring = probing * self.durations.of("latency") + 2 * self.durations.of("answers")
        return making + measuring + (self.durations.of("memory") if self.asked.weighs_memory else 0.0)


def _measured(design: Design) -> list[str]:
    """What is timed and asked for a design: fp32 and its file."""
    return [BASE] if design == Design() else [BASE, design.name]
