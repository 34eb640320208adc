"""Trends of records: what is sorted together, where a level changed, and a page that nothing can break."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_compare_forms import LATENCY, comparison, record
from tiny import command

from toolchain import history
from toolchain.compare.model import Comparison
from toolchain.history import trends
from toolchain.history.changes import Change, changes
from toolchain.history.page import render


def noisy(count: int, level: float, seed: int, noise: float = 0.01) -> list[float]:
    return list(level * (1 + noise * np.random.default_rng(seed).normal(size=count)))


def test_a_change_of_level_is_found_where_it_is() -> None:
    (found,) = changes([*noisy(20, 1e6, 0), *noisy(15, 1.05e6, 1)])
    assert found.index == 20
    assert found.ratio == pytest.approx(1.05, abs=0.01)


def test_several_changes_are_found_and_a_way_back_too() -> None:
    found = changes([*noisy(12, 100, 0), *noisy(12, 120, 1), *noisy(12, 100, 2)])
    assert [change.index for change in found] == [12, 24]
    assert found[0].ratio > 1 > found[1].ratio


def test_single_outliers_and_short_series_are_no_change() -> None:
    values = noisy(30, 100, 0)
    values[7], values[19] = 250, 60
    assert changes(values) == ()
    assert changes([1, 1, 2, 2, 2]) == ()
    assert changes([]) == ()
    assert changes([5.0] * 50) == ()


def test_noise_alone_seldom_makes_a_change() -> None:
    falsely = sum(bool(changes(noisy(60, 1.0, seed))) for seed in range(300))
    assert falsely <= 9  # 3 %


def test_a_step_of_three_noises_is_mostly_found() -> None:
    found = [changes([*noisy(15, 1.0, seed), *noisy(15, 1.03, seed + 1000)]) for seed in range(100)]
    right = sum(len(one) == 1 and abs(one[0].index - 15) <= 2 for one in found)
    assert right >= 90


def test_of_a_very_long_series_the_end_is_looked_at() -> None:
    found = changes([*noisy(3000, 1.0, 0), *noisy(50, 1.1, 1)])
    assert [change.index for change in found] == [3000]


def folder(path: Path) -> Path:
    """Twelve records of a machine, the last six slower, three of another; two of other conditions; a comparison."""
    for day in range(12):
        one = replace(record(1.0 if day < 6 else 1.2), started=f"2026-01-{day + 1:02d}T00:00:00+00:00")
        history.add(path, one.as_json())
    for day in range(3):
        history.add(path, replace(record(2.0, cpu="B"), started=f"2026-02-0{day + 1}").as_json())
    history.add(path, record(batch=8).as_json())
    history.add(path, interleaved().record())
    history.add(path, {"schema": 1, "kind": "loadgen"})
    return path


def interleaved() -> Comparison:
    condition = record().as_json()["cases"][0]["condition"]
    return comparison(LATENCY, name="m").model_copy(update={"condition": condition})


def test_machines_models_and_conditions_never_mix(tmp_path: Path) -> None:
    found = trends.history(history.read(folder(tmp_path)))
    latency = [t for t in found.trends if t.figure == trends.LATENCY]
    assert sorted((t.machine[:1], len(t.points)) for t in latency) == [("A", 1), ("A", 12), ("B", 3)]
    (long,) = (t for t in latency if len(t.points) == 12)
    assert [point.started for point in long.points] == sorted(point.started for point in long.points)
    assert [change.index for change in long.changes] == [6]
    (ratio,) = (t for t in found.trends if t.figure == trends.RATIO)
    assert ratio.condition.endswith("against old")
    assert (ratio.points[0].value, ratio.points[0].low, ratio.points[0].high) == (1.01, 0.99, 1.03)
    assert found.left_out == {"loadgen": 1}
    assert found.records == 17


def test_a_damaged_record_is_named_and_the_rest_is_drawn(tmp_path: Path) -> None:
    folder(tmp_path)
    raw = record().as_json()
    del raw["cases"][0]["samples_ns"]
    (tmp_path / "old.json").write_text(json.dumps(raw))
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / "odd.json").write_text(json.dumps(interleaved().record() | {"checks": 5}))
    found = trends.history(history.read(tmp_path))
    assert found.records == 17
    assert len(found.damaged) == 3
    assert any("old.json" in line and "samples_ns" in line for line in found.damaged)
    page = render(found, "records")
    assert "cut.json: damaged or cut short" in page
    assert "1 record of kind loadgen not drawn" in page


@pytest.mark.parametrize(
    "wrong",
    [{"low": "x"}, {"high": [1]}, {"value": "fast"}, {"value": math.inf}, {"low": math.nan}, {"value": 0}],
)
def test_a_comparison_with_figures_that_are_none_counts_as_damaged(
    tmp_path: Path, wrong: dict[str, object]
) -> None:
    raw = interleaved().record()
    (tmp_path / "odd.json").write_text(json.dumps(raw | {"checks": [raw["checks"][0] | wrong]}))
    (tmp_path / "host.json").write_text(json.dumps(raw | {"host": "here"}))
    for scale in (1.0, 1.1):
        history.add(tmp_path, record(scale).as_json())
    found = trends.history(history.read(tmp_path))
    assert found.records == 2
    assert sorted(line.partition(":")[0] for line in found.damaged) == ["host.json", "odd.json"]
    assert "odd.json" in render(found, "records")


@pytest.mark.parametrize("ns", [math.inf, 0.0, math.nan])
def test_a_bench_record_whose_figure_cannot_be_drawn_counts_as_damaged(tmp_path: Path, ns: float) -> None:
    raw = record().as_json()
    raw["cases"][0]["percentiles"]["p50"]["ns"] = ns
    (tmp_path / "odd.json").write_text(json.dumps(raw))
    for scale in (1.0, 1.1):
        history.add(tmp_path, record(scale).as_json())
    found = trends.history(history.read(tmp_path))
    assert (found.records, len(found.damaged)) == (2, 1)
    assert "<svg" in render(found, "records")


def test_the_page_is_whole_and_cannot_be_broken_by_names(tmp_path: Path) -> None:
    evil = replace(record(cpu="</h2><script>alert(1)</script>"), started="2026\x00<b>")
    evil = replace(evil, model=replace(evil.model, name='"><img src=x>'))
    for scale in (1.0, 1.1):
        history.add(tmp_path, replace(evil, cases=record(scale).cases).as_json())
    page = render(trends.history(history.read(tmp_path)), "<title>")
    assert "<script" not in page
    assert "<img" not in page
    assert "\x00" not in page
    assert "<svg" in page
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", page)
    assert "default-src 'none'" in page


def test_an_empty_folder_says_how_to_fill_it(tmp_path: Path) -> None:
    assert "There is nothing to draw yet" in render(trends.history(history.read(tmp_path)), "records")


def test_the_command_writes_page_and_json_and_strict_counts_damage(tmp_path: Path) -> None:
    records, page, data = folder(tmp_path / "records"), tmp_path / "h.html", tmp_path / "h.json"
    answer = command("history", records, "--out", page, "--json", data, "--strict")
    assert answer.code == 0, answer
    raw = json.loads(data.read_text())
    assert raw["kind"] == "history"
    assert any(trend["changes"] for trend in raw["trends"])
    assert "1.2" in page.read_text()
    (records / "x.json").write_text("{")
    answer = command("history", records, "--out", page)
    assert answer.code == 0
    assert "left out: x.json" in answer.err
    assert command("history", records, "--out", page, "--strict").code == 2
    assert "<svg" in page.read_text()
    answer = command("history", tmp_path / "none", "--out", page)
    assert answer.code == 2
    assert "no such folder of records" in answer.err


def test_a_change_is_a_ratio() -> None:
    assert Change(3, 100.0, 110.0).ratio == pytest.approx(1.1)
