"""`make bench`: a planted slowdown is called one, noise is not, and other machines are not compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench import own
from benchmarks.bench.fidelity import LOOKS, judged, summary, wanted
from toolchain.runtime import host


def rounds(middle: float, seed: int) -> list[float]:
    return np.random.default_rng(seed).normal(middle, 0.02 * middle, 8).tolist()


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(1.0, "pass"), (0.5, "pass"), (1.15, "inconclusive"), (1.3, "regression")]
)
def test_verdicts_come_from_the_whole_interval(ratio: float, verdict: str) -> None:
    (row,) = own.against({"a": rounds(ratio, 1), "new": [1.0]}, {"a": rounds(1.0, 2), "old": [1.0]}, 15.0)
    low, high = row["ci95"]
    assert low <= row["ratio"] <= high
    assert row["verdict"] == verdict


def test_the_record_of_this_kind_of_machine_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places, slow = (tmp_path / "own.json", tmp_path / "local.json"), {"a": rounds(1.3, 1), "new": [1.0]}
    facts = host.facts()
    kept = {"toolchain": "0.9", "seconds": {"a": rounds(1.0, 2)}, "host": facts}
    assert own.kept_for(facts, places) is None
    places[0].write_text(json.dumps(kept | {"host": facts | {"cores": 999}}))
    assert own.kept_for(facts, places) is None
    places[1].write_text(json.dumps(kept | {"toolchain": "local"}))
    assert own.kept_for(facts, places) == kept | {"toolchain": "local"}
    places[0].write_text(json.dumps(kept))
    assert own.kept_for(facts, places) == kept, "a committed one comes first"
    assert own.judged(slow, kept, 15.0) == own.REGRESSION
    said = capsys.readouterr().out
    assert "regression   a: 1.3" in said
    assert "of 0.9" in said
    assert "not compared new: only one of the two has it" in said
    assert own.judged({"a": rounds(1.0, 3)}, kept, 15.0) == 0
    assert own.judged({"a": rounds(1.15, 3)}, kept, 15.0) == own.INCONCLUSIVE


def test_what_is_open_is_measured_on(capsys: pytest.CaptureFixture[str]) -> None:
    kept = {"toolchain": "0.9", "seconds": {"a": rounds(1.0, 2)}}
    for ratio, count, code in ((1.0, 9, 0), (1.15, 25, own.INCONCLUSIVE), (1.4, 9, own.REGRESSION)):
        times = iter([*rounds(ratio, 3), *rounds(ratio, 4), *rounds(ratio, 5), ratio])
        taken: list[float] = []

        def once(times: Iterator[float] = times, taken: list[float] = taken) -> float:
            taken.append(next(times))
            return taken[-1]

        assert own.compared({"a": once}, 8, kept, 15.0) == code
        assert len(taken) == count  # one of them warms up
    assert "inconclusive a: 1.1" in capsys.readouterr().out


def test_a_record_of_ones_own_is_kept_and_read(tmp_path: Path) -> None:
    place = own.record_of(host.facts(), tmp_path / "build")
    own.keep({"a": [1.0, 2.0]}, place)
    found = own.kept_for(host.facts(), (tmp_path / "none", place))
    assert found is not None
    assert found["seconds"] == {"a": [1.0, 2.0]}


def test_a_round_has_every_part_once_and_the_first_does_not_count() -> None:
    called: list[str] = []

    def part(name: str) -> float:
        called.append(name)
        return float(len(called))

    taken = own.measure({name: lambda name=name: part(name) for name in "abc"}, 2)
    assert [sorted(called[k : k + 3]) for k in (0, 3, 6)] == [list("abc")] * 3
    assert min(map(min, taken.values())) == 4.0
    assert [row["rounds"] for row in own.rows(taken)] == [2, 2, 2]


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    taken = own.measure(own.Bench(tmp_path).parts, 1)
    assert len(taken) == 6
    assert all(seconds > 0 for (seconds,) in taken.values())


def test_fidelity_is_judged_by_the_whole_interval() -> None:
    assert judged(0.985, 1.01) == "pass"
    assert judged(0.95, 0.979) == judged(1.021, 1.05) == "fail"
    assert judged(0.95, 0.99) == judged(0.97, 1.03) == "inconclusive"


def test_fidelity_of_rounds_is_told_against_what_shared_their_pace() -> None:
    rows = [
        {
            "ours": [1.01 * pace, pace],
            "loadgen": [2.04 * pace, 2 * pace],
            "profile": [pace, pace],
            "verdict": "VALID",
        }
        for pace in (1e6, 2e6, 3e6)
    ]
    found = summary(rows)
    assert (found["of bare loop"], found["of LoadGen"], found["of profile"]) == (
        1.01,
        round(1.01 / 1.02, 4),
        1.0,
    )
    assert found["verdict"] == "pass"
    assert summary([{**rows[0], "verdict": "INVALID"}, *rows[1:]])["verdict"] == "fail"


def test_fidelity_goes_on_while_a_look_decides_nothing() -> None:
    def rows(count: int, spread: float) -> list[dict[str, object]]:
        sides = {"loadgen": [1.0, 1.0], "profile": [1.0, 1.0], "verdict": "VALID"}
        return [{"ours": [1 + spread * (-1) ** number, 1.0], **sides} for number in range(count)]

    assert wanted([], 10)
    assert wanted(rows(9, 0.0), 10)
    assert not wanted(rows(10, 0.0), 10)
    assert wanted(rows(10, 0.1), 10)
    assert wanted(rows(11, 0.0), 10)
    assert not wanted(rows(10 * LOOKS, 0.1), 10)


@pytest.mark.parametrize("content", ["{", "[]", '{"seconds": {}}', '{"host": 5}'])
def test_a_damaged_record_of_ones_own_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "own.json").write_text(content)
    with pytest.raises(SystemExit, match=r"own\.json: damaged, .* delete it"):
        own.kept_for(host.facts(), [tmp_path / "own.json"])
