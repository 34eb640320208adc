"""While a network trains, freed memory stays in the process."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

# A process of its own, and the C library's blocks themselves: what a test run or a tensor left in the heap decides
# nothing. Eight blocks of 16 MB are taken, written, and freed in the order in which the heap can give them back.
_ROUNDS = """
import ctypes, json, resource
from toolchain.learn.heap import kept_heap

library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
SIZE = 16_000_000


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [library.malloc(SIZE) for _ in range(8)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    for block in reversed(blocks):
        library.free(ctypes.c_void_p(block))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


with kept_heap():
    inside = [faults() for _ in range(6)]
print(json.dumps({"inside": inside, "after": [faults() for _ in range(6)]}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap can be told to keep memory")
def test_pages_are_mapped_once_only_inside() -> None:
    """Inside, a second step finds the pages of the first; afterwards the heap gives them back at every step."""
    run = subprocess.run(
        [sys.executable, "-c", _ROUNDS], capture_output=True, text=True, check=True, timeout=300
    )
    rounds = json.loads(run.stdout)
    taken = rounds["inside"][0]
    assert max(rounds["inside"][1:]) < taken / 10
    assert min(rounds["after"]) > taken / 4
