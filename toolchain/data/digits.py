"""scikit-learn's bundled handwritten digits: 1,797 pictures of 8 x 8 pixels, in the order they were collected.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits (UCI, 1998): the test half of that set.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from toolchain.data.dataset import Data, Picture, PictureSet, Sample
from toolchain.data.settings import Split
from toolchain.data.split import Shares, limit, partition

TEST = 540  # the ordered tail, whose writers are likely unseen in the rest
# What sklearn.datasets.load_digits reads; importing it would bring pandas and scipy along, for seconds.
_FILE = "sklearn/datasets/data/digits.csv.gz"


class Drawer:
    """Gives a digit by its name, `digits/0123`: uint8 [8, 8, 3]."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        grey = np.rint(values * (255 / 16)).astype(np.uint8)  # [n, 8, 8], from 0..16
        self._pictures: Picture = np.repeat(grey[..., None], 3, axis=3)

    def __call__(self, name: str) -> Picture:
        """Return the picture called `name`."""
        picture: Picture = self._pictures[int(name.rsplit("/", 1)[1])]
        return picture


def load(split: Split, limit_per_class: int | None) -> Data:
    """The digits as Data: test is the last 540 in order, val a stratified part of the rest.

    `split.test` is not used; no group is known, because the set does not say who wrote what.
    """
    table = np.loadtxt(Path(str(distribution("scikit-learn").locate_file(_FILE))), delimiter=",")
    drawer = Drawer(table[:, :-1].reshape(-1, 8, 8))
    samples = tuple(
        Sample(name, int(label), hashlib.sha256(drawer(name).tobytes()).hexdigest())
        for name, label in ((f"digits/{i:04d}", label) for i, label in enumerate(table[:, -1]))
    )
    early, late = PictureSet(samples[:-TEST], drawer), PictureSet(samples[-TEST:], drawer)
    parts = partition(early.labels, None, Shares(split.val, 0), split.seed)
    train, val = (early.subset(int(i) for i in part) for part in (parts.train, parts.val))
    if limit_per_class is not None:
        train = limit(train, limit_per_class, split.seed)
    return Data("digits", tuple("0123456789"), train, val, late)
