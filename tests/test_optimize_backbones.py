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
from tiny import Answer, TinyRun, command, tiny_pictures, tiny_recipe

from toolchain.optimize.asked import Asked
from toolchain.optimize.budget import OutOfTimeError
from toolchain.optimize.design import Design, Template
from toolchain.optimize.race import race
from toolchain.optimize.search import Search
from toolchain.optimize.session import counts, fastest
from toolchain.recipe import build


def network(channels: list[int]) -> dict[str, Any]:
    kwargs = {"channels": channels, "stem_width": channels[0]}
    return {
        "timm": "resnet10t",
        "weights": "random",
        "kwargs": kwargs,
        "preprocess": {"size": 32, "crop_pct": 1.0},
    }


@dataclass(frozen=True)
class Trip:
    run: TinyRun
    answer: Answer

    @property
    def found(self) -> dict[str, Any]:
        return json.loads((self.run.out / "optimize.json").read_text())  # type: ignore[no-any-return]


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


def test_the_thread_count_that_is_fastest_is_measured_first_and_ships(trip: Trip) -> None:
    threads = {int(count): ms for count, ms in trip.found["threads"].items()}
    assert threads.keys() == {1, 2}
    recipe = yaml.safe_load((trip.run.out / "recipe.yaml").read_text())
    assert recipe["measure"]["threads"][0] == fastest(threads)
    measured = json.loads((trip.run.bundle / "measured.json").read_text())
    assert {row["threads"] for row in measured["variant"]["latency"]["cpu"]} == {1, 2}
    assert "fastest with" in trip.answer.out
    assert "fastest with" in (trip.run.out / "optimize.html").read_text()


@pytest.mark.parametrize(
    ("most", "expected"), [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (6, (1, 2, 4, 6))]
)
def test_thread_counts_are_powers_of_two_and_all(most: int, expected: tuple[int, ...]) -> None:
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
            "int8": {"from": "fp32", "steps": [{"quantize": {"exclude": ["head*"]}}]},
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
    prune, recover, _, quantize = (
        Template(recipe, 1.0).variant(Design(0.5, epochs=2, scheme="int8"), lambda _: {}).steps
    )
    assert (prune.ignore, recover.teacher, quantize.exclude) == (("stem*",), "tuned", ("head*",))  # type: ignore[union-attr]


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
            seconds=lambda _: self.needed, deadline=SimpleNamespace(left=self.left), backbone=self.name
        )

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
    assert dear.notes == ["dear: not tried, training it takes about 200 s and 100 s are left"]


def test_a_budget_that_ends_before_fp32_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Runner("", [])

    def end() -> str | None:
        raise OutOfTimeError("the time budget ended within 'tune'")

    monkeypatch.setattr(own, "begin", end)
    with pytest.raises(OutOfTimeError):
        race([own])  # type: ignore[list-item]
    own.history[Design()] = object()
    assert race([own]) == "the time budget ended within 'tune'"  # type: ignore[list-item]
