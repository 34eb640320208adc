"""The whole command on coloured squares: search, bundle, resume, bounds that nothing keeps."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_helpers import mobile
from tiny import Answer, TinyRun, Trip, command, tiny_pictures, tiny_recipe

from toolchain import workflow
from toolchain.errors import BackboneError, DataError, HostError, ParityError, RecipeError
from toolchain.optimize import search as searching
from toolchain.optimize import tables
from toolchain.optimize.asked import Asked
from toolchain.optimize.budget import Deadline, Durations, OutOfTimeError
from toolchain.optimize.design import Design, Scheme, Template
from toolchain.optimize.points import Failure, Miss, Point
from toolchain.optimize.trials import Trials
from toolchain.optimize.widths import Costs
from toolchain.optimize.workflow import _Optimize, optimize, prepared
from toolchain.progress import Silent
from toolchain.recipe import Gates, load
from toolchain.runtime import host
from toolchain.store import Store
from toolchain.workflow import Places, Wishes

RECOVER = {"recover": {"teacher": "tuned", "epochs": 1, "batch_size": 8, "lr": 0.01}}
VARIANTS: dict[str, Any] = {
    "fp32": {"from": "tuned", "steps": ["export"]},
    "int8": {"from": "fp32", "steps": [{"quantize": {"pictures": 16}}]},
    "pruned": {"from": "tuned", "steps": [{"prune": {"ratio": 0.5}}, RECOVER, "export"]},
    "equalized": {
        "from": "fp32",
        "steps": ["equalize", {"quantize": {"pictures": 16, "per_channel": False}}],
    },
    "grey": {"from": "fp32", "steps": ["grey_stem"]},  # of coloured pictures: refused
}
BACKBONE = {
    "timm": "resnet10t", "weights": "random", "kwargs": {"channels": [16, 16, 32, 32], "stem_width": 16},
    "preprocess": {"size": 16, "crop_pct": 1.0},
}  # fmt: skip


def ask(run: TinyRun, *options: object, out: Path | None = None) -> Answer:
    return command("optimize", run.recipe, "--out", out or run.out, "--store", run.store, *options)


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Trip:
    folder = tmp_path_factory.mktemp("optimize")
    pictures = tiny_pictures(folder / "pictures")
    recipe = tiny_recipe(folder, pictures, variants=VARIANTS, backbone=BACKBONE, gates={"max_drop": 100})
    run = TinyRun(recipe, folder / "out", folder / "store", pictures)
    return Trip(run, ask(run, "--max-latency", "1s", "--budget", "10m"))


def test_the_chosen_point_is_a_bundle_that_verifies(trip: Trip) -> None:
    assert trip.answer.code == 0, trip.answer.err
    chosen = trip.found["chosen"]
    assert chosen is not None
    manifest = json.loads((trip.run.bundle / "manifest.json").read_text())
    assert manifest["variant"] == chosen
    assert command("verify", trip.run.bundle).code == 0
    report = json.loads((trip.run.out / "report.json").read_text())
    assert report["chosen"] == chosen
    assert host.waited() is None or 0 <= report["host"]["waited"] < 1
    assert {variant["name"] for variant in report["variants"]} == {"fp32", chosen}


def test_it_searches_quantization_pruning_and_recovery(trip: Trip) -> None:
    points = trip.found["points"]
    assert {"fp32", "int8", "int8-stem"} <= {point["design"]["scheme"] for point in points}
    trained = [point for point in points if point["design"]["epochs"]]
    assert any(point["design"]["shape"] == "table" for point in trained)
    assert trip.found["layers"]


def test_a_variant_of_the_recipe_that_is_made_otherwise_is_a_point_as_run_makes_it(trip: Trip) -> None:
    names = {point["name"]: point for point in trip.found["points"]}
    assert {name for name in names if name.startswith("own-")} == {
        "own-equalized"
    }  # int8 and pruned are composed
    assert names["own-equalized"]["design"]["own"] == "equalized"
    assert "own-grey" in {unmade["name"] for unmade in trip.found["not_made"]}
    pipeline = workflow.open_pipeline(load(trip.run.recipe), trip.run.store, Wishes(), Silent())
    missing = {node.variant for node in pipeline.missing(pipeline.data()[0])}
    assert "pruned" in missing  # another ratio than any that the search came to
    assert not {"fp32", "int8", "equalized"} & missing


def test_what_was_chosen_keeps_every_bound_and_is_not_slower_than_fp32(trip: Trip) -> None:
    chosen = next(point for point in trip.found["points"] if point["name"] == trip.found["chosen"])
    assert chosen["feasible"]
    assert not chosen["slower"]
    assert chosen["name"] == "fp32" or chosen["speedup"]["low"] > 1
    # It was timed anew, the others were not: that it was the fastest before is tested in test_optimize_points.py.


def test_test_pictures_are_read_for_the_chosen_file_and_fp32_only(trip: Trip) -> None:
    entries = [e.record for e in Store(trip.run.store).entries()]
    splits: dict[str, set[str]] = {}
    for record in entries:
        if record.step == "answers":
            splits.setdefault(str(record.files), set()).add(record.key)
    files = {record.parents["model"] for record in entries if record.step == "answers"}
    counted = sum(record.step == "answers" for record in entries)
    assert counted == len(files) + len({"fp32", trip.found["chosen"]})
    assert trip.found["test"]["n"] == 18


def test_the_page_tells_the_choice_and_loads_nothing(trip: Trip) -> None:
    page = (trip.run.out / "optimize.html").read_text()
    assert trip.found["chosen"] in page
    assert "<svg" in page
    assert "src=" not in page
    for reason in trip.found["reasons"]:
        assert reason.split(",")[0] in page


def test_what_the_parts_lose_to_pruning_and_int8_is_shown(trip: Trip) -> None:
    found = trip.found["sensitivity"]
    parts = found["pruning"]["parts"]
    assert {layer["name"] for layer in trip.found["layers"]} >= {part["name"] for part in parts}
    assert all(len(part["sqnr"]) == len(part["shares"]) == 3 for part in parts)
    assert found["int8"]["parts"]
    assert 0 <= found["int8"]["agreement"] <= 1
    page = (trip.run.out / "optimize.html").read_text()
    assert "sensitivity of fp32 to pruning" in page
    assert "sensitivity of int8 to int8" in page


def test_the_recipe_it_leaves_can_be_run(trip: Trip, tmp_path: Path) -> None:
    answer = command("run", trip.run.out / "recipe.yaml", "--out", tmp_path / "o", "--store", trip.run.store)
    assert answer.code == 0, answer.err
    steps = json.loads((tmp_path / "o" / "report.json").read_text())["steps"]
    assert all(step["reused"] for step in steps if step["step"] != "latency")


def test_a_second_start_does_no_work_twice(trip: Trip) -> None:
    before = {p: p.stat().st_mtime_ns for p in (trip.run.store / "objects").glob("*/record.json")}
    old = trip.found
    answer = ask(trip.run, "--max-latency", "1s", "--budget", "10m")
    assert answer.code == 0, answer.err
    after = {p: p.stat().st_mtime_ns for p in (trip.run.store / "objects").glob("*/record.json")}
    assert {p: after[p] for p in before} == before
    assert [p["name"] for p in trip.found["points"]][: len(old["points"])] == [
        p["name"] for p in old["points"]
    ]
    assert trip.found["chosen"] == old["chosen"]


def test_a_bound_that_nothing_keeps_exits_3_with_what_would_have_to_give(trip: Trip, tmp_path: Path) -> None:
    answer = ask(trip.run, "--max-latency", "1us", "--budget", "60s", out=tmp_path)
    assert answer.code == 3, answer.err
    assert "no point of" in answer.out
    assert "--max-latency" in answer.out
    found = json.loads((tmp_path / "optimize.json").read_text())
    assert found["chosen"] is None
    assert found["closest"]
    assert found["test"] is None
    assert not (tmp_path / "bundle").exists()


def test_bounds_that_nothing_keeps_leave_no_older_bundle(trip: Trip, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    (tmp_path / "report.html").write_text("of an older search")
    assert ask(trip.run, "--max-size", "1kB", "--budget", "60s", out=tmp_path).code == 3
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "report.html").exists()


def test_the_recipe_given_is_never_replaced(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, tmp_path / "none", variants=VARIANTS, backbone=BACKBONE)
    before = recipe.read_bytes()
    run = TinyRun(recipe, tmp_path, tmp_path / "store", tmp_path / "none")
    answer = ask(run, "--max-drop", "1")
    assert answer.code == 2
    assert "name another folder" in answer.err
    assert recipe.read_bytes() == before


def test_memory_can_be_a_bound(trip: Trip, tmp_path: Path) -> None:
    answer = ask(trip.run, "--max-memory", "1MB", "--budget", "90s", out=tmp_path)
    assert answer.code == 3, answer.err
    found = json.loads((tmp_path / "optimize.json").read_text())
    assert all(point["memory_mb"] > 1 for point in found["points"])
    assert "--max-memory" in answer.out


def test_a_foreign_file_with_little_to_narrow_is_searched_for_quantization_only(
    trip: Trip, tmp_path: Path
) -> None:
    report = json.loads((trip.run.out / "report.json").read_text())
    fp32 = next(Path(v["path"]).parent for v in report["variants"] if v["name"] == "fp32")
    preprocess = json.loads((trip.run.bundle / "manifest.json").read_text())["preprocessing"]
    preprocess |= {"height": 16, "width": 16}
    variants = {"fp32": {"adopt": {"file": str(fp32 / "model.plain.onnx"), "preprocess": preprocess}}}
    recipe = tiny_recipe(
        tmp_path, trip.run.pictures, backbone=None, tune=None, variants=variants, gates={"max_drop": 100}
    )
    run = TinyRun(recipe, tmp_path / "out", tmp_path / "store", trip.run.pictures)
    assert ask(run, "--budget", "5m").code == 0
    found = json.loads((run.out / "optimize.json").read_text())
    assert {point["name"] for point in found["points"]} == {"fp32", "int8", "int8-stem", "int8-narrow"}


def test_a_foreign_file_is_made_smaller_by_narrowing(trip: Trip, tmp_path: Path) -> None:
    plain = mobile()
    for number, tensor in enumerate(
        plain.graph.initializer
    ):  # equal constants would become one, which two layers read
        if tensor.name.endswith(".bias"):
            changed = numpy_helper.to_array(tensor) + np.float32(0.01 * number)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    onnx.save(plain, tmp_path / "mobile.onnx")
    adopt = {"file": str(tmp_path / "mobile.onnx"), "preprocess": {"height": 8, "width": 8}}
    qat = {"teacher": "fp32", "epochs": 1, "batch_size": 8}
    variants = {
        "fp32": {"adopt": adopt},
        "small": {"from": "fp32", "steps": [{"narrow": {"multiple": 4}}, "join", {"qat": qat}]},
    }
    recipe = tiny_recipe(
        tmp_path, trip.run.pictures, backbone=None, tune=None, variants=variants, gates={"max_drop": 100}
    )
    run = TinyRun(recipe, tmp_path / "out", tmp_path / "store", trip.run.pictures)
    # By size, since integers may be slower on a network so small.
    assert ask(run, "--budget", "5m", "--goal", "size").code == 0
    found = json.loads((run.out / "optimize.json").read_text())
    whole = next(point for point in found["points"] if point["name"] == "fp32")
    narrowed = [point for point in found["points"] if re.fullmatch(r"n\d+-e1-int8-qat", point["name"])]
    assert narrowed
    assert all(point["megabytes"] < whole["megabytes"] for point in narrowed)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "soon"), "--budget soon: write a positive figure with its unit"),
        (("--max-latency", "3"), "--max-latency 3: write a positive figure with its unit"),
        (("--goal", "accuracy"), "--goal accuracy: give a bound as well"),
    ],
)
def test_wrong_options_are_one_sentence(trip: Trip, options: tuple[str, ...], words: str) -> None:
    answer = ask(trip.run, *options)
    assert answer.code == 2
    assert words in answer.err


def test_a_budget_too_short_for_fp32_ends_with_3_and_says_so(tmp_path: Path) -> None:
    pictures = tiny_pictures(tmp_path / "pictures")
    recipe = tiny_recipe(tmp_path, pictures, tune={"epochs": 500, "batch_size": 8, "lr": 0.01})
    run = TinyRun(recipe, tmp_path / "out", tmp_path / "store", pictures)
    answer = ask(run, "--budget", "5s")
    assert answer.code == 3
    assert "the time budget ended within" in answer.err


@pytest.fixture
def trials(trip: Trip) -> Trials:
    """What a later start over the trip's store would make its files with."""
    asked = Asked(max_drop=100.0)
    recipe = prepared(load(trip.run.recipe), asked, Wishes())
    pipeline = workflow.open_pipeline(recipe, trip.run.store, Wishes(), Silent())
    return Trials(recipe, asked, pipeline.data()[0], pipeline, Deadline(Silent(), 1e12), Durations(1.0))


