"""`make peers`: a rival that fails is a row that says why, finished work is not repeated, figures are of what ran."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import table
from benchmarks.peers import cases, cells, install, process, record, timing
from benchmarks.peers.answering import answers
from benchmarks.peers.entrants import Entrant, entrants
from benchmarks.peers.places import (
    CASES,
    RESULTS,
    TRAININGS,
    case_folder,
    digest,
    parts,
    read_json,
    task,
    write_json,
)  # fmt: skip
from benchmarks.peers.rivals import RIVALS, SOME, Rival, Setting, rivals
from tests.onnx_helpers import convolution, model

CASE = "blood_cells"
DRIVER = """
import pathlib, shutil, sys
model, calibration, out, setting = sys.argv[1:]
counter = pathlib.Path(__file__).with_name("calls")
counter.write_text(counter.read_text() + setting + "\\n" if counter.exists() else setting + "\\n")
if setting == "broken":
    raise ValueError("this model is\\nnot for me")
if setting == "copy":
    shutil.copyfile(model, out)
if setting == "rubbish":
    pathlib.Path(out).write_text("no model")
"""
FAKE = Rival(
    "fake",
    "fake",
    "fake.py",
    tuple(Setting(n, n, "nowhere") for n in ("copy", "broken", "silent", "rubbish")),
)


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A case of twelve pictures, and a rival whose environment is this interpreter."""
    drivers, folder = tmp_path / "drivers", case_folder(CASE, tmp_path)
    drivers.mkdir()
    (drivers / "fake.py").write_text(DRIVER)
    (drivers / "common.py").touch()
    monkeypatch.setattr(cells, "DRIVERS", drivers)
    monkeypatch.setattr(record, "record_path", lambda case: tmp_path / f"{case}.json")
    python = install.python("fake", tmp_path)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    write_json(
        install.environment("fake", tmp_path).with_suffix(".json"), {"installed": True, "requirements": "r"}
    )
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {}
    nodes = convolution("input", "a", random.normal(size=(3, 3, 3, 3)).astype(np.float32), constants)
    nodes.append(onnx.helper.make_node("ReduceMax", ["a", "axes"], ["logits"], keepdims=0))
    constants["axes"] = np.array([2, 3])
    for name in ("fp32.onnx", "ours0.onnx"):
        onnx.save(model(nodes, constants), str(folder / name))
    np.save(folder / "calibration.npy", random.normal(size=(4, 3, 8, 8)).astype(np.float32))
    np.save(folder / "held_back.npy", random.normal(size=(12, 3, 8, 8)).astype(np.float32))
    np.save(folder / "labels.npy", np.arange(12) % 3)
    ours = {"name": "int8", "what": "a copy", "needs": "calibration", "seconds": 1.0, "file": "ours0.onnx"}
    hashes = {path.name: digest(path) for path in folder.iterdir()}
    write_json(folder / "case.json", {
        "case": CASE, "calibration": 4, "scored": 12, "groups": None, "ours": [ours], "sha256": hashes,
    })  # fmt: skip
    return tmp_path


def calls() -> list[str]:
    return (cells.DRIVERS / "calls").read_text().split()


def test_a_finished_cell_is_not_made_again_until_its_driver_changes(build: Path) -> None:
    copy = FAKE.settings[0]
    first = cells.make(CASE, FAKE, copy, build=build)
    assert first["error"] is None
    assert first["sha256"] == digest(case_folder(CASE, build) / "fp32.onnx")
    assert cells.make(CASE, FAKE, copy, retry=True, build=build) == first
    assert calls() == ["copy"]
    (cells.DRIVERS / "fake.py").write_text(DRIVER + "\n# another version\n")
    cells.make(CASE, FAKE, copy, build=build)
    assert calls() == ["copy", "copy"]


def test_weights_beside_an_openvino_graph_count_in_its_hash(tmp_path: Path) -> None:
    graph, weights = tmp_path / "out.xml", tmp_path / "out.bin"
    graph.write_text("<net/>")
    alone = digest(graph)
    weights.write_bytes(b"1")
    first = digest(graph)
    weights.write_bytes(b"2")
    assert len({alone, first, digest(graph)}) == 3


