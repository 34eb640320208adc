"""Every error the toolchain tells a person, as one tree. The command line catches `ToolchainError` once.

ToolchainError           exit 2   see toolchain/runtime/errors.py for the part that ships
├── RecipeError          exit 2   a recipe, with the YAML path of each problem
├── DataError            exit 2   pictures, labels, splits
├── BackboneError        exit 2   an architecture or weights file
├── DeviceError          exit 2   a GPU asked for that is not there
├── TrainingError        exit 2   a loss that is not finite, settings that cannot work together
├── PackageError         exit 2   what a package is made from, or an outside tool for it, is missing or wrong
│   └── SignatureError   exit 3   a signature that is not there, or not by the one who is trusted
├── StoppedError         exit 130 Ctrl-C, where something measured could be kept
├── ModelError, PictureError, ProviderError, BundleError, HostError, RecordError (runtime)
└── GateError            exit 3   a promise was measured and is not kept
    ├── ParityError      exit 3   the exported file does not answer as the trained network did
    └── (VerificationError, runtime, exit 3 as well)
"""

from __future__ import annotations

from typing import ClassVar

from toolchain.runtime.errors import (
    BundleError,
    HostError,
    ModelError,
    PictureError,
    ProviderError,
    RecordError,
    ToolchainError,
    VerificationError,
)

__all__ = [
    "BackboneError",
    "BundleError",
    "DataError",
    "DeviceError",
    "GateError",
    "HostError",
    "ModelError",
    "PackageError",
    "ParityError",
    "PictureError",
    "ProviderError",
    "RecipeError",
    "RecordError",
    "SignatureError",
    "StoppedError",
    "ToolchainError",
    "TrainingError",
    "VerificationError",
]


class RecipeError(ToolchainError):
    """A recipe that cannot be read; the message lists each problem with its YAML path."""


class DataError(ToolchainError):
    """Pictures, labels or splits that cannot be used."""


class BackboneError(ToolchainError):
    """An architecture that is not known or cannot be pruned, or a weights file that does not fit."""


class DeviceError(ToolchainError):
    """A device that was asked for is not there."""


class TrainingError(ToolchainError):
    """Training that cannot go on: the loss is not finite, or settings exclude each other."""


class PackageError(ToolchainError):
    """Wheels, a base, a key or an outside tool that a package needs is missing or wrong."""


class SignatureError(PackageError):
    """A file without a valid signature of the one who is trusted."""

    exit_code: ClassVar[int] = 3


class StoppedError(ToolchainError):
    """Somebody pressed Ctrl-C; what was measured until then is kept."""

    exit_code: ClassVar[int] = 130


class GateError(ToolchainError):
    """A promise was measured and is not kept."""

    exit_code: ClassVar[int] = 3


class ParityError(GateError):
    """An exported file does not answer as the network it was made from."""
