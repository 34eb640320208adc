"""The report's section on the pictures: counts of what was used, and each check in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from toolchain.data.findings import Copy, DataReport, Sizes
from toolchain.report.findings import Findings
from toolchain.report.parts import Check, DataSection

_LISTED = 20


def data_section(found: Findings) -> DataSection:
    """Counts by split and class after the checks' drops, groups, checks, picture sizes."""
    counts = {
        name: {label: int((split.labels == k).sum()) for k, label in enumerate(found.data.labels)}
        for name, split in found.data.splits
    }
    grouped = {name: len(set(split.groups)) for name, split in found.data.splits if found.groups(name)}
    return DataSection(
        name=found.data.name,
        labels=found.data.labels,
        counts=counts,
        groups=grouped or None,
        checks=tuple(_checks(found.checks)),
        facts=_facts(found.checks),
    )


def _checks(report: DataReport) -> Iterator[Check]:
    """One row for each thing that was looked for, found or not."""
    yield _check(
        "unreadable pictures", [f"{x.split}/{x.name}: {x.reason}" for x in report.unreadable], "problem"
    )
    across = [x for x in report.duplicates if x.split != x.of_split]
    inside = [x for x in report.duplicates if x.split == x.of_split]
    torn = [x for x in report.duplicates if not x.same_label]
    kinds: tuple[tuple[str, list[Copy], Literal["warning", "problem"]], ...] = (
        ("exact copies across splits", across, "problem"),
        ("exact copies inside a split", inside, "warning"),
        ("exact copies with another label", torn, "problem"),
    )
    for name, copies, level in kinds:
        yield _check(name, [f"{x.split}/{x.name} = {x.of_split}/{x.of_name}" for x in copies], level)
    near = [
        f"{x.split}/{x.name} ~ {x.of_split}/{x.of_name} ({x.correlation:.3f})" for x in report.near_duplicates
    ]
    yield _check("near-duplicates across splits", near, "warning")
    shared = [f"{group}: {', '.join(splits)}" for group, splits in report.shared_groups.items()]
    yield _check("groups across splits", shared, "problem")
    empty = [
        f"{split}: {label}" for split, row in report.counts.items() for label, n in row.items() if n == 0
    ]
    yield _check("empty classes", empty, "warning")
    yield from (Check(name="note", level="warning", summary=line) for line in report.notes)


def _check(name: str, items: list[str], level: Literal["warning", "problem"]) -> Check:
    if not items:
        return Check(name=name, level="ok", summary="none found")
    more = f", the first {_LISTED} of them below" if len(items) > _LISTED else ""
    return Check(name=name, level=level, summary=f"{len(items)} found{more}", items=tuple(items[:_LISTED]))


def _facts(report: DataReport) -> dict[str, str]:
    facts = {}
    if report.sizes is not None:
        facts["picture sizes"] = _sizes(report.sizes)
    if report.grey:
        total = sum(sum(row.values()) for row in report.counts.values())
        facts["without colour"] = f"{report.grey} of {total} pictures"
    return facts


def _sizes(sizes: Sizes) -> str:
    if sizes.distinct == 1:
        return f"all {sizes.height[1]} x {sizes.width[1]} pixels (height x width)"
    (low, middle, high), (left, centre, right) = sizes.height, sizes.width
    return f"{sizes.distinct} sizes; height {low} to {high} (median {middle}), width {left} to {right} ({centre})"
