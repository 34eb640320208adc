"""Networks of many families prune, run, and come back from their channel plan with the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from toolchain.backbones.architecture import deployable
from toolchain.backbones.counts import macs
from toolchain.backbones.network import Network, build, load, save
from toolchain.backbones.pruning import Pruning, check_network_prunable, check_prunable, cost, parts, prune
from toolchain.backbones.settings import Backbone
from toolchain.errors import BackboneError

DEPTH = {"depth": 2}
SMALL = {"channels": [32, 32, 64, 64], "layers": [1, 1, 1, 1]}
# name, pixels, kwargs, greatest share of MACs that may be left at ratio 0.3 and 0.5
FAST = [
    ("resnet10t", 32, {}, 0.50, 0.28),
    ("mobilenetv2_050", 32, {}, 0.50, 0.34),
    ("mobilenetv3_small_050", 32, {}, 0.52, 0.34),
    ("efficientnet_lite0", 32, {}, 0.50, 0.30),
    ("convnext_atto", 32, {}, 0.52, 0.30),
    ("vit_tiny_patch16_224", 32, DEPTH, 0.50, 0.30),
    ("deit_tiny_patch16_224", 32, DEPTH, 0.50, 0.30),
    ("repvgg_a0", 32, {}, 0.50, 0.30),
]
SLOW = [
    ("resnet18", 32, {}, 0.50, 0.30),
    ("resnet50", 32, {}, 0.50, 0.30),
    ("efficientnet_b0", 32, {}, 0.50, 0.30),
    ("repvit_m0_9", 64, {}, 0.52, 0.32),
    ("mobileone_s0", 64, {}, 0.52, 0.32),
    ("deit_tiny_distilled_patch16_224", 32, {}, 0.50, 0.30),
    ("mobilevit_s", 64, {}, 0.50, 0.30),
    ("efficientvit_b0", 64, {}, 0.70, 0.60),
    ("swin_tiny_patch4_window7_224", 56, {}, 0.85, 0.72),
]
FAMILIES = [
    *(pytest.param(*row[:3], 0.5, row[4], id=f"{row[0]}-0.5") for row in FAST),
    *(pytest.param(*row[:3], 0.3, row[3], id=f"{row[0]}-0.3", marks=pytest.mark.slow) for row in FAST + SLOW),
    *(pytest.param(*row[:3], 0.5, row[4], id=f"{row[0]}-0.5", marks=pytest.mark.slow) for row in SLOW),
]


def make(name: str, size: int = 32, kwargs: dict | None = None) -> tuple[nn.Module, Network]:
    given = {"timm": name, "weights": "random", "kwargs": kwargs or {}, "preprocess": {"size": size}}
    return build(Backbone.model_validate(given), ["a", "b", "c"])


def pictures(network: Network) -> torch.Tensor:
    return torch.randn(2, 3, network.preprocess.height, network.preprocess.width)


@pytest.mark.parametrize(("name", "size", "kwargs", "ratio", "most"), FAMILIES)
def test_families_prune_run_and_reload(
    name: str, size: int, kwargs: dict, ratio: float, most: float, tmp_path: Path
) -> None:
    model, network = make(name, size, kwargs)
    before = cost(model, network)
    pruned = prune(model, network, Pruning(ratio=ratio))
    after = cost(model, pruned)
    assert most - 0.13 < after.macs / before.macs < most
    save(model, pruned, tmp_path)
    again, description = load(tmp_path)
    assert description == pruned
    given = pictures(network)
    with torch.no_grad():
        answers = model(given)
        assert answers.shape == (2, 3)
        assert torch.equal(again(given), answers)
        near = 1e-5 * float(answers.abs().max())
        torch.testing.assert_close(deployable(again)(given), answers, rtol=1e-4, atol=near)


def test_pruned_networks_still_learn() -> None:
    model, network = make("vit_tiny_patch16_224", 32, DEPTH)
    prune(model, network, Pruning(ratio=0.5))
    model.train()(pictures(network)).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("importance", ["l1", "l2", "taylor", "lamp", "bn_scale", "random"])
def test_every_importance_in_every_scope(importance: str, scope: str) -> None:
    model, network = make("resnet10t", 32, SMALL)
    given = pictures(network)
    settings = Pruning(importance=importance, scope=scope, ratio=0.4, max_ratio=0.75)
    pruned = prune(model, network, settings, gradients=lambda m: m(given).square().sum().backward())
    for layer, original in zip(_convs(model), _convs(pruned.unpruned()), strict=True):
        assert layer.out_channels % 8 == 0
        assert layer.out_channels >= 0.25 * original.out_channels
    assert pruned.plan is not None


@pytest.mark.parametrize(
    ("importance", "mark"),
    [("l1", "weight"), ("l2", "weight"), ("lamp", "weight"), ("bn_scale", "gamma"), ("taylor", "gradient")],
)
def test_the_channels_that_matter_stay(importance: str, mark: str) -> None:
    """Half of one layer's channels are made to matter by the importance's own measure: those are kept."""
    model, network = make("resnet10t", 32, SMALL)
    block, chosen = model.layer1[0], torch.arange(1, 32, 2)
    with torch.no_grad():
        if mark == "weight":
            block.conv1.weight[chosen] *= 50
        if mark == "gamma":
            block.bn1.weight[chosen] = 50
    wanted = block.conv1.weight[chosen].clone()

    def gradients(pruned: nn.Module) -> None:
        for parameter in pruned.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        pruned.layer1[0].conv1.weight.grad[chosen] = 10.0

    prune(
        model,
        network,
        Pruning(importance=importance, ratio=0.5, ignore=("layer2.*", "layer3.*", "layer4.*")),
        gradients=gradients,
    )
    # Inputs were pruned as well, so compare through one input channel that every kept filter still has.
    kept = {tuple(row.flatten()[:9].tolist()) for row in block.conv1.weight.detach()}
    sources = {tuple(row.tolist()) for row in wanted.detach().flatten(2).transpose(0, 1).flatten(0, 1)}
    assert block.conv1.out_channels == 16
    assert kept <= sources


def test_more_iterations_come_to_the_same_size() -> None:
    sizes, steps = [], []
    for iterations in (1, 3):
        model, network = make("resnet10t", 32, SMALL)
        prune(model, network, Pruning(ratio=0.5, iterations=iterations), advance=lambda: steps.append(1))
        sizes.append(macs(model, network.preprocess))
    assert sizes[0] == sizes[1]
    assert len(steps) == 4


def test_attention_prunes_in_iterations() -> None:
    model, network = make("vit_tiny_patch16_224", 32, DEPTH)
    given = pictures(network)
    settings = Pruning(importance="taylor", ratio=0.5, iterations=2)
    pruned = prune(model, network, settings, gradients=lambda m: m(given).square().sum().backward())
    assert model.blocks[0].attn.head_dim == 32
    assert model.blocks[0].attn.scale == 32**-0.5
    assert model.blocks[0].attn.num_heads == 3
    assert pruned.plan is not None
    assert pruned.plan.attributes["blocks.0.attn"]["head_dim"] == 32


def test_a_pruned_network_can_be_pruned_again(tmp_path: Path) -> None:
    model, network = make("resnet10t", 32, SMALL)
    once = prune(model, network, Pruning(ratio=0.5, round_to=2))
    twice = prune(model, once, Pruning(ratio=0.5, round_to=2))
    save(model, twice, tmp_path)
    again, _ = load(tmp_path)
    assert again.layer4[0].conv1.out_channels == 16
    given = pictures(network)
    assert torch.equal(again(given), model(given))


@pytest.mark.parametrize("importance", ["l2", "random"])
def test_a_seed_decides(importance: str) -> None:
    states = []
    for seed in (1, 1, 2):
        model, network = make("resnet10t", 32, SMALL)
        prune(model, network, Pruning(importance=importance), seed=seed)
        states.append(model.state_dict())
    assert _equal(states[0], states[1])
    assert _equal(states[0], states[2]) == (importance == "l2")


def test_ignored_layers_keep_their_channels() -> None:
    model, network = make("resnet10t", 32, SMALL)
    prune(model, network, Pruning(ratio=0.5, ignore=("layer3.*", "layer4.0.conv1")))
    assert model.layer3[0].conv1.out_channels == 64
    assert model.layer4[0].conv1.out_channels == 64
    assert model.layer1[0].conv1.out_channels == 16
    with pytest.raises(BackboneError, match=r"no module is called 'leyer3\.\*'; the outermost are conv1"):
        prune(*make("resnet10t", 32, SMALL), Pruning(ignore=("leyer3.*",)))


def test_nothing_to_prune_is_told() -> None:
    with pytest.raises(BackboneError, match="round_to 64 leaves every layer as it is"):
        prune(*make("resnet10t", 32, {"channels": [8, 8, 8, 8], "stem_width": 8}), Pruning(round_to=64))
    with pytest.raises(BackboneError, match="which 'bn_scale' needs"):
        check_prunable(
            Backbone(timm="vit_tiny_patch16_224", kwargs=DEPTH, preprocess={"size": 32}),
            Pruning(importance="bn_scale"),
        )


def test_broken_weights_are_told() -> None:
    model, network = make("resnet10t", 32, SMALL)
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    with pytest.raises(BackboneError, match=r"weights of 'fc\.bias' are not finite"):
        prune(model, network, Pruning())


def test_a_layer_of_zeros_does_not_upset_the_others() -> None:
    model, network = make("resnet10t", 32, SMALL)
    with torch.no_grad():
        model.layer1[0].bn1.weight.zero_()
    pruned = prune(model, network, Pruning(importance="bn_scale", scope="global", ratio=0.4))
    assert pruned.plan is not None


def test_what_cannot_be_pruned_is_told_beforehand() -> None:
    check_prunable(
        Backbone(timm="resnet10t", kwargs=SMALL, preprocess={"size": 32}), Pruning(importance="taylor")
    )
    levit = Backbone(timm="levit_128s", kwargs={"depth": [1, 1, 1]}, weights="random")
    with pytest.raises(BackboneError, match="'levit_128s' cannot be pruned"):
        check_prunable(levit)


def test_a_pruned_network_is_tried_with_weights_whatever_lies_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, network = make("resnet10t", 32, SMALL)
    pruned = prune(model, network, Pruning(ratio=0.4))
    whole = Network.skeleton

    def broken(self: Network) -> torch.nn.Module:
        made = whole(self)
        for tensor in made.state_dict().values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        return made

    monkeypatch.setattr(Network, "skeleton", broken)
    check_network_prunable(pruned, Pruning(ratio=0.2))


def test_settings_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"ratio 0\.8 is greater than max_ratio 0\.5"):
        Pruning(ratio=0.8, max_ratio=0.5)


def _convs(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def _equal(left: dict, right: dict) -> bool:
    return all(
        left[name].shape == right[name].shape and torch.equal(left[name], right[name]) for name in left
    )


def channels(model: nn.Module) -> dict[str, int]:
    return {name: m.out_channels for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}


def test_single_layers_have_their_own_share_and_the_longest_pattern_counts() -> None:
    model, network = make("mobilenetv2_050")
    before = channels(model)
    shares = {"blocks.*": 0.25, "blocks.2.*": 0.0, "blocks.6.0.conv_pw": 0.75}
    prune(model, network, Pruning(ratio=0.5, ratios=shares))
    after = channels(model)
    assert after["blocks.6.0.conv_pw"] == 120
    assert after["blocks.6.0.conv_dw"] == 120
    assert after["blocks.2.1.conv_pw"] == before["blocks.2.1.conv_pw"]
    assert after["blocks.5.0.conv_pw"] == 216
    assert after["conv_head"] == 640


def test_a_pattern_that_names_no_layer_is_told() -> None:
    model, network = make("resnet10t", kwargs=SMALL)
    with pytest.raises(
        BackboneError, match=r"prune.ratios: no layer is called 'blocks\.9\.\*'; layers are conv1"
    ):
        prune(model, network, Pruning(ratio=0.5, ratios={"blocks.9.*": 0.2}))


def test_shares_of_layers_are_bounded_and_leave_no_trace_where_there_are_none() -> None:
    with pytest.raises(ValueError, match=r"ratios: a: 0\.95 is greater than max_ratio 0\.9"):
        Pruning(ratios={"a": 0.95})
    assert "ratios" not in Pruning(ratio=0.5).model_dump(mode="json")
    assert Pruning(ratios={"a": 0.5}).model_dump(mode="json")["ratios"] == {"a": 0.5}


def test_attention_has_no_parts_of_its_own_but_its_other_layers_do() -> None:
    model, network = make("vit_tiny_patch16_224", 32, DEPTH)
    names = {name for part in parts(model, network, Pruning()) for name in part.gives}
    assert "blocks.0.mlp.fc1" in names
    assert "blocks.0.attn.qkv" not in names
