"""Channel plans say in plain numbers what pruning changed, and refuse what cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from toolchain.backbones import plan as plans
from toolchain.backbones.plan import ChannelPlan
from toolchain.errors import BackboneError


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.layer = nn.LayerNorm(width)
        self.gain = nn.Parameter(torch.ones(width))
        self.splits = [width, 2]
        self.share = width**-0.5
        self.name, self.flag = "block", True
        self.register_buffer("table", torch.zeros(width), persistent=False)


class Model(nn.Module):
    def __init__(self, width: int = 8, table: int = 8) -> None:
        super().__init__()
        self.body = Block(width)
        self.body.table = torch.zeros(table)


def test_a_plan_turns_one_structure_into_the_other() -> None:
    small = Model(4)
    plan = plans.plan(Model(8), small)
    assert plan.attributes["body"] == {"share": 0.5, "splits": (4, 2)}
    assert plan.attributes["body.layer"] == {"normalized_shape": (4,)}
    assert plan.shapes["body.conv.weight"] == (4, 3, 3, 3)
    again = ChannelPlan.model_validate_json(plan.model_dump_json())
    assert again == plan
    made = Model(8)
    plans.apply(made, again)
    made.load_state_dict(small.state_dict())
    assert made.body.splits == [4, 2]
    assert made.body.conv.out_channels == made.body.norm.num_features == 4
    assert isinstance(made.body.gain, nn.Parameter)
    assert plans.plan(small, made) == ChannelPlan(attributes={}, shapes={})


def test_equal_networks_have_an_empty_plan() -> None:
    assert plans.plan(Model(), Model()) == ChannelPlan(attributes={}, shapes={})


def test_more_than_sizes_is_no_plan() -> None:
    other = Model()
    other.body.extra = nn.Linear(2, 2)
    with pytest.raises(BackboneError, match=r"structure was changed.*body\.extra"):
        plans.plan(Model(), other)


def test_sizes_of_what_is_not_saved_are_no_plan() -> None:
    with pytest.raises(BackboneError, match=r"not saved with the weights: body\.table"):
        plans.plan(Model(), Model(8, table=4))


@pytest.mark.parametrize(
    ("attributes", "shapes", "told"),
    [
        ({"body.nowhere": {"in_channels": 2}}, {}, "a module 'body.nowhere'"),
        ({"body.conv": {"heads": 2}}, {}, r"'body\.conv\.heads'"),
        ({"body.conv": {"training": 2}}, {}, r"'body\.conv\.training'"),
        ({"body.conv": {"kernel_size": 3}}, {}, r"'body\.conv\.kernel_size'"),
        ({}, {"body.conv.wight": (4, 3, 3, 3)}, r"a tensor 'body\.conv\.wight'"),
        ({}, {"body.conv.weight": (4, 3)}, "does not fit"),
        ({}, {"body.conv.weight": (10**9, 3, 3, 3)}, "does not fit"),
    ],
)
def test_impossible_plans_are_refused(attributes: dict, shapes: dict, told: str) -> None:
    with pytest.raises(BackboneError, match=told):
        plans.apply(Model(), ChannelPlan(attributes=attributes, shapes=shapes))


@pytest.mark.parametrize("shape", [[0, 3], [-1], ["x"]])
def test_impossible_sizes_are_refused(shape: list) -> None:
    with pytest.raises(ValueError, match="shapes"):
        ChannelPlan.model_validate({"attributes": {}, "shapes": {"w": shape}})