def test_a_failing_driver_leaves_its_error_and_is_run_again_only_when_asked(build: Path) -> None:
    broken = FAKE.settings[1]
    assert cells.make(CASE, FAKE, broken, build=build)["error"] == "ValueError: this model is"
    cells.make(CASE, FAKE, broken, build=build)
    assert calls() == ["broken"]
    cells.make(CASE, FAKE, broken, retry=True, build=build)
    assert calls() == ["broken", "broken"]
    assert cells.make(CASE, FAKE, FAKE.settings[2], build=build)["error"] == "the driver wrote no out.onnx"


def test_every_setting_is_a_row_and_says_what_went_wrong(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Rival("gone", "gone", "fake.py", (Setting("copy", "copy", "nowhere"),))
    write_json(install.environment("gone", build).with_suffix(".json"), {
        "installed": False, "requirements": "r", "error": "ERROR: no such wheel",
    })  # fmt: skip
    rivals = (FAKE, gone)
    for rival in rivals:
        for setting in rival.settings[:-1] if rival is FAKE else rival.settings:
            cells.make(CASE, rival, setting, build=build)
    monkeypatch.setattr(record, "entrants", lambda case, build: entrants(case, build, rivals))
    kept = json.loads(record.write(CASE, build).read_text())
    rows = {f"{row['tool']}.{row['setting']}": row for row in kept["rows"]}
    assert list(rows) == [
        "toolchain.fp32", "toolchain.int8", "fake.copy", "fake.broken", "fake.silent", "fake.rubbish", "gone.copy",
    ]  # fmt: skip
    assert rows["fake.copy"]["agrees, %"] == 100
    assert rows["fake.broken"]["remark"] == "ValueError: this model is"
    assert rows["fake.rubbish"]["remark"].startswith("not run")
    assert rows["gone.copy"]["remark"] == "cannot be installed: ERROR: no such wheel"
    assert "top-1, %" not in rows["gone.copy"]
    assert kept["verdict"] is kept["verdict by top-1"] is None  # nothing was timed
    missing = "fake.broken, fake.rubbish, fake.silent, gone.copy"
    assert kept["note"].endswith(f"Not in the comparison (their rows say why): {missing}.")
    assert "no such wheel" in table.section(kept)


def test_a_case_of_folds_is_one_table_over_all_its_pictures(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRAININGS, CASE, 2)
    monkeypatch.setattr(record, "entrants", lambda part, build: entrants(part, build, (FAKE,)))
    folder, (first, second) = case_folder(CASE, build), parts(CASE)
    shutil.copytree(folder, folder.with_name(first))
    folder.rename(folder.with_name(second))
    right = [answered_rightly(part, build, offset) for offset, part in enumerate((first, second))]
    for part in (first, second):
        cells.make(part, FAKE, FAKE.settings[0], build=build)
        timed(part, build, {"toolchain.fp32": 900, "toolchain.int8": 300 if part == first else 400})
    cells.make(first, FAKE, FAKE.settings[3], build=build)
    kept = json.loads(record.write(CASE, build).read_text())
    rows = {row["setting"]: row for row in kept["rows"]}
    assert "4 training pictures calibrate in each of 2 trainings, 24 answers" in kept["note"]
    assert rows["fp32"]["top-1, %"] == round(100 * sum(right) / 24, 2)
    assert rows["int8"]["faster"] == pytest.approx(900 / 350, abs=0.005)
    assert rows["copy"]["agrees, %"] == 100
    assert "faster" not in rows["copy"]
    assert rows["broken"]["remark"] == f"{first}: not run: python -m benchmarks.peers.cells"
    assert rows["rubbish"]["remark"].startswith(f"{first}: its file does not run")
    own = ("toolchain.fp32", "toolchain.int8", "fake.copy")
    assert set(kept["files"]) == {f"{part}/{name}" for part in (first, second) for name in own}
    assert parts("imagenet_sample") == ("imagenet_sample",)
    state = build / "times" / second / "times.json"
    for change in ({"blocks": 30}, {"host": {"cores": 2, "cpu": "another"}}):
        before = read_json(state) or {}
        write_json(state, before | change)
        untimed = json.loads(record.write(CASE, build).read_text())
        assert "Times not measured" in untimed["note"]
        assert all("faster" not in row for row in untimed["rows"])
        write_json(state, before)


def answered_rightly(part: str, build: Path, offset: int) -> int:
    """Gives a part pictures, labels and groups of its own; how many its float file answers rightly."""
    folder = case_folder(part, build)
    np.save(
        folder / "held_back.npy",
        np.random.default_rng(offset + 5).normal(size=(12, 3, 8, 8)).astype(np.float32),
    )
    labels = (np.arange(12) + offset) % 3
    np.save(folder / "labels.npy", labels)
    state = read_json(folder / "case.json") or {}
    hashes = {path.name: digest(path) for path in folder.iterdir() if path.suffix != ".json"}
    groups = [f"{part}-{number // 2}" for number in range(12)]
    write_json(folder / "case.json", state | {"sha256": hashes, "groups": groups})
    logits, _ = answers(part, entrants(part, build, ())[0], build)
    return int((logits.argmax(axis=1) == labels).sum())


def timed(part: str, build: Path, nanoseconds: dict[str, int]) -> None:
    """What a timing run of a part leaves."""
    folder = build / "times" / part
    folder.mkdir(parents=True)
    raw = {f"blocks/{name}": np.full((20, 5), value) for name, value in nanoseconds.items()}
    raw |= {f"mixed/{name}": np.full(9, value) for name, value in nanoseconds.items()}
    np.savez(folder / "raw.npz", load=np.zeros((2, 3)), **raw)
    hashes = {each.name: each.sha256 for each in entrants(part, build, ())}
    write_json(folder / "times.json", {"sha256": hashes, "host": {"cores": 2}, "blocks": 20})


def test_a_file_that_does_not_run_is_a_reason_kept_by_content(build: Path) -> None:
    cells.make(CASE, FAKE, FAKE.settings[3], build=build)
    (rubbish,) = [each for each in entrants(CASE, build, (FAKE,)) if each.setting == "rubbish"]
    logits, error = answers(CASE, rubbish, build)
    assert logits is None
    assert error is not None
    assert error.endswith("ModelError: out.onnx: not an ONNX file, or cut short")
    done = next((build / "answers").rglob("done.json"))
    write_json(done, {"error": "as remembered"})
    assert answers(CASE, rubbish, build)[1] == "its file does not run: as remembered"


def test_rounds_of_several_processes_count_as_one_run_at_the_highest_load() -> None:
    def one(load: float, value: int) -> dict[str, Any]:
        samples = {"blocks/a": np.full((2, 3), value), "mixed/a": np.full(4, value)}
        return {"load": np.array([[load, 1, 1], [0.5, 2, 2]]), **samples}

    found = timing.pooled([one(0.1, 5), one(0.7, 6)])
    assert found["load"].tolist() == [[0.7, 1, 1], [0.5, 2, 2]]
    assert found["blocks/a"].tolist() == [[5] * 3] * 2 + [[6] * 3] * 2
    assert found["mixed/a"].tolist() == [5] * 4 + [6] * 4


def test_each_process_has_its_own_ratio() -> None:
    def rounds(*values: int) -> Any:
        return SimpleNamespace(blocks=np.repeat(values, 2)[:, None] * np.ones((1, 3)))

    assert record.apart(rounds(6, 6), rounds(5, 4), 2) == [1.2, 1.5]


def test_ten_processes_are_drawn_whole_and_fewer_by_their_rounds() -> None:
    def timed(values: Any) -> Any:
        return SimpleNamespace(blocks=np.repeat(values, 8)[:, None] * np.ones((1, 3)))

    chance = np.random.default_rng(0)  # 8 rounds a process; what differs differs between processes
    slow, fast = np.full(10, 120.0), chance.normal(100, 3, size=10)
    few, many = (record.faster(timed(slow[:n]), timed(fast[:n]), n) for n in (9, 10))
    assert many.value == pytest.approx(few.value, rel=0.02)
    assert np.ptp(many.ci95) > 1.5 * np.ptp(few.ci95)


def test_times_of_other_files_are_not_shown(build: Path) -> None:
    cells.make(CASE, FAKE, FAKE.settings[0], build=build)
    folder = build / "times" / CASE
    hashes = {each.name: each.sha256 for each in entrants(CASE, build, (FAKE,)) if each.sha256}
    raw = {f"blocks/{name}": np.full((3, 4), 5) for name in hashes} | {
        f"mixed/{name}": np.full(9, 5) for name in hashes
    }
    folder.mkdir(parents=True)
    np.savez(folder / "raw.npz", load=np.zeros((2, 3)), **raw)
    write_json(
        folder / "times.json",
        {"sha256": {"toolchain.int8": hashes["toolchain.int8"]}, "host": {"cores": 2}, "blocks": 3},
    )
    assert record.times(CASE, build).count == 3
    assert record.times(CASE, build).raw is not None
    np.savez(folder / "raw.npz", load=np.full((2, 3), 20.0), **raw)
    assert record.times(CASE, build).raw is None
    assert "too busy" in record.note(
        {"top1": None}, record.times(CASE, build).load, {"calibration": 4, "scored": 12, "parts": 1}
    )
    np.savez(folder / "raw.npz", load=np.zeros((2, 3)), **raw)
    write_json(
        folder / "times.json", {"sha256": {"toolchain.int8": "another"}, "host": {"cores": 2}, "blocks": 3}
    )
    assert record.times(CASE, build).raw is None


def side(
    tool: str, setting: str, wrong: int, ns: int, *, foreign: bool = False, found: bool = False
) -> record.Scored:
    """A file that answers `wrong` of 400 pictures wrongly, and takes about `ns`."""
    own = Entrant(tool, setting, "", "", "", Path("none"), "s", foreign=foreign, found=found)
    answered = np.where(np.arange(400) < wrong, 1, 0)
    blocks = np.random.default_rng(wrong).normal(ns, ns / 50, (20, 25)).astype(np.int64)
    return record.Scored((own,), np.eye(2)[answered], blocks, blocks[0])


def test_the_verdict_takes_the_fastest_within_a_point_on_both_sides() -> None:
    files = [
        side("toolchain", "fp32", 4, 1000), side("toolchain", "int8", 4, 500), side("toolchain", "lossy", 40, 100),
        side("rival", "best", 5, 1000), side("rival", "faster but wrong", 60, 200),
        side("OpenVINO", "foreign", 4, 50, foreign=True),
    ]  # fmt: skip
    scored = {each.entrant.name: each for each in files}
    truth = record.Truth(np.zeros(400, np.int64), None)
    said = record.verdict(scored, truth, (1.5, None))
    assert said is not None
    assert (said["ours"], said["best rival"]) == ("int8", "rival.best")
    assert said["faster than the best rival"] == pytest.approx(2, rel=0.05)
    assert said["met"]
    alone = {name: each for name, each in scored.items() if name != "rival.best"}
    nobody = record.verdict(alone, truth, (1.5, None))
    assert nobody == {"ours": "toolchain.int8", "best rival": None, "met": False}
    load = [[0.5, 0.5, 0.5]] * 2
    assert "no file of rivals' " in record.note(
        {"By top-1": nobody}, load, {"calibration": 4, "scored": 400, "parts": 1}
    )
    assert "a quiet machine" in record.note(
        {"By balanced accuracy": None, "By top-1": said}, load, {"calibration": 4, "scored": 400, "parts": 1}
    )
    missed = record.verdict(scored, truth, (1.5, 6.0))
    assert missed is not None
    assert not missed["met"]


def test_a_rivals_setting_whose_layers_we_chose_counts_in_one_verdict_and_not_in_the_other() -> None:
    files = [
        side("toolchain", "fp32", 4, 1000), side("toolchain", "int8", 4, 500),
        side("rival", "as documented", 4, 1000), side("rival", "our choice", 4, 550, found=True),
    ]  # fmt: skip
    truth = record.Truth(np.zeros(400, np.int64), None)
    said = record.verdicts("imagenet_sample", {each.entrant.name: each for each in files}, truth, 1)
    rivals = {words: (one or {})["best rival"] for words, one in said.items()}
    by = record.BY["top1"]
    assert rivals == {by: "rival.our choice", by + record.DOCUMENTED: "rival.as documented"}
    del files[-1]
    assert list(
        record.verdicts("imagenet_sample", {each.entrant.name: each for each in files}, truth, 1)
    ) == [by]


def test_what_is_within_a_point_goes_by_the_recipes_metric() -> None:
    """Three wrong of the ten of a rare class are 0.75 points of top-1 and 15 of balanced accuracy."""
    labels = np.where(np.arange(400) < 10, 1, 0)

    def answering(tool: str, setting: str, lost: int, ns: int) -> record.Scored:
        answered = np.where(np.arange(400) < lost, 0, labels)
        blocks = np.random.default_rng(lost).normal(ns, ns / 50, (20, 25)).astype(np.int64)
        return record.Scored(
            (Entrant(tool, setting, "", "", "", Path("none"), "s"),), np.eye(2)[answered], blocks, blocks[0]
        )

    files = [
        answering("toolchain", "fp32", 0, 1000), answering("toolchain", "int8", 0, 500),
        answering("toolchain", "lossy", 3, 100), answering("rival", "best", 0, 1000),
    ]  # fmt: skip
    scored, truth = {each.entrant.name: each for each in files}, record.Truth(labels, None)
    plain, balanced = (record.verdict(scored, truth, (1.5, 1.5), metric) for metric in ("top1", "balanced"))
    assert plain is not None
    assert balanced is not None
    assert (plain["ours"], balanced["ours"]) == ("lossy", "int8")
    assert set(record.METRICS) == set(record.BARS) == {task(case) for case in CASES}
    assert set(record.WHAT) == set(CASES)


def test_without_a_speed_over_fp32_ours_may_not_be_worse_than_the_rival() -> None:
    files = [
        side("toolchain", "fp32", 4, 1000), side("toolchain", "int8", 8, 500), side("rival", "best", 0, 1000),
    ]  # fmt: skip
    scored = {each.entrant.name: each for each in files}
    truth = record.Truth(np.zeros(400, np.int64), None)
    worse = record.verdict(scored, truth, (1.5, None))
    assert worse is not None
    assert worse["points lost to the best rival ci95"][0] > 0
    assert not worse["met"]


@pytest.mark.parametrize(
    ("log", "last"),
    [
        ("", None),
        ("one\n\n two \n", "two"),
        (
            "Traceback …\nonnx.checker.ValidationError: bad\nwarnings: at exit\n",
            "onnx.checker.ValidationError: bad",
        ),
        ("OSError: /srv/a b/c.onnx and /tmp/x-1/y_2.json\n", "OSError: a b/c.onnx and y_2.json"),
        (
            "\x1b[31mERROR: No matching distribution\x1b[0m\n[notice] new pip\n",
            "ERROR: No matching distribution",
        ),
    ],
)
def test_the_last_error_line(log: str, last: str | None) -> None:
    assert process.last_error(log) == last


def test_a_driver_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    program = "import subprocess, sys; subprocess.run(['sleep', '600'])"
    outcome = process.run([sys.executable, "-c", program], tmp_path / "log", {}, 1.0)
    assert outcome.error == "not done after 1 s"
    assert outcome.seconds < 60


def test_an_environment_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'Error: ensurepip is missing'\nexit 1\n")
    broken.chmod(0o755)
    (tmp_path / "some.txt").write_text("some==1.0\n")
    install.install("some", broken, tmp_path, tmp_path)
    assert install.problem("some", tmp_path) == "cannot be installed: Error: ensurepip is missing"
    assert install.problem("other", tmp_path) == "not installed: make peers"
    state = read_json(install.environment("some", tmp_path).with_suffix(".json"))
    assert state is not None
    assert not state["installed"]


@pytest.mark.parametrize("path", sorted(install.REQUIREMENTS.glob("*.txt")), ids=lambda path: path.stem)
def test_requirements_are_exact_and_name_no_index(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z]+\])?==[A-Za-z0-9.!]+", line), line


