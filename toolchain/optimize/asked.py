"""What a search is asked: bounds, a goal, a time budget; and how people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from toolchain.errors import RecipeError
from toolchain.recipe import Gates
from toolchain.steps.quantize import Target

Goal = Literal["latency", "accuracy", "size", "memory"]
Provider = Literal["cpu", "cuda"]
_UNITS: Mapping[str, Mapping[str, float]] = {
    "ms": {"us": 1e-3, "ms": 1.0, "s": 1e3},
    "MB": {"kB": 1e-3, "KB": 1e-3, "MB": 1.0, "GB": 1e3},
    "s": {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0},
}
_EXAMPLES = {"ms": "3ms", "MB": "5MB", "s": "30m"}


@dataclass(frozen=True)
class Asked:
    """Bounds that must hold on val, what to make best within them, and where.

    max_latency_ms: median of the plain file on `provider` with `threads` threads. max_drop: points of the recipe's
    metric against fp32 (None: the recipe's own gate). max_megabytes: the fused file. max_memory_mb: the most
    resident memory, in 10^6 bytes, of a fresh process that answers one picture. budget: seconds of this start.
    targets: processors that every candidate must be right on (steps/quantize.py); none: the recipe's.
    backbones: others to search besides the recipe's own and its `networks`: bundled/NAME or timm/NAME.
    sized_by: seconds that decide how long recoveries are, where that is not the budget: searches over one store that
    are to find each other's networks share it.
    """

    provider: Provider = "cpu"
    threads: int = 1
    max_latency_ms: float | None = None
    max_drop: float | None = None
    max_megabytes: float | None = None
    max_memory_mb: float | None = None
    goal: Goal = "latency"
    budget: float = 1800.0
    targets: tuple[Target, ...] = ()
    backbones: tuple[str, ...] = ()
    sized_by: float | None = None

    def gates(self, own: Gates) -> Gates:
        """The recipe's gates with these bounds in place of its own where given."""
        bounds = {
            "max_drop": self.max_drop, "max_latency_ms": self.max_latency_ms, "max_megabytes": self.max_megabytes,
        }  # fmt: skip
        return own.model_copy(update={name: value for name, value in bounds.items() if value is not None})

    @property
    def weighs_memory(self) -> bool:
        """Whether memory must be measured."""
        return self.max_memory_mb is not None or self.goal == "memory"


def amount(option: str, text: str, unit: Literal["ms", "MB", "s"]) -> float:
    """A positive figure with its unit, in `unit`: ("--max-latency", "300us", "ms") -> 0.3.

    Raises RecipeError that names the option.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2] not in _UNITS[unit] or float(match[1]) <= 0:
        units = ", ".join(_UNITS[unit])
        raise RecipeError(
            f"{option} {text}: write a positive figure with its unit ({units}), e.g. {option} {_EXAMPLES[unit]}"
        )
    return float(match[1]) * _UNITS[unit][match[2]]
