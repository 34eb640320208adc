"""The inputs that LoadGen asks for by number: a folder's pictures, or one noise for all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolchain.errors import DataError, PictureError
from toolchain.runtime.bench_asked import Asked, Found
from toolchain.runtime.bench_input import Feed, Prepared, Wish, prepare
from toolchain.runtime.pictures import decode, find_pictures
from toolchain.runtime.session import Session

MOST_LOADED = 1024  # MLPerf's performance_sample_count for image classification
_NOISES = 64


@dataclass(frozen=True)
class Labels:
    """The class index of every picture [n], how folder names became indices, and how many classes there are."""

    indices: NDArray[np.int64]
    how: str
    classes: int


class Samples:
    """A query sample library: `load` and `unload` are called by LoadGen between its queries."""

    def __init__(self, session: Session, found: Found, asked: Asked) -> None:
        self._session = session
        self._wish = Wish(shapes=asked.shapes)
        self.paths = find_pictures([asked.pictures]) if asked.pictures is not None else []
        if asked.pictures is not None and not self.paths:
            raise PictureError(
                f"{asked.pictures}: no pictures in it; give a folder of pictures, or none for noise"
            )
        self._golden = found.pictures if asked.pictures is None else ()
        self.total = len(self.paths) or len(self._golden) or _NOISES
        self._loaded: dict[int, Feed] = {}
        self.first = self._prepared(0)

    def load(self, indices: Sequence[int]) -> None:
        """Decode and lay out these samples; noise is one and the same for all."""
        noise = not self.paths and not self._golden
        for index in indices:
            self._loaded[index] = (self.first if noise else self._prepared(index)).feed

    def unload(self, indices: Sequence[int]) -> None:
        """Forget them."""
        for index in indices:
            self._loaded.pop(index, None)

    def stacked(self, indices: Sequence[int]) -> list[tuple[list[int], Feed]]:
        """Feeds for these samples, in order; neighbours of one shape share a feed: (positions, feed)."""
        groups: list[tuple[list[int], list[Feed]]] = []
        for position, index in enumerate(indices):
            feed = self._loaded[index]
            if groups and _shapes(groups[-1][1][0]) == _shapes(feed):
                groups[-1][0].append(position)
                groups[-1][1].append(feed)
            else:
                groups.append(([position], [feed]))
        return [(places, feeds[0] if len(feeds) == 1 else _stack(feeds)) for places, feeds in groups]

    def labels(self, folder: Path | None, names: Sequence[str] | None, classes: int) -> Labels:
        """Every picture's class from the folder it lies in. Raises DataError saying why there is none."""
        if folder is None:
            raise DataError("an accuracy needs pictures in folders by class, and none were given")
        given = [
            path.relative_to(folder).parts[0] if len(path.relative_to(folder).parts) > 1 else ""
            for path in self.paths
        ]
        known = sorted(set(given))
        if "" in known:
            raise DataError(
                f"{folder}: pictures lie in no folder of a class, and an accuracy needs every picture's"
            )
        if names is not None and set(known) <= set(names):
            return Labels(
                np.array([names.index(name) for name in given]), "by the model's own labels", classes
            )
        if names is None and len(known) == classes:
            return Labels(
                np.array([known.index(name) for name in given]), "by the sorted names of the folders", classes
            )
        way = "give one a class" if names is None else "name the folders by its labels"
        raise DataError(f"{folder}: {len(known)} folders do not match the model's {classes} classes; {way}")

    def _prepared(self, index: int) -> Prepared:
        pictures: tuple[NDArray[np.uint8], ...] = ()
        if self.paths:
            pictures = (decode(self.paths[index]),)
        elif self._golden:
            pictures = (self._golden[index],)
        wish = Wish(shapes=self._wish.shapes, pictures=pictures)
        return prepare(self._session.inputs, self._session.metadata, wish, self._session.label)


def label_names(metadata: dict[str, str]) -> list[str] | None:
    """The labels that a model of this toolchain carries, or None."""
    try:
        names = json.loads(metadata.get("labels", "null"))
    except ValueError:
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _shapes(feed: Feed) -> list[tuple[int, ...]]:
    return [value.shape for value in feed.values()]


def _stack(feeds: Sequence[Feed]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