def test_a_case_may_name_the_settings_that_are_run_on_it(build: Path) -> None:
    """They are the rows of each of its parts; other cases have all."""
    part = parts("magnetic_tile_seeds")[14]
    shutil.copytree(case_folder(CASE, build), case_folder(part, build))
    few = [each.name for each in entrants(part, build) if each.tool != "toolchain"]
    assert few == [
        "NNCF.accurate", "Neural Compressor 2.6.tuned", "OpenVINO.float", "OpenVINO.nncf-mixed",
    ]  # fmt: skip
    assert rivals("magnetic_tile_3") == rivals("imagenet_sample")


def test_settings_for_one_kind_of_processor_are_run_there_only() -> None:
    def named(isa: str) -> set[str]:
        return {rival.cell(one) for rival in rivals("imagenet_sample", isa) for one in rival.settings}

    every = {rival.cell(one) for rival in RIVALS for one in rival.settings}
    assert named("x86-avx2") == every
    assert every - named("x86-vnni") == {
        rival.cell(one) for rival in RIVALS for one in rival.settings if one.isa
    }
    assert "onnxruntime.static-reduced" in named("x86-avx2") - named("x86-vnni")
    chosen = {f"{tool}.{name}" for some in SOME.values() for tool, names in some.items() for name in names}
    assert chosen <= every


