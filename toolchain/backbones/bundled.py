"""Backbones whose weights lie in the package: `weights/NAME.safetensors` with its card `weights/NAME.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolchain.data.preprocess import CropMode, Interpolation
from toolchain.errors import BackboneError
from toolchain.record import JSON

FOLDER = Path(__file__).parent / "weights"


class Card(BaseModel):
    """What a bundled file is: the timm architecture with its kwargs, how pictures are prepared for it
    (`size` in pixels a side), its licence, the sha256 of the file and how it was made. More may be told."""

    model_config = ConfigDict(frozen=True, extra="allow")
    architecture: str
    options: Annotated[Mapping[str, JSON], Field(alias="kwargs")] = {}
    size: Annotated[int, Field(ge=8)] = 32
    interpolation: Interpolation = "bilinear"
    crop_pct: float = 1.0
    crop_mode: CropMode = "center"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    sha256: str
    how: str


def names() -> tuple[str, ...]:
    """The bundled backbones."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def weights_file(name: str) -> Path:
    """The weights of a bundled backbone."""
    return FOLDER / f"{name}.safetensors"


def card(name: str) -> Card:
    """Read a bundled backbone's card; BackboneError when the installation is damaged."""
    path = FOLDER / f"{name}.json"
    try:
        return Card.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise BackboneError(
            f"bundled backbone '{name}': {path.name} is missing or damaged, reinstall"
        ) from error
