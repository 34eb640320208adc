"""RandAugment and TrivialAugment, with torchvision's v2 operations and magnitudes, but drawn from our seeds.

torchvision's own classes draw from torch's global generator, which training (dropout) draws from as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as V

from toolchain.data.augmentation import Augment
from toolchain.data.randomness import Purpose, uniform

_BINS = 31  # of the magnitudes, as in both papers


class _Span(NamedTuple):
    """From the weakest to the strongest magnitude; `signed` ones are negated half of the time."""

    weakest: float
    strongest: float
    signed: bool


# The augmentation spaces of torchvision.transforms.v2.RandAugment and TrivialAugmentWide. Translation is
# a share of the side in the one and pixels in the other; posterize is the number of bits kept.
_RAND = {
    "identity": _Span(0, 0, False),
    "shear_x": _Span(0, 0.3, True),
    "shear_y": _Span(0, 0.3, True),
    "translate_x": _Span(0, 150 / 331, True),
    "translate_y": _Span(0, 150 / 331, True),
    "rotate": _Span(0, 30, True),
    "brightness": _Span(0, 0.9, True),
    "color": _Span(0, 0.9, True),
    "contrast": _Span(0, 0.9, True),
    "sharpness": _Span(0, 0.9, True),
    "posterize": _Span(8, 4, False),
    "solarize": _Span(1, 0, False),
    "autocontrast": _Span(0, 0, False),
    "equalize": _Span(0, 0, False),
}
_TRIVIAL_PIXELS = 32.0
_TRIVIAL = _RAND | {
    "shear_x": _Span(0, 0.99, True),
    "shear_y": _Span(0, 0.99, True),
    "rotate": _Span(0, 135, True),
    "translate_x": _Span(0, 1, True),
    "translate_y": _Span(0, 1, True),
    "posterize": _Span(8, 2, False),
    **{name: _Span(0, 0.99, True) for name in ("brightness", "color", "contrast", "sharpness")},
}
_OPERATIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda picture, _: picture,
    "brightness": lambda picture, amount: V.adjust_brightness(picture, 1 + amount),
    "color": lambda picture, amount: V.adjust_saturation(picture, 1 + amount),
    "contrast": lambda picture, amount: V.adjust_contrast(picture, 1 + amount),
    "sharpness": lambda picture, amount: V.adjust_sharpness(picture, 1 + amount),
    "posterize": lambda picture, amount: V.posterize(picture, round(amount)),
    "solarize": lambda picture, amount: V.solarize(picture, 255 * amount),
    "autocontrast": lambda picture, _: V.autocontrast(picture),
    "equalize": lambda picture, _: V.equalize(picture),
}


def vary(picture: Tensor, augment: Augment, seed: np.uint64, fill: Sequence[float]) -> Tensor:
    """Apply the augment's policy to uint8 [3, h, w]; `fill` is the colour (0..255) that comes in from outside."""
    rand = augment.rand_augment
    draws = uniform(np.array([seed], dtype=np.uint64), Purpose.POLICY, 3 * (rand.ops if rand else 1))
    names = list(_RAND)
    for which, strength, sign in draws.reshape(-1, 3):
        name = names[int(which * len(names))]
        step = rand.magnitude if rand else int(strength * _BINS)
        span = (_RAND if rand else _TRIVIAL)[name]
        amount = span.weakest + (span.strongest - span.weakest) * step / (_BINS - 1)
        amount = -amount if span.signed and sign < 0.5 else amount
        picture = _apply(picture, name, amount, None if rand else _TRIVIAL_PIXELS, fill)
    return picture


def _apply(picture: Tensor, name: str, amount: float, pixels: float | None, fill: Sequence[float]) -> Tensor:
    """One operation; `pixels` is what a translation of 1 moves by, None for the picture's side."""
    height, width = picture.shape[1:]
    match name:
        case "shear_x":
            return _affine(picture, fill, shear=(math.degrees(math.atan(amount)), 0.0))
        case "shear_y":
            return _affine(picture, fill, shear=(0.0, math.degrees(math.atan(amount))))
        case "translate_x":
            return _affine(picture, fill, shift=(int(amount * (pixels or width)), 0))
        case "translate_y":
            return _affine(picture, fill, shift=(0, int(amount * (pixels or height))))
        case "rotate":
            turned: Tensor = V.rotate(picture, amount, InterpolationMode.BILINEAR, fill=list(fill))
            return turned
        case _:
            return _OPERATIONS[name](picture, amount)


def _affine(
    picture: Tensor,
    fill: Sequence[float],
    shift: tuple[int, int] = (0, 0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> Tensor:
    # A shear keeps the upper left corner where it is, as torchvision's and the paper's do.
    moved: Tensor = V.affine(
        picture,
        angle=0.0,
        translate=list(shift),
        scale=1.0,
        shear=list(shear),
        interpolation=InterpolationMode.BILINEAR,
        fill=list(fill),
        center=[0.0, 0.0],
    )
    return moved
