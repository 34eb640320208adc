"""What networks are made of: classifier, blocks, export form, cost."""

from __future__ import annotations

import pytest
import torch

from toolchain.backbones.architecture import blocks, create, deployable, fuse_attention, head_names
from toolchain.backbones.counts import macs, parameters
from toolchain.data.preprocess import Preprocess

HEADS = {
    "resnet10t": ("fc",),
    "mobilenetv3_small_050": ("classifier",),
    "convnext_atto": ("head.fc",),
    "vit_tiny_patch16_224": ("head",),
    "deit_tiny_distilled_patch16_224": ("head", "head_dist"),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_and_blocks_together_are_the_layers(name: str) -> None:
    model = create(name, {}, 3)
    assert head_names(model) == HEADS[name]
    found = blocks(model)
    assert len(found) >= 5
    body = {id(p) for block in found for module in block for p in module.parameters()}
    head = {id(p) for layer in head_names(model) for p in model.get_submodule(layer).parameters()}
    rest = [n for n, p in model.named_parameters() if id(p) not in body | head]
    assert not body & head
    assert set(rest) <= {"cls_token", "pos_embed", "dist_token"}


def test_blocks_go_from_stem_to_neck() -> None:
    model = create("resnet10t", {}, 3)
    names = {module: name for name, module in model.named_modules()}
    order = [names[block[0]] for block in blocks(model)]
    assert order[0].startswith("conv1")
    assert order[-1].startswith("layer4")


@pytest.mark.parametrize(
    ("name", "billions"), [("resnet50", 4.09), ("mobilenetv2_100", 0.301), ("vit_tiny_patch16_224", 1.254)]
)
def test_macs_are_the_published_ones(name: str, billions: float) -> None:
    model = create(name, {}, 1000).train()
    assert macs(model, Preprocess(height=224, width=224)) / 1e9 == pytest.approx(billions, rel=0.002)
    assert model.training


def test_macs_by_hand() -> None:
    conv = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, groups=3, padding=1), torch.nn.Flatten(), torch.nn.Linear(6 * 8 * 4, 5)
    )
    assert macs(conv, Preprocess(height=8, width=4)) == 8 * 4 * 6 * 9 + 6 * 8 * 4 * 5
    assert parameters(conv) == 6 * 9 + 6 + 6 * 8 * 4 * 5 + 5


def test_attention_counts_alike_fused_or_not() -> None:
    model = create("vit_tiny_patch16_224", {"depth": 2, "img_size": [32, 32]}, 3)
    prepared = Preprocess(height=32, width=32)
    fused = macs(model, prepared)
    assert len(fuse_attention(model, False)) == 2
    assert macs(model, prepared) == fused


def test_the_export_form_answers_alike_and_costs_less() -> None:
    model = create("repvgg_a0", {}, 3)
    for module in model.modules():  # statistics as after training, where folding is not trivial
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    shipped = deployable(model)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(shipped(pictures), model(pictures), rtol=1e-4, atol=1e-4)
    assert parameters(shipped) < parameters(model)
    assert hasattr(model.stem, "conv_1x1")
