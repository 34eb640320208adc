"""The only loop over steps: a recipe's artifacts, each made once and kept by content."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from toolchain.artifact import Artifact
from toolchain.backbones.network import DESCRIPTION, Network, describe, read
from toolchain.backbones.pruning import check_network_prunable
from toolchain.data.checks import DataReport, apply, inspect
from toolchain.data.dataset import Data, PictureSet
from toolchain.data.sources import load as load_data
from toolchain.device import Device
from toolchain.errors import DataError, RecipeError
from toolchain.learn.optimizer import Scope
from toolchain.learn.settings import Training
from toolchain.measure import accuracy, latency
from toolchain.measure.settings import Measure
from toolchain.progress import Progress
from toolchain.recipe import Node, Recipe, origin
from toolchain.recipe_problems import nearest
from toolchain.record import JSON
from toolchain.runtime import host
from toolchain.step import Context, Step
from toolchain.steps import GreyStem, Load, Prune, Tune
from toolchain.store import Entry, Job, Store, hash_path

_RUNTIME = ("onnxruntime", "onnxruntime-gpu")
_REPORT = "data.json"


@dataclass
class Pipeline:
    """One run over one store. `keys` collects what the run needs, `reused` what lay there already;
    `fresh` does everything anew."""

    recipe: Recipe
    base: Path
    device: Device
    store: Store
    progress: Progress
    fresh: bool = False
    keys: list[str] = field(default_factory=list)
    reused: set[str] = field(default_factory=set)

    def data(self) -> tuple[Data, DataReport]:
        """Load the pictures and check them (kept by content); raises DataError with every problem found."""
        found = load_data(self.recipe.data, self.base)
        given = {name: split.fingerprint for name, split in found.splits} | {"labels": list(found.labels)}
        given |= {"notes": list(found.notes)} if found.notes else {}
        job = Job("inspect", 1, self.recipe.data.model_dump(mode="json"), {}, given, ("pillow",))

        def check(out: Path) -> None:
            report = inspect(found, self.progress)
            (out / _REPORT).write_text(report.model_dump_json(indent=1))

        entry = self.measured(job, check)
        report = DataReport.model_validate_json((entry.folder / _REPORT).read_text())
        if report.problems:
            raise DataError(f"{found.name}: mend or add pictures: {'; '.join(report.problems)}")
        return apply(found, report, self.recipe.data), report

    def check_networks(self) -> None:
        """Say before training that a file cannot be used, that this device or the network cannot be trained so, or that
        an architecture cannot be pruned as the recipe wants (kept by content).

        Raises ToolchainError, see Step.check; DeviceError; TrainingError; BackboneError; RecipeError.
        """
        nodes = self.recipe.nodes()
        for node in nodes.values():
            node.step.check()
            if isinstance(node.step, Training):
                self.device.amp_type(node.step.amp)
            if isinstance(node.step, Tune) and isinstance(node.step.train, int):
                Scope(describe(node.step.backbone, ("a", "b")).skeleton(), node.step.train)
            if not isinstance(node.step, Prune | GreyStem):
                continue
            network = _described(origin(node, nodes).step)
            if network is None:
                continue
            if isinstance(node.step, GreyStem):
                node.step.check_network(network)
                continue
            settings = {
                "network": network.model_dump(mode="json"),
                "prune": node.step.model_dump(mode="json"),
            }
            job = Job("prunable", 1, settings, {}, {}, node.step.libraries)
            self.measured(job, partial(_try_to_prune, network, node.step))

    def build(self, data: Data, until: str | None = None) -> dict[str, Artifact]:
        """Make every artifact of the recipe (or only what `until` needs), in order, by node name."""
        nodes = self.recipe.nodes()
        wanted = _needed(nodes, until) if until else nodes.keys()
        made: dict[str, Artifact] = {}
        for name, node in nodes.items():
            if name in wanted:
                inputs = {role: made[source] for role, source in node.inputs.items()}
                made[name] = self._make(node, inputs, data)
        return made

    def missing(self, data: Data) -> list[Node]:
        """The artifacts of the recipe that the store does not have."""
        made: dict[str, Artifact] = {}
        lacking = []
        for name, node in self.recipe.nodes().items():
            entry = None
            if all(source in made for source in node.inputs.values()):
                inputs = {role: made[source] for role, source in node.inputs.items()}
                entry = self.store.find(self._job(node.step.resolved(), inputs, data).key)
            if entry is None:
                lacking.append(node)
            else:
                made[name] = Artifact(node.step.gives, entry.folder, entry.record)
        return lacking

    def _make(self, node: Node, inputs: Mapping[str, Artifact], data: Data) -> Artifact:
        step = node.step.resolved()
        job = self._job(step, inputs, data)
        self.store.claim(self.recipe.name, job.key)
        with self.store.begin(job, fresh=self.fresh) as work:
            if work.entry is None:
                self.progress.say(f"{node.name}: {step.step}")
                context = Context(work.out, work.scratch, data, self.device, self.recipe.seed, self.progress)
                measurements = step.run(inputs, context)
                work.commit(measurements, self.device.fingerprint)
            else:
                self.reused.add(node.name)
            entry = self._keep(work.entry)
        return Artifact(step.gives, entry.folder, entry.record)

    def _job(self, step: Any, inputs: Mapping[str, Artifact], data: Data) -> Job:
        settings = step.model_dump(mode="json", exclude={role for role in step.takes if role != "model"})
        for path, file in step.roots().items():
            _put(settings, path, hash_path(file))
        given: dict[str, JSON] = {}
        for split in ("train", "val"):
            if split in step.uses:
                given[split] = getattr(data, split).fingerprint
                given["labels"] = list(data.labels)
        if "seed" in step.uses:
            given["seed"] = self.recipe.seed
        if "device" in step.uses:
            given["device"] = self.device.fingerprint
        parents = {role: artifact.key for role, artifact in inputs.items()}
        return Job(step.step, step.version, settings, parents, given, step.libraries)

    def answers(self, artifact: Artifact, split: str, pictures: PictureSet, provider: str) -> Entry:
        """The fused file's probabilities over a split on a provider, measured once a file and host kind."""
        given = {
            "pictures": pictures.fingerprint,
            "provider": provider,
            "threads": self.device.threads,
            "host": host_kind(),
        }
        job = Job("answers", 1, {}, {"model": artifact.key}, given, runtime_libraries())

        def measure(out: Path) -> None:
            with self.progress.task(f"accuracy on {split} ({provider})", len(pictures)) as task:
                found = accuracy.answers(artifact, pictures, provider, self.device.threads, task.advance)
            accuracy.save(found, out)

        return self.measured(job, measure)

    def latencies(
        self,
        files: Mapping[str, Artifact],
        pictures: PictureSet,
        settings: Measure,
        providers: Mapping[str, Sequence[str]],
    ) -> Entry:
        """Raw latency samples of all files together, measured once a set of files and host kind.

        providers: for each, the names of the files to time on it, in order; the first condition decides the choice.
        """
        on = [[name, list(timed)] for name, timed in providers.items()]
        given = {"pictures": pictures.fingerprint, "providers": on, "host": host_kind()}
        asked = settings.model_dump(mode="json", exclude={"providers"})
        job = Job("latency", 1, asked, {name: a.key for name, a in files.items()}, given, runtime_libraries())

        def measure(out: Path) -> None:
            picture, before = latency.typical(pictures), host.facts()
            sides = sum(map(len, providers.values())) * len(settings.threads) * len(settings.batch)
            rounds = sides * len(latency.FILES)
            with (
                self.progress.task("latency", rounds * settings.blocks) as task,
                host.Contention() as contention,
            ):
                found = latency.time_files(files, picture, settings, providers, lambda *_: task.advance())
            latency.save(found, out)
            facts = before | {"load_after": host.facts()["load"], "spinning": settings.spinning}
            if contention.share is not None:
                facts["waited"] = contention.share
            (out / latency.HOST).write_text(json.dumps(facts, indent=1))

        return self.measured(job, measure)

    def measured(self, job: Job, measure: Callable[[Path], None]) -> Entry:
        """A measurement: taken from the store, or else made by `measure`, which writes into the folder it is given."""
        self.store.claim(self.recipe.name, job.key)
        with self.store.begin(job, fresh=self.fresh) as work:
            if work.entry is None:
                measure(work.out)
                work.commit()
            return self._keep(work.entry)

    def _keep(self, entry: Entry | None) -> Entry:
        if entry is None:  # a committed work has its entry
            raise RecipeError("the store lost what it had just kept")
        self.keys.append(entry.record.key)
        return entry


