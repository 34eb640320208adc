"""How long the final files take: all variants interleaved in one process, raw samples kept.

The protocol (docs/measuring.md): randomised blocks of calls, the first of each block dropped; next to it
the alternating figure, where every call follows another model's, as on a device that does other things.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from toolchain.artifact import Artifact
from toolchain.data.dataset import Picture, PictureSet
from toolchain.graph import FUSED, PLAIN, PREPROCESS
from toolchain.measure.settings import Measure
from toolchain.runtime.session import Session
from toolchain.runtime.timing import alternate, interleave, time_calls

File = Literal["plain", "fused"]
Feed = Mapping[str, NDArray[np.generic]]
HOST = "host.json"  # in the entry: the machine when the files were timed
FILES: Mapping[File, str] = {"plain": PLAIN, "fused": FUSED}
_ALTERNATING_CALLS = 200
_MOST = 10  # times the blocks that were asked for


@dataclass(frozen=True)
class Condition:
    """What a latency was measured under. `input` is the picture's height x width in pixels, of the plain
    files "HxW or HxW" where variants take pictures of different sizes."""

    provider: str
    threads: int
    batch: int
    file: File
    input: str


@dataclass(frozen=True)
class Latency:
    """Raw nanoseconds [blocks, calls] of one variant under one condition, and those when alternating [calls]."""

    variant: str
    condition: Condition
    samples: NDArray[np.int64]
    alternating: NDArray[np.int64]


def conditions(settings: Measure, providers: Sequence[str]) -> list[tuple[str, int, int]]:
    """Every (provider, threads, batch) to measure; the first one decides the choice."""
    return [(p, t, b) for p in providers for t in settings.threads for b in settings.batch]


def typical(pictures: PictureSet) -> Picture:
    """The picture of median pixel count among the first 50: what the files are timed with."""

    def pixels(index: int) -> int:
        return int(np.prod(pictures.picture(index).shape[:2]))

    some = range(min(50, len(pictures)))  # decoded one at a time: fifty of 50 megapixels are 7 GB
    return pictures.picture(sorted(some, key=pixels)[len(some) // 2])


def time_files(
    artifacts: Mapping[str, Artifact], picture: Picture, settings: Measure, providers: Mapping[str, Sequence[str]],
    progress: Callable[[int, int], None] | None = None,
) -> list[Latency]:  # fmt: skip
    """Time the plain and the fused file of every artifact under every condition, interleaved.

    providers: for each provider, the names of the artifacts to time on it.
    """
    asked: NDArray[np.generic] = picture[None]
    prepared = {
        name: Session(artifact.folder / PREPROCESS).run({"pictures": asked})[0]
        for name, artifact in artifacts.items()
    }
    sizes = dict.fromkeys("x".join(map(str, plain.shape[2:])) for plain in prepared.values())
    feeds: Mapping[File, tuple[str, Mapping[str, Feed]]] = {
        "plain": (" or ".join(sizes), {name: {"input": plain} for name, plain in prepared.items()}),
        "fused": ("x".join(map(str, picture.shape[:2])), {name: {"pictures": asked} for name in artifacts}),
    }
    found = []
    for provider, threads, batch in conditions(settings, list(providers)):
        timed = {name: artifacts[name] for name in providers[provider]}
        for file, (size, feed) in feeds.items():
            condition = Condition(provider, threads, batch, file, size)
            found += _time(timed, condition, feed, settings, progress)
    return found


def _time(
    artifacts: Mapping[str, Artifact], condition: Condition, feeds: Mapping[str, Feed],
    settings: Measure, progress: Callable[[int, int], None] | None,
) -> list[Latency]:  # fmt: skip
    sides: dict[str, Callable[[], object]] = {}
    for name, artifact in artifacts.items():
        feed = feeds[name].items()
        repeated = {n: np.ascontiguousarray(np.repeat(v, condition.batch, axis=0)) for n, v in feed}
        session = Session(
            artifact.folder / FILES[condition.file], provider=condition.provider,
            threads=condition.threads, spinning=settings.spinning,
        )  # fmt: skip
        sides[name] = partial(session.run, repeated)
    blocks = interleave(
        sides, blocks=_rounds(sides, settings), calls=settings.calls, drop=settings.drop, progress=progress
    )
    mixed = alternate(sides, calls=_ALTERNATING_CALLS)
    return [Latency(name, condition, blocks[name], mixed[name]) for name in sides]


def _rounds(sides: Mapping[str, Callable[[], object]], settings: Measure) -> int:
    """How many blocks a side has: as many as were asked for, or more where these would be over too soon."""
    calls = (float(np.median(time_calls(side, settings.calls))) for side in sides.values())
    once = settings.calls * sum(calls) / 1e9
    return min(max(settings.blocks, ceil(settings.seconds / once)), _MOST * settings.blocks)


def save(latencies: Sequence[Latency], folder: Path) -> None:
    """Keep raw samples (`samples.npz`) and what they belong to (`index.json`) in a store entry."""
    arrays = {}
    index = []
    for number, latency in enumerate(latencies):
        arrays[f"blocks_{number}"] = latency.samples
        arrays[f"alternating_{number}"] = latency.alternating
        index.append({"variant": latency.variant, "condition": asdict(latency.condition)})
    np.savez_compressed(folder / "samples.npz", **arrays)  # type: ignore[arg-type]
    (folder / "index.json").write_text(json.dumps(index, indent=1))


def load(folder: Path) -> list[Latency]:
    """The latencies kept by `save`."""
    index = json.loads((folder / "index.json").read_text())
    with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
        return [
            Latency(
                item["variant"],
                Condition(**item["condition"]),
                arrays[f"blocks_{i}"],
                arrays[f"alternating_{i}"],
            )
            for i, item in enumerate(index)
        ]
