"""What a design means as steps of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolchain.optimize.design import TOP, Design, Scheme, Template
from toolchain.recipe import Recipe, build
from toolchain.steps import FallBack, Prune, Qat, Quantize


def recipe(fp32: list[Any], **more: Any) -> Recipe:
    raw = {
        "name": "tiles", "data": {"folder": "./tiles"}, "backbone": {"timm": "resnet18", "weights": "random"},
        "tune": {"epochs": 3, "augment": {"flip_horizontal": True}},
        "variants": {"fp32": {"from": "tuned", "steps": fp32}}, **more,
    }  # fmt: skip
    return build(raw, Path())


def steps(template: Template, design: Design) -> tuple[str, list[str]]:
    variant = template.variant(design, lambda _: {})
    return str(variant.source), [step.step for step in variant.steps]


def test_what_the_recipe_does_to_fp32_is_done_to_every_design() -> None:
    template = Template(recipe([{"rescale": {"size": 96}}, {"export": {"parity_pictures": 7}}, "join"]), 1.0)
    source, names = steps(template, Design(0.5, epochs=4, scheme="int8"))
    assert source == "tuned"
    assert names == ["rescale", "prune", "recover", "export", "join", "quantize"]
    made = template.variant(Design(0.5, epochs=4), lambda _: {}).steps
    assert next(step for step in made if step.step == "export").parity_pictures == 7  # type: ignore[union-attr]
    assert steps(template, Design(scheme="int8")) == ("fp32", ["quantize"])


def pruning(settings: dict[str, Any], design: Design, widths: dict[str, float]) -> Prune:
    """The prune step of a design, for a recipe that prunes so."""
    raw = recipe(["export"]).model_dump(mode="json", by_alias=True, exclude_unset=True)
    steps = [{"prune": settings}, {"recover": {"teacher": "tuned"}}, "export"]
    raw["variants"]["pruned"] = {"from": "tuned", "steps": steps}
    made = Template(build(raw, Path()), 1.0).variant(design, lambda _: widths).steps
    return next(step for step in made if isinstance(step, Prune))


def test_a_recipes_greatest_share_of_a_layer_is_the_searchs_too() -> None:
    raw = recipe(["export"]).model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["variants"]["pruned"] = {
        "from": "tuned",
        "steps": [{"prune": {"ratio": 0.3, "max_ratio": 0.6}}, "export"],
    }
    assert Template(build(raw, Path()), 1.0).most == 0.6
    assert Template(recipe(["export"]), 1.0).most == TOP
    assert pruning({"max_ratio": 0.6}, Design(0.5, "table", epochs=2), {"layer1": 0.55}).max_ratio == 0.6
    assert pruning({}, Design(0.5, "table", epochs=2), {"layer1": 0.93}).max_ratio == TOP
    assert pruning({"max_ratio": 0.6}, Design(0.75), {}).ratio == 0.75  # for the latency table only


def test_shares_by_layer_are_the_searchs() -> None:
    own = {"ratio": 0.3, "ratios": {"layer1*": 0.1}, "scope": "global"}
    assert pruning(own, Design(0.5, epochs=2), {}).ratios == {}
    found = pruning(own, Design(0.5, "table", epochs=2), {"layer2.0.conv1": 0.4})
    assert (found.ratios, found.scope) == ({"layer2.0.conv1": 0.4}, "uniform")
    raw = recipe(["export"]).model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["variants"]["pruned"] = {"from": "tuned", "steps": [{"prune": own}, "export"]}
    assert Template(build(raw, Path()), 1.0).chooses == ["prune.ratios", "prune.scope"]
    assert Template(recipe(["export"]), 1.0).chooses == []
    raw["variants"]["pruned"]["steps"] = [
        {"prune": {"ratio": 0.3, "scope": "uniform", "ratios": {}}},
        "export",
    ]
    assert Template(build(raw, Path()), 1.0).chooses == [], "what the search does as well"


def test_a_recipe_of_dynamic_int8_is_searched_with_what_suits_the_network() -> None:
    raw = recipe(["export"]).model_dump(mode="json", by_alias=True, exclude_unset=True)
    raw["variants"]["int8"] = {
        "from": "fp32",
        "steps": [{"quantize": {"scheme": "dynamic", "per_channel": False}}],
    }
    template = Template(build(raw, Path()), 1.0)
    assert template.chooses == ["quantize.scheme"]
    for scheme in ("int8", "int8-stem", "int8-adaptive", "int8-percentile", "int8-mixed"):
        step = template.variant(Design(scheme=scheme), lambda _: {}).steps[-1]
        made = step.quantize if isinstance(step, FallBack) else step
        assert isinstance(made, Quantize)
        assert (made.scheme, made.per_channel) == ("auto", False)


def test_candidates_do_not_measure_what_the_search_measures_once() -> None:
    assert pruning({"ratio": 0.3, "probe": 64}, Design(0.5, epochs=2), {}).probe == 0


def test_activations_are_replaced_before_pruning_and_their_gates_folded_before_integers() -> None:
    template = Template(recipe(["export"]), 1.0)
    design = Design(0.5, epochs=4, scheme="int8", relu=True)
    assert design.name == "relu-u50-e4-int8"
    names = ["activations", "prune", "recover", "export", "fold_gates", "quantize"]
    assert steps(template, design) == ("tuned", names)
    assert steps(template, Design(relu=True)) == ("tuned", ["activations", "export"])


@pytest.mark.parametrize(
    "design", [Design(0.5, size=64, epochs=4, scheme="int8-narrow", relu=True), Design(scheme="int8-mixed")]
)
def test_what_is_written_of_a_design_is_read_as_the_same(design: Design) -> None:
    given = recipe(["export"])
    variant = Template(given, 1.0).variant(design, lambda _: {})
    whole = given.model_copy(update={"variants": {**given.variants, design.name: variant}})
    again = build(whole.model_dump(mode="json", by_alias=True, exclude_unset=True), Path())
    assert again.variants[design.name] == variant


@pytest.mark.parametrize(
    ("scheme", "names"),
    [
        ("int8-narrow", ["narrow", "join", "quantize"]), ("int8-adaptive", ["quantize"]), ("int8-qat", ["qat"]),
        ("int8-mixed", ["fall_back"]),
    ],
)  # fmt: skip
def test_ways_to_quantize(scheme: Scheme, names: list[str]) -> None:
    assert steps(Template(recipe(["export"]), 1.0), Design(scheme=scheme)) == ("fp32", names)


def test_a_narrowing_of_named_layers_is_not_the_searchs() -> None:
    stem = {"narrow": {"layers": ["conv_stem"], "min_sqnr": 35}}
    for others, least in (([], 20.0), ([{"narrow": {"min_sqnr": 14}}], 14.0)):
        template = Template(recipe(["export", stem, *others]), 1.0)
        assert (template.narrow.layers, template.narrow.min_sqnr) == ((), least)


def test_every_way_to_quantize_is_right_on_the_targets() -> None:
    for template in (
        Template(recipe(["export"]), 1.0, ("x86-vnni", "x86-avx2")),
        Template(recipe(["export"], targets=["x86-vnni", "x86-avx2"]), 1.0),
    ):
        for scheme in ("int8", "int8-stem", "int8-narrow", "int8-adaptive", "int8-percentile"):
            last = template.variant(Design(scheme=scheme), lambda _: {}).steps[-1]
            assert isinstance(last, Quantize)
            assert last.resolved().weight_bits == "pairwise"
        mixed = template.variant(Design(scheme="int8-mixed"), lambda _: {}).steps[-1]
        trained = template.variant(Design(scheme="int8-qat"), lambda _: {}).steps[-1]
        assert isinstance(mixed, FallBack)
        assert isinstance(trained, Qat)
        assert mixed.resolved().quantize.weight_bits == "pairwise"
        assert trained.resolved().quantize.weight_bits == 7


def test_trained_integers_see_pictures_as_recovery_does() -> None:
    trained = Template(recipe(["export"]), 1.0).variant(Design(scheme="int8-qat"), lambda _: {}).steps[-1]
    assert isinstance(trained, Qat)
    assert trained.teacher == "fp32"
    assert trained.augment.flip_horizontal


def test_layers_fall_back_between_roundings() -> None:
    """A recipe whose sums stay in float can't be given back to float layer by layer as it is."""
    own = build(
        {
            "name": "tiles", "data": {"folder": "./tiles"}, "backbone": {"timm": "resnet18", "weights": "random"},
            "tune": {"epochs": 3},
            "variants": {
                "fp32": {"from": "tuned", "steps": ["export"]},
                "int8": {"from": "fp32", "steps": [{"quantize": {"float_products": True, "float_sums": True}}]},
            },
        },
        Path(),
    )  # fmt: skip
    step = Template(own, 1.0).variant(Design(scheme="int8-mixed"), lambda _: {}).steps[-1]
    assert isinstance(step, FallBack)
    assert (step.quantize.float_sums, step.quantize.float_products) == (True, False)
    int8 = Template(own, 1.0).variant(Design(scheme="int8"), lambda _: {}).steps[-1]
    assert isinstance(int8, Quantize)
    assert int8.float_products