@pytest.mark.parametrize("case", SOME)
def test_the_settings_of_several_seeds_are_those_that_came_near_with_one(case: str) -> None:
    """As the record of the first seed has them."""
    record_of_one = RESULTS / f"peers_{case.removesuffix('_seeds')}.x86-vnni.json"
    rows = [row for row in json.loads(record_of_one.read_text())["rows"] if row["tool"] != "toolchain"]
    if case.startswith("magnetic_tile"):
        near = [row for row in rows if row.get("lost, points", 100) < 10]
    else:
        good = [row for row in rows if row.get("within 1 point") and row["tool"] != "OpenVINO"]
        near = [row for row in good if row["faster"] >= 0.95 * max(each["faster"] for each in good)]
    assert {(row["tool"], row["setting"]) for row in near} == {
        (rival.name, one.name) for rival in rivals(f"{case}_1", "x86-vnni") for one in rival.settings
    }


@pytest.mark.parametrize("number", [1, 2])
def test_a_part_of_a_recipe_is_the_recipe_with_its_seed(
    number: int, build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that are there are left alone."""
    case, shipped = "blood_cells_small_seeds", list[tuple[Any, ...]]()
    monkeypatch.setattr(cases, "ship", lambda part, name, pipeline, _: shipped.append((part, name, pipeline)))
    monkeypatch.setattr(cases.Pipeline, "data", lambda self: ("data", "checks"))
    monkeypatch.setattr(cases, "case_folder", lambda part: case_folder(part, build))
    for part in parts(case):
        if part != f"{case}_{number}":
            shutil.copytree(case_folder(CASE, build), case_folder(part, build))
    monkeypatch.setattr(sys, "argv", ["cases", case, "--store", str(build / "store")])
    assert cases.main() == 0
    ((part, name, pipeline),) = shipped
    assert (part, name, pipeline.recipe.seed) == (f"{case}_{number}", "blood-cells-small", number)


@pytest.mark.parametrize(("number", "fold", "seed"), [(0, 0, 0), (4, 4, 0), (5, 0, 1), (14, 4, 2)])
def test_a_part_of_several_seeds_is_a_fold_with_its_seed(
    number: int, fold: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Any, ...]] = []
    monkeypatch.setattr(cases, "tiles", lambda: "tiles")
    monkeypatch.setattr(cases.trip, "opened", lambda *asked: (opened.append(asked), ("pipeline", "data"))[1])
    monkeypatch.setattr(cases, "ship", lambda *shipped: opened.append(shipped))
    cases.of_fold("magnetic_tile_seeds", "part", number, Path("store"))
    assert opened == [
        ("tiles", fold, Path("store"), seed), ("part", "surface-inspection", "pipeline", "data"),
    ]  # fmt: skip


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
def test_every_setting_has_a_driver_and_a_source(rival: Rival) -> None:
    text = (cells.DRIVERS / rival.driver).read_text()
    assert (install.REQUIREMENTS / f"{rival.environment}.txt").is_file()
    for setting in rival.settings:
        assert f'"{setting.name}": ' in text
        assert setting.documented


def test_the_entropy_driver_calibrates_on_whole_parts_only(build: Path) -> None:
    """onnxruntime takes no part that is not whole: of 18 pictures the first 16 count, and not fewer."""
    folder = case_folder(CASE, build)
    pictures = np.random.default_rng(1).normal(size=(32, 3, 8, 8)).astype(np.float32)
    pictures[16:] *= 3
    for count in (16, 18, 32):
        np.save(build / f"{count}.npy", pictures[:count])
        subprocess.run(
            (
                sys.executable, cells.HERE / "drivers" / "onnxruntime_driver.py", folder / "fp32.onnx",
                build / f"{count}.npy", build / f"{count}.onnx", "static-u8s8-entropy",
            ),
            check=True, capture_output=True,
        )  # fmt: skip
    made = {count: (build / f"{count}.onnx").read_bytes() for count in (16, 18, 32)}
    assert made[18] == made[16]
    assert made[32] != made[16]
