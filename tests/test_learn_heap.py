"""While a network trains, freed memory stays in the process."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from toolchain.learn.heap import kept_heap

_BLOCKS, _FLOATS = 8, 4_000_000  # 128 MB, as a step's activations in one heap


def faults_of_three() -> int:
    """Page faults of taking all blocks and freeing them, three times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        [torch.ones(_FLOATS) for _ in range(_BLOCKS)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap can be told to keep memory")
def test_pages_are_mapped_once_only_inside() -> None:
    """Inside, some blocks may still fault (how they lie in the heap decides); afterwards more do."""
    with kept_heap():
        [torch.ones(_FLOATS) for _ in range(_BLOCKS)]
        inside = faults_of_three()
    assert inside < faults_of_three() or _huge_pages()


def _huge_pages() -> bool:
    """Whether the system maps 2 MB at once, so that faults say nothing about pages."""
    with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as file:
        return "[always]" in file.read()
