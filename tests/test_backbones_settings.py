"""What a recipe may say under `backbone:`, and how the pretrained configuration is respected."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from toolchain.backbones.network import describe
from toolchain.backbones.settings import Backbone

LABELS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"timm": "resnet5O"}, "did you mean 'resnet50'"),
        ({"timm": "resnet18.nonsense"}, "has no weights 'nonsense'; known: "),
        ({}, "exactly one of 'timm'"),
        ({"timm": "resnet18", "bundled": "nano"}, "nano"),
        ({"bundled": "mega"}, "no bundled backbone 'mega'"),
        (
            {"timm": "resnet18", "kwargs": {"num_classes": 3}},
            "'num_classes' is set through the data's labels",
        ),
        ({"timm": "resnet18", "kwargs": {"checkpoint_path": "x"}}, "through backbone.weights"),
        ({"timm": "resnet18", "weights": "random", "head": "keep"}, "needs weights to keep it from"),
        ({"timm": "resnet18", "wieghts": "hub"}, "wieghts"),
        ({"timm": "resnet18", "out_indices": [1, 2, 2]}, "level 2 is given twice; name each level once"),
        ({"timm": "resnet18", "preprocess": {"size": 2}}, "greater than or equal to 8"),
        ({"timm": "resnet18", "preprocess": {"std": [1, 0, 1]}}, "greater than 0"),
    ],
)
def test_mistakes_are_told(given: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Backbone.model_validate(given)


def test_a_bundled_backbone_by_its_name_alone() -> None:
    assert Backbone.model_validate("bundled/nano") == Backbone(bundled="nano")
    with pytest.raises(ValidationError, match="no bundled backbone 'mega'; known: nano, small"):
        Backbone.model_validate("bundled/mega")
    with pytest.raises(
        ValidationError, match="'resnet18' alone is no backbone; take bundled/NAME, or a mapping"
    ):
        Backbone.model_validate("resnet18")


def test_weights_words_and_paths() -> None:
    assert Backbone(timm="resnet18").weights is None
    assert Backbone(timm="resnet18", weights="hub").weights == "hub"
    assert Backbone.model_validate({"timm": "resnet18", "weights": "w.pth"}).weights == Path("w.pth")
    assert Backbone.model_validate({"timm": "resnet18", "weights": "w.pth"}).roots() == {
        "weights": Path("w.pth")
    }
    assert Backbone(timm="resnet18", weights="random").roots() == {}


@pytest.mark.parametrize(
    ("name", "height", "interpolation", "crop_pct", "mean"),
    [
        ("resnet50.a1_in1k", 224, "bicubic", 0.95, 0.485),
        ("mobilenetv3_large_100.ra_in1k", 224, "bicubic", 0.875, 0.485),
        ("tf_efficientnet_lite0.in1k", 224, "bicubic", 0.875, 0.5),
        ("inception_v3.tf_in1k", 299, "bicubic", 0.875, 0.5),
    ],
)
def test_the_pretrained_configuration_is_taken(
    name: str, height: int, interpolation: str, crop_pct: float, mean: float
) -> None:
    prepared = describe(Backbone(timm=name), LABELS).preprocess
    assert (prepared.height, prepared.width, prepared.interpolation) == (height, height, interpolation)
    assert (prepared.crop_pct, prepared.mean[0]) == (crop_pct, mean)


def test_overrides_change_only_what_they_name() -> None:
    plain = describe(Backbone(timm="resnet18"), LABELS).preprocess
    given = {
        "timm": "resnet18",
        "preprocess": {"size": [64, 96], "mean": [0.5, 0.5, 0.5], "crop_mode": "squash"},
    }
    changed = describe(Backbone.model_validate(given), LABELS).preprocess
    assert (changed.height, changed.width, changed.mean, changed.crop_mode) == (
        64,
        96,
        (0.5, 0.5, 0.5),
        "squash",
    )
    assert (changed.std, changed.interpolation, changed.crop_pct) == (
        plain.std,
        plain.interpolation,
        plain.crop_pct,
    )


def test_networks_of_fixed_size_are_made_for_the_wanted_one() -> None:
    vit = describe(Backbone(timm="vit_tiny_patch16_224", preprocess={"size": 32}), LABELS)
    assert vit.kwargs["img_size"] == [32, 32]
    assert "img_size" not in describe(Backbone(timm="resnet18", preprocess={"size": 32}), LABELS).kwargs


def test_provenance_says_where_the_weights_come_from() -> None:
    hub = describe(Backbone(timm="resnet18.a1_in1k"), LABELS).provenance
    assert (hub.source, hub.weights, hub.licence) == (
        "timm-hub",
        "hf-hub:timm/resnet18.a1_in1k",
        "apache-2.0",
    )
    assert describe(Backbone(timm="resnet18", weights="random"), LABELS).provenance.source == "random"
    file = describe(Backbone(timm="resnet18", weights=Path("x/w.pth")), LABELS).provenance
    assert (file.source, file.weights) == ("file", "w.pth")
