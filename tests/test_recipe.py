"""Recipes: read strictly, every problem told with its path and a guess at what was meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from toolchain.errors import RecipeError
from toolchain.recipe import Recipe, build, find, load, shipped
from toolchain.recipe_editors import recipe_schema

GOOD = """
name: tiles
data: {folder: ./tiles}
backbone: {timm: resnet18, weights: random}
tune: {epochs: 3}
variants:
  fp32: {from: tuned, steps: [export]}
  int8: {from: fp32, steps: [quantize]}
  pruned: {from: tuned, steps: [{prune: {ratio: 0.5}}, {recover: {teacher: tuned, epochs: 2}}, export]}
"""


def raw(**changes: Any) -> dict[str, Any]:
    return yaml.safe_load(GOOD) | changes


def test_a_good_recipe_becomes_nodes_in_order_with_their_inputs(tmp_path: Path) -> None:
    nodes = build(raw(), tmp_path).nodes()
    assert list(nodes) == ["tuned", "fp32", "pruned/0-prune", "pruned/1-recover", "pruned", "int8"]
    assert nodes["pruned/1-recover"].inputs == {"model": "pruned/0-prune", "teacher": "tuned"}
    assert nodes["int8"].inputs == {"model": "fp32"}
    assert [n.variant for n in nodes.values()] == [None, "fp32", None, None, "pruned", "int8"]


def test_paths_start_at_the_recipes_folder(tmp_path: Path) -> None:
    assert build(raw(), tmp_path).data.folder == tmp_path / "tiles"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tune": {"epohcs": 3}}, r"tune\.epohcs: unknown setting \(did you mean 'epochs'\?\)"),
        ({"dtaa": 1}, r"dtaa: unknown setting \(did you mean 'data'\?\)"),
        ({"tune": {"epochs": -1}}, r"tune\.epochs: .*greater than"),
        ({"backbone": {"timm": "resnet81", "weights": "random"}}, r"did you mean 'resnet\d+'"),
        (
            {"variants": {"fp32": {"from": "tuend", "steps": ["export"]}}},
            r"variants\.fp32\.from: .*did you mean 'tuned'",
        ),
        (
            {"variants": {"fp32": {"from": "tuned", "steps": ["exprot"]}}},
            r"unknown step 'exprot' \(did you mean 'export'",
        ),
        (
            {"variants": {"fp32": {"from": "tuned", "steps": ["prune"]}}},
            r"variants\.fp32: ends as a torch network",
        ),
        (
            {"variants": {"fp32": {"from": "tuned", "steps": ["quantize"]}}},
            r"variants\.fp32\.steps\[0\] 'quantize' takes onnx, but 'tuned' is torch: put 'export' before it",
        ),
        (
            {"variants": {"fp32": {"from": "tuned", "steps": ["export", "optimize_offline", "half"]}}},
            r"variants\.fp32\.steps\[1\] 'optimize_offline': nothing can come behind it, put it last",
        ),
        (
            {
                "variants": {
                    "fp32": {"from": "tuned", "steps": ["export", "optimize_offline"]},
                    "int8": {"from": "fp32", "steps": ["quantize"]},
                }
            },
            r"variants\.int8: nothing can be made from 'fp32', for it ends with 'optimize_offline'",
        ),
        (
            {
                "variants": {
                    "fp32": {"from": "tuned", "steps": ["export"]},
                    "ended": {"from": "tuned", "steps": ["export", "optimize_offline"]},
                    "int8": {"from": "fp32", "steps": [{"qat": {"teacher": "ended"}}]},
                }
            },
            r"variants\.int8: nothing can be made from 'ended', for it ends with 'optimize_offline'",
        ),
        (
            {
                "variants": {"fp32": {"from": "tuned", "steps": ["export", "optimize_offline"]}},
                "measure": {"providers": ["cpu", "cuda"]},
            },
            r"variants\.fp32: 'optimize_offline' makes files for the CPU, and measure\.providers names 'cuda'",
        ),
        ({"variants": {"int8": {"from": "tuned", "steps": ["export"]}}}, r"variants\.fp32: missing"),
        (
            {"variants": {"fp32": {"from": "tuned", "steps": ["export"], "provider": "cuda"}}},
            r"variants\.fp32\.provider: every machine makes and measures fp32",
        ),
        (
            {"variants": {"fp32": {"from": "tuned", "steps": ["export"], "intermediate": True}}},
            r"variants\.fp32\.intermediate: fp32 is what every variant is compared with",
        ),
        ({"variants": {"fp32": {"steps": ["export"]}}}, r"variants\.fp32: give either 'from' and 'steps'"),
        ({"gates": {"max_drop": "much"}}, r"gates\.max_drop: .*valid number.* not 'much'"),
        ({"name": "Größe"}, r"name: "),
        ({"data": {}}, r"data: give exactly one of folder, csv and source"),
    ],
)
def test_each_problem_is_told_with_its_path(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        build(raw(**changes), tmp_path)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "body.*",
            r"float_products: input should be a valid boolean.* or input should be a valid tuple, not 'body\.\*'$",
        ),
        ([], r"float_products: .*at least 1 item"),
        ([3], r"float_products\[0\]: input should be a valid string"),
    ],
)
def test_a_setting_of_two_types_has_one_path(given: object, told: str, tmp_path: Path) -> None:
    steps = ["export", {"quantize": {"float_products": given}}]
    with pytest.raises(RecipeError) as error:
        build(raw(variants={"fp32": {"from": "tuned", "steps": steps}}), tmp_path)
    assert ".bool" not in str(error.value)
    assert re.search(told, str(error.value)), str(error.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"2 problems\n  .*epohcs.*\n  .*gatse"):
        build(raw(tune={"epohcs": 3}, gatse={}), tmp_path)


def test_artifacts_made_from_each_other_are_refused(tmp_path: Path) -> None:
    variants = {
        "fp32": {"from": "tuned", "steps": ["export"]},
        "a": {"from": "b", "steps": ["quantize"]},
        "b": {"from": "a", "steps": ["quantize"]},
    }
    with pytest.raises(RecipeError, match="made from the other"):
        build(raw(variants=variants), tmp_path).nodes()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_overrides_reach_mappings_and_lists(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    changed = load(path, ["tune.epochs=7", "variants.pruned.steps[0].prune.ratio=0.25", "gates.max_drop=2"])
    assert changed.tune is not None
    assert changed.tune.epochs == 7
    assert changed.nodes()["pruned/0-prune"].step.ratio == 0.25  # type: ignore[union-attr]
    assert changed.gates.max_drop == 2


@pytest.mark.parametrize("override", ["tune", "=3", "variants.pruned.steps[9].prune=1", "name.x=1"])
def test_a_wrong_override_is_told(override: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--set"):
        load(write(tmp_path, GOOD), [override])


def test_other_data_replace_the_folder_and_keep_the_split(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    text = GOOD.replace("{folder: ./tiles}", "{folder: ./tiles, groups: ./g.csv, split: {val: 0.3}}")
    data = load(write(tmp_path, text), data=tmp_path / "mine").data
    assert (data.folder, data.groups, data.split.val) == (tmp_path / "mine", None, 0.3)


def test_environment_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, GOOD.replace("./tiles", '"${TILES_HERE:-/else}/tiles"'))
    assert load(path).data.folder == Path("/else/tiles")
    monkeypatch.setenv("TILES_HERE", "/set")
    assert load(path).data.folder == Path("/set/tiles")
    with pytest.raises(RecipeError, match="the environment variable TILES_GONE is not set"):
        load(write(tmp_path, GOOD.replace("./tiles", '"${TILES_GONE}/tiles"')))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", r"recipe\.yaml line \d"),
        ("name: a\nname: b", r"'name' is given twice"),
        ("- a\n- b", "a recipe is a mapping"),
        ("!!python/object/apply:os.system ['true']", r"recipe\.yaml"),
    ],
)
def test_text_that_is_no_recipe(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        load(write(tmp_path, text))


def test_a_missing_recipe_names_the_nearest_shipped_one() -> None:
    with pytest.raises(RecipeError, match="did you mean 'quickstart'"):
        find("quikstart")


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_is_well_formed_and_fits_the_schema(name: str) -> None:
    assert isinstance(load(name), Recipe)
    jsonschema.validate(yaml.safe_load(shipped()[name].read_text()), recipe_schema())


def test_the_schema_refuses_what_the_reader_refuses() -> None:
    validator = jsonschema.Draft202012Validator(recipe_schema())
    assert validator.is_valid(raw())
    assert not validator.is_valid(raw(tune={"epohcs": 3}))
    assert not validator.is_valid(raw(variants={"fp32": {"from": "tuned", "steps": ["exprot"]}}))


def test_the_recipes_the_issue_asks_for_are_shipped() -> None:
    asked = {"quickstart", "surface-inspection", "blood-cells", "resnet50-imagefolder"}
    assert asked | {"blood-cells-small"} <= shipped().keys()


def test_targets_of_the_recipe_are_those_of_every_quantization_that_names_none(tmp_path: Path) -> None:
    variants = {
        "fp32": {"from": "tuned", "steps": ["export"]},
        "int8": {"from": "fp32", "steps": ["quantize"]},
        "own": {"from": "fp32", "steps": [{"quantize": {"targets": ["arm64"]}}]},
        "mixed": {"from": "fp32", "steps": [{"fall_back": {"quantize": {"float_stem": False}}}]},
        "trained": {"from": "fp32", "steps": [{"qat": {"teacher": "fp32"}}]},
    }
    made = build(raw(targets=["x86-vnni", "x86-avx2"], variants=variants), tmp_path)
    found = {name: variant.steps[-1] for name, variant in made.variants.items()}
    both = ("x86-vnni", "x86-avx2")
    assert found["int8"].targets == both  # type: ignore[union-attr]
    assert found["own"].targets == ("arm64",)  # type: ignore[union-attr]
    assert found["mixed"].quantize.targets == both  # type: ignore[union-attr]
    assert found["mixed"].quantize.float_stem is False  # type: ignore[union-attr]
    assert found["trained"].quantize.targets == both  # type: ignore[union-attr]
    wrong = {**variants, "int8": {"from": "fp32", "steps": [{"quantize": {"weight_bits": 8}}]}}
    with pytest.raises(RecipeError, match=r"variants\.int8\.steps.*saturates on target x86-avx2"):
        build(raw(targets=["x86-avx2"], variants=wrong), tmp_path)
