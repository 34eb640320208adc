"""toolchain: fine-tune, prune, quantize, export, measure and package vision models for edge devices.

Names are loaded on first use (PEP 562), so that `--help` and the device runtime never pay for torch.

    import toolchain
    result = toolchain.run("recipe.yaml")
    bundle = toolchain.Bundle.load(result.bundle)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain.errors import ToolchainError
    from toolchain.pipeline import RunResult, run
    from toolchain.recipe import Recipe
    from toolchain.runtime.bundle import Bundle

__version__ = "0.1.0"
__all__ = ["Bundle", "Recipe", "RunResult", "ToolchainError", "__version__", "run"]

_HOMES = {
    "Bundle": "toolchain.runtime.bundle",
    "Recipe": "toolchain.recipe",
    "RunResult": "toolchain.pipeline",
    "ToolchainError": "toolchain.errors",
    "run": "toolchain.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'toolchain' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
