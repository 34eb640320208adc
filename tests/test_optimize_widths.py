"""Channels by layer from a latency table, and the table itself on a network that was really profiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from toolchain import graph
from toolchain.backbones.network import build
from toolchain.backbones.pruning import Part, Pruning, parts, prune
from toolchain.backbones.settings import Backbone
from toolchain.measure.layers import LayerTable, LayerTimes, left, time_layers
from toolchain.optimize.widths import Costs
from toolchain.steps.export import export_network


def flat(count: int, score: float = 1.0) -> tuple[float, ...]:
    return (score,) * count


def line(name: str, ns: float) -> LayerTimes:
    """Time in proportion to the work: with the square of the share that is left."""
    shares = (0.25, 0.5, 0.75, 1.0)
    return LayerTimes(name, shares, tuple(ns * share**2 for share in shares))


def two(first: float = 100.0, second: float = 100.0, channels: int = 64) -> Costs:
    """Two parts that share no layer; the importance of their channels is the same."""
    chains = (Part("a", flat(channels), ("a",), ("a2",)), Part("b", flat(channels), ("b",), ("b2",)))
    layers = tuple(
        line(name, ns) for name, ns in (("a", first), ("a2", first), ("b", second), ("b2", second))
    )
    return Costs(chains, LayerTable(layers, LayerTimes("", (1.0,), (10.0,))), 8)


def test_as_fast_as_asked() -> None:
    costs = two(100.0, 300.0)
    for ratio in (0.25, 0.5, 0.75):
        shares = costs.allot(ratio)
        kept = {name: round(64 * (1 - share) - 0.5) for name, share in shares.items()}
        assert costs.latency(kept) <= costs.target(ratio) * costs.whole * 1.001


def test_what_given_widths_take_is_told_by_any_table_of_the_network() -> None:
    costs, even = two(100.0, 300.0), two(200.0, 200.0)
    shares = costs.allot(0.5)
    assert costs.given(shares) <= costs.target(0.5) * 1.001
    assert costs.given(shares) < even.given(shares) < 1.0
    assert costs.given({}) == 1.0


def test_the_dear_part_gives_more_at_equal_importance() -> None:
    shares = two(100.0, 300.0, 256).allot(0.4)
    assert shares["b"] > shares["a"]


def test_the_unimportant_part_gives_more_at_equal_price() -> None:
    chains = (Part("a", flat(256, 0.1), ("a",), ("a2",)), Part("b", flat(256, 1.0), ("b",), ("b2",)))
    shares = Costs(chains, two().table, 8).allot(0.4)
    assert shares["a"] > shares["b"]


def test_what_is_kept_is_a_multiple_and_never_below_the_least() -> None:
    for ratio in (0.3, 0.6, 0.9):
        for share in two(1.0, 1000.0).allot(ratio, most=0.75).values():
            assert share <= 0.75
            assert share == 0 or int(64 * (1 - share)) % 8 == 0


def test_the_share_makes_the_pruner_keep_just_so_many() -> None:
    for channels in (24, 64, 96, 480, 1280):
        costs = Costs(
            (Part("a", flat(channels), ("a",), ()),),
            LayerTable((line("a", 100.0),), LayerTimes("", (1.0,), (0.0,))),
            8,
        )
        share = costs.allot(0.5)["a"]
        assert int(channels * (1 - share)) % 8 == 0


def test_the_target_falls_as_the_ratio_grows_also_where_the_pruner_leaves_small_layers_whole() -> None:
    chains = (Part("a", flat(24), ("a",), ("a2",)), Part("b", flat(256), ("b",), ("b2",)))
    costs = Costs(chains, two().table, 8)
    targets = [costs.target(0.05 * k) for k in range(1, 19)]
    assert targets == sorted(targets, reverse=True)
    assert costs.uniform(0.9) > costs.target(0.9)


def test_a_table_that_knows_too_little_is_not_used() -> None:
    costs = two()
    assert costs.covers
    assert not Costs(costs.parts, LayerTable(costs.table.layers, line("", 1e6)), 8).covers


def test_times_between_and_below_the_measured_widths() -> None:
    layer = LayerTimes("a", (0.5, 1.0), (40.0, 100.0))
    assert layer.at(0.75) == pytest.approx(70.0)
    assert layer.at(0.25) == pytest.approx(20.0)
    assert layer.at(1.0) == 100.0
    assert left(0.5, 0.5) == 0.5


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[LayerTable, list[Part], nn.Module]:
    folder = tmp_path_factory.mktemp("widths")
    given = {"timm": "mobilenetv2_050", "weights": "random", "preprocess": {"size": 32}}
    files: list[Path] = []
    for ratio in (0.0, 0.5):
        model, network = build(Backbone.model_validate(given), ["a", "b", "c"])
        if ratio:
            network = prune(model, network, Pruning(ratio=ratio))
        files.append(folder / f"{ratio}.onnx")
        graph.write(export_network(model, network), files[-1], {})
    model, network = build(Backbone.model_validate(given), ["a", "b", "c"])
    table = time_layers(files, np.zeros((1, 3, 32, 32), np.float32))
    return table, parts(model, network, Pruning()), model


def test_every_convolution_of_a_real_network_has_its_times(
    real: tuple[LayerTable, list[Part], nn.Module],
) -> None:
    table, _, model = real
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert {layer.name for layer in table.layers} == convolutions
    for layer in table.layers:
        assert layer.left[-1] == 1.0
        assert list(layer.ns) == sorted(layer.ns)
        assert all(ns > 0 for ns in layer.ns)


def test_parts_of_a_real_network_cover_its_layers_once(
    real: tuple[LayerTable, list[Part], nn.Module],
) -> None:
    table, found, _ = real
    gives = [name for part in found for name in part.gives]
    assert len(gives) == len(set(gives))
    assert set(gives) == {layer.name for layer in table.layers}
    assert all(list(part.scores) == sorted(part.scores) for part in found)


def test_widths_chosen_by_the_table_prune_a_real_network(
    real: tuple[LayerTable, list[Part], nn.Module],
) -> None:
    table, found, _ = real
    shares = Costs(tuple(found), table, 8).allot(0.5)
    given = {"timm": "mobilenetv2_050", "weights": "random", "preprocess": {"size": 32}}
    model, network = build(Backbone.model_validate(given), ["a", "b", "c"])
    before = {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    prune(model, network, Pruning(ratio=0.5, max_ratio=0.95, ratios=shares))
    after = {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for part in found:
        wanted = int(len(part.scores) * (1 - shares[part.name]))
        assert {after[name] for name in part.gives} == {wanted}, part.name
    assert after != before
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
