"""What is wrong with a task's pictures, found before training: every picture is decoded once."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from toolchain.data.dataset import Data, Picture, PictureSet, Sample
from toolchain.data.findings import (
    Copy,
    DataReport,
    Resemblance,
    Sizes,
    Unreadable,
    listing,
    problems,
    warnings,
)
from toolchain.data.resemblance import SIDE, Thumbnails, resembling, thumbnail
from toolchain.data.settings import DataSettings
from toolchain.errors import DataError, PictureError
from toolchain.progress import Progress

__all__ = ["DataReport", "apply", "inspect"]

# A picture that lies in two splits is kept in the earlier of these.
_KEEP_FIRST = ("test", "val", "train")


@dataclass(frozen=True, slots=True)
class _Look:
    height: int
    width: int
    grey: bool
    thumbnail: Thumbnails


@dataclass
class _Seen:
    """A split's readable pictures by index, and why the others are not."""

    looks: dict[int, _Look] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)


def inspect(data: Data, progress: Progress) -> DataReport:
    """Decode every picture once and report what a person should know before training.

    Only what no setting mends is in `problems`; `apply` does what the settings say about the rest.
    Memory: 1.2 kB a picture.
    """
    total = sum(len(split) for _, split in data.splits)
    with progress.task("checking pictures", total) as task:
        seen = {name: _look_at(split, task.advance) for name, split in data.splits}
    copies = tuple(_copies(data))
    near, resembled = _near(data, seen, {(copy.split, copy.name) for copy in copies})
    near += tuple(_carried(copies, near))
    looks = [look for one in seen.values() for look in one.looks.values()]
    found = DataReport(
        name=data.name,
        labels=data.labels,
        counts={name: _counts(data.labels, split, seen[name].looks) for name, split in data.splits},
        groups={name: len({s.group for s in split.samples if s.group}) for name, split in data.splits},
        shared_groups=_shared_groups(data),
        unreadable=tuple(_unreadable(data, seen)),
        duplicates=copies,
        near_duplicates=near,
        resembled=resembled,
        sizes=_sizes(looks),
        grey=sum(look.grey for look in looks),
        notes=data.notes,
    )
    return found.model_copy(update={"problems": problems(found), "warnings": warnings(found)})


def apply(data: Data, report: DataReport, settings: DataSettings) -> Data:
    """Leave out what `settings` say to drop.

    Raises DataError for what they call an error, and when a split or a class of train is left empty.
    """
    drop: dict[str, set[str]] = {name: set() for name, _ in data.splits}
    for setting, what, findings in (
        ("unreadable", "cannot be read", report.unreadable),
        ("duplicates", "are exact copies of others", report.duplicates),
        ("near_duplicates", "nearly equal pictures of another split", report.near_duplicates),
    ):
        choice = getattr(settings, setting)
        if findings and choice == "error":
            reasons = [
                one.reason if isinstance(one, Unreadable) else f"{one.split}/{one.name}" for one in findings
            ]
            raise DataError(
                f"{data.name}: {len(findings)} pictures {what}: {listing(reasons)}. "
                f"Mend or remove them, or set data.{setting}: drop"
            )
        if choice == "drop":
            for one in findings:
                drop[one.split].add(one.name)
    train, val, test = (
        split.subset(i for i, sample in enumerate(split.samples) if sample.name not in drop[name])
        for name, split in data.splits
    )
    left = Data(data.name, data.labels, train, val, test, data.notes)
    _check_left(left)
    return left


def _check_left(data: Data) -> None:
    taught = {sample.label for sample in data.train.samples}
    lost = [name for label, name in enumerate(data.labels) if label not in taught]
    empty = [f"{name} is empty" for name, split in data.splits if not len(split)]
    if lost or empty:
        what = ", ".join(empty) or f"train has no picture of {listing(lost)}"
        raise DataError(f"{data.name}: {what} once bad pictures are dropped; add pictures, or drop fewer")


def _look_at(split: PictureSet, advance: Callable[[], None]) -> _Seen:
    def look(index: int) -> _Look | str:
        try:
            picture = split.picture(index)
        except PictureError as e:
            return str(e)
        return _Look(picture.shape[0], picture.shape[1], _is_grey(picture), thumbnail(picture))

    seen = _Seen()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for index, result in enumerate(pool.map(look, range(len(split)))):
            advance()
            if isinstance(result, str):
                seen.unreadable[index] = result
            else:
                seen.looks[index] = result
    return seen


