"""What a request is refused with: a status and one sentence."""

from __future__ import annotations


class RefusedError(Exception):
    """A request that is not answered. `retry_after` (seconds) goes into the header of that name."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after
