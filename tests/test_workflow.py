"""The whole trip on coloured squares: what it leaves, and that it never does work twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from tiny import TinyRun, command, tiny_pictures, tiny_recipe
from tiny import tiny_run as make

import toolchain
from toolchain import proposal
from toolchain.report import SCHEMA
from toolchain.runtime import limits
from toolchain.store import Store, hash_path

RECOVER = {"recover": {"teacher": "tuned", "epochs": 1, "batch_size": 8, "lr": 0.01}}
VARIANTS: dict[str, Any] = {
    "fp32": {"from": "tuned", "steps": ["export"]},
    "int8": {"from": "fp32", "steps": [{"quantize": {"pictures": 16}}]},
    "pruned": {"from": "tuned", "steps": [{"prune": {"ratio": 0.5}}, RECOVER, "export"]},
    "pruned-int8": {"from": "pruned", "steps": [{"quantize": {"pictures": 16}}]},
}


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return make(tmp_path_factory.mktemp("trip"), variants=VARIANTS)


def report(run: TinyRun) -> dict[str, Any]:
    return json.loads((run.out / "report.json").read_text())  # type: ignore[no-any-return]


def onnx_files(store: Path) -> dict[str, str]:
    return {
        f"{e.record.key}/{p.name}": hash_path(p)
        for e in Store(store).entries()
        for p in e.folder.glob("*.onnx")
    }


def test_the_report_fits_its_schema_and_has_every_variant(trip: TinyRun) -> None:
    found = report(trip)
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert [variant["name"] for variant in found["variants"]] == list(VARIANTS)
    for variant in found["variants"]:
        assert variant["accuracy"]["cpu"]["split"] == "test"
        assert variant["accuracy"]["cpu"]["n"] == 18
        assert {row["file"] for row in variant["latency"]["cpu"]} == {"plain", "fused"}
        assert Path(variant["path"]).stat().st_size == variant["bytes"]
    assert {speedup["of"] for speedup in found["speedups"]} == {"int8", "pruned", "pruned-int8"}
    assert {curve["artifact"] for curve in found["curves"]} == {"tuned", "pruned/1-recover"}


def test_pruning_lowers_macs_and_parameters(trip: TinyRun) -> None:
    by_name = {variant["name"]: variant for variant in report(trip)["variants"]}
    assert by_name["pruned"]["macs"] < by_name["fp32"]["macs"]
    assert by_name["pruned"]["params"] < by_name["fp32"]["params"]
    assert by_name["pruned-int8"]["macs"] == by_name["pruned"]["macs"]


def test_test_pictures_decide_nothing(trip: TinyRun) -> None:
    assert {gate["split"] for gate in report(trip)["gates"]} == {"val"}


def test_the_bundle_verifies_and_predicts(trip: TinyRun, tmp_path: Path) -> None:
    assert command("verify", trip.bundle).code == 0
    table = tmp_path / "answers.csv"
    answer = command("predict", trip.bundle, trip.pictures / "test", "--csv", table)
    assert answer.code == 0
    rows = list(csv.DictReader(table.open(newline="")))
    assert len(rows) == 18
    bundle = toolchain.Bundle.load(trip.bundle)
    assert bundle.manifest.labels == ("blue", "green", "red")
    printed = command("predict", trip.bundle, trip.pictures / "test", "--json", "--threads", 2)
    assert [answer["label"] for answer in json.loads(printed.out)] == [row["label"] for row in rows]


def test_a_stranger_s_bundle_may_be_given_little_memory(
    trip: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(limits, "limit_memory", given.append)  # for good, in this process
    assert command("verify", trip.bundle, "--memory-limit", 700).code == 0
    assert command("predict", trip.bundle, trip.pictures / "test", "--memory-limit", 800).code == 0
    assert given == [700, 800]


def test_a_second_start_repeats_no_step(trip: TinyRun) -> None:
    before = {p: p.stat().st_mtime_ns for p in (trip.store / "objects").glob("*/record.json")}
    old = report(trip)
    answer = command("run", trip.recipe, "--out", trip.out, "--store", trip.store)
    assert answer.code == 0
    assert {p: p.stat().st_mtime_ns for p in (trip.store / "objects").glob("*/record.json")} == before
    again = report(trip)
    assert all(step["reused"] for step in again["steps"] if step["step"] != "latency")
    for section in ("variants", "speedups", "chosen", "gates"):
        assert again[section] == old[section]
    assert again["bundle"]["identity"] == old["bundle"]["identity"]


def test_the_recipe_in_the_report_can_be_run_again(trip: TinyRun, tmp_path: Path) -> None:
    answer = command("run", trip.out / "recipe.yaml", "--out", tmp_path / "again", "--store", trip.store)
    assert answer.code == 0
    found = json.loads((tmp_path / "again" / "report.json").read_text())
    assert all(step["reused"] for step in found["steps"] if step["step"] != "latency")


def test_an_undisturbed_run_elsewhere_makes_the_same_files(trip: TinyRun, tmp_path: Path) -> None:
    answer = command(
        "run", trip.recipe, "--out", tmp_path / "out", "--store", tmp_path / "store", "--until", "int8"
    )
    assert answer.code == 0
    made = onnx_files(tmp_path / "store")
    assert made
    assert made.items() <= onnx_files(trip.store).items()


def test_until_stops_before_what_it_does_not_need(trip: TinyRun, tmp_path: Path) -> None:
    answer = command(
        "run", trip.recipe, "--out", tmp_path / "out", "--store", tmp_path / "s", "--until", "tuned"
    )
    assert answer.code == 0
    steps = {entry.record.step for entry in Store(tmp_path / "s").entries()}
    assert "tune" in steps
    assert "export" not in steps
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_changed_setting_redoes_only_what_depends_on_it(trip: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(trip.store, tmp_path / "store")
    before = {entry.record.key for entry in Store(tmp_path / "store").entries()}
    changed = "variants.int8.steps[0].quantize.pictures=8"
    answer = command(
        "run", trip.recipe, "--out", tmp_path / "o", "--store", tmp_path / "store", "--set", changed
    )
    assert answer.code == 0
    new = [e.record.step for e in Store(tmp_path / "store").entries() if e.record.key not in before]
    assert sorted(new) == ["answers", "answers", "latency", "quantize"]


def test_a_failed_gate_exits_3_and_still_reports(trip: TinyRun, tmp_path: Path) -> None:
    answer = command(
        "run",
        trip.recipe,
        "--out",
        tmp_path / "out",
        "--store",
        trip.store,
        "--set",
        "gates.max_latency_ms=1e-9",
    )
    assert answer.code == 3
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["chosen"] is None
    assert not (tmp_path / "out" / "bundle").exists()
    assert "max_latency_ms" in answer.out


def test_a_failed_gate_leaves_no_older_bundle_to_be_taken_for_this_run(trip: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(trip.out, tmp_path / "out")
    command(
        "run",
        trip.recipe,
        "--out",
        tmp_path / "out",
        "--store",
        trip.store,
        "--set",
        "gates.max_latency_ms=1e-9",
    )
    assert not (tmp_path / "out" / "bundle").exists()


@pytest.mark.parametrize("form", ["html", "md", "json"])
def test_the_report_is_rendered_again(trip: TinyRun, form: str) -> None:
    answer = command("report", trip.out, "--format", form)
    assert answer.code == 0
    assert answer.out == (trip.out / f"report.{form}").read_text()


def test_init_writes_a_recipe_that_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_pictures(tmp_path / "pictures")
    assert command("init", tmp_path / "pictures").code == 0
    written = (tmp_path / "pictures" / "recipe.yaml").read_text()
    assert "bundled: small" in written
    assert "weights: hub}" in written  # how to take ImageNet's instead
    answer = command("check", tmp_path / "pictures" / "recipe.yaml")
    assert answer.code == 0, answer.err
    assert "train: 36 pictures" in answer.out
    assert command("init", tmp_path / "pictures").code == 2
    monkeypatch.setattr(proposal, "_FEW", 36)
    assert command("init", tmp_path / "pictures", "--force").code == 0
    assert "bundled: nano" in (tmp_path / "pictures" / "recipe.yaml").read_text()


def test_settings_of_training_that_others_switch_off_are_told(tmp_path: Path) -> None:
    idle = {"momentum": 0.8, "patience": 2, "factor": 0.5, "balance_power": 0.5}
    pictures = tiny_pictures(tmp_path / "pictures")
    answer = command("check", tiny_recipe(tmp_path, pictures, tune={"epochs": 1, **idle}))
    assert answer.code == 0, answer.err
    for name in idle:
        assert f"note: tuned: tune.{name} does nothing without" in answer.out
    read = {"optimizer": "sgd", "schedule": "plateau", "balance": "loss"}
    assert "does nothing" not in command("check", tiny_recipe(tmp_path, pictures, tune={**idle, **read})).out


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"amp": "fp16"}, "amp 'fp16' needs a GPU"),
        ({"train": 40}, "train: 40 blocks asked for, the network has"),
    ],
)
def test_training_that_cannot_be_is_told_before_it_begins(
    setting: dict[str, object], told: str, tmp_path: Path
) -> None:
    pictures = tiny_pictures(tmp_path / "pictures")
    recipe = tiny_recipe(tmp_path, pictures, tune={"epochs": 1, "batch_size": 8, **setting})
    answer = command("check", recipe)
    assert (answer.code, told in answer.err) == (2, True), answer.err


def test_grey_stem_refuses_a_mean_a_channel_before_training(tmp_path: Path) -> None:
    pictures = tiny_pictures(tmp_path / "pictures")
    variants = {"fp32": {"from": "tuned", "steps": ["export", "grey_stem"]}}
    for mean, code in (([0.4, 0.5, 0.5], 2), ([0.5, 0.5, 0.5], 0)):
        given = {"mean": mean, "std": [0.5, 0.5, 0.5]}
        backbone = {"timm": "resnet10t", "weights": "random", "preprocess": {"size": 32, **given}}
        recipe = tiny_recipe(tmp_path, pictures, variants=variants, backbone=backbone)
        answer = command("check", recipe)
        assert (answer.code, "preprocess.mean is 0.4, 0.5, 0.5" in answer.err) == (code, code == 2), (
            answer.err
        )


def test_uneven_classes_are_balanced_by_margins(tmp_path: Path) -> None:
    pictures = tiny_pictures(tmp_path / "pictures")
    for picture in sorted((pictures / "train").rglob("*.png"))[3:12]:
        picture.unlink()
    assert command("init", pictures).code == 0
    made = yaml.safe_load((pictures / "recipe.yaml").read_text())
    assert (made["tune"]["balance"], made["tune"]["balance_power"]) == ("logits", 0.5)
    assert made["variants"]["pruned"]["steps"][1]["recover"]["balance"] == "sampler"
    assert command("check", pictures / "recipe.yaml").code == 0


@pytest.mark.parametrize("name", ["2024", "2024-05-01", "on", "null"])
def test_init_quotes_a_name_that_yaml_takes_for_something_else(tmp_path: Path, name: str) -> None:
    tiny_pictures(tmp_path / name)
    assert command("init", tmp_path / name).code == 0
    answer = command("check", tmp_path / name / "recipe.yaml")
    assert answer.code == 0, answer.err


def test_a_bundle_tells_no_paths_of_this_machine(trip: TinyRun) -> None:
    for path in trip.bundle.glob("*.json"):
        assert str(trip.store) not in path.read_text(), path.name


def test_a_foreign_onnx_file_is_measured_beside_its_compressed_forms(trip: TinyRun, tmp_path: Path) -> None:
    plain = trip.bundle / "model.plain.onnx"
    variants = {
        "fp32": {
            "adopt": {
                "file": str(plain),
                "preprocess": json.loads((trip.bundle / "manifest.json").read_text())["preprocessing"],
            }
        },
        "int8": {"from": "fp32", "steps": [{"quantize": {"pictures": 16}}]},
    }
    path = tiny_recipe(tmp_path, trip.pictures, backbone=None, tune=None, variants=variants)
    answer = command("run", path, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [variant["name"] for variant in found["variants"]] == ["fp32", "int8"]


def test_a_run_starts_from_a_finished_checkpoint(trip: TinyRun, tmp_path: Path) -> None:
    tuned = next(e.folder for e in Store(trip.store).entries() if e.record.step == "tune")
    path = tiny_recipe(tmp_path, trip.pictures, backbone=None, tune=None, tuned={"file": str(tuned)})
    answer = command("run", path, "--out", tmp_path / "out", "--store", tmp_path / "store")
    assert answer.code == 0, answer.err


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_in_the_same_files(trip: TinyRun, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from toolchain.cli import main; main()"]
    asked = ["run", str(trip.recipe), "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    for seconds in (8.0, 11.0, 14.0, 17.0):
        process = subprocess.Popen([*program, *asked], start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run([*program, *asked], check=False).returncode == 0
    assert onnx_files(tmp_path / "store") == onnx_files(trip.store)


@pytest.mark.slow
def test_two_runs_at_once_over_one_store(trip: TinyRun, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from toolchain.cli import main; main()"]
    runs = [
        subprocess.Popen(
            [*program, "run", str(trip.recipe), "--out", str(tmp_path / n), "--store", str(tmp_path / "s")]
        )
        for n in ("a", "b")
    ]
    assert [run.wait() for run in runs] == [0, 0]
    assert onnx_files(tmp_path / "s") == onnx_files(trip.store)
