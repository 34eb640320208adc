"""The verdict of the half hour of load and faults: every bar can be missed."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.serve.soak import Answers, counted, judged


def row(number: int, **changes: Any) -> dict[str, Any]:
    found = {
        "turn": number, "server": 7, "answers": 100, "wrong": 0, "refused": 0, "broken": 0, "crashed": False,
        "resident": 100_000_000, "pace, ms": 20.0, "capacity, calls a s": [50.0, 52.0],
        "counted": counted([40.0] * 99 + [90.0]), "alone counted": counted([20.0] * 10),
    }  # fmt: skip
    return found | changes


def turns(**late: Any) -> list[dict[str, Any]]:
    """Ten turns, whose last three are different."""
    return [row(number, **(late if number > 6 else {})) for number in range(10)]


def test_a_half_hour_without_fault_is_kept() -> None:
    found = judged(turns())
    assert found["verdict"] == "kept"
    assert found["answers"] == 1000
    assert found["of it"] == pytest.approx(2.0, rel=0.05)


@pytest.mark.parametrize(
    "late",
    [
        {"wrong": 1}, {"refused": 1}, {"broken": 1}, {"crashed": True}, {"resident": 104_000_000},
        {"counted": counted([40.0] * 90 + [110.0] * 10)}, {"capacity, calls a s": [40.0, 42.0]},
    ],
    ids=lambda late: next(iter(late)),
)  # fmt: skip
def test_every_bar_can_be_missed(late: dict[str, Any]) -> None:
    assert judged(turns(**late))["verdict"] == "missed"


def test_a_machine_that_grows_slow_is_no_server_that_does() -> None:
    assert judged(turns(**{"capacity, calls a s": [25.0, 26.0], "pace, ms": 40.0}))["verdict"] == "kept"


def test_memory_is_judged_within_each_server() -> None:
    taken_up = [row(number, server=8, resident=120_000_000) for number in range(10)]
    assert judged([*turns(), *taken_up])["verdict"] == "kept"


def test_bad_answers_of_all_parts_of_a_turn_add_up() -> None:
    total = Answers([1.0], wrong=1) + Answers([2.0], refused=2, broken=3)
    assert (total.ms, total.wrong, total.refused, total.broken) == ([1.0, 2.0], 1, 2, 3)
