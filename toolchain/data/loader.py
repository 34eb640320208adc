"""Batches for training and for evaluation: what they hold depends on seeds and positions, never on workers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import Annotated, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from toolchain.data.augment import Augmenter
from toolchain.data.dataset import PictureSet
from toolchain.data.preprocess import Preprocess, Preprocessing
from toolchain.data.randomness import sample_seeds
from toolchain.errors import DataError

Batch = tuple[Tensor, Tensor]  # float32 [N, 3, h, w], int64 [N]
Weights = NDArray[np.float64]  # [n], one a sample
Job = TypeVar("Job")
Done = TypeVar("Done")


class Loading(BaseModel):
    """How training batches are made.

    workers: threads that prepare batches ahead (decoding and resizing release Python's lock); 0 prepares
    each batch when it is asked for, which suits small sets, kept in memory after the first epoch.
    cache_bytes: how much prepared pictures may take; what does not fit is prepared anew each epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    batch_size: Annotated[int, Field(ge=1)] = 32
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] = 0
    cache_bytes: Annotated[int, Field(ge=0)] = 2 << 30


def weights_by_class(labels: NDArray[np.int64], power: float = 1.0) -> Weights:
    """Sampling weights [n] that add up to 1: each class's share is its count ** (1 - power), normalised.

    power 1 balances the classes, 0.5 is square-root sampling (Kang et al., arXiv:1910.09217), 0 changes nothing.
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = counts[classes].astype(np.float64) ** -power
    return np.asarray(weights / weights.sum(), dtype=np.float64)


class Batches:
    """Training batches of a picture set, epoch by epoch, reshuffled and augmented anew in each.

    The order is a permutation, or, with `weights` [n], a draw of n samples in which each appears n w
    times, rounded up or down at random. The batches of an epoch differ in size by at most one, so that no
    picture is left out and no tiny last batch upsets batch norm (with a batch size of three and more none is of
    one). Use as a context: workers end with it.
    """

    def __init__(
        self, pictures: PictureSet, augmenter: Augmenter, loading: Loading, weights: Weights | None = None
    ) -> None:
        """Raises DataError for an empty set."""
        if not len(pictures):
            raise DataError("there are no pictures to train on")
        self._pictures = pictures
        self._augmenter = augmenter
        self._loading = loading
        self._weights = weights
        self._labels = torch.from_numpy(pictures.labels)
        self._kept = _Cache(loading.cache_bytes)
        self._pool = ThreadPoolExecutor(loading.workers) if loading.workers else None

    def __len__(self) -> int:
        """Batches in an epoch."""
        return math.ceil(len(self._pictures) / self._loading.batch_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The indices [n] of the samples of an epoch, in order."""
        count = len(self._pictures)
        rng = np.random.default_rng([self._loading.seed, epoch])
        if self._weights is None:
            return rng.permutation(count)
        # Systematic resampling (Kitagawa 1996), equal weights side by side: far less luck than independent
        # draws, for a picture as for its class.
        line = rng.permutation(count)
        line = line[np.argsort(self._weights[line], kind="stable")]
        marks = (np.arange(count) + rng.random()) / count
        chosen = np.searchsorted(np.cumsum(self._weights[line]), marks).clip(max=count - 1)
        return rng.permutation(line[chosen])

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from batch `start` on: pictures on the augmenter's device, labels too.

        Raises PictureError, naming the file, for a picture that cannot be decoded.
        """
        order = self.order(epoch)
        seeds = sample_seeds(self._loading.seed, epoch, np.arange(len(order)))
        cut = [np.array_split(line, len(self))[start:] for line in (order, seeds)]
        jobs = list(zip(*cut, strict=True))
        device = self._augmenter.device
        drawn = _in_order(lambda job: self._draw(*job), jobs, self._pool, self._loading.workers)
        for (indices, chosen), pictures in zip(jobs, drawn, strict=True):
            labels = self._labels[torch.from_numpy(indices)]
            yield self._augmenter.finish(pictures, chosen), labels.to(device, non_blocking=True)

    def _draw(self, indices: NDArray[np.int64], seeds: NDArray[np.uint64]) -> Tensor:
        draw = self._augmenter.draw
        drawn = torch.stack([draw(self._keep(int(i)), seed) for i, seed in zip(indices, seeds, strict=True)])
        return drawn if self._augmenter.device.type == "cpu" else drawn.pin_memory()

    def _keep(self, index: int) -> Tensor:
        kept = self._kept.get(index)
        if kept is None:
            kept = self._augmenter.keep(self._pictures.picture(index))
            self._kept.put(index, kept)
        return kept


class EvalBatches:
    """A picture set through `Preprocessing` in its own order, as often as it is iterated.

    Batches are float32 [N, 3, h, w] and int64 [N] on the CPU; the first ones are kept, up to `cache_bytes`.
    """

    def __init__(
        self,
        pictures: PictureSet,
        preprocess: Preprocess,
        batch_size: int,
        workers: int = 0,
        cache_bytes: int = 1 << 30,
    ) -> None:
        self._pictures = pictures
        self._preprocessing = Preprocessing(preprocess).eval()
        self._batch_size = batch_size
        self._workers = workers
        self._labels = torch.from_numpy(pictures.labels)
        self._kept = _Cache(cache_bytes)

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self._pictures) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches. Raises PictureError, naming the file, for a picture that cannot be decoded."""
        pool = ThreadPoolExecutor(self._workers) if self._workers else None
        try:
            for number, pictures in enumerate(_in_order(self._batch, range(len(self)), pool, self._workers)):
                start = number * self._batch_size
                yield pictures, self._labels[start : start + self._batch_size]
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    @torch.no_grad()
    def _batch(self, number: int) -> Tensor:
        kept = self._kept.get(number)
        if kept is None:
            start = number * self._batch_size
            indices = range(start, min(start + self._batch_size, len(self._pictures)))
            decoded = (torch.from_numpy(self._pictures.picture(i))[None] for i in indices)
            kept = torch.cat([self._preprocessing(picture) for picture in decoded])
            self._kept.put(number, kept)
        return kept


