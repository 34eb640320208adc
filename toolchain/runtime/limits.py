"""Bounds on what one process may take for a bundle that is not trusted yet."""

from __future__ import annotations

import resource

from toolchain.runtime.errors import ToolchainError

LEAST_MEGABYTES = 256


def limit_memory(megabytes: int) -> None:
    """Bound this process's address space (RLIMIT_AS), its libraries included, for the rest of its life.

    What asks for more is refused by the kernel, and surfaces as ModelError (onnxruntime) or MemoryError.
    Raises ToolchainError for a limit that not even the libraries fit in, or above the one set from outside.
    """
    if megabytes < LEAST_MEGABYTES:
        raise ToolchainError(f"--memory-limit {megabytes}: the libraries alone need {LEAST_MEGABYTES} MB")
    wanted = megabytes << 20
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise ToolchainError(f"--memory-limit {megabytes}: this process may have {hard >> 20} MB at most")
    resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))