def test_own_variants_are_of_the_recipes_backbone_and_targets(trials: Trials) -> None:
    assert list(trials.own) == ["equalized", "grey"]
    assert not replace(trials, backbone="small").own
    assert not replace(trials, asked=Asked(max_drop=100.0, targets=("arm64",))).own


def test_an_own_variant_that_takes_too_long_is_given_up_and_the_search_goes_on(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Trials, design: Design, predicted: float | None = None) -> None:
        assert self.deadline.left < 41
        raise OutOfTimeError("the time is spent")

    monkeypatch.setattr(Trials, "trial", slow)
    trials.deadline.at = time.monotonic() + 100
    found = searching.Search(trials, lambda _: None)._own(Design(own="equalized"))
    assert isinstance(found, Failure)
    assert found.why.startswith("not done in 40 s")
    assert trials.deadline.left > 90


def test_a_network_of_another_size_is_narrowed_taught_by_itself_and_shipped_without_it(
    trials: Trials, trip: Trip, tmp_path: Path
) -> None:
    design = Design(size=12, narrow=0.3, taught=5, scheme="int8-qat")
    between = design.network.name
    assert (between, design.name) == ("s12-fp32", "s12-n30-e5-int8-qat")
    found = trials.trial(design)
    assert isinstance(found, Point)
    assert list(trials._timed(design, trials._artifacts(design))) == ["fp32", design.name]
    variants = trials.variants(design)
    final = trials.recipe.model_copy(update={"variants": variants, "gates": Gates()})
    result = workflow.run(final, Places(out=tmp_path, store=trip.run.store), Wishes(prefer=design.name))
    assert result.report is not None
    assert [variant.name for variant in result.report.variants] == ["fp32", design.name]
    again = load(tmp_path / "recipe.yaml")
    assert {name: variant.intermediate for name, variant in again.variants.items()} == {
        "fp32": False, between: True, design.name: False,
    }  # fmt: skip


