"""Trends of records: what is sorted together, where a level changed, and a page that nothing can break."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_compare_forms import LATENCY, comparison, record
from tiny import command

from toolchain import history
from toolchain.compare.model import Comparison
from toolchain.history import trends
from toolchain.history.changes import Change, changes
from toolchain.history.page import render
from toolchain.loadgen.record import LoadgenRecord
from toolchain.loadgen.settings import Load
from toolchain.loadgen.summary import Summary


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


def wandering(count: int, rho: float, seed: int, noise: float = 0.02) -> list[float]:
    """Figures around 1 with the noise given; neighbours correlate by rho."""
    draws = np.random.default_rng(seed).normal(size=count)
    state = [draws[0]]
    for draw in draws[1:]:
        state.append(rho * state[-1] + math.sqrt(1 - rho**2) * draw)
    return list(np.exp(noise * np.array(state)))


@pytest.mark.parametrize("count", [8, 15, 30, 60])
@pytest.mark.parametrize(("rho", "most"), [(0.0, 6), (0.3, 8), (0.5, 12), (0.7, 18)])
def test_a_series_that_wanders_does_not_step(count: int, rho: float, most: int) -> None:
    falsely = sum(bool(changes(wandering(count, rho, seed))) for seed in range(120))
    assert falsely <= most


@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_two_records_at_an_end_are_no_level_and_three_are(noise: float) -> None:
    marked = 0
    for count in range(8, 41):
        for seed in range(6):
            values = noisy(count, 1.0, 100 * count + seed, noise)
            high = [1.2 * value for value in values]
            for series in ([*values[:-2], *high[-2:]], [*high[:2], *values[2:]]):
                two = changes(series)
                assert all(max(change.before, change.after) < 1.05 for change in two), (count, seed)
                marked += bool(two)
            three = changes([*values[:-3], *high[-3:]])
            assert [change.index for change in three][-1:] == [count - 3], (count, seed)
    assert marked <= 8  # of 396, by the noise elsewhere


@pytest.mark.parametrize(("before", "after", "step"), [(15, 15, 1.05), (26, 4, 1.1), (27, 3, 1.1)])
def test_a_step_is_mostly_found(before: int, after: int, step: float) -> None:
    found = 0
    for seed in range(100):
        values = noisy(before + after, 1.0, seed, 0.02)
        marks = changes([*values[:before], *(step * value for value in values[before:])])
        found += any(abs(mark.index - before) <= 2 for mark in marks)
    assert found >= 85


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
    history.add(path, {"schema": 1, "kind": "other"})
    return path


LATENCY_90 = "90.0th percentile latency (ns)"


def loadgen_record(
    day: int, result: tuple[str, float] = (LATENCY_90, 1e6), verdict: str = "VALID"
) -> dict[str, Any]:
    """A LoadGen performance record's plain values."""
    one = record()
    summary = Summary(verdict, result, {}, {}, {}, "")
    return LoadgenRecord(
        one.model, one.host, f"2026-03-{day + 1:02d}T00:00:00+00:00", "0", "6.0", one.cases[0].condition,
        Load("single-stream" if "latency" in result[0] else "offline"), {}, summary, None, (), (),
    ).as_json()  # fmt: skip


def scored(day: int, top1: float) -> dict[str, Any]:
    """A LoadGen accuracy record's plain values."""
    accuracy = {"top1": top1, "ci95": [top1 - 0.05, top1 + 0.05], "pictures": 100, "labels": "by folder"}
    return loadgen_record(day) | {"summary": None, "accuracy": accuracy}


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
    (paced,) = (t for t in found.trends if t.figure == trends.RELATIVE and len(t.points) == 12)
    assert not paced.more_is_better
    assert 1.9 < paced.points[0].value < 2.1
    (ratio,) = (t for t in found.trends if t.figure == trends.RATIO)
    assert ratio.condition.endswith("against old")
    assert (ratio.points[0].value, ratio.points[0].low, ratio.points[0].high) == (1.01, 0.99, 1.03)
    assert found.left_out == {"other": 1}
    assert found.records == 17


def test_a_damaged_record_is_named_and_the_rest_is_drawn(tmp_path: Path) -> None:
    folder(tmp_path)
    raw = record().as_json()
    del raw["cases"][0]["samples_ns"]
    (tmp_path / "old.json").write_text(json.dumps(raw))
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / "odd.json").write_text(json.dumps(interleaved().record() | {"checks": 5}))
    (tmp_path / "new.json").write_text(json.dumps(interleaved().record() | {"schema": 2}))
    found = trends.history(history.read(tmp_path))
    assert found.records == 17
    assert len(found.damaged) == 4
    assert any("new.json" in line and "schema must be 1" in line for line in found.damaged)
    assert any("old.json" in line and "samples_ns" in line for line in found.damaged)
    page = render(found, "records")
    assert "cut.json: damaged or cut short" in page
    assert "1 record of kind other not drawn" in page


