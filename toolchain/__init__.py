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
    from toolchain.doctor import examine
    from toolchain.errors import ToolchainError
    from toolchain.explain.file import explain_case
    from toolchain.loadgen.run import run_loadgen
    from toolchain.measure.bench import bench
    from toolchain.proposal import propose
    from toolchain.recipe import Recipe, shipped
    from toolchain.recipe_editors import recipe_schema
    from toolchain.remote.ship import bench_on
    from toolchain.report.saved import render
    from toolchain.runtime.bundle import Bundle
    from toolchain.store import clean_store, store_table
    from toolchain.workflow import Places, RunResult, Wishes, check, run

__version__ = "0.1.0"

_HOMES = {
    "toolchain.doctor": ("examine",),
    "toolchain.errors": ("ToolchainError",),
    "toolchain.explain.file": ("explain_case",),
    "toolchain.loadgen.run": ("run_loadgen",),
    "toolchain.measure.bench": ("bench",),
    "toolchain.proposal": ("propose",),
    "toolchain.recipe": ("Recipe", "shipped"),
    "toolchain.recipe_editors": ("recipe_schema",),
    "toolchain.remote.ship": ("bench_on",),
    "toolchain.report.saved": ("render",),
    "toolchain.runtime.bundle": ("Bundle",),
    "toolchain.store": ("clean_store", "store_table"),
    "toolchain.workflow": ("Places", "RunResult", "Wishes", "check", "run"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "Bundle",
    "Places",
    "Recipe",
    "RunResult",
    "ToolchainError",
    "Wishes",
    "__version__",
    "bench",
    "bench_on",
    "check",
    "clean_store",
    "examine",
    "explain_case",
    "propose",
    "recipe_schema",
    "render",
    "run",
    "run_loadgen",
    "shipped",
    "store_table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'toolchain' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
