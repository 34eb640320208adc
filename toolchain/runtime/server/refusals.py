"""What a request is refused with: a status and one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_NONE: Mapping[str, str] = MappingProxyType({})


class RefusedError(Exception):
    """A request that is not answered; `headers` go along with the sentence."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] = _NONE) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers


def busy(sentence: str) -> RefusedError:
    """503 for a request that would be answered a second later (RFC 9110, 10.2.3: Retry-After)."""
    return RefusedError(503, sentence, {"retry-after": "1"})
