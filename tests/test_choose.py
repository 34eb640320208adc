"""Choosing: the fastest file that keeps every promise, never one slower than fp32."""

from __future__ import annotations

import numpy as np
import pytest

from toolchain.choose import Candidate, Exam, choose
from toolchain.recipe import Gates

N, C = 400, 4
LABELS = np.arange(N) % C
EXAM = Exam(LABELS, tuple(f"p{i}" for i in range(N)), ("a", "b", "c", "d"))


def candidate(name: str, *, wrong: int = 0, ms: float = 2.0, size: int = 1000, **more: float) -> Candidate:
    """A file that answers all but the first `wrong` pictures rightly in about `ms` milliseconds."""
    answers = LABELS.copy()
    answers[:wrong] = (answers[:wrong] + 1) % C
    probabilities = np.full((N, C), 0.05, np.float32)
    probabilities[np.arange(N), answers] = 0.85
    noise = np.random.default_rng(len(name)).normal(1, 0.01, (20, 25))
    return Candidate(name, size, probabilities, (ms * 1e6 * noise).astype(np.int64), **more)


def test_the_fastest_that_passes_is_chosen() -> None:
    found = choose([candidate("fp32"), candidate("int8", ms=1.0), candidate("pruned", ms=1.5)], EXAM, Gates())
    assert found.chosen == "int8"
    assert found.verdict("int8").status == "chosen"
    assert found.verdict("pruned").status == "passed"
    speedup = found.verdict("int8").speedup
    assert speedup is not None
    assert speedup.value == pytest.approx(2.0, rel=0.02)


def test_a_file_that_loses_too_much_is_not_chosen() -> None:
    found = choose([candidate("fp32"), candidate("int8", ms=1.0, wrong=20)], EXAM, Gates(max_drop=1.0))
    assert found.chosen == "fp32"
    assert found.verdict("int8").status == "failed"
    assert "max_drop" in found.verdict("int8").reason
    drop = found.verdict("int8").drop
    assert drop is not None
    assert drop.value == pytest.approx(5.0)


def test_a_slower_file_is_never_chosen_even_when_more_accurate() -> None:
    found = choose([candidate("fp32", wrong=10), candidate("int8", ms=2.4)], EXAM, Gates())
    assert found.chosen == "fp32"
    assert found.verdict("int8").status == "slower"


def test_a_speedup_inside_the_noise_is_not_believed() -> None:
    same = candidate("fp32")
    found = choose([same, Candidate("int8", 500, same.probabilities, same.latency)], EXAM, Gates())
    assert found.chosen == "fp32"
    assert found.verdict("int8").status == "slower"


def test_latencies_within_five_percent_tie_and_accuracy_decides() -> None:
    rivals = [candidate("fp32", ms=3), candidate("a", ms=1.0, wrong=3), candidate("b", ms=1.03, wrong=1)]
    found = choose(rivals, EXAM, Gates())
    assert found.chosen == "b"
    assert found.verdict("b").reason == "within 5 % of the fastest, a; then accuracy and size decide"


def test_size_then_name_break_a_tie() -> None:
    same = [candidate("fp32", ms=3), candidate("bb", ms=1.0, size=900), candidate("aa", ms=1.0, size=1000)]
    assert choose(same, EXAM, Gates()).chosen == "bb"
    same[1] = candidate("bb", ms=1.0, size=1000)
    assert choose(same, EXAM, Gates()).chosen == "aa"


def test_nothing_is_chosen_when_fp32_itself_fails() -> None:
    found = choose([candidate("fp32", wrong=100)], EXAM, Gates(min_top1=90))
    assert found.chosen is None
    gate = found.verdict("fp32").gates[0]
    assert (gate.name, gate.passed, gate.value) == ("min_top1", False, 75.0)


@pytest.mark.parametrize(
    ("gates", "name"),
    [
        (Gates(max_latency_ms=1.5), "max_latency_ms"),
        (Gates(max_megabytes=0.0005), "max_megabytes"),
        (Gates(min_balanced=99.5), "min_balanced"),
        (Gates(min_recall=99), "min_recall.a"),
        (Gates(min_recall={"b": 99}), "min_recall.b"),
        (Gates(parity=1e-4), "parity"),
    ],
)
def test_each_gate_can_fail(gates: Gates, name: str) -> None:
    verdict = choose([candidate("fp32", wrong=8, parity=1e-3)], EXAM, gates).verdict("fp32")
    assert [gate.name for gate in verdict.gates if not gate.passed] == [name] or name in verdict.reason


def test_the_bad_end_of_the_interval_is_a_gate_of_its_own() -> None:
    verdict = choose(
        [candidate("fp32"), candidate("int8", ms=1, wrong=4)], EXAM, Gates(max_drop=1.0, max_drop_worst=1.2)
    ).verdict("int8")
    assert verdict.status == "failed"
    assert [gate.name for gate in verdict.gates if not gate.passed] == ["max_drop_worst"]


def test_the_bad_end_alone_is_a_gate_too() -> None:
    verdict = choose(
        [candidate("fp32"), candidate("int8", ms=1, wrong=40)], EXAM, Gates(max_drop=None, max_drop_worst=3)
    ).verdict("int8")
    assert [gate.name for gate in verdict.gates if not gate.passed] == ["max_drop_worst"]


def test_a_preferred_file_is_chosen_if_it_passes_whatever_is_faster() -> None:
    files = [candidate("fp32"), candidate("small", ms=1.5), candidate("quick", ms=1.0)]
    assert choose(files, EXAM, Gates(), "small").chosen == "small"
    assert choose(files, EXAM, Gates(max_latency_ms=1.2), "small").chosen == "quick"
    assert choose(files, EXAM, Gates(), "slower").chosen == "quick"
