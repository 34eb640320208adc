"""What the checks find before training, and what is dropped or refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from data_helpers import fill, held, in_thirds, noise, save, shared
from PIL import Image

from toolchain.data.checks import apply, inspect
from toolchain.data.dataset import Data, PictureSet
from toolchain.data.findings import DataReport
from toolchain.data.resemblance import resembling, thumbnail
from toolchain.data.settings import DataSettings
from toolchain.data.sources import load
from toolchain.errors import DataError
from toolchain.progress import Silent, Task

LABELS = ("a", "b")
ANY = {"source": "digits"}  # some source, where only what to drop matters


def folder(tmp_path: Path) -> Path:
    return fill(tmp_path, {f"{split}/{label}": 12 for split in ("train", "val", "test") for label in "ab"})


def check(root: Path) -> tuple[Data, DataReport]:
    data = load(DataSettings(folder=root), Path())
    return data, inspect(data, Silent())


class Counting(Silent):
    """Counts units of work."""

    units = 0.0

    @contextmanager
    def task(self, name: str, total: float) -> Iterator[Task]:
        yield self

    def advance(self, units: float = 1, **shown: float | str) -> None:
        self.units += units


def test_clean_data_has_nothing_to_say(tmp_path: Path) -> None:
    data = load(DataSettings(folder=folder(tmp_path)), Path())
    progress = Counting()
    report = inspect(data, progress)
    assert report.warnings == report.problems == ()
    assert report.counts["val"] == {"a": 12, "b": 12}
    assert report.sizes is not None
    assert report.sizes.height == (12, 12, 12)
    assert report.sizes.distinct == 1
    assert progress.units == 72
    assert DataReport.model_validate_json(report.model_dump_json()) == report
    assert apply(data, report, DataSettings.model_validate(ANY)).train.fingerprint == data.train.fingerprint


def test_every_picture_is_decoded_once() -> None:
    pictures = held([noise(i) for i in range(30)], [0, 1] * 15)
    asked: list[str] = []

    def decode(name: str) -> np.ndarray:
        asked.append(name)
        return pictures.decode(name)

    inspect(in_thirds(PictureSet(pictures.samples, decode), LABELS), Silent())
    assert sorted(asked) == [sample.name for sample in pictures.samples]


def test_unreadable_pictures_are_named_then_refused_or_dropped(tmp_path: Path) -> None:
    root = folder(tmp_path)
    Image.fromarray(noise(1, 64, 64)).save(root / "train/a/cut.jpg")
    (root / "train/a/cut.jpg").write_bytes((root / "train/a/cut.jpg").read_bytes()[:500])
    (root / "val/b/text.png").write_text("not a picture")
    data, report = check(root)
    assert [(one.split, one.name) for one in report.unreadable] == [
        ("train", "train/a/cut.jpg"),
        ("val", "val/b/text.png"),
    ]
    assert report.counts["train"] == {"a": 12, "b": 12}
    assert any("2 pictures cannot be read" in line and "val/b/text.png" in line for line in report.warnings)
    with pytest.raises(DataError, match=r"cut\.jpg.*data\.unreadable: drop"):
        apply(data, report, DataSettings.model_validate(ANY))
    left = apply(data, report, DataSettings.model_validate(ANY | {"unreadable": "drop"}))
    assert [len(split) for _, split in left.splits] == [24, 24, 24]


def test_exact_copies_are_kept_where_they_judge(tmp_path: Path) -> None:
    root = folder(tmp_path)
    one, two, three = (noise(seed) for seed in (501, 502, 503))
    for name, picture in (
        ("test/a/1.png", one), ("train/a/1.png", one),
        ("val/a/2.png", two), ("train/b/2.png", two),
        ("train/a/3.png", three), ("train/a/4.png", three),
    ):  # fmt: skip
        save(root / name, picture)
    data, report = check(root)
    found = {(copy.name, copy.of_name): copy.same_label for copy in report.duplicates}
    assert found == {
        ("train/a/1.png", "test/a/1.png"): True,
        ("train/b/2.png", "val/a/2.png"): False,
        ("train/a/4.png", "train/a/3.png"): True,
    }
    assert report.near_duplicates == ()
    text = "\n".join(report.warnings)
    assert "2 exact copies of a picture in another split" in text
    assert "1 exact copies inside a split" in text
    assert "1 exact copies carry another label than the original: train/b/2.png and val/a/2.png" in text
    left = apply(data, report, DataSettings.model_validate(ANY | {"duplicates": "drop"}))
    assert [len(split) for _, split in left.splits] == [25, 25, 25]
    with pytest.raises(DataError, match="3 pictures are exact copies"):
        apply(data, report, DataSettings.model_validate(ANY | {"duplicates": "error"}))


def test_near_duplicates_across_splits_are_found_and_dropped_from_the_earlier_split(tmp_path: Path) -> None:
    root = folder(tmp_path)
    picture = noise(700, 90, 120)
    save(root / "test/a/shot.png", picture)
    darker = (picture * 0.8 + 10).astype(np.uint8)
    Image.fromarray(darker).resize((100, 80)).save(root / "train/a/shot.jpg", quality=80)
    save(root / "train/a/again.png", picture[1:, 1:])
    save(root / "train/b/mirrored.png", np.ascontiguousarray(picture[:, ::-1]))
    data, report = check(root)
    found = {one.name: (one.of_split, one.of_name) for one in report.near_duplicates}
    assert found == dict.fromkeys(("train/a/shot.jpg", "train/a/again.png"), ("test", "test/a/shot.png"))
    assert all(0.98 < one.correlation <= 1 for one in report.near_duplicates)
    assert report.resembled == {"test": 1, "val": 0}
    left = apply(data, report, DataSettings.model_validate(ANY | {"near_duplicates": "drop"}))
    assert "train/b/mirrored.png" in {sample.name for sample in left.train.samples}
    assert [len(split) for _, split in left.splits] == [25, 24, 25]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_copy_of_a_near_duplicate_is_dropped_with_it(split: str, tmp_path: Path) -> None:
    """The near duplicate is in val or train, its exact copy in train: either would tell of the test picture."""
    root = folder(tmp_path)
    picture = noise(700, 90, 120)
    save(root / "test/a/shot.png", picture)
    save(root / split / "a" / "again.png", picture[1:, 1:])
    save(root / "train/a/copy.png", picture[1:, 1:])
    data, report = check(root)
    assert {one.name: one.of_name for one in report.near_duplicates} == {
        f"{split}/a/again.png": "test/a/shot.png", "train/a/copy.png": "test/a/shot.png",
    }  # fmt: skip
    left = apply(data, report, DataSettings.model_validate(ANY | {"near_duplicates": "drop"}))
    assert [len(split) for _, split in left.splits] == [24, 24, 25]


def test_the_hash_loses_no_pair_that_correlation_confirms() -> None:
    root = shared("factory_magnetic_tile")
    data = load(DataSettings(folder=root), Path())
    these, those = (
        np.stack([thumbnail(split.picture(i)) for i in range(0, len(split), step)])
        for split, step in ((data.train, 3), (data.test, 1))
    )
    matches, met = resembling(these, those)
    full = np.corrcoef(these.astype(float), those.astype(float))[: len(these), len(these) :]
    assert {match.this for match in matches} == set(np.flatnonzero((full > 0.98).any(axis=1)))
    assert set(np.flatnonzero(met)) == set(np.flatnonzero((full > 0.98).any(axis=0)))
    assert all(full[m.this, m.that] == pytest.approx(m.correlation, abs=1e-3) for m in matches)


def test_flat_pictures_resemble_nothing() -> None:
    flat = np.stack([thumbnail(np.full((9, 9, 3), value, dtype=np.uint8)) for value in (0, 90)])
    matches, met = resembling(flat, flat)
    assert matches == []
    assert not met.any()


def test_groups_in_two_splits_are_told() -> None:
    data = in_thirds(
        held([noise(i) for i in range(60)], [0, 0, 0, 1, 1, 1] * 10, ["x", "x", "y"] * 20), LABELS
    )
    report = inspect(data, Silent())
    assert report.shared_groups == {"x": ("train", "val")}
    assert report.groups == {"train": 1, "val": 1, "test": 1}
    assert any(
        "1 groups lie in more than one split" in line and "x (train and val)" in line
        for line in report.warnings
    )


def test_missing_and_tiny_classes_are_told(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train/a": 12, "train/b": 4, "val/a": 12, "val/b": 2, "test/a": 12})
    report = check(root)[1]
    assert report.problems == ()
    assert report.warnings == (
        "train has fewer than 10 pictures of b (4)",
        "val has fewer than 5 pictures of b (2)",
        "empty classes: test has no picture of b, nothing is known of them there",
    )


def test_a_class_whose_train_pictures_are_all_broken_is_a_problem(tmp_path: Path) -> None:
    root = folder(tmp_path)
    for file in (root / "train/b").iterdir():
        file.write_bytes(b"broken")
    data, report = check(root)
    assert report.problems == ("class 'b' has no readable picture in train",)
    with pytest.raises(DataError, match="train has no picture of b once bad pictures are dropped"):
        apply(data, report, DataSettings.model_validate(ANY | {"unreadable": "drop"}))


def test_grey_pictures_are_counted_and_notes_are_passed_on(tmp_path: Path) -> None:
    root = folder(tmp_path)
    Image.fromarray(noise(3)).convert("L").save(root / "train/a/grey.png")
    (root / "train/a/notes.txt").write_text("x")
    report = check(root)[1]
    assert report.grey == 1
    assert report.warnings == ("ignored: 1 .txt files",)
