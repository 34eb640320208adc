"""Which pictures are looked at, and how they get to the network: through the preprocessing that ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolchain.data.dataset import PictureSet
from toolchain.graph import PICTURES
from toolchain.runtime.session import Session


def choose(pictures: PictureSet, count: int) -> list[int]:
    """Indices of at most `count` pictures, ascending; each class has its share, but at least one while it lasts.

    Within a class they are spread evenly over the set's order, so that neighbours (often one object) are rare.
    The same set gives the same choice.
    """
    labels = pictures.labels
    if len(labels) <= count:
        return list(range(len(labels)))
    classes, sizes = np.unique(labels, return_counts=True)
    chosen: list[int] = []
    for label, quota in zip(classes, _quotas(sizes, count), strict=True):
        members = np.flatnonzero(labels == label)
        places = (np.arange(quota) + 0.5) * len(members) / max(quota, 1)
        chosen += members[places.astype(int)].tolist()
    return sorted(chosen)


def prepared(
    preprocess: Path, pictures: PictureSet, indices: list[int], advance: Callable[[], None] = lambda: None
) -> Iterator[NDArray[np.float32]]:
    """Each picture as the network's input, float32 [1, 3, h, w]; `advance` is called after each."""
    session = Session(preprocess)
    for index in indices:
        yield session.run({PICTURES: pictures.picture(index)[None]})[0]
        advance()


def some(preprocess: Path, pictures: PictureSet, count: int) -> list[NDArray[np.float32]]:
    """At most `count` pictures as `choose` picks them, each float32 [1, 3, h, w]; none of an empty set."""
    return list(prepared(preprocess, pictures, choose(pictures, count)))


def _quotas(sizes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Pictures a class: proportional, largest remainders first, then one for each class that got none."""
    share = sizes * count / sizes.sum()
    quotas = np.floor(share).astype(np.int64)
    by_remainder = np.argsort(quotas - share, kind="stable")
    quotas[by_remainder[: count - quotas.sum()]] += 1
    for empty in np.flatnonzero(quotas == 0):
        richest = int(np.argmax(quotas))
        if quotas[richest] > 1:
            quotas[richest] -= 1
            quotas[empty] += 1
    return np.asarray(quotas)
