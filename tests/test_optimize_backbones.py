"""`toolchain optimize` among several backbones: who is trained, whose turn it is, what ships."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file
from tiny import TinyRun, Trip, command, tiny_pictures, tiny_recipe

from toolchain import workflow
from toolchain.optimize import tables
from toolchain.optimize.asked import Asked
from toolchain.optimize.budget import Deadline, Durations, OutOfTimeError
from toolchain.optimize.design import Design, Template
from toolchain.optimize.points import Failure, Point
from toolchain.optimize.race import race
from toolchain.optimize.search import Search
from toolchain.optimize.session import counts, fastest
from toolchain.optimize.trials import Trials
from toolchain.optimize.workflow import prepared
from toolchain.progress import Silent
from toolchain.recipe import build
from toolchain.store import Store
from toolchain.workflow import Wishes


def network(channels: list[int]) -> dict[str, Any]:
    kwargs = {"channels": channels, "stem_width": channels[0]}
    return {
        "timm": "resnet10t",
        "weights": "random",
        "kwargs": kwargs,
        "preprocess": {"size": 32, "crop_pct": 1.0},
    }


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Trip:
    folder = tmp_path_factory.mktemp("backbones")
    pictures = tiny_pictures(folder / "pictures")
    recipe = tiny_recipe(
        folder, pictures, backbone=network([48, 48, 96, 96]), networks={"thin": {"backbone": network([8, 8, 8, 8])}}
    )  # fmt: skip
    run = TinyRun(recipe, folder / "out", folder / "store", pictures)
    options = (
        "--out",
        run.out,
        "--store",
        run.store,
        "--backbone",
        "bundled/nano",
        "--budget",
        "10m",
        "--threads",
        2,
    )
    with (
        pytest.MonkeyPatch.context() as patched
    ):  # to make them smaller takes minutes and is tested elsewhere
        patched.setattr(Search, "shrink", lambda _: None)
        return Trip(run, command("optimize", recipe, *options))


def test_every_backbone_is_measured_against_the_recipes_own_fp32(trip: Trip) -> None:
    assert trip.answer.code == 0, trip.answer.err
    points = {point["name"]: point for point in trip.found["points"]}
    assert {"fp32", "int8", "thin-fp32", "thin-int8", "nano-fp32", "nano-int8"} <= points.keys()
    assert points["thin-fp32"]["design"]["backbone"] == "thin"
    assert points["thin-fp32"]["speedup"]["low"] > 1
    assert not any(name.endswith("int8-qat") for name in points if name.startswith(("thin", "nano")))


def test_the_fastest_backbone_ships_with_the_recipes_fp32_beside_it(trip: Trip) -> None:
    chosen = trip.found["chosen"]
    assert chosen.startswith("thin-")
    assert json.loads((trip.run.bundle / "manifest.json").read_text())["variant"] == chosen
    assert command("verify", trip.run.bundle).code == 0
    recipe = yaml.safe_load((trip.run.out / "recipe.yaml").read_text())
    assert list(recipe["networks"]) == ["thin"]
    assert list(recipe["variants"]) == ["fp32", chosen]


def test_the_chosen_file_is_timed_with_fewer_threads_as_well(trip: Trip) -> None:
    threads = {int(count): ms for count, ms in trip.found["threads"].items()}
    assert threads.keys() == {1, 2}
    recipe = yaml.safe_load((trip.run.out / "recipe.yaml").read_text())
    assert recipe["measure"]["threads"] == [2, 1]
    measured = json.loads((trip.run.bundle / "measured.json").read_text())
    assert {row["threads"] for row in measured["variant"]["latency"]["cpu"]} == {1, 2}
    assert "by threads: 2 threads" in trip.answer.out
    assert "by threads: 2 threads" in (trip.run.out / "optimize.html").read_text()


@pytest.mark.parametrize(
    ("most", "expected"), [(1, (1,)), (2, (2, 1)), (3, (3, 2, 1)), (4, (4, 2, 1)), (6, (6, 4, 2, 1))]
)
def test_thread_counts_are_all_and_the_powers_of_two_below(most: int, expected: tuple[int, ...]) -> None:
    assert counts(most) == expected


def test_fewer_threads_win_a_tie() -> None:
    assert fastest({1: 1.04, 2: 1.0, 4: 1.01}) == 1
    assert fastest({1: 1.2, 2: 1.0, 4: 1.01}) == 2


def test_the_recipe_it_leaves_can_be_run(trip: Trip, tmp_path: Path) -> None:
    answer = command("run", trip.run.out / "recipe.yaml", "--out", tmp_path / "o", "--store", trip.run.store)
    assert answer.code == 0, answer.err
    steps = json.loads((tmp_path / "o" / "report.json").read_text())["steps"]
    assert all(step["reused"] for step in steps if step["step"] != "latency")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nano", "--backbone nano: write bundled/NAME or timm/NAME"),
        ("bundled/smal", "--backbone bundled/smal: backbone.bundled: no bundled backbone 'smal'"),
        ("timm/resnet81", "timm has no model 'resnet81' (did you mean"),
        ("timm/vit_small_patch16_rope_ape_224", "give it a name of its own under 'networks'"),
    ],
)
def test_a_wrong_backbone_is_one_sentence(trip: Trip, given: str, words: str) -> None:
    answer = command("optimize", trip.run.recipe, "--out", trip.run.out, "--backbone", given)
    assert answer.code == 2
    assert words in answer.err


@pytest.mark.parametrize("name", ["s96", "relu", "t50-x", "int8", "e8", "thi"])
def test_a_name_that_points_could_not_be_told_apart_by_is_refused(
    trip: Trip, name: str, tmp_path: Path
) -> None:
    given = yaml.safe_load(trip.run.recipe.read_text())
    given["networks"] = {name: given["networks"]["thin"], "thi-n": given["networks"]["thin"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    answer = command("optimize", tmp_path / "recipe.yaml", "--out", tmp_path / "o")
    assert answer.code == 2
    assert f"networks.{name}: points of the search could not be told apart" in answer.err


def trials(trip: Trip, store: Path, backbone: str, **networks: Any) -> Trials:
    """What a search of another backbone makes its files with, over a store."""
    asked = Asked(max_drop=100.0, threads=2)
    given = yaml.safe_load(trip.run.recipe.read_text())
    recipe = prepared(build(given | {"networks": given["networks"] | networks}, Path()), asked, Wishes())
    pipeline = workflow.open_pipeline(recipe, store, Wishes(), Silent())
    data = pipeline.data()[0]
    return Trials(recipe, asked, data, pipeline, Deadline(Silent(), 1e12), Durations(1.0), backbone)


def thin(trip: Trip) -> str:
    """The key of the trained thin network."""
    tuned = [entry.record for entry in Store(trip.run.store).entries() if entry.record.step == "tune"]
    return min(
        tuned, key=lambda record: next(m.value for m in record.measurements if m.name == "parameters")
    ).key


def test_to_predict_what_a_backbone_takes_trains_nothing(trip: Trip, tmp_path: Path) -> None:
    asked = trials(trip, tmp_path / "store", "thin")
    assert asked.seconds(Design(backbone="thin")) > 1
    assert not any(entry.record.step == "tune" for entry in Store(tmp_path / "store").entries())


def test_a_backbone_that_cannot_be_made_is_one_failure_and_is_tried_again(trip: Trip, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"no weights")
    broken = {"backbone": network([8, 8, 8, 8]) | {"weights": str(tmp_path / "weights.safetensors")}}
    asked = trials(trip, trip.run.store, "broken", broken=broken)
    found = asked.trial(Design(backbone="broken"))
    assert isinstance(found, Failure)
    assert "weights.safetensors" in found.why
    whole = load_file(trip.run.store / "objects" / thin(trip) / "weights.safetensors")
    save_file(whole, tmp_path / "weights.safetensors")
    assert isinstance(
        trials(trip, trip.run.store, "broken", broken=broken).trial(Design(backbone="broken")), Point
    )


def test_another_backbone_is_pruned_by_its_own_latency_table(trip: Trip) -> None:
    asked = trials(trip, trip.run.store, "nano", nano={"backbone": "bundled/nano"})
    asked.costs = tables.measure(asked, "int8")
    assert asked.costs.covers
    found = asked.trial(Design(0.5, "table", epochs=1, scheme="int8", backbone="nano"))
    assert isinstance(found, Point)
    whole = asked.trial(Design(backbone="nano"))
    assert isinstance(whole, Point)
    assert found.megabytes < whole.megabytes / 4
    assert asked.recipe_side == 32
    assert not asked.replaceable


def test_a_shorter_recovery_where_backbones_share_the_budget() -> None:
    def rungs(among: int, budget: float = 1800, sized_by: float | None = None) -> tuple[int, ...]:
        alone: Any = SimpleNamespace(
            asked=Asked(budget=budget, sized_by=sized_by), template=SimpleNamespace(recover=SimpleNamespace(epochs=20)),
            durations=SimpleNamespace(tuning=12.0),
        )  # fmt: skip
        return Search(alone, lambda _: None, among=among).rungs()

    assert (rungs(1), rungs(3), rungs(10)) == ((5, 20, 40), (5, 20), (2, 10))
    assert rungs(1, budget=300, sized_by=1800) == rungs(1) != rungs(1, budget=300)


def test_other_backbones_need_a_recipe_that_trains(tmp_path: Path) -> None:
    variants = {"fp32": {"adopt": {"file": "a.onnx", "preprocess": {"height": 32, "width": 32}}}}
    recipe = tiny_recipe(tmp_path, tmp_path, backbone=None, tune=None, variants=variants)
    answer = command("optimize", recipe, "--backbone", "bundled/nano")
    assert answer.code == 2
    assert "trained as the recipe's 'tune' says" in answer.err


def test_settings_that_name_layers_stay_with_the_recipes_own_network() -> None:
    raw = {
        "name": "tiles", "data": {"folder": "./tiles"}, "backbone": "bundled/nano", "tune": {"epochs": 3},
        "networks": {"small": {"backbone": "bundled/small"}},
        "variants": {
            "fp32": {"from": "tuned", "steps": ["export"]},
            "int8": {"from": "fp32", "steps": [{"quantize": {"exclude": ["head*"], "float_products": ["b*"]}}]},
            "pruned": {
                "from": "tuned",
                "steps": [{"prune": {"ratio": 0.5, "ignore": ["stem*"]}}, {"recover": {"teacher": "tuned"}}, "export"],
            },
        },
    }  # fmt: skip
    recipe = build(raw, Path())
    design = Design(0.5, epochs=2, scheme="int8", backbone="small")
    assert design.name == "small-u50-e2-int8"
    prune, recover, _, quantize = Template(recipe, 1.0, backbone="small").variant(design, lambda _: {}).steps
    assert (prune.ignore, recover.teacher, quantize.exclude) == ((), "small", ())  # type: ignore[union-attr]
    assert quantize.float_products is True  # type: ignore[union-attr]
    prune, recover, _, quantize = (
        Template(recipe, 1.0).variant(Design(0.5, epochs=2, scheme="int8"), lambda _: {}).steps
    )
    assert (prune.ignore, recover.teacher, quantize.exclude) == (("stem*",), "tuned", ("head*",))  # type: ignore[union-attr]
    assert quantize.float_products == ("b*",)  # type: ignore[union-attr]


@dataclass
class Runner:
    """What a race asks of a search, with a script of what its calls return."""

    name: str
    calls: list[str]
    share: float | None = 1.0
    promising: bool = True
    shrinks: list[str | None] = field(default_factory=list)
    needed: float = 1.0
    left: float = 100.0
    notes: list[str] = field(default_factory=list)
    history: dict[Design, object] = field(default_factory=dict)
    until: float = 0.0
    asked: Asked = field(default_factory=Asked)

    @property
    def whole(self) -> Design:
        return Design(backbone=self.name)

    @property
    def trials(self) -> Any:
        return SimpleNamespace(
            seconds=lambda _: self.needed, deadline=SimpleNamespace(left=self.left), backbone=self.name,
            durations=SimpleNamespace(apart=lambda: None),
        )  # fmt: skip

    def begin(self) -> str | None:
        self.calls.append(f"begin {self.name}")
        self.history[self.whole] = object()
        return None

    def shrink(self) -> str | None:
        self.calls.append(f"shrink {self.name}")
        return self.shrinks.pop(0) if self.shrinks else None

    def best(self) -> Any:
        return None if self.share is None else SimpleNamespace(value=lambda _: self.share)


def test_the_fastest_goes_first_and_who_was_cut_short_goes_on_at_the_end() -> None:
    calls: list[str] = []
    slow = Runner("", calls, share=0.5, shrinks=["its turn is over", None])
    fast, none = Runner("fast", calls, share=0.2), Runner("none", calls, share=None)
    assert race([slow, fast, none]) == "nothing is left that promises to be better"  # type: ignore[list-item]
    assert calls == [
        "begin ", "begin fast", "begin none", "shrink fast", "shrink ", "shrink none", "shrink ",
    ]  # fmt: skip
    assert fast.until == pytest.approx(time.monotonic() + 100 / 3, abs=5)


def test_backbones_without_time_to_train_or_accuracy_are_left_out() -> None:
    calls: list[str] = []
    own = Runner("", calls, shrinks=["too little time", "too little time"])
    dear, wrong = Runner("dear", calls, needed=200.0), Runner("wrong", calls, promising=False)
    assert race([own, dear, wrong]) == "too little time"  # type: ignore[list-item]
    assert calls == ["begin ", "begin wrong", "shrink ", "shrink "]
    assert dear.notes == ["dear: not tried, training takes about 200 s and 100 s are left"]
    assert race([Runner("", calls), dear]).startswith("there was no time for dear")  # type: ignore[list-item]


def test_a_budget_that_ends_before_fp32_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Runner("", [])

    def end() -> str | None:
        raise OutOfTimeError("the time budget ended within 'tune'")

    monkeypatch.setattr(own, "begin", end)
    with pytest.raises(OutOfTimeError):
        race([own])  # type: ignore[list-item]
    own.history[Design()] = object()
    assert race([own]) == "the time budget ended within 'tune'"  # type: ignore[list-item]
