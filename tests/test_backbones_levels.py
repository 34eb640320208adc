"""A classifier that reads several levels: shapes, what is trained, saving, pruning, export, plain refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from learn_helpers import context
from pydantic import ValidationError
from safetensors.torch import save_file
from tiny import tiny_run
from torch import nn

from toolchain.backbones.architecture import blocks, create, deployable
from toolchain.backbones.network import build, load, save
from toolchain.backbones.pruning import Pruning, cost, prune
from toolchain.backbones.settings import Backbone, PreprocessOverrides
from toolchain.errors import BackboneError
from toolchain.learn.optimizer import Scope
from toolchain.steps.load import Load

LABELS = ("a", "b", "c")
PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def backbone(name: str = "mobilenetv2_050", **changes: object) -> Backbone:
    given = {
        "timm": name,
        "weights": "random",
        "out_indices": (2, 3),
        "preprocess": PreprocessOverrides(size=64),
    }
    return Backbone.model_validate(given | changes)


@pytest.mark.parametrize(
    ("name", "width"),
    [("mobilenetv2_050", 2 * (16 + 48)), ("resnet10t", 2 * (128 + 256)), ("convnext_atto", 2 * (160 + 320))],
)
def test_mean_and_maximum_of_each_level_are_read(name: str, width: int) -> None:
    model, network = build(backbone(name), LABELS)
    assert model(PICTURES).shape == (2, 3)
    assert model.get_classifier().in_features == width
    assert network.out_indices == (2, 3)


def test_a_weights_file_holds_no_classifier_for_levels(tmp_path: Path) -> None:
    save_file(create("mobilenetv2_050", {}, 3, seed=3).state_dict(), tmp_path / "w.safetensors")
    step = Load(file=tmp_path / "w.safetensors", backbone=backbone())
    with pytest.raises(BackboneError, match="holds no classifier for out_indices: take a folder"):
        step.run({}, context(tmp_path))


def test_what_lies_behind_the_last_level_is_dropped() -> None:
    cut, _ = build(backbone(out_indices=(1,)), LABELS)
    whole, _ = build(backbone(out_indices=None), LABELS)
    assert sum(p.numel() for p in cut.parameters()) < sum(p.numel() for p in whole.parameters()) / 4


def test_the_pretrained_weights_are_those_of_the_file(tmp_path: Path) -> None:
    source = create("mobilenetv2_050", {}, 1000, seed=3)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model, network = build(backbone(weights=tmp_path / "w.safetensors"), LABELS)
    with torch.no_grad():
        levels = source.forward_intermediates(PICTURES, indices=[2, 3], intermediates_only=True)
        pooled = torch.cat([p for x in levels for p in (x.mean((2, 3)), x.amax((2, 3)))], 1)
        assert torch.allclose(model(PICTURES), model.fc(model.norm(pooled)), atol=1e-5)
    assert network.provenance.sha256


def test_the_head_is_trained_with_its_norm_and_blocks_are_those_of_the_body() -> None:
    model, _ = build(backbone(), LABELS)
    Scope(model, "head").train()
    trained = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"norm", "fc"}
    assert model.norm.training
    assert not model.body.training
    Scope(model, 1)
    assert len(blocks(model)) > 1
    assert 0 < sum(p.requires_grad for p in model.body.parameters()) < len(list(model.body.parameters()))


def test_saved_pruned_and_loaded_again_it_answers_alike(tmp_path: Path) -> None:
    model, network = build(backbone(), LABELS)
    before = cost(model, network)
    network = prune(model, network, Pruning(ratio=0.5))
    assert cost(model, network).macs < 0.5 * before.macs
    save(model, network, tmp_path)
    again, described = load(tmp_path)
    assert described == network
    assert torch.equal(again(PICTURES), model(PICTURES))


def test_shipped_without_its_norm_it_answers_alike() -> None:
    model, _ = build(backbone(), LABELS)
    with torch.no_grad():
        for tensor in (model.norm.running_mean, model.norm.running_var, model.norm.weight, model.norm.bias):
            tensor.copy_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)) + 0.5)
        shipped = deployable(model)
        assert isinstance(shipped.norm, nn.Identity)
        assert torch.allclose(shipped(PICTURES), model(PICTURES), atol=1e-5)
    assert isinstance(model.norm, nn.BatchNorm1d)


def test_a_whole_trip(tmp_path: Path) -> None:
    settings = {
        "timm": "resnet10t", "weights": "random", "out_indices": [1, 3],
        "kwargs": {"channels": [8, 8, 16, 16], "stem_width": 8}, "preprocess": {"size": 32, "crop_pct": 1.0},
    }  # fmt: skip
    variants = {
        "fp32": {"from": "tuned", "steps": ["export"]},
        "int8": {"from": "fp32", "steps": [{"quantize": {"pictures": 8}}]},
    }
    run = tiny_run(tmp_path, backbone=settings, variants=variants)
    with np.load(run.bundle / "golden.npz") as golden:
        assert golden["probabilities"].shape[1] == 3


def test_a_level_that_is_not_there_is_told() -> None:
    with pytest.raises(BackboneError, match="levels 0 to 4, not 9"):
        build(backbone(out_indices=(9,)), LABELS)


def test_a_kept_classifier_reads_the_end_only() -> None:
    with pytest.raises(ValidationError, match="out_indices: needs head 'new'"):
        backbone(weights=Path("w.safetensors"), head="keep")


def test_kept_statistics_spare_the_head_alone() -> None:
    """Norms of the body normalise by what they came with; the levels' own norm learns what its inputs are like."""
    model, _ = build(backbone(), LABELS)
    Scope(model, "full", statistics_kept=True).train()
    body = [module for module in model.body.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in body]
    model(PICTURES)
    assert all(torch.equal(old, norm.running_mean) for old, norm in zip(before, body, strict=True))
    assert all(norm.weight.requires_grad for norm in body)
    assert not torch.equal(model.norm.running_mean, torch.zeros_like(model.norm.running_mean))


@pytest.mark.parametrize("train", ["head", 2, "full"])
def test_dropout_acts_whatever_is_trained(train: str | int) -> None:
    model, _ = build(backbone(drop_rate=0.5), LABELS)
    Scope(model, train, statistics_kept=True).train()
    model.norm.eval()
    assert not torch.equal(model(PICTURES), model(PICTURES))
    model.eval()
    assert torch.equal(model(PICTURES), model(PICTURES))