def test_loadgens_figures_are_drawn_and_invalid_ones_counted(tmp_path: Path) -> None:
    for day in range(12):
        scale = 1 if day < 6 else 1.3
        history.add(tmp_path, loadgen_record(day, (LATENCY_90, 1e6 * scale)))
        history.add(tmp_path, loadgen_record(day, ("Samples per second", 100 * scale)))
        history.add(tmp_path, scored(day, 0.9 if day < 6 else 0.6))
    for day in (20, 21):
        history.add(tmp_path, loadgen_record(day, verdict="INVALID"))
    history.add(tmp_path, scored(3, 0.9) | {"accuracy": None})
    found = trends.history(history.read(tmp_path))
    assert not found.damaged
    assert (found.records, found.left_out) == (36, {"loadgen (INVALID)": 2, "loadgen (no accuracy)": 1})
    kinds = {(t.figure, t.unit, t.more_is_better, len(t.points)) for t in found.trends}
    assert kinds == {
        ("90.0th percentile latency", "ns", False, 12), ("Samples per second", "per_s", True, 12),
        ("top-1", "ratio", True, 12),
    }  # fmt: skip
    top1 = next(t for t in found.trends if t.figure == "top-1")
    assert (top1.points[0].low, top1.points[0].high) == (pytest.approx(0.85), pytest.approx(0.95))
    assert top1.condition.endswith("noise, LoadGen single-stream, shortened, 100 pictures")
    assert top1.points[0].about.endswith("toolchain 0, LoadGen 6.0, accuracy")
    page = render(found, "records")
    assert "2 records of kind loadgen (INVALID) not drawn" in page
    assert "the last, of 2026-03-12: 130/s." in page
    marks = re.findall(r'<span class="pill (\w+)">([^<]*)</span> from ([^ ]*)', page)
    assert sorted(marks) == [
        ("failed", "+30.0 %", "1.00"), ("failed", "−33.3 %", "0.900"), ("ok", "+30.0 %", "100/s"),
    ]  # fmt: skip


@pytest.mark.parametrize("junk", [None, 5, "x", [], {}, math.nan, True, [1, 2], 10**400])
def test_a_loadgen_record_with_a_wrong_field_counts_as_damaged(tmp_path: Path, junk: object) -> None:
    """Also where a field is missing altogether; what is right by chance is drawn."""
    sound = loadgen_record(0), scored(0, 0.5)
    for number, raw in enumerate(sound):
        for name in set(raw) - {"kind"}:
            (tmp_path / f"{number}{name}.json").write_text(json.dumps(raw | {name: junk}))
            (tmp_path / f"{number}{name}-.json").write_text(
                json.dumps({k: raw[k] for k in set(raw) - {name}})
            )
            for inner in raw[name] if isinstance(raw[name], dict) else ():
                odd = raw | {name: raw[name] | {inner: junk}}
                (tmp_path / f"{number}{name}-{inner}.json").write_text(json.dumps(odd))
    found = trends.history(history.read(tmp_path))
    damaged = {line.partition(":")[0] for line in found.damaged}
    needed = ("schema", "size", "started", "toolchain", "loadgen", "condition", "model", "load", "host")
    assert {f"{number}{name}-.json" for number in (0, 1) for name in needed} <= damaged
    texts = () if isinstance(junk, str) else ("model-name", "model-sha256", "load-scenario")
    assert {f"0{name}.json" for name in (*texts, "summary-verdict", "summary-result")} <= damaged
    interval = () if junk == [1, 2] else ("accuracy-ci95",)
    assert {f"1{name}.json" for name in (*interval, "accuracy-top1")} <= damaged
    render(found, "records")


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
    assert "1 record of kind other not drawn" in answer.err
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


@pytest.mark.parametrize("host", [{"features": ["avx2\ud800"]}, {"cpu": "A\udfff"}])
def test_a_record_with_half_a_character_is_damaged(tmp_path: Path, host: dict[str, Any]) -> None:
    """It ended `history` and `compare` with a traceback."""
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(record(**host).as_json()))
    told = command("history", tmp_path, "--out", tmp_path / "h.html", "--json", tmp_path / "h.json")
    assert told.code == 0, told
    assert "odd.json: has half a character" in told.err
    assert command("compare", path, path).code == 2
    kept = interleaved().record()
    kept["host"] = kept["host"] | host
    path.write_text(json.dumps(kept))
    told = command("history", tmp_path, "--out", tmp_path / "h.html", "--json", tmp_path / "h.json")
    assert told.code == 0, told
    assert "Wrote" in told.out


def test_server_tests_of_other_loads_never_mix(tmp_path: Path) -> None:
    """A trend rose from 97 to 291 a second, which was what had been asked for."""
    for day in range(6):
        raw = loadgen_record(day, ("Completed samples per second", 90.0 if day < 3 else 290.0))
        asked = 100 if day < 3 else 300
        raw["load"] |= {"scenario": "server", "target_qps": asked, "target_latency_ms": 20.0}
        raw["settings"] = {"server_target_qps": asked, "server_target_latency_ns": 20_000_000}
        history.add(tmp_path, raw)
    raw["load"] |= {"target_qps": None}
    history.add(tmp_path, raw)
    found = trends.history(history.read(tmp_path))
    assert [(t.condition.rpartition(", ")[2], len(t.points)) for t in found.trends] == [
        ("100 queries a second within 20 ms", 3), ("300 queries a second within 20 ms", 3),
    ]  # fmt: skip
    assert found.left_out == {"loadgen (server, of no load or bound that was asked for)": 1}


def test_latencies_in_units_of_the_reference_mix_no_versions_and_no_busy_hours(tmp_path: Path) -> None:
    for version in ("1.30", "1.31"):
        history.add(tmp_path, record(libraries={"onnxruntime": version}).as_json())
    (case,) = record().cases
    busy = replace(case, cold_start_ns=replace(case.cold_start_ns, share=(0.6,) * 6))
    history.add(tmp_path, replace(record(libraries={"onnxruntime": "1.31"}), cases=(busy,)).as_json())
    found = trends.history(history.read(tmp_path)).trends
    assert sorted((t.figure, len(t.points)) for t in found if "latency" in t.figure) == [
        (trends.RELATIVE, 1), (trends.RELATIVE, 1), (trends.LATENCY, 3),
    ]  # fmt: skip
