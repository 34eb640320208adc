"""Arms: the ways to make a network smaller among which a search chooses, and the space that they span."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from toolchain.optimize.asked import Asked, Goal
from toolchain.optimize.design import TOP, Design, Scheme, Shape
from toolchain.optimize.points import Point

GRID = 0.05  # ratios are multiples of it
TRAINED: Scheme = "int8-qat"  # how narrowed networks are quantized
OF_FILES: frozenset[Goal] = frozenset({"size", "memory"})  # goals that integers serve at any latency

Predict = Callable[[Design], float]


@dataclass(frozen=True)
class Arm:
    """One way to make a backbone smaller; bisection runs within it. relu: with its activations replaced.

    top: the greatest ratio; 0 for a network that can't be pruned. narrows: the network in float that is narrowed instead,
    and taught: the epochs of that.
    """

    shape: Shape
    size: int | None = None
    importance: str = ""
    relu: bool = False
    top: float = TOP
    backbone: str = ""
    narrows: Design | None = None
    taught: int = 0

    @property
    def whole(self) -> Design:
        """The backbone that it starts from."""
        return Design(relu=self.relu, backbone=self.backbone)

    def ratio(self, design: Design) -> float:
        """Where one of its designs stands."""
        return design.ratio if self.narrows is None else design.narrow

    @property
    def narrows_recovered(self) -> bool:
        """Whether it narrows a network that has to be recovered before."""
        return self.narrows is not None and self.narrows.epochs > 0

    @property
    def starts_whole(self) -> bool:
        """Whether ratio 0 is a network that is not a backbone already."""
        return bool(self.size) or self.relu

    def design(self, ratio: float, epochs: int, scheme: Scheme) -> Design:
        """The arm's design at a ratio."""
        if self.narrows is not None:
            return replace(self.narrows, narrow=ratio, taught=self.taught, scheme=TRAINED)
        if not ratio:
            return replace(self.whole, size=self.size, epochs=epochs, scheme=scheme)
        return Design(ratio, self.shape, self.importance, self.size, epochs, scheme, self.relu, self.backbone)

    def has(self, design: Design) -> bool:
        """Whether a design is of this arm."""
        if self.narrows is not None or design.narrowed:
            return design.narrowed and design.network == self.narrows
        if (design.size, design.whole) != (self.size, self.whole) or not design.trained:
            return False
        return not design.ratio or (design.shape, design.importance) == (self.shape, self.importance)


@dataclass(frozen=True)
class Space:
    """What may be tried: ways to quantize (the usual and those that mend accuracy), arms, epochs of recovery.

    backbone: of all of them. rivals: points of other backbones, which have to be beaten. own: the recipe's variants that are
    tried as they are. taught: epochs for which narrowed networks are trained, 0 where nothing can be narrowed;
    narrows_first: before pruning, or behind it.
    """

    asked: Asked
    schemes: tuple[Scheme, ...]
    mending: tuple[Scheme, ...]
    arms: tuple[Arm, ...]
    rungs: tuple[int, ...]
    backbone: str = ""
    rivals: tuple[Point, ...] = ()
    own: tuple[str, ...] = ()
    taught: int = 0
    narrows_first: bool = True

    @property
    def whole(self) -> Design:
        """The backbone as it was tuned."""
        return Design(backbone=self.backbone)

    def lengths(self, arm: Arm) -> tuple[int, ...]:
        """Epochs for which an arm's designs are trained, the fewest first."""
        return self.rungs if arm.narrows is None else (arm.taught,)
