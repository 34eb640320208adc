"""What may be varied in training pictures; settings only, so that reading a recipe does not load torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Fill = Literal["reflect", "edge", "black"]

# Where to start from, by what the pictures show; every value can be set over.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "photo": {
        "crop_scale": (0.35, 1.0),
        "flip_horizontal": True,
        "brightness": 0.2,
        "contrast": 0.2,
        "saturation": 0.2,
    },
    "surface": {
        "flip_horizontal": True,
        "flip_vertical": True,
        "rotate": 10.0,
        "zoom": 0.1,
        "brightness": 0.2,
        "contrast": 0.2,
    },
    "characters": {"rotate": 10.0, "translate": 0.1, "zoom": 0.1, "fill": "black"},
}


class RandAugment(BaseModel):
    """`ops` operations a picture, each of strength `magnitude` of 30 (Cubuk et al., arXiv:1909.13719)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    ops: Annotated[int, Field(ge=1, le=8)] = 2
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9


class Augment(BaseModel):
    """Random changes of training pictures. Everything is off unless set, or brought by a `preset`.

    crop_scale: take a random box of this share [least, most] of the picture's area, of the target's aspect
    times `crop_ratio` [least, most], instead of evaluation's crop.
    quarter_turns: turn by 0, 90, 180 or 270 degrees (square targets only). rotate: up to so many degrees.
    translate: up to this share of each side, in whole pixels. zoom: sides times 1 / (1 + zoom) … 1 + zoom.
    fill: what comes in from outside when rotated, moved or shrunk.
    brightness, contrast, saturation: factors 1 - x … 1 + x as torchvision defines them; hue: up to this
    share of the colour circle (turned in YIQ, which is close to torchvision's HSV for small angles).
    trivial_augment: one random operation a picture (Müller & Hutter, arXiv:2103.10158).
    noise: Gaussian, of a standard deviation up to this share of the value range.
    erase: probability of a grey box of 2 to 20 % of the area (Zhong et al., arXiv:1708.04896).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    preset: Literal["photo", "surface", "characters"] | None = None
    crop_scale: tuple[Share, Share] | None = None
    crop_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.75, 4 / 3)
    flip_horizontal: bool = False
    flip_vertical: bool = False
    quarter_turns: bool = False
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    translate: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    zoom: Share = 0.0
    fill: Fill = "reflect"
    brightness: Share = 0.0
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    trivial_augment: bool = False
    rand_augment: RandAugment | None = None
    noise: Share = 0.0
    erase: Share = 0.0

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("preset") not in PRESETS:
            return values
        return {**PRESETS[values["preset"]], **values}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError("crop_scale: give the least and the most share, the least above 0")
        if self.crop_ratio[0] > self.crop_ratio[1]:
            raise ValueError("crop_ratio: give the least before the most")
        if self.trivial_augment and self.rand_augment is not None:
            raise ValueError("take trivial_augment or rand_augment, not both")
        return self

    @property
    def moves(self) -> bool:
        """Whether pictures are resampled: rotated, moved or zoomed."""
        return bool(self.rotate or self.translate or self.zoom)

    @property
    def recolours(self) -> bool:
        """Whether colours change."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)
