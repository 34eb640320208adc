"""A time budget that holds: what is started was predicted to end inside, and what overruns all the same is stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from toolchain.errors import GateError
from toolchain.progress import Progress, Task
from toolchain.recipe import Node
from toolchain.record import Record
from toolchain.steps import Qat, Recover, Tune

# Seconds for what was never seen: a slow machine's.
_UNSEEN = {
    "prune": 10.0,
    "rescale": 3.0,
    "export": 20.0,
    "quantize": 15.0,
    "fall_back": 90.0,
    "narrow": 60.0,
    "activations": 5.0,
    "half": 15.0,
    "layers": 15.0,
}
_CAUTION, _START = 1.2, 1.0
_TEACHER = 0.4  # a teacher's answers cost about so much of an epoch of tuning
_SIMULATED = 2.0  # an epoch with integers simulated, over one of recovery
_FROZEN = 2.0  # tuning some blocks only takes less than recovery, which trains all of them


class OutOfTimeError(GateError):
    """The budget ended while something was being done; what was finished is kept."""


class Deadline:
    """A Progress that passes everything on, and stops the work once the time has come.

    Training keeps checkpoints, so that what was stopped goes on there in the next start.
    """

    def __init__(self, progress: Progress, at: float) -> None:
        """progress: who is told. at: the deadline, in seconds of time.monotonic(); it may be moved."""
        self.behind, self.at = progress, at

    @contextmanager
    def task(self, name: str, total: float) -> Iterator[Task]:
        """Open a task that raises OutOfTimeError when it advances after the deadline."""
        with self.behind.task(name, total) as task:
            yield _Guarded(task, name, self)

    def say(self, line: str) -> None:
        """Print one line."""
        self.behind.say(line)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Within it the deadline is `seconds` from now, if that is sooner."""
        before, self.at = self.at, min(self.at, time.monotonic() + seconds)
        try:
            yield
        finally:
            self.at = before

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.at - time.monotonic()


class _Guarded:
    def __init__(self, task: Task, name: str, deadline: Deadline) -> None:
        self._task, self._name, self._deadline = task, name, deadline

    def advance(self, units: float = 1, **shown: float | str) -> None:
        """Pass it on; raises OutOfTimeError after the deadline."""
        self._task.advance(units, **shown)
        if self._deadline.left < 0:
            raise OutOfTimeError(
                f"the time budget ended within '{self._name}'; started again it goes on there"
            )


class Durations:
    """What work takes, from what it took before. Learns from every record it is shown."""

    def __init__(self, epoch: float) -> None:
        """epoch: seconds for an epoch of tuning, for as long as none was seen."""
        self._seen: dict[str, float] = {}
        self._epoch, self._tuned = epoch, False
        # By key: share of the work left, seconds an epoch.
        self._recovered: dict[str, tuple[float, float]] = {}
        self._taught: dict[str, tuple[float, float]] = {}  # of integers

    def apart(self) -> Durations:
        """The same for another backbone, whose training takes its own time: assumed alike until it is seen."""
        other = Durations(self._epoch)
        other._seen = dict(self._seen)
        return other

    def learn(self, record: Record, share: float = 1.0) -> None:
        """Remember what a finished job took; `share` is the work that the network it trained has left."""
        self._seen[record.step] = max(record.seconds, self._seen.get(record.step, 0.0))
        figures = {m.name: m.value for m in record.measurements}
        if "training_seconds" not in figures:
            return
        epoch = figures["training_seconds"] / max(figures.get("epochs", 1.0), 1.0)
        if record.step == "qat":  # what its epochs take tells nothing of recovery's
            self._taught[record.key] = (share, epoch)
            return
        if record.step == "tune":
            frozen = record.settings.get("train", "full") != "full"
            self._epoch, self._tuned = epoch * (_FROZEN if frozen else 1.0), True
        else:
            self._recovered[record.key] = (share, epoch)

    def assume(self, epoch: float) -> None:
        """Take this for an epoch of tuning, unless one was seen."""
        if not self._tuned:
            self._epoch = epoch

    def of(self, job: str) -> float:
        """Seconds for a job by its name."""
        return _CAUTION * self._seen.get(job, _UNSEEN.get(job, 10.0)) + _START

    def epoch(self, share: float) -> float:
        """Seconds for an epoch of recovery of a network with this share of the work left: the dearest of those seen
        that were no larger, grown by what they lack; before any was seen, that of tuning and a teacher's."""
        return _dearest(self._recovered, share) or self._epoch * (1.0 + _TEACHER)

    @property
    def tuning(self) -> float:
        """Seconds for an epoch of tuning, as far as known: the same after every restart."""
        return self._epoch

    def node(self, node: Node, share: float) -> float:
        """Seconds for a step that is not done yet."""
        step = node.step
        if isinstance(step, Recover):
            return _CAUTION * step.epochs * self.epoch(share) + _START
        if isinstance(step, Qat):
            epoch = _dearest(self._taught, share) or _SIMULATED * self.epoch(share)
            return _CAUTION * step.epochs * epoch + self.of("quantize")
        if isinstance(step, Tune):
            return _CAUTION * step.epochs * self._epoch + _START
        return self.of(step.step)


def _dearest(seen: Mapping[str, tuple[float, float]], share: float) -> float | None:
    """The most seconds that an epoch seen was, grown by what it lacks of the share of the work; None when none was."""
    grown = (seconds * max(1.0, (share + _TEACHER) / (known + _TEACHER)) for known, seconds in seen.values())
    return max(grown, default=None)
