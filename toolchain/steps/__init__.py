"""The steps a recipe can name; one file each, listed here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toolchain.steps.adopt import Adopt
from toolchain.steps.export import Export
from toolchain.steps.fall_back import FallBack
from toolchain.steps.half import Half
from toolchain.steps.load import Load
from toolchain.steps.prune import Prune
from toolchain.steps.quantize import Quantize
from toolchain.steps.recover import Recover
from toolchain.steps.rescale import Rescale
from toolchain.steps.tune import Tune

AnyStep = Annotated[
    Prune | Recover | Rescale | Export | Quantize | FallBack | Half, Field(discriminator="step")
]
"""What may stand in a variant's `steps`."""

__all__ = [
    "Adopt",
    "AnyStep",
    "Export",
    "FallBack",
    "Half",
    "Load",
    "Prune",
    "Quantize",
    "Recover",
    "Rescale",
    "Tune",
]
