"""Networks are built from their sources, saved and loaded back with the same answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import timm.models._builder as timm_builder
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

from toolchain.backbones import bundled, hub
from toolchain.backbones.architecture import create
from toolchain.backbones.files import digest_file
from toolchain.backbones.network import build, load, read, save
from toolchain.backbones.settings import Backbone
from toolchain.errors import BackboneError

TINY = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
RANDOM = {"timm": "resnet10t", "kwargs": TINY, "weights": "random", "preprocess": {"size": 32}}
PICTURES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_save_and_load_give_the_same_answers(tmp_path: Path) -> None:
    model, network = build(Backbone.model_validate(RANDOM), ["cat", "dog"])
    save(model, network, tmp_path / "n")
    again, description = load(tmp_path / "n")
    assert description == network
    assert not again.training
    assert torch.equal(again(PICTURES), model(PICTURES))


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        model, network = build(Backbone.model_validate(RANDOM), ["cat", "dog"])
        save(model.to(torch.float64) if name == "b" else model, network, tmp_path / name)
    for file in ("network.json", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_tied_tensors_are_saved(tmp_path: Path) -> None:
    model, network = build(Backbone.model_validate(RANDOM), ["a", "b"])
    model.layer1[0].bn1.weight = model.layer1[0].bn2.weight
    save(model, network, tmp_path)
    assert torch.equal(load(tmp_path)[0](PICTURES), model(PICTURES))


def test_random_weights_follow_the_seed_and_leave_torchs_alone() -> None:
    backbone = Backbone.model_validate(RANDOM)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (build(backbone, ["a", "b"], seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.fc.weight, second.fc.weight)
    assert not torch.equal(first.conv1[0].weight, other.conv1[0].weight)


def test_dropout_settings_travel(tmp_path: Path) -> None:
    model, network = build(
        Backbone.model_validate({**RANDOM, "drop_rate": 0.2, "drop_path_rate": 0.1}), ["a", "b"]
    )
    save(model, network, tmp_path)
    again, _ = load(tmp_path)
    assert again.drop_rate == 0.2
    assert again.layer4[0].drop_path.drop_prob == pytest.approx(0.1)


def test_wrong_constructor_options_are_told() -> None:
    with pytest.raises(BackboneError, match="cannot make 'resnet10t' with pad_typ=same"):
        build(Backbone(timm="resnet10t", weights="random", kwargs={"pad_typ": "same"}), ["a", "b"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: d.pop("labels"), "damaged at labels"),
        (lambda d: d.update(architecture="resnet10x"), "timm cannot make 'resnet10x'"),
        (lambda d: d.update(labels=["a", "b", "c"]), "does not fit the network described beside it"),
        (
            lambda d: d.update(plan={"attributes": {"nowhere": {"in_channels": 4}}, "shapes": {}}),
            "a module 'nowhere'",
        ),
    ],
)
def test_a_damaged_description_is_told(change, told: str, tmp_path: Path) -> None:
    save(*build(Backbone.model_validate(RANDOM), ["a", "b"]), tmp_path)
    description = json.loads((tmp_path / "network.json").read_text())
    change(description)
    (tmp_path / "network.json").write_text(json.dumps(description))
    with pytest.raises(BackboneError, match=told):
        load(tmp_path)


def test_folders_that_hold_no_network_are_told(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"no network\.json"):
        read(tmp_path)
    save(*build(Backbone.model_validate(RANDOM), ["a", "b"]), tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(BackboneError, match=r"weights\.safetensors: not a readable"):
        load(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"weights\.safetensors: no such"):
        load(tmp_path)


class TestBundled:
    @pytest.fixture
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        save_file(create("resnet10t", TINY, 9, seed=3).state_dict(), tmp_path / "small.safetensors")
        card = {
            "architecture": "resnet10t", "kwargs": TINY, "size": 48, "mean": [0.4] * 3, "std": [0.2] * 3,
            "licence": "Apache-2.0", "sha256": digest_file(tmp_path / "small.safetensors"), "how": "made up",
            "transfer": {"digits": 1},
        }  # fmt: skip
        (tmp_path / "small.json").write_text(json.dumps(card))
        monkeypatch.setattr(bundled, "FOLDER", tmp_path)
        return tmp_path

    def test_it_brings_weights_preprocessing_and_licence(self, package: Path) -> None:
        model, network = build(Backbone(bundled="small"), list("abc"))
        assert torch.equal(model.conv1[0].weight, create("resnet10t", TINY, 9, seed=3).conv1[0].weight)
        assert (network.architecture, network.preprocess.height, network.preprocess.mean[0]) == (
            "resnet10t",
            48,
            0.4,
        )
        assert (network.provenance.source, network.provenance.licence) == ("bundled", "Apache-2.0")
        assert Backbone(bundled="small").roots() == {"weights": package / "small.safetensors"}

    def test_the_control_has_the_same_structure_and_random_weights(self, package: Path) -> None:
        model, network = build(
            Backbone(bundled="small", weights="random", preprocess={"size": 32}), list("abc")
        )
        assert not torch.equal(model.conv1[0].weight, create("resnet10t", TINY, 9, seed=3).conv1[0].weight)
        assert (network.provenance.source, network.preprocess.height) == ("random", 32)

    def test_damage_is_noticed(self, package: Path) -> None:
        save_file(create("resnet10t", TINY, 9, seed=4).state_dict(), package / "small.safetensors")
        with pytest.raises(BackboneError, match="damaged, reinstall"):
            build(Backbone(bundled="small"), list("abc"))

    def test_other_weights_are_refused(self, package: Path) -> None:
        with pytest.raises(ValueError, match="brings its own"):
            Backbone(bundled="small", weights="hub")


class TestHub:
    """timm's own code runs; only the download is played."""

    @pytest.fixture
    def published(self, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
        model = create("mobilenetv3_small_050", {}, 1000, seed=9)
        monkeypatch.setattr(hub, "reach", lambda config: None)
        monkeypatch.setattr(timm_builder, "load_state_dict_from_hf", lambda *a, **k: model.state_dict())
        return model

    def test_an_unreachable_hub_is_told_at_once(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *a: None)
        with pytest.raises(BackboneError, match="no network: give weights: FILE or weights: random"):
            build(Backbone(timm="mobilenetv3_small_050"), ["a", "b"])

    def test_no_network_is_told_with_the_way_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(*args: object, **kwargs: object) -> None:
            raise LocalEntryNotFoundError("outgoing traffic has been disabled")

        monkeypatch.setattr(timm_builder, "load_state_dict_from_hf", offline)
        monkeypatch.setattr(hub, "reach", lambda config: None)
        with pytest.raises(BackboneError, match="no network: give weights: FILE or weights: random"):
            build(Backbone(timm="mobilenetv3_small_050"), ["a", "b"])

    @pytest.mark.parametrize("labels", [3, 1000])
    def test_published_weights_are_loaded_and_get_a_new_classifier(
        self, labels: int, published: nn.Module
    ) -> None:
        backbone = Backbone(timm="mobilenetv3_small_050.lamb_in1k")
        names = [str(i) for i in range(labels)]
        (model, network), (again, _) = build(backbone, names), build(backbone, names)
        assert torch.equal(model.conv_stem.weight, published.conv_stem.weight)
        assert model.classifier.weight.shape == (labels, 1024)
        assert labels == 3 or not torch.equal(model.classifier.weight, published.classifier.weight)
        assert torch.equal(model.classifier.weight, again.classifier.weight)
        assert network.provenance.weights == "hf-hub:timm/mobilenetv3_small_050.lamb_in1k"
        assert len(network.provenance.sha256 or "") == 64

    def test_a_kept_classifier_must_have_as_many_outputs(self, published: nn.Module) -> None:
        kept, _ = build(Backbone(timm="mobilenetv3_small_050", head="keep"), [str(i) for i in range(1000)])
        assert torch.equal(kept.classifier.weight, published.classifier.weight)
        with pytest.raises(BackboneError, match="has 1000 outputs, the data have 2 labels: take head: new"):
            build(Backbone(timm="mobilenetv3_small_050", head="keep"), ["a", "b"])

    def test_models_nobody_published_weights_for(self) -> None:
        name = next(name for name in timm.list_models("mobilenetv*") if not timm.is_model_pretrained(name))
        with pytest.raises(BackboneError, match=f"publishes no weights for '{name}'"):
            build(Backbone(timm=name), ["a", "b"])