def _is_grey(picture: Picture) -> bool:
    """Whether the channels are equal; most coloured pictures show it in a few rows."""
    for part in (picture[:: max(1, len(picture) // 8)], picture):
        red = part[..., 0]
        if not (np.array_equal(red, part[..., 1]) and np.array_equal(red, part[..., 2])):
            return False
    return True


def _unreadable(data: Data, seen: Mapping[str, _Seen]) -> Iterator[Unreadable]:
    for split, pictures in data.splits:
        for index, reason in seen[split].unreadable.items():
            yield Unreadable(split=split, name=pictures.samples[index].name, reason=reason)


def _copies(data: Data) -> Iterator[Copy]:
    sets = dict(data.splits)
    first: dict[str, tuple[str, Sample]] = {}
    for split in _KEEP_FIRST:
        for sample in sets[split].samples:
            if sample.sha256 in first:
                of_split, of = first[sample.sha256]
                same = sample.label == of.label
                yield Copy(split=split, name=sample.name, of_split=of_split, of_name=of.name, same_label=same)
            else:
                first[sample.sha256] = (split, sample)


def _carried(copies: Sequence[Copy], near: Sequence[Resemblance]) -> Iterator[Resemblance]:
    """What an exact copy nearly equals because its original does, in a split that is not its own."""
    originals = {(one.split, one.name): one for one in near}
    for copy in copies:
        one = originals.get((copy.of_split, copy.of_name))
        if one is not None and one.of_split != copy.split:
            same = one.same_label == copy.same_label
            yield one.model_copy(update={"split": copy.split, "name": copy.name, "same_label": same})


def _near(
    data: Data, seen: Mapping[str, _Seen], copies: set[tuple[str, str]]
) -> tuple[tuple[Resemblance, ...], dict[str, int]]:
    """Compare train with test and val, and val with test, exact copies left out."""
    sets = dict(data.splits)
    found: list[Resemblance] = []
    met = dict.fromkeys(_KEEP_FIRST[:2], 0)
    for split, others in (("train", ("test", "val")), ("val", ("test",))):
        these = [(sets[split].samples[i], look) for i, look in seen[split].looks.items()]
        these = [(sample, look) for sample, look in these if (split, sample.name) not in copies]
        those = [
            (other, sets[other].samples[i], look) for other in others for i, look in seen[other].looks.items()
        ]
        matches, hit = resembling(_stack(look for _, look in these), _stack(look for _, _, look in those))
        for match in matches:
            sample, (other, twin, _) = these[match.this][0], those[match.that]
            found.append(
                Resemblance(
                    split=split,
                    name=sample.name,
                    of_split=other,
                    of_name=twin.name,
                    same_label=sample.label == twin.label,
                    correlation=match.correlation,
                )
            )
        for other in others:
            met[other] = max(
                met[other], sum(bool(h) for h, one in zip(hit, those, strict=True) if one[0] == other)
            )
    return tuple(found), met


def _stack(looks: Iterable[_Look]) -> Thumbnails:
    """uint8 [n, 1024]."""
    thumbnails = [look.thumbnail for look in looks]
    return np.stack(thumbnails) if thumbnails else np.zeros((0, SIDE * SIDE), dtype=np.uint8)


def _counts(labels: tuple[str, ...], split: PictureSet, readable: Iterable[int]) -> dict[str, int]:
    counts = Counter(split.samples[i].label for i in readable)
    return {name: counts[label] for label, name in enumerate(labels)}


def _shared_groups(data: Data) -> dict[str, tuple[str, ...]]:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for split, pictures in data.splits:
        for group in sorted({sample.group for sample in pictures.samples if sample.group}):
            homes[group].append(split)
    return {group: tuple(splits) for group, splits in homes.items() if len(splits) > 1}


def _sizes(looks: list[_Look]) -> Sizes | None:
    if not looks:
        return None
    sides = np.array([(look.height, look.width) for look in looks])
    middle = np.sort(sides, axis=0)[len(sides) // 2]
    height, width = (
        (int(sides[:, axis].min()), int(middle[axis]), int(sides[:, axis].max())) for axis in (0, 1)
    )
    return Sizes(height=height, width=width, distinct=len(np.unique(sides, axis=0)))
