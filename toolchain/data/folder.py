"""Finding labelled pictures in image folders: class folders, alone or below train/, val/ and test/."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from toolchain.data.table import SPLIT_NAMES
from toolchain.errors import DataError
from toolchain.runtime.pictures import PICTURE_SUFFIXES

_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True, slots=True)
class Found:
    """A picture's path below the root (with / between folders), its class, and its split if it has one."""

    name: str
    label: str
    split: str | None


@dataclass
class Search:
    """The pictures of a folder, in sorted order, and what lay there beside them."""

    pictures: list[Found] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What a person should know of files and folders that are not used."""
        notes = []
        if self.ignored:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.ignored.items()))
            notes.append(f"ignored: {kinds}")
        notes.extend(f"{folder} is empty: it holds no pictures" for folder in self.empty)
        return notes


def find(root: Path) -> Search:
    """Find the pictures below `root`: CLASS/… or SPLIT/CLASS/… where SPLIT is train, val or test.

    Raises DataError when `root` is no folder, holds val or test without train, or one of the three without
    pictures, or cannot be read.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; data.folder holds class folders, or train/ val/ test/ of them"
        )
    try:
        return _search(root)
    except OSError as e:
        raise DataError(f"{e.filename}: cannot be read ({e.strerror})") from e


def _search(root: Path) -> Search:
    search = Search()
    splits = {
        path.name: SPLIT_NAMES[path.name.lower()]
        for path in _folders(root)
        if path.name.lower() in SPLIT_NAMES
    }
    if not splits:
        _classes(root, root, None, search)
        return search
    if "train" not in splits.values():
        raise DataError(f"{root}: has {' and '.join(sorted(splits))}, but no train folder")
    if len(set(splits.values())) < len(splits):
        raise DataError(f"{root}: {' and '.join(sorted(splits))} name the same split twice")
    others = [path.name for path in _folders(root) if path.name not in splits]
    search.ignored.update(["folders beside the splits"] * len(others))
    for name, split in sorted(splits.items()):
        before = len(search.pictures)
        _classes(root, root / name, split, search)
        if len(search.pictures) == before:
            raise DataError(f"{root / name}: no pictures in class folders; add some, or remove the folder")
    return search


def _classes(root: Path, folder: Path, split: str | None, search: Search) -> None:
    loose = [path.name for path in folder.iterdir() if path.is_file() and _is_picture(path.name)]
    search.ignored.update(["pictures outside class folders"] * len(loose))
    for path in _folders(folder):
        before = len(search.pictures)
        for file in _files(path, search):
            search.pictures.append(Found(file.relative_to(root).as_posix(), path.name, split))
        if len(search.pictures) == before:
            search.empty.append(f"class folder {path.relative_to(root).as_posix()}")


def _files(folder: Path, search: Search) -> Iterator[Path]:
    """The pictures below a class folder, to the bottom, sorted; links to folders followed, circles of links not."""
    seen: set[str] = set()
    for at, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        real = os.path.realpath(at)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in (*folders, *sorted(files)):
            _require_text(at, name)
        for name in sorted(files):
            if _is_picture(name):
                yield Path(at, name)
            else:
                search.ignored[_kind(name)] += 1


def _fail(error: OSError) -> None:
    raise error


def _folders(root: Path) -> list[Path]:
    found = [path for path in sorted(root.iterdir()) if path.is_dir() and not _hidden(path.name)]
    for path in found:
        _require_text(root, path.name)
    return found


def _require_text(at: str | Path, name: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in name):  # how Python keeps bytes that are no UTF-8
        raise DataError(f"{str(at)!r}: the name {name!r} is not UTF-8 text; rename it")


def _is_picture(name: str) -> bool:
    return not _hidden(name) and Path(name).suffix.lower() in PICTURE_SUFFIXES


def _hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_FILES


def _kind(name: str) -> str:
    if _hidden(name):
        return "hidden or system files"
    return f"{Path(name).suffix.lower()} files" if Path(name).suffix else "files without a suffix"
