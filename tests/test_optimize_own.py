"""Which of a recipe's variants a search tries as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolchain.optimize.own import flattened, is_trained, own_variants
from toolchain.recipe import Recipe, build, load

FILE = {"adopt": {"file": "model.onnx", "preprocess": {"height": 32, "width": 32}}}


def recipe(**variants: object) -> Recipe:
    return build({
        "name": "toy", "data": {"folder": "."}, "backbone": {"bundled": "nano"}, "tune": {"epochs": 1},
        "variants": {"fp32": {"from": "tuned", "steps": ["export"]}, **variants},
    }, Path("."))  # fmt: skip


def test_what_designs_are_made_of_is_left_to_the_search() -> None:
    assert not own_variants(load("blood-cells"), "cpu")
    assert not own_variants(load("quickstart"), "cpu")
    assert list(own_variants(load("surface-inspection"), "cpu")) == ["int8", "pruned", "pruned-int8"]
    assert list(own_variants(load("surface-inspection"), "cuda")) == ["pruned"]


def test_those_that_train_are_known_and_files_for_a_processor_are_not_for_cuda() -> None:
    shipped = own_variants(load("surface-inspection"), "cpu")
    assert [is_trained(variant) for variant in shipped.values()] == [False, False, True]
    laid_out = recipe(fast={"from": "fp32", "steps": ["relu_stem", "optimize_offline"]})
    assert list(own_variants(laid_out, "cpu")) == ["fast"]
    assert not own_variants(laid_out, "cuda")


def test_a_chain_of_variants_becomes_one_from_fp32() -> None:
    given = recipe(
        flat={"from": "fp32", "steps": ["equalize"]}, small={"from": "flat", "steps": ["quantize"]},
        near={"from": "fp32", "steps": ["quantize"]},
    )  # fmt: skip
    found = own_variants(given, "cpu")
    assert list(found) == ["flat", "small"]
    assert found["small"].source == "fp32"
    assert [step.step for step in found["small"].steps] == ["equalize", "quantize"]
    assert [step.step for step in flattened(given, given.variants["small"]).steps] == [
        "export", "equalize", "quantize",
    ]  # fmt: skip


@pytest.mark.parametrize("other", [
    {"from": "fp32", "steps": ["equalize"], "provider": "cuda"},
    FILE,
    {"from": "file", "steps": ["equalize", "quantize"]},
    {"from": "fp32", "steps": ["equalize", {"qat": {"teacher": "near"}}]},
])  # fmt: skip
def test_other_providers_files_and_teachers_are_left_out(other: dict[str, object]) -> None:
    given = recipe(file=FILE, near={"from": "fp32", "steps": ["quantize"]}, other=other)
    assert not own_variants(given, "cpu")
