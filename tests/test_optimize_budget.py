"""A budget that holds: predictions learn from records, and what overruns is stopped."""

from __future__ import annotations

import time

import pytest

from toolchain.optimize.budget import Deadline, Durations, OutOfTimeError
from toolchain.progress import Silent
from toolchain.recipe import Node
from toolchain.record import JSON, Measurement, Record
from toolchain.steps import Export, Recover


def record(step: str, seconds: float, epochs: int = 0, key: str = "k", **settings: JSON) -> Record:
    measured = ()
    if epochs:
        measured = (
            Measurement(name="training_seconds", value=seconds, unit="s"),
            Measurement(name="epochs", value=epochs),
        )
    return Record(
        key=key, step=step, version=1, settings=settings, parents={}, libraries={}, seconds=seconds,
        measurements=measured,
    )  # fmt: skip


def recover(epochs: int) -> Node:
    return Node("x", Recover(teacher="tuned", epochs=epochs), {}, None)


def test_work_goes_on_before_the_deadline_and_is_stopped_after_it() -> None:
    deadline = Deadline(Silent(), time.monotonic() + 60)
    with deadline.task("training", 10) as task:
        task.advance()
        deadline.at = time.monotonic() - 1
        with pytest.raises(OutOfTimeError, match="'training'"):
            task.advance()


def test_a_job_is_predicted_to_take_what_the_longest_of_its_kind_took_and_some_more() -> None:
    durations = Durations(1.0)
    durations.learn(record("export", 4.0))
    durations.learn(record("export", 2.0))
    assert 4.0 < durations.node(Node("x", Export(), {}, None), 1.0) < 8.0


def test_recovery_is_predicted_from_tuning_until_one_was_seen() -> None:
    durations = Durations(1.0)
    durations.learn(record("tune", 100.0, epochs=10))
    before = durations.node(recover(5), 1.0)
    assert before > 5 * 10
    durations.learn(record("recover", 30.0, epochs=5, key="r"), 0.5)
    assert 5 * 6 < durations.node(recover(5), 0.5) < before
    assert durations.node(recover(5), 0.25) == durations.node(recover(5), 0.5)
    assert durations.node(recover(5), 1.0) > durations.node(recover(5), 0.5)


def test_tuning_of_some_blocks_only_is_no_measure_of_training_them_all() -> None:
    frozen, full = Durations(1.0), Durations(1.0)
    frozen.learn(record("tune", 100.0, epochs=10, train=11))
    full.learn(record("tune", 100.0, epochs=10, train="full"))
    assert frozen.epoch(1.0) == pytest.approx(2 * full.epoch(1.0))


def test_an_assumption_never_replaces_what_was_seen() -> None:
    durations = Durations(1.0)
    durations.assume(7.0)
    assert durations.tuning == 7.0
    durations.learn(record("tune", 100.0, epochs=10))
    durations.assume(7.0)
    assert durations.tuning == 10.0
