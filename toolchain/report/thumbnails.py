"""Pictures small enough to lie inside a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 128
_COLOURS = 96


def thumbnail(picture: NDArray[np.uint8], side: int = SIDE) -> str:
    """A picture, uint8 [H, W, 3], as a base64 PNG of at most `side` pixels a side and some 10 kB.

    Smaller pictures keep their size; the page enlarges them without blur.
    """
    image = Image.fromarray(picture, "RGB")
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image = image.quantize(_COLOURS, dither=Image.Dither.FLOYDSTEINBERG)
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")
