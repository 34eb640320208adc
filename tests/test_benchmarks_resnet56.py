"""ResNet-56's pruning table: the network, what is pruned of it, and the sums of a row; its training is a benchmark."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import nn

from benchmarks.resnet56 import run
from toolchain.backbones.network import Network, describe
from toolchain.backbones.pruning import cost, prune
from toolchain.backbones.settings import Backbone

LABELS = [str(label) for label in range(10)]


def described(backbone: Any) -> Network:
    return describe(Backbone.model_validate(backbone), LABELS)


def test_resnet56_has_the_field_s_layers_and_multiplications() -> None:
    network = described(run.BACKBONE)
    model = network.skeleton()
    deep = [m for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in name]
    assert len(deep) == 55  # and the classifier
    assert cost(model, network).macs == pytest.approx(125.5e6, rel=0.005)


def test_pruned_and_thin_need_as_many_multiplications_less_as_the_field_s() -> None:
    network, thin = described(run.BACKBONE), described(run.THIN)
    model = network.skeleton()
    whole = cost(model, network).macs
    pruned = cost(model, prune(model, network, run.enough())).macs
    assert run.FEWER <= whole / pruned < 1.02 * run.FEWER
    assert whole / cost(thin.skeleton(), thin).macs == pytest.approx(run.FEWER, rel=0.01)


def test_a_row_tells_gains_of_the_same_pictures() -> None:
    labels = np.arange(100) % 10
    right = np.eye(10, dtype=np.float32)[labels]
    wrong = np.roll(right, 1, axis=1)
    macs = {"fp32": 426.0, "pruned": 200.0, "thin": 213.0}

    def first(count: int) -> np.ndarray:
        return np.where(np.arange(100)[:, None] < count, right, wrong)

    one = {
        "labels": labels,
        "train": 5,
        "macs": macs,
        "fp32": first(90),
        "pruned": first(95),
        "thin": first(80),
    }
    found = run.row(8, [one, one])
    assert (found["fp32 top1"], found["pruned top1"], found["thin top1"]) == (90, 95, 80)
    assert (found["gained, points"], found["over thin, points"]) == (5, 15)
    assert found["gained_ci95"][0] > 0
    assert (found["pruned, times fewer MACs"], found["thin, times fewer MACs"]) == (2.13, 2)
    assert found["seeds"] == 2


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, True),
        ({"epochs": 199}, False),
        ({"gained, points": 0.23}, False),
        ({"over thin, points": 0.0}, False),
    ],
)
def test_only_a_point_as_long_as_the_field_s_can_pass(changes: dict[str, float], passes: bool) -> None:
    assert run.reached({"epochs": 200, "gained, points": 0.24, "over thin, points": 0.1, **changes}) is passes