def _described(trunk: Step) -> Network | None:
    """The network that a chain of steps begins with, as far as it is known before training; None of a foreign file."""
    if isinstance(trunk, Tune):
        return describe(trunk.backbone, ("a", "b"))
    if isinstance(trunk, Load) and (trunk.file / DESCRIPTION).is_file():
        return read(trunk.file)
    return None


def _try_to_prune(network: Network, step: Prune, out: Path) -> None:
    check_network_prunable(network, step)


def host_kind() -> dict[str, JSON]:
    """What makes two hosts answer and time alike: processor, ISA, cores, GPUs."""
    facts = host.facts()
    return {"cpu": facts["cpu"], "isa": host.isa(), "cores": facts["cores"], "gpus": facts["gpus"]}


def runtime_libraries() -> tuple[str, ...]:
    """What answers and times depend on: the ONNX Runtime distribution that is installed, and what decodes."""
    return ("pillow", "numpy", *(name for name in _RUNTIME if host.distribution_version(name)))


def _needed(nodes: Mapping[str, Node], until: str) -> Collection[str]:
    """`until` and everything it is made from."""
    if until not in nodes:
        raise RecipeError(f"--until {until}: there is no such artifact{nearest(until, nodes)}")
    found, waiting = {until}, [until]
    while waiting:
        for name in nodes[waiting.pop()].inputs.values():
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _put(settings: dict[str, JSON], path: str, value: str) -> None:
    """Replace one value by its dotted path."""
    *parents, last = path.split(".")
    for part in parents:
        settings = settings[part]
    settings[last] = value
