"""From folders and tables to three splits: what is found, how it is divided, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_helpers import fill, noise, save, shared
from pydantic import ValidationError
from sklearn.datasets import load_digits

from toolchain.data.dataset import Data
from toolchain.data.settings import Columns, DataSettings, Split
from toolchain.data.sources import load
from toolchain.data.table import group_column
from toolchain.errors import DataError, PictureError

HERE = Path()


def sizes(data: Data) -> dict[str, list[int]]:
    """Pictures by split and class."""
    return {
        name: np.bincount(split.labels, minlength=len(data.labels)).tolist() for name, split in data.splits
    }


def test_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train/b": 3, "train/a": 2, "validation/a": 1, "validation/b": 1, "test/b": 2})
    data = load(DataSettings(folder=root), HERE)
    assert data.labels == ("a", "b")
    assert sizes(data) == {"train": [2, 3], "val": [1, 1], "test": [0, 2]}
    assert [sample.name for sample in data.train.samples][:3] == [
        "train/a/000.png", "train/a/001.png", "train/b/000.png",
    ]  # fmt: skip
    assert data.train.picture(0).shape == (12, 16, 3)
    assert data.notes == ()


def test_relative_folder_starts_at_the_base(tmp_path: Path) -> None:
    fill(tmp_path / "pictures", {"a": 5, "b": 5})
    assert load(DataSettings(folder=Path("pictures")), tmp_path).name == "pictures"


def test_class_folders_are_split_by_class_with_at_least_one_each(tmp_path: Path) -> None:
    root = fill(tmp_path, {"many": 40, "few": 3})
    data = load(DataSettings(folder=root), HERE)
    assert sizes(data) == {"train": [1, 28], "val": [1, 6], "test": [1, 6]}
    names = [sample.name for _, split in data.splits for sample in split.samples]
    assert sorted(names) == sorted(set(names))
    again = load(DataSettings(folder=root), HERE)
    assert [split.fingerprint for _, split in again.splits] == [split.fingerprint for _, split in data.splits]
    other = load(DataSettings(folder=root, split=Split(seed=1)), HERE)
    assert other.val.fingerprint != data.val.fingerprint


@pytest.mark.parametrize(("given", "made"), [("test", "val"), ("val", "test")])
def test_a_missing_split_comes_out_of_train(tmp_path: Path, given: str, made: str) -> None:
    root = fill(tmp_path, {"train/a": 20, "train/b": 10, f"{given}/a": 4, f"{given}/b": 4})
    data = load(DataSettings(folder=root, split=Split(val=0.2, test=0.2)), HERE)
    assert sizes(data) == {"train": [16, 8], made: [4, 2], given: [4, 4]}
    assert all(sample.name.startswith("train/") for sample in getattr(data, made).samples)


def test_what_is_no_picture_is_counted_and_left_out(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": 4, "b": 4})
    for name in ("a/notes.txt", "a/Thumbs.db", "a/.hidden.png", "b/more.txt", "readme.md"):
        (root / name).write_bytes(b"x")
    save(root / "b" / "deeper" / "PICTURE.JPG", noise(5))
    save(root / "loose.png", noise(6))
    fill(root / ".git", {"c": 3})
    (root / "empty").mkdir()
    data = load(DataSettings(folder=root), HERE)
    assert data.labels == ("a", "b")
    assert sum(len(split) for _, split in data.splits) == 9
    assert data.notes == (
        "ignored: 2 .txt files, 2 hidden or system files, 1 pictures outside class folders",
        "class folder empty is empty: it holds no pictures",
    )


@pytest.mark.parametrize(
    ("folders", "says"),
    [
        ({"a": 5}, "all 5 pictures are of one class, 'a'"),
        ({"val/a": 2, "val/b": 2}, "has val, but no train folder"),
        (
            {"train/a": 5, "train/b": 5, "test/c": 1, "test/a": 2},
            "test has pictures of 'c', but train has none",
        ),
        ({"train/a": 5, "train/b": 5, "val/a": 1, "valid/b": 1}, "val and valid name the same split twice"),
        ({}, "no pictures in class folders"),
    ],
)
def test_folders_that_cannot_teach_are_refused(tmp_path: Path, folders: dict[str, int], says: str) -> None:
    with pytest.raises(DataError, match=says):
        load(DataSettings(folder=fill(tmp_path, folders)), HERE)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        load(DataSettings(folder=Path("nowhere")), tmp_path)


def test_file_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": 3, "b": 3})
    (root / "a" / "000.png").rename(root / "a" / os.fsdecode(b"\xff.png"))
    with pytest.raises(DataError, match="rename it"):
        load(DataSettings(folder=root), HERE)


@pytest.mark.parametrize("where", [b"b\xfcndel", b"a/unter\xfc"])
def test_folder_names_that_are_no_text_are_refused(tmp_path: Path, where: bytes) -> None:
    root = fill(tmp_path, {"a": 3, "b": 3})
    shutil.copytree(root / "b", root / os.fsdecode(where))
    with pytest.raises(DataError, match=r"is not UTF-8 text; rename it") as told:
        load(DataSettings(folder=root), HERE)
    str(told.value).encode()


def test_linked_folders_below_a_class_are_read_and_circles_end(tmp_path: Path) -> None:
    fill(tmp_path / "kept", {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1, "test/a": 1, "test/b": 1})
    elsewhere = fill(tmp_path / "elsewhere", {"2024": 2})
    (tmp_path / "kept/train/a/2024").symlink_to(elsewhere / "2024")
    (tmp_path / "kept/train/a/circle").symlink_to(tmp_path / "kept/train/a")
    data = load(DataSettings(folder=tmp_path / "kept"), Path())
    assert len(data.train) == 8
    assert sum("2024" in sample.name for sample in data.train.samples) == 2


def test_groups_stay_whole_when_a_folder_is_split(tmp_path: Path) -> None:
    root = fill(tmp_path / "p", {"a": 24, "b": 12})
    lines = ["path,group,remark"]
    lines += [f"{name}/{i:03d}.png,{name}{i // 3},x" for name, n in (("a", 24), ("b", 12)) for i in range(n)]
    (tmp_path / "groups.csv").write_text("\n".join(lines))
    data = load(DataSettings(folder=root, groups=tmp_path / "groups.csv"), HERE)
    assert sizes(data) == {"train": [18, 6], "val": [3, 3], "test": [3, 3]}
    homes = [set(split.groups) for _, split in data.splits]
    assert sum(map(len, homes)) == len(set().union(*homes))


def test_group_rows_may_name_files_only_and_say_what_does_not_match(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train/a": 3})
    fill(tmp_path, {"train/b": 3})
    for index in range(3):
        (root / f"train/b/{index:03d}.png").rename(root / f"train/b/b{index}.png")
    (root / "groups.csv").write_text("file;tile_group\nb0.png;7\nb1.png;7\ntrain/a/000.png;8\ngone.png;9\n")
    data = load(DataSettings(folder=root, groups=Path("groups.csv"), split=Split(val=0.3, test=0.3)), root)
    groups = {s.name: s.group for _, split in data.splits for s in split.samples}
    assert groups["train/b/b1.png"] == "7"
    assert groups["train/a/000.png"] == "8"
    assert groups["train/a/001.png"] is None
    assert "groups.csv: 3 pictures have no group there, each counts as its own group" in data.notes
    assert "groups.csv: 1 rows name no picture of the data folder" in data.notes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,tile\na/000.png,1\n", r"has no column 'group' \(it has path, tile\)"),
        ("name,group\n000.png,1\n", "has no column 'path'"),
        ("path,group\n000.png,1\n", "line 2: '000.png' may be a/000.png or b/000.png"),
        ("path,group\nc/9.png,1\n", "none of its rows"),
    ],
)
def test_wrong_group_tables_are_refused(tmp_path: Path, text: str, says: str) -> None:
    root = fill(tmp_path, {"a": 3, "b": 3})
    (root / "g.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        load(DataSettings(folder=root, groups=Path("g.csv")), root)


def test_a_table_gives_paths_labels_groups_and_splits(tmp_path: Path) -> None:
    fill(tmp_path / "pictures", {"x": 8})
    rows = [("train", "cat", 0, 1), ("train", "dog", 2, 3), ("VALID", "cat", 4, 4), ("val", "dog", 5, 5),
            ("test", "cat", 6, 6), ("test", "dog", 7, 7)]  # fmt: skip
    lines = [
        f"x\\{i:03d}.png,{label},g{i // 2},{split}" for split, label, *span in rows for i in sorted({*span})
    ]
    (tmp_path / "list.csv").write_text("\ufeffwhere,what,who,set\n" + "\n".join(lines), encoding="utf-8")
    columns = Columns(path="where", label="what", group="who", split="set")
    data = load(DataSettings(csv=Path("list.csv"), root=Path("pictures"), columns=columns), tmp_path)
    assert data.name == "list"
    assert data.labels == ("cat", "dog")
    assert sizes(data) == {"train": [2, 2], "val": [1, 1], "test": [1, 1]}
    assert data.train.samples[1].group == "g0"
    assert data.test.picture(1).shape == (12, 16, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,class\nx/000.png,a\n", r"has no column 'label' \(it has path, class\)"),
        ("path,label\nx/000.png,a\nx/001.png,\n", "line 3: 'label' is empty"),
        ("path,label\nx/000.png,a\nx/009.png,b\n", "line 3: there is no file .*x/009.png"),
        ("path,label\nx/000.png,a\n./x/000.png,b\n", "line 3: 'x/000.png' is listed in line 2 already"),
        ("path,label\nx/000.png,a,b\n", "line 2: 3 values where the header has 2"),
        ("path,label,split\nx/000.png,a,training\nx/001.png,b,holdout\n", "line 3: 'holdout' is no split"),
        (
            "path,label,split\nx/000.png,a,train\nx/001.png,b,\n",
            "line 3: give 'split' for every picture or for none",
        ),
        ("path,label\n", "lists no pictures"),
        ("", "has no column 'path'"),
        ("path,label\nx/000.png,caf\udce9\n", "line 2: is not UTF-8"),
    ],
)
def test_wrong_tables_are_refused_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    fill(tmp_path, {"x": 3})
    (tmp_path / "list.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=says):
        load(DataSettings(csv=Path("list.csv")), tmp_path)


@pytest.mark.parametrize(("split", "group"), [("Split", "Group"), ("SPLIT", "patient_group")])
def test_columns_of_another_spelling_are_not_ignored(tmp_path: Path, split: str, group: str) -> None:
    """They were, and pictures of test taught."""
    fill(tmp_path, {"x": 6})
    places = ("train", "train", "val", "val", "test", "test")
    rows = [f"x/{i:03d}.png,{'ab'[i % 2]},{place},g{i // 2}" for i, place in enumerate(places)]
    (tmp_path / "list.csv").write_text(f"path,label,{split},{group}\n" + "\n".join(rows))
    data = load(DataSettings(csv=Path("list.csv")), tmp_path)
    assert sizes(data) == {"train": [1, 1], "val": [1, 1], "test": [1, 1]}
    assert [sample.group for sample in data.test.samples] == ["g2", "g2"]


@pytest.mark.parametrize("field", ["group", "split"])
def test_a_column_that_was_named_must_be_there(tmp_path: Path, field: str) -> None:
    fill(tmp_path, {"x": 2})
    (tmp_path / "list.csv").write_text("path,label\nx/000.png,a\nx/001.png,b\n")
    columns = Columns.model_validate({field: "tile_idd"})
    with pytest.raises(DataError, match="has no column 'tile_idd'"):
        load(DataSettings(csv=Path("list.csv"), columns=columns), tmp_path)


def test_a_picture_of_two_groups_is_told(tmp_path: Path) -> None:
    root = fill(tmp_path / "pictures", {"a": 2, "b": 2})
    (tmp_path / "groups.csv").write_text("path,group\na/000.png,g1\na/000.png,g2\n")
    with pytest.raises(DataError, match=r"line 3: 'a/000\.png' is in group 'g1' already, and now in 'g2'"):
        load(DataSettings(folder=root, groups=tmp_path / "groups.csv"), HERE)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list\.csv: cannot be read"):
        load(DataSettings(csv=Path("list.csv")), tmp_path)


def test_limit_keeps_so_many_of_each_class_in_train_only(tmp_path: Path) -> None:
    root = fill(tmp_path, {"train/a": 9, "train/b": 3, "val/a": 6, "val/b": 6, "test/a": 6, "test/b": 6})
    data = load(DataSettings(folder=root, limit_per_class=4), HERE)
    assert sizes(data) == {"train": [4, 3], "val": [6, 6], "test": [6, 6]}


def test_digits_end_with_the_ordered_tail() -> None:
    data = load(DataSettings(source="digits"), HERE)
    assert [len(split) for _, split in data.splits] == [1067, 190, 540]
    assert [sample.name for sample in data.test.samples] == [f"digits/{i:04d}" for i in range(1257, 1797)]
    picture = data.test.picture(0)
    assert picture.shape == (8, 8, 3)
    assert picture.dtype == np.uint8
    assert picture.max() == 255
    assert min(np.bincount(data.val.labels)) >= 18
    raw = load_digits()
    assert data.test.labels.tolist() == raw.target[-540:].tolist()
    for index in (0, 17, 539):
        grey = np.rint(raw.images[1257 + index] * 255 / 16)
        assert np.array_equal(data.test.picture(index), np.stack([grey] * 3, axis=2))


def test_a_truncated_file_loads_but_names_itself_when_decoded(tmp_path: Path) -> None:
    root = fill(tmp_path, {"a": 4, "b": 4})
    file = root / "a" / "000.png"
    file.write_bytes(file.read_bytes()[:60])
    data = load(DataSettings(folder=root), HERE)
    where = {s.name: (split, i) for _, split in data.splits for i, s in enumerate(split.samples)}
    split, index = where["a/000.png"]
    with pytest.raises(PictureError, match=r"a/000\.png"):
        split.picture(index)


def test_fingerprints_follow_content_not_place(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", {"a": 4, "b": 4})
    shutil.copytree(one, tmp_path / "two")
    first, second = (load(DataSettings(folder=tmp_path / name), HERE) for name in ("one", "two"))
    assert first.train.fingerprint == second.train.fingerprint
    save(tmp_path / "two" / first.train.samples[0].name, noise(99))
    assert load(DataSettings(folder=tmp_path / "two"), HERE).train.fingerprint != first.train.fingerprint


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "exactly one of folder, csv and source, not none"),
        ({"folder": "x", "csv": "y"}, "not folder and csv"),
        ({"folder": "x", "root": "y"}, "root belongs to csv"),
        ({"csv": "x", "groups": "y"}, "groups belongs to folder"),
        ({"folder": "x", "split": {"val": 0.6, "test": 0.5}}, "leave train 10 %"),
        ({"source": "mnist"}, "digits"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DataSettings.model_validate(wrong)


def test_magnetic_tiles_load_with_their_groups() -> None:
    root = shared("factory_magnetic_tile")
    data = load(DataSettings(folder=root, groups=root / "split.csv"), HERE)
    assert [len(split) for _, split in data.splits] == [920, 214, 210]
    assert sum(len(set(split.groups)) for _, split in data.splits) == 241
    assert all(sample.group for _, split in data.splits for sample in split.samples)
    assert not set(data.train.groups) & set(data.test.groups)


def test_blood_cells_take_their_slide_as_group() -> None:
    root = shared("clinic_blood_cells")
    columns = Columns(group="source_image")
    assert group_column(root / "split.csv", Columns()) is None
    data = load(DataSettings(folder=root, groups=root / "split.csv", columns=columns), HERE)
    assert [len(split) for _, split in data.splits] == [1396, 574, 478]
    assert sum(len(set(split.groups)) for _, split in data.splits) == 364
