"""A request's body as it was sent: packed or not, whole or not, in bounded time and memory."""

from __future__ import annotations

import gzip
import random

import pytest

from toolchain.runtime.server.body import unpack
from toolchain.runtime.server.refusals import RefusedError

CAP = 1 << 20


@pytest.mark.parametrize("lengths", [[0], [1, 0, 5], [70_000, 3], [40_000] * 5])
def test_members_come_back_whatever_lies_where_they_meet(lengths: list[int]) -> None:
    parts = [random.Random(length).randbytes(length) for length in lengths]
    assert unpack(b"".join(map(gzip.compress, parts)), "gzip", CAP) == b"".join(parts)


@pytest.mark.parametrize(
    "sent",
    [gzip.compress(b"x" * 1000)[:-1], gzip.compress(b"x") + gzip.compress(b"y")[:9]],
    ids=["one", "second"],
)
def test_a_body_that_was_cut_is_told(sent: bytes) -> None:
    with pytest.raises(RefusedError, match="not whole as gzip"):
        unpack(sent, "gzip", CAP)


def test_empty_members_without_end_are_refused() -> None:
    sent = gzip.compress(b"") * 500_000  # hours of work, were the rest copied at each member's end
    with pytest.raises(RefusedError, match="more than 10000 members"):
        unpack(sent, "gzip", CAP)
