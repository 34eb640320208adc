"""How a search makes a network smaller by `narrow`, and which of the recipe's steps it takes for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto
from onnx.helper import make_node
from onnx_helpers import convolution, mobile, model
from test_optimize_own import FILE, recipe

from toolchain.optimize.design import Design, Template
from toolchain.optimize.narrowing import Narrowing, narrowing
from toolchain.recipe import Recipe, Variant, load, needs
from toolchain.steps import Join, Narrow, Qat, Quantize
from toolchain.steps.quantize import Target

HALF = Design(narrow=0.55, taught=6, scheme="int8-qat")
UNTRAINED = HALF.untrained


def found(given: Recipe, targets: tuple[Target, ...] = ()) -> Narrowing:
    qat = Template(given, 1.0, targets).qat
    return narrowing(given, qat, own=not targets)


def steps(given: Narrowing, design: Design) -> list[str]:
    return [step.step for step in given.variant(design).steps]


def test_the_recipe_s_own_chain_is_taken_at_another_width() -> None:
    own = found(load("surface-inspection"))
    assert steps(own, HALF) == ["narrow", "join", "equalize", "grey_stem", "qat"]
    assert own.epochs == 6
    first, *_, last = own.variant(HALF).steps
    assert isinstance(first, Narrow)
    assert first.max_products == 0.45
    assert isinstance(last, Qat)
    assert (last.mixup, last.lr) == (1.0, 1e-4)
    assert own.variant(HALF).source == "fp32"


def test_before_training_the_file_has_the_same_integers_untrained() -> None:
    own = found(load("surface-inspection"))
    trained, plain = own.variant(HALF).steps[-1], own.variant(UNTRAINED).steps[-1]
    assert isinstance(trained, Qat)
    assert isinstance(plain, Quantize)
    assert plain == trained.quantize


def test_a_recipe_without_one_gets_the_usual_steps() -> None:
    own = found(load("blood-cells"))
    first, second, last = own.variant(HALF).steps
    assert (type(first), type(second), type(last)) == (Narrow, Join, Qat)
    assert isinstance(last, Qat)
    assert last.quantize.calibration == "mse"
    assert (last.teacher, last.lr) == ("fp32", 1e-4)
    given = recipe(small={"from": "fp32", "steps": [{"qat": {"teacher": "fp32", "lr": 3e-4}}]})
    told = found(given).variant(HALF).steps[-1]
    assert isinstance(told, Qat)
    assert told.lr == 3e-4


def test_for_targets_the_integers_are_right_on_all_of_them() -> None:
    last = found(load("surface-inspection"), ("x86-vnni", "arm64")).variant(HALF).steps[-1]
    assert isinstance(last, Qat)
    assert last.quantize.targets == ("x86-vnni", "arm64")


def test_a_network_that_was_pruned_is_narrowed_towards_fp32_and_one_of_another_size_towards_itself() -> None:
    own = found(load("blood-cells"))
    pruned = own.variant(replace(HALF, ratio=0.5, shape="table", epochs=4))
    assert pruned.source == "t50-e4-fp32"
    assert needs(pruned) == {"t50-e4-fp32", "fp32"}
    smaller = own.variant(replace(HALF, size=96))
    assert needs(smaller) == {"s96-fp32"}


QAT = {"qat": {"teacher": "fp32"}}


@pytest.mark.parametrize("variant", [
    {"from": "fp32", "steps": [{"narrow": {"layers": ["body.conv_stem"]}}, QAT]},
    {"from": "fp32", "steps": [QAT]},
    {"from": "fp32", "steps": ["narrow", "quantize"]},
    {"from": "fp32", "steps": ["narrow", {"qat": {"teacher": "near"}}]},
    {"from": "fp32", "steps": ["narrow", "equalize", QAT], "provider": "cuda"},
    {"from": "file", "steps": ["narrow", "equalize", QAT]},
])  # fmt: skip
def test_chains_that_do_something_else_are_no_narrowing(variant: dict[str, object]) -> None:
    given = recipe(file=FILE, near={"from": "fp32", "steps": ["quantize"]}, other=variant)
    assert steps(found(given), HALF) == ["narrow", "join", "qat"]


def network(channels: int, side: int) -> ModelProto:
    """Two convolutions, the second of `side` by `side`, with `channels` between them."""
    constants: dict[str, Any] = {}
    first, second = (np.ones(shape, np.float32) for shape in ((channels, 3, 3, 3), (8, channels, side, side)))
    nodes = [*convolution("input", "a", first, constants), *convolution("a", "b", second, constants)]
    constants["fc.weight"], constants["fc.bias"] = np.ones((3, 8), np.float32), np.zeros(3, np.float32)
    nodes += [
        make_node("GlobalAveragePool", ["b"], ["pooled"]), make_node("Flatten", ["pooled"], ["flat"]),
        make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], transB=1),
    ]  # fmt: skip
    return model(nodes, constants)


@pytest.mark.parametrize(
    ("channels", "side", "can"), [(32, 1, True), (16, 1, False), (32, 3, True), (272, 3, False)]
)
def test_what_can_be_narrowed_has_channels_to_spare_and_a_reader_of_not_too_many_inputs(
    channels: int, side: int, can: bool
) -> None:
    reach = found(load("blood-cells")).reach(network(channels, side))
    assert (reach > 0.9) if can else reach == 0


def test_reach_is_a_share_of_the_products_and_inverted_blocks_have_depthwise_layers() -> None:
    own = found(recipe(small={"from": "fp32", "steps": [{"narrow": {"multiple": 4}}, QAT]}))
    plain = (
        mobile()
    )  # 8 by 8: stem 16 x 27, dw 16 x 9, narrow 8 x 16, widen 32 x 8, dense 32 x 288 a pixel; fc 3 x 32
    whole = 64 * (16 * 27 + 16 * 9 + 8 * 16 + 32 * 8 + 32 * 288) + 96
    assert own.reach(plain) == pytest.approx(1 - 96 / whole)
    assert own.reach(plain, inverted=True) == pytest.approx(64 * (16 * 27 + 16 * 9 + 8 * 16) / whole)
    assert found(recipe()).reach(plain, inverted=True) == 0  # no layer has more than sixteen


def test_what_is_made_can_be_written_into_a_recipe_and_read() -> None:
    given = recipe()
    for design in (HALF, replace(HALF, size=96), UNTRAINED):
        made = found(given).variant(design)
        told = made.model_dump(mode="json", exclude_unset=True, by_alias=True)
        assert Variant.model_validate(told) == made


def test_every_step_that_is_taught_has_the_teacher_of_its_size() -> None:
    steps_ = ["narrow", {"reconstruct": {"teacher": "fp32"}}, "join", QAT]
    own = found(recipe(small={"from": "fp32", "steps": steps_}))
    assert needs(own.variant(HALF)) == {"fp32"}
    assert needs(own.variant(replace(HALF, size=24))) == {"s24-fp32"}


def test_names_tell_how_far() -> None:
    assert HALF.name == "n55-e6-int8-qat"
