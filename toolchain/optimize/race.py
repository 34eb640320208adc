"""Several backbones under one budget: each as it is, then those that keep the accuracy made smaller, the best first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from toolchain.optimize.budget import OutOfTimeError
from toolchain.optimize.search import Search

_DONE = "nothing is left that promises to be better"


def race(searches: Sequence[Search]) -> str:
    """Search among the designs of all backbones, the recipe's own first; returns why it stopped, in a sentence.

    Each is trained and quantized in the usual ways first. Then each gets an even share of the time that is left when its
    turn comes; what one leaves, the next ones have.
    Raises OutOfTimeError when the budget ends before fp32 was measured.
    """
    own, *others = searches
    try:
        stopped = own.begin()
        for search in others:
            search.trials.durations = own.trials.durations.apart()
            stopped = _begin(search) or stopped
        return _shrink(searches) or stopped or _DONE
    except OutOfTimeError as error:
        if not own.history:
            raise
        return str(error)


def _begin(search: Search) -> str | None:
    """Train and quantize another backbone if there is time for it; returns why not, or what `begin` says."""
    needed, left = search.trials.seconds(search.whole), search.trials.deadline.left
    if needed <= left:
        return search.begin()
    why = f"training takes about {needed:.0f} s and {max(left, 0):.0f} s are left"
    search.notes.append(f"{search.trials.backbone}: not tried, {why}")
    return f"there was no time for {search.trials.backbone} ({why})"


def _shrink(searches: Sequence[Search]) -> str | None:
    """Make the backbones smaller by turns; those whose turn was too short go on at the end with what is left."""
    waiting = [search for search in searches if search.whole in search.history and search.promising]
    waiting.sort(key=_standing)
    for turn in (1, 2):
        cut: list[Search] = []
        stopped = None
        for number, search in enumerate(waiting):
            left, more = search.trials.deadline.left, len(waiting) - number
            search.until = time.monotonic() + left / more if turn == 1 and more > 1 else math.inf
            if (why := search.shrink()) is not None:
                stopped = why
                cut.append(search)
        waiting = cut
    return stopped


def _standing(search: Search) -> tuple[bool, float]:
    """The backbones with a file that keeps the bounds first, the best for the goal before others."""
    best = search.best()
    return best is None, 0.0 if best is None else best.value(search.asked.goal)
