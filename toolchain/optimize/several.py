"""One search for each of several providers, over one store: networks that one of them trained, the next finds there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from toolchain.optimize.asked import Asked, Provider
from toolchain.optimize.workflow import OptimizeResult, folder, optimize
from toolchain.progress import Progress, Silent
from toolchain.recipe import load
from toolchain.runtime import providers
from toolchain.workflow import Places, Wishes


def optimize_each(
    recipe: str | Path, on: Sequence[Provider], asked: Asked, places: Places | None = None,
    wishes: Wishes | None = None, progress: Progress | None = None, started: float | None = None,
) -> dict[Provider, OptimizeResult]:  # fmt: skip
    """Search for the best file on each provider, one after another, each in a folder of its name below `out`.

    The bounds are the same for all. What is left of `asked.budget` is shared evenly among those to come, so that time
    which one search did not need is the next one's; how long networks are recovered goes by an even share for all, so that
    a later search finds those that it has in common with an earlier one. Raises as `optimize` does, ProviderError before
    anything is done.
    """
    for name in on:
        providers.require(name)
    begun = time.monotonic() if started is None else started
    places, wishes, progress = places or Places(), wishes or Wishes(), progress or Silent()
    own = load(recipe, wishes.overrides, places.data).name
    found: dict[Provider, OptimizeResult] = {}
    even = asked.budget / len(on)
    for done, name in enumerate(on):
        now = time.monotonic() if done else begun
        share = (begun + asked.budget - now) / (len(on) - done)
        progress.say(f"provider {name}: {share:.0f} s")
        there = replace(places, out=folder(places, own) / name)
        found[name] = optimize(
            recipe, replace(asked, provider=name, budget=share, sized_by=even), there, wishes, progress, now
        )
    return found
