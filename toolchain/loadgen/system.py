"""The system under test: it answers LoadGen's queries with a session, and knows nothing of clocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolchain.loadgen.samples import Samples
from toolchain.runtime.session import Session

_KEPT = 4096
_NOTHING = np.zeros(1, np.float32)


class System:
    """Answers up to `batch` samples in a call; with `queued`, in a thread of its own, so that queries may come
    while others are answered (server scenario).

    LoadGen reads a response through a bare address, and copies it in accuracy mode: responses are kept
    referenced until thousands have come after them.
    What fails is answered with nothing, as is all that comes after it, and raised by `close`, whatever it is, because an
    exception must not reach LoadGen: one ends the process, or in a thread leaves LoadGen waiting for ever.
    """

    def __init__(self, loadgen: Any, session: Session, samples: Samples, *, batch: int, queued: bool) -> None:
        self._loadgen = loadgen
        self._session = session
        self._samples = samples
        self._batch = batch
        self._kept: deque[NDArray[Any]] = deque(maxlen=max(_KEPT, batch))
        self._failed: BaseException | None = None
        self._waiting: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._thread = Thread(target=self._work, daemon=True) if queued else None
        if self._thread is not None:
            self._thread.start()

    def load(self, indices: Sequence[int]) -> None:
        """Called by LoadGen before it asks for these samples."""
        try:
            self._samples.load(indices)
        except BaseException as e:  # noqa: BLE001  # raised by `close`
            self._failed = self._failed or e

    def issue(self, queries: list[Any]) -> None:
        """Called by LoadGen with a query's samples."""
        if self._thread is None:
            self._answer_all(queries)
        else:
            self._waiting.put(list(queries))

    def flush(self) -> None:
        """Called by LoadGen after its last query; answers come as fast as they can anyhow."""

    def close(self) -> None:
        """End the thread, forget the responses, and raise what failed meanwhile."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
        self._kept.clear()
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        while (queries := self._waiting.get()) is not None:
            while len(queries) < self._batch and not self._waiting.empty():
                more = self._waiting.get()
                if more is None:
                    self._waiting.put(None)
                    break
                queries = queries + more
            self._answer_all(queries)

    def _answer_all(self, queries: Sequence[Any]) -> None:
        for start in range(0, len(queries), self._batch):
            self._answer(queries[start : start + self._batch])

    def _answer(self, queries: Sequence[Any]) -> None:
        rows: list[NDArray[Any]] = [_NOTHING] * len(queries)
        wanted = [] if self._failed else [query.index for query in queries]
        try:
            for places, feed in self._samples.stacked(wanted):
                answers = np.ascontiguousarray(self._session.run(feed)[0])
                for place, row in zip(places, answers, strict=True):
                    rows[place] = row
        except BaseException as e:  # noqa: BLE001  # raised by `close`
            self._failed = self._failed or e
            rows = [_NOTHING] * len(queries)
        self._kept += rows
        response = self._loadgen.QuerySampleResponse
        self._loadgen.QuerySamplesComplete(
            [response(q.id, row.ctypes.data, row.nbytes) for q, row in zip(queries, rows, strict=True)]
        )
