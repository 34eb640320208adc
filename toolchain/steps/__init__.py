"""The steps a recipe can name; one file each, listed here."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from toolchain.steps.activations import Activations
from toolchain.steps.adopt import Adopt
from toolchain.steps.drop_blocks import DropBlocks
from toolchain.steps.equalize import Equalize
from toolchain.steps.export import Export
from toolchain.steps.fall_back import FallBack
from toolchain.steps.fold_gates import FoldGates
from toolchain.steps.fold_normalization import FoldNormalization
from toolchain.steps.grey_stem import GreyStem
from toolchain.steps.half import Half
from toolchain.steps.join import Join
from toolchain.steps.load import Load
from toolchain.steps.narrow import Narrow
from toolchain.steps.optimize_offline import OptimizeOffline
from toolchain.steps.pad_stem import PadStem
from toolchain.steps.prune import Prune
from toolchain.steps.qat import Qat
from toolchain.steps.quantize import Quantize
from toolchain.steps.reconstruct import Reconstruct
from toolchain.steps.recover import Recover
from toolchain.steps.relu_stem import ReluStem
from toolchain.steps.rescale import Rescale
from toolchain.steps.simplify import Simplify
from toolchain.steps.smooth import Smooth
from toolchain.steps.split_channels import SplitChannels
from toolchain.steps.tune import Tune
from toolchain.steps.weight_only import WeightOnly

AnyStep = Annotated[
    Prune
    | Activations
    | Recover
    | Rescale
    | Export
    | Simplify
    | FoldGates
    | FoldNormalization
    | DropBlocks
    | Narrow
    | Reconstruct
    | Join
    | PadStem
    | GreyStem
    | ReluStem
    | Equalize
    | SplitChannels
    | Smooth
    | Quantize
    | FallBack
    | Qat
    | WeightOnly
    | Half
    | OptimizeOffline,
    Field(discriminator="step"),
]
"""What may stand in a variant's `steps`."""

__all__ = [
    "Activations",
    "Adopt",
    "AnyStep",
    "DropBlocks",
    "Equalize",
    "Export",
    "FallBack",
    "FoldGates",
    "FoldNormalization",
    "GreyStem",
    "Half",
    "Join",
    "Load",
    "Narrow",
    "OptimizeOffline",
    "PadStem",
    "Prune",
    "Qat",
    "Quantize",
    "Reconstruct",
    "Recover",
    "ReluStem",
    "Rescale",
    "Simplify",
    "Smooth",
    "SplitChannels",
    "Tune",
    "WeightOnly",
]