def eval_batches(
    pictures: PictureSet, preprocess: Preprocess, batch_size: int, workers: int = 0
) -> Iterator[Batch]:
    """Iterate once over a set as `EvalBatches` gives it, keeping nothing in memory."""
    return iter(EvalBatches(pictures, preprocess, batch_size, workers, cache_bytes=0))


def evaluation_tensor(pictures: PictureSet, preprocess: Preprocess) -> Tensor:
    """A whole (small) set as the network sees it in evaluation: float32 [n, 3, h, w]."""
    return torch.cat([batch for batch, _ in eval_batches(pictures, preprocess, batch_size=32)])


def _in_order(
    work: Callable[[Job], Done], jobs: Iterable[Job], pool: ThreadPoolExecutor | None, ahead: int
) -> Iterator[Done]:
    """Yield work(job) for each job, in order; with a pool, `ahead` jobs are begun before they are asked for."""
    if pool is None:
        yield from map(work, jobs)
        return
    begun: deque[Future[Done]] = deque()
    try:
        for job in jobs:
            begun.append(pool.submit(work, job))
            if len(begun) > ahead:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        for future in begun:
            future.cancel()


class _Cache:
    """Tensors by index, as many as fit; nothing is ever thrown out. Safe between threads."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._held: dict[int, Tensor] = {}
        self._lock = Lock()

    def get(self, index: int) -> Tensor | None:
        return self._held.get(index)

    def put(self, index: int, tensor: Tensor) -> None:
        with self._lock:
            if index not in self._held and tensor.nbytes <= self._left:
                self._left -= tensor.nbytes
                self._held[index] = tensor
