"""Recipes with several networks: trained as `tune` says, made only where a variant needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from toolchain.errors import RecipeError
from toolchain.recipe import build, origin
from toolchain.recipe_editors import recipe_schema

TEXT = """
name: tiles
data: {folder: ./tiles}
backbone: {timm: resnet18, weights: random}
tune: {epochs: 3, lr: 0.01}
networks:
  small: {backbone: bundled/small, epochs: 5}
  unused: {backbone: bundled/nano}
variants:
  fp32: {from: tuned, steps: [export]}
  other: {from: small, steps: [{prune: {ratio: 0.5}}, {recover: {teacher: small}}, export]}
"""


def raw(**changes: Any) -> dict[str, Any]:
    return yaml.safe_load(TEXT) | changes


def test_a_network_is_trained_as_tune_says_but_for_what_it_says_itself(tmp_path: Path) -> None:
    networks = build(raw(), tmp_path).networks
    assert (networks["small"].epochs, networks["small"].lr) == (5, 0.01)
    assert (networks["unused"].epochs, networks["unused"].backbone.bundled) == (3, "nano")


def test_only_networks_that_variants_need_are_made(tmp_path: Path) -> None:
    nodes = build(raw(), tmp_path).nodes()
    assert list(nodes) == ["tuned", "small", "fp32", "other/0-prune", "other/1-recover", "other"]
    assert nodes["other/1-recover"].inputs == {"model": "other/0-prune", "teacher": "small"}
    assert origin(nodes["other"], nodes).name == "small"
    assert origin(nodes["fp32"], nodes).name == "tuned"


def test_what_is_written_of_a_recipe_is_read_as_the_same(tmp_path: Path) -> None:
    recipe = build(raw(), tmp_path)
    again = build(recipe.model_dump(mode="json", by_alias=True, exclude_unset=True), tmp_path)
    assert again.nodes() == recipe.nodes()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"networks": {"small": {"backbone": "bundled/smal"}}}, r"networks\.small\.backbone.*: no bundled backbone"),
        ({"networks": {"small": {"backbone": "bundled/small", "epohcs": 3}}}, r"networks\.small\.epohcs: unknown"),
        ({"networks": {"fp32": {"backbone": "bundled/small"}}}, r"networks\.fp32: .*take another name"),
        ({"networks": {"small": {}}}, r"networks\.small\.backbone: missing"),
        ({"networks": {"a" * 25: {"backbone": "bundled/small"}}}, "networks"),
        ({"networks": {"other": {"backbone": "bundled/small"}}}, r"variants\.other: .*network's name"),
        ({"networks": {}}, r"variants\.other\.from: there is no artifact 'small'"),
        ({"tune": {"epohcs": 3}}, r"^recipe: tune\.epohcs: unknown setting \(did you mean 'epochs'\?\)$"),
    ],
)  # fmt: skip
def test_each_problem_is_told_once_with_its_path(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        build(raw(**changes), tmp_path)


def test_networks_without_training_settings_are_refused(tmp_path: Path) -> None:
    checkpoint = raw(tuned={"file": "a.safetensors"})
    del checkpoint["tune"]
    checkpoint["networks"] = {"small": {"step": "tune", "backbone": "bundled/small"}}
    with pytest.raises(RecipeError, match="networks: there is no 'tune'"):
        build(checkpoint, tmp_path)


def test_the_schema_knows_networks() -> None:
    validator = jsonschema.Draft202012Validator(recipe_schema())
    assert validator.is_valid(raw())
    assert not validator.is_valid(raw(networks={"small": {"epochs": 3}}))
    assert not validator.is_valid(raw(networks={"Small": {"backbone": "bundled/small"}}))
