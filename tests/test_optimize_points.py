"""The front, the choice, the closest points and what would have to give: pure functions of points."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from toolchain.errors import RecipeError
from toolchain.optimize.asked import Asked, amount
from toolchain.optimize.design import Design
from toolchain.optimize.points import Miss, Point, closest, front, pick, reasons, relaxed, would_do
from toolchain.recipe import Gates

FP32 = Point(Design(), 1.0, 1.0, 99.0, 0.0, None, None, 5.0)
SLOW = Miss("max_latency_ms", 0.4, 0.5, "ms")
LOST = Miss("max_drop", 1.0, 1.6, "points")


def point(ratio: float, share: float, drop: float, megabytes: float = 2.0, **more: Any) -> Point:
    return Point(Design(ratio=ratio, epochs=4), share, share, 99 - drop, drop, None, None, megabytes, **more)


def test_the_front_has_what_no_other_beats_in_latency_accuracy_and_size() -> None:
    quick, beaten = point(0.5, 0.5, 0.5), point(0.3, 0.6, 0.6)
    small = point(0.6, 0.7, 0.7, megabytes=1.0)
    assert front([FP32, beaten, quick, small]) == [quick, small, FP32]


def test_a_hair_in_size_puts_nothing_on_the_front() -> None:
    quick, hair = point(0.5, 0.5, 0.5, megabytes=2.0), point(0.4, 0.6, 0.5, megabytes=1.99)
    assert front([quick, hair]) == [quick]
    assert front([hair, quick]) == [quick]


def test_slower_than_fp32_is_never_on_the_front_and_never_chosen() -> None:
    slow = point(0.5, 0.9, -1.0, megabytes=0.1, slower=True)
    assert front([FP32, slow]) == [FP32]
    for goal in ("latency", "accuracy", "size"):
        assert pick([FP32, slow], goal) == FP32  # type: ignore[arg-type]


def test_the_fastest_that_keeps_every_bound_is_chosen() -> None:
    too_far = point(0.8, 0.2, 1.6, misses=(LOST,))
    assert pick([FP32, point(0.5, 0.5, 0.5), too_far], "latency") == point(0.5, 0.5, 0.5)
    assert pick([too_far], "latency") is None


def test_near_equals_are_decided_by_accuracy() -> None:
    quick, better = point(0.5, 0.50, 0.9), point(0.45, 0.52, 0.1)
    assert pick([quick, better], "latency") == better
    assert pick([quick, replace(better, share=0.55)], "latency") == quick


def test_goals() -> None:
    accurate, small = point(0.3, 0.6, 0.1, megabytes=3.0), point(0.6, 0.5, 0.8, megabytes=1.0)
    assert pick([accurate, small], "accuracy") == accurate
    assert pick([accurate, small], "size") == small
    lean = replace(accurate, memory_mb=80.0)
    assert pick([lean, replace(small, memory_mb=120.0)], "memory") == lean


def test_closest_weighs_a_point_of_accuracy_as_a_tenth_of_latency() -> None:
    slow, lost = point(0.3, 0.5, 0.0, misses=(SLOW,)), point(0.8, 0.3, 1.6, misses=(LOST,))
    assert SLOW.weight == pytest.approx(2.5)
    assert LOST.weight == pytest.approx(0.6)
    assert closest([slow, lost], 2) == [lost, slow]


def test_what_would_have_to_give_names_the_option_for_each_bound_alone() -> None:
    slow, slower = (
        point(0.3, 0.5, 0.0, misses=(SLOW,)),
        point(0.2, 0.6, 0.0, misses=(replace(SLOW, value=0.6),)),
    )
    lost = point(0.8, 0.3, 1.6, misses=(LOST,))
    both = point(0.7, 0.5, 2.0, misses=(SLOW, LOST))
    assert would_do([slower, slow, lost, both]) == [
        "--max-drop 1.6 would do (u80-e4-fp32)",
        "--max-latency 0.5ms would do (u30-e4-fp32)",
    ]


@pytest.mark.parametrize(
    ("miss", "words"),
    [
        (Miss("min_top1", 90.0, 87.999, "%"), "--set gates.min_top1=87.99"),
        (Miss("min_recall.red", 90.0, 80.0, "%"), "gates.min_recall of 80.00 for red"),
        (Miss("parity", 1e-3, 0.012341, "1"), "--set gates.parity=0.0124"),
        (Miss("max_drop", 1.0, 1.3333, "points"), "--max-drop 1.34"),
    ],
)
def test_the_relaxed_bound_lets_the_point_pass(miss: Miss, words: str) -> None:
    assert relaxed(miss) == words


def test_where_no_single_bound_would_do_all_are_named() -> None:
    both = point(0.7, 0.5, 2.0, misses=(SLOW, LOST))
    assert would_do([both]) == ["--max-drop 1.6 and --max-latency 0.5ms would do (u70-e4-fp32)"]


def test_reasons_tell_what_was_better_but_missed() -> None:
    chosen, lost = point(0.5, 0.5, 0.5), point(0.8, 0.3, 1.6, misses=(LOST,))
    said = reasons(chosen, [FP32, chosen, lost], "latency")
    assert said[0] == "u50-e4-fp32 is the fastest of 2 that keep every bound, of 3 measured"
    assert "u80-e4-fp32 would be better, but misses max_drop (1.6 points, bound 1)" in said


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("3ms", "ms", 3.0),
        ("300us", "ms", 0.3),
        ("0.5 s", "ms", 500.0),
        ("5MB", "MB", 5.0),
        ("30m", "s", 1800.0),
    ],
)
def test_amounts(text: str, unit: Any, value: float) -> None:
    assert amount("--x", text, unit) == pytest.approx(value)


@pytest.mark.parametrize("text", ["3", "ms", "-3ms", "0ms", "3 bananas", "3MB"])
def test_an_amount_that_is_none_is_told_with_its_option(text: str) -> None:
    with pytest.raises(RecipeError, match=r"--max-latency .*e\.g\. --max-latency 3ms"):
        amount("--max-latency", text, "ms")


def test_bounds_take_the_place_of_the_recipes_gates_only_where_given() -> None:
    gates = Asked(max_latency_ms=3.0).gates(Gates(max_drop=2.0, min_recall=90))
    assert (gates.max_drop, gates.max_latency_ms, gates.min_recall) == (2.0, 3.0, 90)
