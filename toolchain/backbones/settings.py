"""Which network to start from, as the recipe's `backbone:` says it."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

import timm
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from toolchain.backbones import bundled
from toolchain.data.preprocess import CropMode, Interpolation
from toolchain.record import JSON

Side = Annotated[int, Field(ge=8, le=4096)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Level = Annotated[int, Field(ge=0, le=63)]
Head = Literal["new", "keep"]

_OURS = {
    "num_classes": "the data's labels",
    "in_chans": "RGB pictures",
    "pretrained": "backbone.weights",
    "pretrained_cfg": "backbone.preprocess",
    "pretrained_cfg_overlay": "backbone.preprocess",
    "checkpoint_path": "backbone.weights",
    "img_size": "backbone.preprocess.size",
    "drop_rate": "backbone.drop_rate",
    "drop_path_rate": "backbone.drop_path_rate",
}


class PreprocessOverrides(BaseModel):
    """What to change in the pretrained configuration's preprocessing; None keeps what the weights came with.

    size: the network's input in pixels, one side or (height, width). mean, std: of RGB in [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    size: Side | tuple[Side, Side] | None = None
    interpolation: Interpolation | None = None
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    crop_mode: CropMode | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The size as (height, width)."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size


class Backbone(BaseModel):
    """A network to start from: `timm` by name (any classification model, with or without ".tag") or `bundled`.

    weights: "hub" (what timm publishes; the default for `timm`), "random", or a .safetensors/.pth file;
    not given with `bundled` (its weights lie in the package). "bundled/nano" in place of the whole mapping
    means {bundled: nano}.
    head: "new" puts a fresh classifier for the data's labels; "keep" keeps the file's, whose outputs must
    be the data's labels in their order.
    kwargs: passed to the timm constructor (pad_type: same).
    drop_rate, drop_path_rate: dropout before the classifier, stochastic depth.
    out_indices: read these levels of the network (timm's numbers, from 0), mean and maximum of each, instead of
    its end, and drop what lies behind; for small defects and textures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    timm: str | None = None
    bundled: str | None = None
    weights: Literal["hub", "random"] | Path | None = None
    head: Head = "new"
    kwargs: Mapping[str, JSON] = {}
    preprocess: PreprocessOverrides = PreprocessOverrides()
    drop_rate: Share = 0.0
    drop_path_rate: Share = 0.0
    out_indices: Annotated[tuple[Level, ...], Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: object) -> object:
        """A backbone by its name alone, as reports show it."""
        if not isinstance(given, str):
            return given
        kind, _, name = given.partition("/")
        if kind != "bundled":
            raise ValueError(
                f"'{given}' alone is no backbone; take bundled/NAME, or a mapping such as {{timm: {given}}}"
            )
        return {"bundled": name}

    @field_validator("timm")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is None:
            return None
        architecture, _, tag = name.partition(".")
        if not timm.is_model(architecture):
            close = get_close_matches(architecture, timm.list_models(), n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise ValueError(f"timm has no model '{architecture}'{hint}")
        tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
        if tag and tag not in tags:
            raise ValueError(
                f"timm's '{architecture}' has no weights '{tag}'; known: {', '.join(tags) or 'none'}"
            )
        return name

    @field_validator("bundled")
    @classmethod
    def _packaged(cls, name: str | None) -> str | None:
        if name is not None and name not in bundled.names():
            raise ValueError(f"no bundled backbone '{name}'; known: {', '.join(bundled.names())}")
        return name

    @field_validator("kwargs")
    @classmethod
    def _free(cls, kwargs: Mapping[str, JSON]) -> Mapping[str, JSON]:
        for name in kwargs:
            if name in _OURS:
                raise ValueError(f"'{name}' is set through {_OURS[name]}, take it out of kwargs")
        return kwargs

    @field_validator("out_indices")
    @classmethod
    def _distinct(cls, levels: tuple[int, ...] | None) -> tuple[int, ...] | None:
        for level in levels or ():
            if levels and levels.count(level) > 1:
                raise ValueError(f"level {level} is given twice; name each level once")
        return levels

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.timm is None) == (self.bundled is None):
            raise ValueError("give exactly one of 'timm' (a model name) and 'bundled' (e.g. nano)")
        if self.bundled and self.weights not in (None, "random"):
            raise ValueError("weights: a bundled backbone brings its own; leave it out (or take 'random')")
        if self.weights == "random" and self.head == "keep":
            raise ValueError("head: 'keep' needs weights to keep it from, 'random' has none")
        if self.out_indices is not None and self.head == "keep":
            raise ValueError("out_indices: needs head 'new', no file's classifier reads several levels")
        return self

    def roots(self) -> dict[str, Path]:
        """Files whose content decides the result, by setting."""
        if isinstance(self.weights, Path):
            return {"weights": self.weights}
        if self.bundled and self.weights is None:
            return {"weights": bundled.weights_file(self.bundled)}
        return {}
