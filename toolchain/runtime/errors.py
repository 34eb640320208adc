"""The root of every error that is told to a person, kept here so that the runtime can ship alone.

ToolchainError            exit 2   a wrong input: recipe, data, weights, option
├── ModelError            exit 2   an ONNX file or network that cannot be used
├── PictureError          exit 2   a picture that cannot be decoded (the file is named)
├── ProviderError         exit 2   an ONNX Runtime provider that was asked for is not the one used
├── HostError             exit 1   the machine failed us: full disk, no permission, no memory, a killed process
├── RecordError           exit 2   a file that is no record of a measurement, or a damaged one
├── BundleError           exit 2   a folder that is no bundle, or of an unknown version
│   └── VerificationError exit 3   a bundle whose files or answers are not those that were measured
└── (toolchain/errors.py continues the tree for the parts that do not ship)
"""

from __future__ import annotations

from typing import ClassVar


class ToolchainError(Exception):
    """One clear sentence: which file or field is wrong, and what to do. `exit_code` is the process's."""

    exit_code: ClassVar[int] = 2


class ModelError(ToolchainError):
    """An ONNX file or a network that cannot be used."""


class PictureError(ToolchainError):
    """A picture that cannot be decoded."""


class ProviderError(ToolchainError):
    """An ONNX Runtime execution provider that was asked for cannot be, or was not, used."""


class HostError(ToolchainError):
    """The machine failed: full disk, no permission, no memory, a process that was killed."""

    exit_code: ClassVar[int] = 1


class RecordError(ToolchainError):
    """A file that is not a readable record of a measurement."""


class BundleError(ToolchainError):
    """A folder that is not a readable bundle."""


class VerificationError(BundleError):
    """A bundle whose files or answers differ from those that were measured."""

    exit_code: ClassVar[int] = 3
