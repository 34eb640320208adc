"""Which layer gives how many channels: as fast as asked by the latency table, at the least loss of importance.

Greedy, eight channels at a time, from the part where a nanosecond costs least importance, as in HALP
(arXiv:2110.10811) with its knapsack left to a heap of one. It only orders the work: what a network so pruned takes
and answers is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from toolchain.backbones.pruning import Part
from toolchain.measure.layers import LayerTable, LayerTimes, left
from toolchain.optimize.design import TOP

_FEWEST_COVERED = (
    0.3  # share of the network's time that the parts' layers must have, or the table says too little
)
_SPREAD = 0.2  # how much more than the ratio a part gives: magnitudes of channels compare badly across layers


@dataclass(frozen=True)
class Costs:
    """A network's parts, its latency table and the multiple that what is left of a layer is rounded to."""

    parts: tuple[Part, ...]
    table: LayerTable
    round_to: int

    @property
    def covers(self) -> bool:
        """Whether the table knows enough of the network's time to choose by."""
        reached = {name for part in self.parts for name in (*part.gives, *part.takes)}
        known = sum(layer.ns[-1] for layer in self.table.layers if layer.name in reached)
        return known >= _FEWEST_COVERED * self.whole

    @property
    def whole(self) -> float:
        """ns of the network that nothing was pruned of."""
        return self.table.others.ns[-1] + sum(layer.ns[-1] for layer in self.table.layers)

    def uniform(self, ratio: float) -> float:
        """The share of the latency that is left when the pruner takes this share of every part's channels.

        It leaves a part whole of which less than the multiple would remain, so that great ratios can be slower.
        """
        kept = {part.name: _rounded(len(part.scores), ratio, self.round_to) for part in self.parts}
        return self.latency(kept) / self.whole

    def target(self, ratio: float) -> float:
        """The share of the latency that a design of shape "table" shall have: that of `uniform`, but for parts of
        which just the multiple remains where the pruner would leave them whole. Falls as the ratio grows."""
        unit = self.round_to
        kept = {
            part.name: min(len(part.scores), _rounded(len(part.scores), ratio, unit, unit))
            for part in self.parts
        }
        return self.latency(kept) / self.whole

    def given(self, widths: Mapping[str, float]) -> float:
        """The share of the latency that is left with these shares pruned by part."""
        kept = {
            part.name: int(len(part.scores) * (1 - widths.get(part.name, 0.0))) or len(part.scores)
            for part in self.parts
        }
        return self.latency(kept) / self.whole

    def allot(self, ratio: float, most: float = TOP) -> dict[str, float]:
        """Shares to prune by part, such that the network is as fast as `target` says.

        most: the greatest share of one part. First no part gives more than `ratio` and a little; only when that is
        too slow, more. What can't be reached so is approached.
        """
        spread = _SPREAD
        while True:
            kept = self._greedy(ratio, min(most, ratio + spread))
            if ratio + spread >= most or self.latency(kept) <= self.target(ratio) * self.whole:
                return {p.name: _share(kept[p.name], len(p.scores)) for p in self.parts}
            spread += _SPREAD

    def _greedy(self, ratio: float, most: float) -> dict[str, int]:
        """Channels kept by part, with no part pruned by more than `most`."""
        kept = {part.name: len(part.scores) for part in self.parts}
        unit = self.round_to
        fewest = {p.name: max(unit, math.ceil(len(p.scores) * (1 - most) / unit) * unit) for p in self.parts}
        lost = {p.name: _running(p.scores) for p in self.parts}
        now, target = self.latency(kept), self.target(ratio) * self.whole
        while now > target:
            fewer = {p.name: (kept[p.name] - 1) // unit * unit for p in self.parts}
            prices = [
                (self._price(part, kept, fewer[part.name], lost[part.name]), part.name)
                for part in self.parts
                if fewer[part.name] >= fewest[part.name]
            ]
            if not prices:
                break
            name = min(prices)[1]
            kept[name] = fewer[name]
            now = self.latency(kept)
        return kept

    def _price(self, part: Part, kept: Mapping[str, int], fewer: int, lost: Sequence[float]) -> float:
        """The importance that a nanosecond less costs in this part."""
        whole = len(part.scores)
        harm = lost[whole - fewer] - lost[whole - kept[part.name]]
        gain = self._near(part, kept) - self._near(part, {**kept, part.name: fewer})
        return harm / gain if gain > 0 else math.inf

    def latency(self, kept: Mapping[str, int]) -> float:
        """ns of the network that keeps so many channels of each part."""
        wide = [self._left(layer, kept) for layer in self.table.layers]
        layers = sum(layer.at(left) for layer, left in zip(self.table.layers, wide, strict=True))
        return layers + self.table.others.at(sum(wide) / len(wide) if wide else 1.0)

    def _near(self, part: Part, kept: Mapping[str, int]) -> float:
        """The time of the layers that a part's channels pass."""
        return sum(layer.at(self._left(layer, kept)) for layer in self._passed[part.name])

    def _left(self, layer: LayerTimes, kept: Mapping[str, int]) -> float:
        gives, takes = self._sides.get(layer.name, (None, None))
        outputs = kept[gives.name] / len(gives.scores) if gives else 1.0
        inputs = kept[takes.name] / len(takes.scores) if takes else 1.0
        return left(outputs, inputs)

    @cached_property
    def _passed(self) -> Mapping[str, list[LayerTimes]]:
        """By part, the layers that its channels pass."""
        layers = {layer.name: layer for layer in self.table.layers}
        return {
            part.name: [layers[name] for name in dict.fromkeys((*part.gives, *part.takes)) if name in layers]
            for part in self.parts
        }

    @cached_property
    def _sides(self) -> Mapping[str, tuple[Part | None, Part | None]]:
        """By layer, the parts of its outputs and of its inputs; a depthwise layer's are the same."""
        found: dict[str, tuple[Part | None, Part | None]] = {}
        for part in self.parts:
            for name in part.gives:
                found[name] = (part, found.get(name, (None, None))[1])
            for name in part.takes:
                found[name] = (found.get(name, (None, None))[0], part)
        return found


def _rounded(channels: int, ratio: float, round_to: int, otherwise: int | None = None) -> int:
    """What the pruner leaves of so many channels: all of them (or `otherwise`) if it would round to none."""
    kept = int(channels * (1 - ratio))
    return kept - kept % round_to or (channels if otherwise is None else otherwise)


def _share(kept: int, channels: int) -> float:
    """The share that makes the pruner keep just so many: it rounds down, so half a channel is left for it."""
    return 0.0 if kept == channels else round(max(0.0, 1 - (kept + 0.5) / channels), 5)


def _running(scores: Sequence[float]) -> list[float]:
    """The importance lost with the n least important channels, for n from 0 to all."""
    found = [0.0]
    for score in scores:
        found.append(found[-1] + score)
    return found