def test_what_the_recipes_own_narrowing_refuses_is_a_failure_and_no_end(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Trials, design: Design, predicted: float | None) -> None:
        raise DataError("grey_stem: a picture has colours")

    monkeypatch.setattr(Trials, "_tried", refuse)
    found = trials.trial(Design(narrow=0.35, taught=5, scheme="int8-qat"))
    assert isinstance(found, Failure)
    assert not found.too_small
    with pytest.raises(DataError):
        trials.trial(Design(0.35))


def test_too_narrow_is_told_and_remembered(trials: Trials) -> None:
    design = Design(narrow=0.95, taught=5, scheme="int8-qat")
    for found in (trials.trial(design), trials.trial(design)):
        assert isinstance(found, Failure)
        assert found.too_small
        assert "max_products is 0.05" in found.why
    assert trials.seconds(design) == 0


def test_what_was_refused_once_is_not_asked_for_again(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(self: Trials, design: Design, predicted: float | None) -> None:
        asked.append(design)
        raise BackboneError("nothing was pruned")

    monkeypatch.setattr(Trials, "_tried", refuse)
    nothing = Design(0.33)
    assert trials.trial(nothing) == Failure(nothing, "nothing was pruned")
    assert trials.trial(nothing) == Failure(nothing, "nothing was pruned")
    assert trials.seconds(nothing) == 0
    assert asked == [nothing]
    trials.pipeline.fresh = True
    trials.trial(nothing)
    assert asked == [nothing, nothing]


def test_a_design_without_memory_enough_is_one_failure_and_no_end(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Trials, design: Design, predicted: float | None) -> None:
        raise HostError("no memory left on 'cpu'") from MemoryError()

    design = Design(0.6)
    with monkeypatch.context() as patched:
        patched.setattr(Trials, "_tried", full)
        found = trials.trial(design)
        assert isinstance(found, Failure)
        assert "memory" in found.why
        with pytest.raises(HostError):
            trials.trial(Design())
    assert isinstance(trials.trial(design), Point)  # the next start tries again


def test_another_fault_of_the_machine_ends_the_search(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trials, design: Design, predicted: float | None) -> None:
        raise HostError("the disk is full")

    monkeypatch.setattr(Trials, "_tried", broken)
    with pytest.raises(HostError, match="disk"):
        trials.trial(Design(0.7))


def test_fp32_made_from_another_variant_is_searched_as_one_chain(trip: Trip, tmp_path: Path) -> None:
    variants = {
        "exported": {"from": "tuned", "steps": ["export"]},
        "fp32": {"from": "exported", "steps": ["join"]},
    }
    given = load(tiny_recipe(tmp_path, trip.run.pictures, variants=variants, backbone=BACKBONE))
    found = prepared(given, Asked(max_drop=1.0), Wishes()).variants["fp32"]
    assert (found.source, [step.step for step in found.steps]) == ("tuned", ["export", "join"])
    assert Template(prepared(given, Asked(max_drop=1.0), Wishes()), 1.0).trainable


def test_fp32_made_from_another_variant_is_searched_with_other_backbones_too(
    trip: Trip, tmp_path: Path
) -> None:
    variants = {
        "exported": {"from": "tuned", "steps": ["export"]},
        "fp32": {"from": "exported", "steps": ["join"]},
    }
    given = load(tiny_recipe(tmp_path, trip.run.pictures, variants=variants, backbone=BACKBONE))
    assert "nano" in prepared(given, Asked(max_drop=1.0, backbones=("bundled/nano",)), Wishes()).networks


def test_fp32_made_from_an_adopted_file_is_refused_with_what_to_do(trip: Trip, tmp_path: Path) -> None:
    variants = {
        "raw": {"adopt": {"file": "a.onnx", "preprocess": {"height": 32, "width": 32}}},
        "fp32": {"from": "raw", "steps": ["join"]},
    }
    recipe = tiny_recipe(tmp_path, trip.run.pictures, backbone=None, tune=None, variants=variants)
    with pytest.raises(
        RecipeError, match=r"variants\.fp32: .* adopted file 'raw'.*give 'adopt' to fp32 itself"
    ):
        prepared(load(recipe), Asked(max_drop=1.0), Wishes())


def test_shares_that_the_search_chooses_in_place_of_the_recipe_are_told(trip: Trip, tmp_path: Path) -> None:
    pruned = {"from": "tuned", "steps": [{"prune": {"ratio": 0.5, "scope": "global"}}, RECOVER, "export"]}
    recipe = tiny_recipe(
        tmp_path,
        trip.run.pictures,
        variants={**VARIANTS, "pruned": pruned},
        backbone=BACKBONE,
        gates={"max_drop": 100},
    )
    answer = command(
        "optimize", recipe, "--out", tmp_path / "o", "--store", trip.run.store, "--max-latency", "1us"
    )
    assert answer.code == 3, answer.err
    assert (
        "prune.scope of the recipe" in json.loads((tmp_path / "o" / "optimize.json").read_text())["notes"][0]
    )


def test_a_choice_that_misses_when_timed_anew_gives_way_to_the_next(trip: Trip, tmp_path: Path) -> None:
    def point(design: Design, megabytes: float) -> Point:
        return Point(design, 1.0, 0.5, 90.0, 0.0, None, None, megabytes, None)

    asked: list[tuple[str, tuple[int, ...]]] = []
    smallest, next_best = Design(scheme="int8"), Design(scheme="int8-stem")

    def again(design: Design, threads: Sequence[int]) -> Point:
        asked.append((design.scheme, tuple(threads)))
        found = point(design, 2.0)
        return (
            replace(found, misses=(Miss("max_latency_ms", 1.0, 1.25, "ms"),)) if design == smallest else found
        )

    history = {
        Design(): point(Design(), 9.0),
        smallest: point(smallest, 1.0),
        next_best: point(next_best, 2.0),
    }
    search: Any = SimpleNamespace(
        history=history,
        trials=SimpleNamespace(
            again=again, backbone="", data=SimpleNamespace(val=[1, 2], test=[3]), durations=Durations(1.0)
        ),
    )
    given = Asked(threads=4, max_latency_ms=1.0, max_drop=1.0, goal="size")
    asking = _Optimize(trip.run.recipe, given, Places(out=tmp_path / "o"), Wishes(), Deadline(Silent(), 0.0))
    asking.searches = [search]
    assert asking._confirmed() == point(next_best, 2.0)
    assert asked == [("int8", (4, 2, 1)), ("int8-stem", (4, 2, 1))]
    assert not history[smallest].feasible
    assert asking.notes == [
        "int8: when it was timed once more, max_latency_ms (1.25 ms, bound 1); the next best takes its place"
    ]
    asking.asked = replace(given, threads=1)
    assert asking._confirmed() == point(next_best, 2.0)
    assert asked[2:] == [("int8-stem", (1,))], (
        "the one that was timed luckiest is timed anew with one thread, too"
    )


def test_several_threads_are_timed_together_before_the_choice_stands(trip: Trip, tmp_path: Path) -> None:
    asked = Asked(threads=2, max_latency_ms=1000.0, max_drop=100.0, budget=600)
    found = optimize(trip.run.recipe, asked, Places(out=tmp_path / "o", store=trip.run.store))
    assert found.passed
    assert found.chosen is not None
    assert set(found.found.threads) == {1, 2}
    assert (
        json.loads((tmp_path / "o" / "bundle" / "manifest.json").read_text())["variant"] == found.chosen.name
    )


def test_a_network_that_integers_refuse_when_pruned_is_pruned_by_its_float_layers(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials.trial(Design())
    real = tables.measure

    def table(asked: Trials, scheme: Scheme) -> Costs:
        if scheme != "fp32":
            raise ParityError("no float share keeps the gate")
        return real(asked, scheme)

    monkeypatch.setattr(tables, "measure", table)
    monkeypatch.setattr(searching, "leading", lambda *_: "int8-mixed")
    search = searching.Search(trials, lambda _: None, {Design(): trials.trial(Design())})
    search.tabulate()
    assert trials.costs is not None
    assert any(arm.shape == "table" for arm in search.arms())
    assert search.notes == [
        "the latency table is of float layers: int8-mixed cannot be made of pruned ones (no float share keeps the gate)"
    ]
    monkeypatch.setattr(
        tables, "measure", lambda *_: (_ for _ in ()).throw(BackboneError("nothing can be pruned"))
    )
    search.tabulate()
    assert search.notes[1:] == ["no pruning: nothing can be pruned"]
    assert all(arm.top == 0 for arm in search.arms())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OutOfTimeError("the time budget ended within 'x'"), "the time budget ended"),
        (BackboneError("cannot be pruned"), "cannot be pruned"),
        (MemoryError("no room"), "no room"),
    ],
)
def test_sensitivity_that_cannot_be_measured_is_a_note_and_no_end(
    trials: Trials, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def fails(self: Trials, *, pruning: bool, int8: bool) -> None:
        seen.append(self.deadline.left)
        raise error

    seen: list[float] = []
    monkeypatch.setattr(Trials, "sensitivity", fails)
    search = searching.Search(trials, lambda _: None, {Design(): trials.trial(Design())})
    whole = trials.deadline.left
    search.probe()
    assert search.sensitive is None
    assert len(search.notes) == 1
    assert words in search.notes[0]
    assert seen[0] <= 0.11 * whole, "it has a tenth of the time at most"
    assert trials.deadline.left > 0.9 * whole


def test_an_unknown_fault_in_the_sensitivity_is_not_hidden(
    trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Trials, "sensitivity", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shapes differ"))
    )
    search = searching.Search(trials, lambda _: None, {Design(): trials.trial(Design())})
    with pytest.raises(RuntimeError, match="shapes differ"):
        search.probe()


@pytest.mark.slow
def test_killed_it_goes_on_without_repeating_finished_work(trip: Trip, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from toolchain.cli import main; main()"]
    asked = [
        "optimize",
        str(trip.run.recipe),
        "--out",
        str(tmp_path / "out"),
        "--store",
        str(tmp_path / "store"),
    ]
    made: dict[Path, int] = {}
    for seconds in (15.0, 20.0, 25.0):
        process = subprocess.Popen([*program, *asked], start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = {p: p.stat().st_mtime_ns for p in (tmp_path / "store" / "objects").glob("*/record.json")}
        assert {p: now[p] for p in made} == made
        made = now
    assert subprocess.run([*program, *asked], check=False).returncode == 0
    now = {p: p.stat().st_mtime_ns for p in (tmp_path / "store" / "objects").glob("*/record.json")}
    assert {p: now[p] for p in made} == made
