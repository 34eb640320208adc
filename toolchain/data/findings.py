"""What checking a task's pictures found, as values and as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

_NAMED = 3  # pictures named in a sentence; the report's fields name all
_FEW_TRAIN = 10
_FEW_JUDGED = 5


class _Finding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Unreadable(_Finding):
    """A picture that cannot be decoded, and why."""

    split: str
    name: str
    reason: str


class Copy(_Finding):
    """A picture whose file has the very bytes of another's, `of_name`, which is the one to keep."""

    split: str
    name: str
    of_split: str
    of_name: str
    same_label: bool


class Resemblance(_Finding):
    """A picture that resembles `of_name` of another split; `correlation` of 32 x 32 grey thumbnails, 0..1."""

    split: str
    name: str
    of_split: str
    of_name: str
    same_label: bool
    correlation: float


class Sizes(_Finding):
    """Pixels of the readable pictures, each [least, median, most]; `distinct` is the number of H x W."""

    height: tuple[int, int, int]
    width: tuple[int, int, int]
    distinct: int


class DataReport(_Finding):
    """The facts of a check, and in `problems` and `warnings` what they mean, a sentence each.

    counts: readable pictures by split and class. groups: number of groups by split (0: none are known).
    shared_groups: splits by group, of groups that lie in more than one. near_duplicates: the best match of
    each picture that resembles one of a split that is kept first (test before val before train);
    resembled: how many pictures of each split were met that way. grey: pictures without any colour.
    problems: what no setting mends; training is senseless.
    """

    name: str
    labels: tuple[str, ...]
    counts: Mapping[str, Mapping[str, int]]
    groups: Mapping[str, int]
    shared_groups: Mapping[str, tuple[str, ...]] = {}
    unreadable: tuple[Unreadable, ...] = ()
    duplicates: tuple[Copy, ...] = ()
    near_duplicates: tuple[Resemblance, ...] = ()
    resembled: Mapping[str, int] = {}
    sizes: Sizes | None = None
    grey: int = 0
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def listing(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def problems(report: DataReport) -> tuple[str, ...]:
    """What makes training senseless: a class or a split without a readable picture."""
    found = [
        f"class '{label}' has no readable picture in train"
        for label, count in report.counts["train"].items()
        if count == 0
    ]
    found += [f"{split} has no readable picture" for split in ("val", "test") if not _total(report, split)]
    return tuple(found)


def warnings(report: DataReport) -> tuple[str, ...]:
    """What a person should know and may live with."""
    found = [*report.notes]
    if report.unreadable:
        names = [f"{one.reason}" for one in report.unreadable]
        found.append(f"{len(names)} pictures cannot be read: {listing(names)}")
    found.extend(_about_copies(report))
    if report.near_duplicates:
        pairs = [f"{one.split}/{one.name} ~ {one.of_split}/{one.of_name}" for one in report.near_duplicates]
        met = ", ".join(f"{count} of {split}" for split, count in report.resembled.items() if count)
        found.append(
            f"near-duplicates across splits: {met} resemble pictures of another split ({listing(pairs)})"
        )
    if report.shared_groups:
        groups = [f"{group} ({' and '.join(splits)})" for group, splits in report.shared_groups.items()]
        found.append(
            f"{len(groups)} groups lie in more than one split, results may flatter: {listing(groups)}"
        )
    found.extend(_about_classes(report))
    return tuple(found)


def _about_copies(report: DataReport) -> Iterator[str]:
    across = [one for one in report.duplicates if one.split != one.of_split]
    inside = [one for one in report.duplicates if one.split == one.of_split]
    for copies, where in ((across, "of a picture in another split"), (inside, "inside a split")):
        if copies:
            pairs = [f"{one.split}/{one.name} = {one.of_split}/{one.of_name}" for one in copies]
            yield f"{len(copies)} exact copies {where}: {listing(pairs)}"
    torn = [f"{one.name} and {one.of_name}" for one in report.duplicates if not one.same_label]
    if torn:
        yield f"{len(torn)} exact copies carry another label than the original: {listing(torn)}"


def _about_classes(report: DataReport) -> Iterator[str]:
    for split, least in (("train", _FEW_TRAIN), ("val", _FEW_JUDGED), ("test", _FEW_JUDGED)):
        empty = [label for label, count in report.counts[split].items() if count == 0]
        if empty and split != "train":
            yield f"empty classes: {split} has no picture of {', '.join(empty)}, nothing is known of them there"
        few = [f"{label} ({count})" for label, count in report.counts[split].items() if 0 < count < least]
        if few:
            yield f"{split} has fewer than {least} pictures of {', '.join(few)}"


def _total(report: DataReport, split: str) -> int:
    return sum(report.counts[split].values())
