"""Bounds on what one process may take, and what it must be allowed."""

from __future__ import annotations

import ctypes
import resource

from toolchain.runtime.errors import ToolchainError

LEAST_MEGABYTES = 256
_MMAP_THRESHOLD = -3  # malloc.h


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
    _set(resource.RLIMIT_AS, (wanted, wanted), "--memory-limit")


def allow_files(count: int) -> None:
    """Raise the number of files and sockets that this process may have open to `count`, when it is lower.

    Raises ToolchainError when the limit set from outside is lower still.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and count > hard:
        raise ToolchainError(
            f"{count} files and connections may be open at once, but this process is allowed {hard}; "
            "lower --limit-connections or raise 'ulimit -n'"
        )
    if soft != resource.RLIM_INFINITY and soft < count:
        _set(resource.RLIMIT_NOFILE, (count, hard), "--limit-connections (LimitNOFILE= in a unit)")


def _set(kind: int, limits: tuple[int, int], option: str) -> None:
    """Where a supervisor forbids it, as the Debian package's unit does, that is told."""
    try:
        resource.setrlimit(kind, limits)
    except (OSError, ValueError) as e:
        raise ToolchainError(f"{option}: this process may not change its own limits ({e})") from e


def give_back_large_blocks() -> None:
    """Let glibc give every block above 4 MiB back when it is freed; elsewhere, do nothing.

    Otherwise it keeps what large pictures were decoded into, for each thread its own: mallopt(3), M_MMAP_THRESHOLD.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 4 << 20)
