"""What an explanation is made of, and its words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "signed_activations", "split_activation", "no_int8_kernel", "float_island", "unfused_activation",
    "layout_conversion", "fallback", "copies", "dynamic_convolution", "float_weights", "wide_activations",
]  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Where a graph runs: our name of the provider, the ISA family and features of runtime/host.py."""

    provider: str
    isa: str
    features: frozenset[str]


@dataclass(frozen=True)
class Finding:
    """One pitfall: what was found in how many nodes, their share (0..1) of the time of all, and one remedy."""

    kind: Kind
    what: str
    nodes: int
    share: float
    remedy: str


@dataclass(frozen=True)
class Explanation:
    """The findings on one file, the costliest first; a node counts in one finding only."""

    findings: tuple[Finding, ...]

    def text(self) -> str:
        """A line for each finding with its remedy below, or one that says there is none."""
        if not self.findings:
            return "explain: no known pitfall takes 5 % of the time"
        lines = ["explain:"]
        for found in self.findings:
            lines.append(f"  {100 * found.share:5.1f} % of the time: {found.what}")
            lines.append(f"{'':21}-> {found.remedy}")
        return "\n".join(lines)
