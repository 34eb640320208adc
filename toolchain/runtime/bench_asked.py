"""What a bench is asked for, and the file that it is asked of: found, hashed, and tried before anything is timed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolchain.runtime import external, providers
from toolchain.runtime.bench_input import Picture, Wish, load_pictures, prepare
from toolchain.runtime.bench_record import ModelFile
from toolchain.runtime.bundle import Bundle
from toolchain.runtime.errors import ModelError
from toolchain.runtime.fresh import Setup
from toolchain.runtime.manifest import MODEL, PLAIN_MODEL
from toolchain.runtime.session import NO_CPU
from toolchain.runtime.verification import check_file, read_golden, sha256_of
from toolchain.runtime.warm_up import Steadiness


@dataclass(frozen=True)
class Sampling:
    """How much is timed: `blocks` of `calls`, or blocks until `seconds` are over (a condition).

    cold_starts: fresh processes a condition; 0 leaves cold start and memory out. traced: profiled runs.
    """

    blocks: int = 20
    calls: int = 50
    seconds: float | None = None
    cold_starts: int = 6
    traced: int = 10
    warm_up: Steadiness = field(default_factory=Steadiness)


@dataclass(frozen=True)
class Asked:
    """Every combination of providers, threads and batches is timed.

    options: {provider: {name: value}} for that provider, and under "" session entries for all. pictures: a
    folder to take the input from; shapes: sizes of dimensions that the model leaves open. file: which one of
    a bundle. allow_fallback: nodes may run on the CPU although another provider was asked for, and a provider
    that cannot be used is replaced by the CPU, which the record says.
    """

    providers: tuple[str, ...] = ("cpu",)
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    spinning: bool = False
    pictures: Path | None = None
    shapes: Mapping[str, int] = field(default_factory=dict)
    file: Literal["fused", "plain"] = "fused"
    allow_fallback: bool = False
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True)
class Found:
    """The file to bench, what it is, the hashes of its parts by name; of a bundle also its golden pictures and
    its labels."""

    path: Path
    model: ModelFile
    hashes: Mapping[str, str]
    pictures: tuple[Picture, ...] = ()
    labels: tuple[str, ...] = ()

    def is_unchanged(self) -> bool:
        """Whether the file, and its external weights, are still what they were."""
        try:
            return hashes(self.path) == self.hashes
        except ModelError:  # deleted, or cut short
            return False


def examine(model: Path, asked: Asked) -> Found:
    """Find the file, and ask it once on every provider with every batch, so that what is asked for in vain (a provider,
    an option, a size, a batch, answers that are no numbers) is told before anything is timed. Raises as `bench`."""
    found = find(model, asked.file)
    wish = Wish(shapes=asked.shapes, pictures=pictures_for(asked, found))
    for provider in dict.fromkeys(usable_provider(name, asked, []) for name in asked.providers):
        session = Setup(provider, asked.threads[0], asked.spinning, options_for(provider, asked)).session(
            found.path
        )
        for batch in asked.batches:
            prepared = prepare(session.inputs, session.metadata, replace(wish, batch=batch), session.label)
            finite(session.label, session.run(prepared.feed))
    return found


def find(model: Path, file: Literal["fused", "plain"]) -> Found:
    """The ONNX file that `model` names: itself, or a bundle's `file`, checked against its manifest's hash.

    Raises ModelError for no such file, BundleError and VerificationError for a bundle that is none, or changed.
    """
    if not model.is_dir():
        parts = hashes(model)
        return Found(model, _model_file(model, _called(model), "onnx", parts), parts)
    bundle = Bundle.load(model)
    path = model / (MODEL if file == "fused" else PLAIN_MODEL)
    parts = hashes(path)
    for name in parts:
        check_file(model, name, bundle.manifest)
    check_file(model, bundle.manifest.golden, bundle.manifest)
    golden = read_golden(model / bundle.manifest.golden)
    name = f"{bundle.manifest.name}/{bundle.manifest.variant}"
    return Found(
        path, _model_file(path, name, "bundle", parts), parts, golden.pictures, bundle.manifest.labels
    )


def _called(file: Path) -> str:
    """A file's name without suffix; "model" says nothing, as most exporters call it so: its folder's name goes before."""
    return f"{file.resolve().parent.name}/{file.stem}" if file.stem == "model" else file.stem


def hashes(model: Path) -> dict[str, str]:
    """sha256 of the ONNX file and of its external weights, by their names in its folder."""
    try:
        external.check(model)
        names = (model.name, *sorted(set(external.locations(model))))
        return {name: sha256_of(model.parent / name) for name in names}
    except OSError as e:
        raise ModelError(f"{model}: cannot be read ({e.strerror})") from e


def _model_file(
    path: Path, name: str, form: Literal["bundle", "onnx"], parts: Mapping[str, str]
) -> ModelFile:
    size = sum((path.parent / part).stat().st_size for part in parts)
    return ModelFile(name, path.name, parts[path.name], size, form)


def pictures_for(asked: Asked, found: Found) -> tuple[Picture, ...]:
    """The pictures that the input is made from: the folder's, else a bundle's own, else none."""
    if asked.pictures is not None:
        return load_pictures(asked.pictures)
    return found.pictures


def usable_provider(name: str, asked: Asked, notes: list[str]) -> str:
    """The provider to use for `name`. Raises ProviderError unless `allow_fallback`, which leaves a note."""
    if not asked.allow_fallback or name not in providers.NAMES or providers.usable()[name] is None:
        return providers.require(name)
    notes.append(f"provider {name!r} was asked for; 'cpu' was timed, because {providers.usable()[name]}")
    return "cpu"


def options_for(provider: str, asked: Asked) -> dict[str, str]:
    """Session's options on this provider."""
    fallback = {NO_CPU: "0"} if asked.allow_fallback and provider != "cpu" else {}
    return {**fallback, **asked.options.get("", {}), **asked.options.get(provider, {})}


def unknown_entries(options: Iterable[str]) -> list[str]:
    """A sentence for each session entry that onnxruntime seems not to know, and would then ignore without a word."""
    unknown = providers.unknown_entries(options)
    return [
        f"this onnxruntime seems to know no option {name}, and what it does not know it ignores"
        for name in unknown
    ]


def finite(label: str, outputs: Sequence[NDArray[Any]]) -> None:
    """Raise ModelError for NaN or infinity: a model that answers so does other work than one that answers, and neither
    its time nor its accuracy is a figure."""
    for index, output in enumerate(outputs):
        if np.issubdtype(output.dtype, np.floating) and not np.isfinite(output).all():
            raise ModelError(
                f"{label}: output {index} has values that are not finite (NaN or infinite): mend the model "
                f"before it is timed"
            )
