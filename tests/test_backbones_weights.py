"""Weights from files: what is accepted, what is refused, and that nothing in a file is ever run."""

from __future__ import annotations

import csv
import hashlib
import os
import pickle
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from toolchain.backbones import files
from toolchain.backbones.architecture import create
from toolchain.backbones.network import build
from toolchain.backbones.settings import Backbone
from toolchain.data.preprocess import Preprocessing
from toolchain.errors import BackboneError
from toolchain.runtime.pictures import decode

TINY = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
DATA = Path(os.environ.get("TOOLCHAIN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return create("resnet10t", TINY, 5, seed=7)


def backbone(path: Path, head: str = "new") -> Backbone:
    return Backbone.model_validate({"timm": "resnet10t", "kwargs": TINY, "weights": str(path), "head": head})


def pth(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


WRAPPERS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "args": Namespace(lr=0.1)},
    "model": lambda state: {"model": state},
    "data-parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {"state_dict": {f"_orig_mod.module.{n}": v for n, v in state.items()}},
    "ema": lambda state: {"model": {n: v * 0 for n, v in state.items()}, "model_ema": state},
    "lightning": lambda state: {
        "state_dict": {f"model.{n}": v for n, v in state.items()},
        "loops": {"fit": 1},
    },
    "half": lambda state: {n: v.half().float() if v.is_floating_point() else v for n, v in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_state_dicts_are_found_in_their_wrappers(wrapper: str, model: nn.Module, tmp_path: Path) -> None:
    path = pth(tmp_path / "w.pth", WRAPPERS[wrapper](model.state_dict()))
    found = files.read(path)
    assert found.keys() == model.state_dict().keys()
    assert all(torch.allclose(found[n].float(), v.float(), atol=1e-2) for n, v in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_of_other_labels_gives_its_body_only(suffix: str, model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    save_file(model.state_dict(), path) if suffix == ".safetensors" else torch.save(model.state_dict(), path)
    made, network = build(backbone(path), ["a", "b", "c"])
    assert made.fc.weight.shape == (3, 16)
    assert torch.equal(made.conv1[0].weight, model.conv1[0].weight)
    assert network.provenance.sha256 == files.digest_file(path)
    assert network.provenance.notes == (
        "the file's classifier (5 outputs) was replaced by a new one for 3 labels",
    )


def test_head_keep_takes_the_whole_file(model: nn.Module, tmp_path: Path) -> None:
    path = pth(tmp_path / "w.pth", model.state_dict())
    made, network = build(backbone(path, "keep"), list("abcde"))
    pictures = torch.randn(2, 3, 32, 32)
    assert torch.equal(made(pictures), model(pictures))
    assert network.provenance.notes == ()
    with pytest.raises(
        BackboneError, match="classifier has 5 outputs, the data have 2 labels: take head: new"
    ):
        build(backbone(path, "keep"), list("ab"))


def test_head_new_is_new_even_for_as_many_labels(model: nn.Module, tmp_path: Path) -> None:
    made, _ = build(backbone(pth(tmp_path / "w.pth", model.state_dict())), list("abcde"))
    assert not torch.equal(made.fc.weight, model.fc.weight)


def test_a_file_that_does_not_fit_is_told_by_some_names(model: nn.Module, tmp_path: Path) -> None:
    state = dict(model.state_dict())
    del state["layer1.0.conv1.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["bn1.weight"] = torch.zeros(3)
    path = pth(tmp_path / "w.pth", state)
    with pytest.raises(BackboneError) as caught:
        build(backbone(path), ["a", "b"])
    told = str(caught.value)
    assert "w.pth: does not fit timm's resnet10t" in told
    assert "lacks layer1.0.conv1.weight" in told
    assert "unknown extra.weight" in told
    assert "bn1.weight (3,) instead of" in told


def test_old_batch_norm_without_counters_is_fine(model: nn.Module, tmp_path: Path) -> None:
    state = {n: v for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    made, _ = build(backbone(pth(tmp_path / "w.pth", state), "keep"), list("abcde"))
    assert torch.equal(made.fc.weight, model.fc.weight)


def test_layouts_of_other_projects_are_translated(tmp_path: Path) -> None:
    """A ViT trained at another resolution: timm's converter resamples the position embedding."""
    big = create("vit_tiny_patch16_224", {"depth": 1, "img_size": [64, 64]}, 2)
    path = pth(tmp_path / "w.pth", big.state_dict())
    given = {
        "timm": "vit_tiny_patch16_224",
        "kwargs": {"depth": 1},
        "weights": str(path),
        "preprocess": {"size": 32},
    }
    made, _ = build(Backbone.model_validate(given), ["a", "b", "c"])
    assert made.pos_embed.shape == (1, 5, 192)
    assert torch.equal(made.blocks[0].attn.qkv.weight, big.blocks[0].attn.qkv.weight)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("place", ["alone", "inside", "raw-pickle"])
def test_a_pickle_bomb_is_refused_and_does_not_go_off(place: str, model: nn.Module, tmp_path: Path) -> None:
    mark, path = tmp_path / "boom", tmp_path / "w.pth"
    bomb = Bomb(mark)
    if place == "raw-pickle":
        path.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(bomb if place == "alone" else {"state_dict": model.state_dict(), "extra": bomb}, path)
    with pytest.raises(BackboneError, match=r"w\.pth: refused"):
        build(backbone(path), ["a", "b"])
    assert not mark.exists()
    pickle.loads(pickle.dumps(bomb))  # noqa: S301 - the bomb is a real one
    assert mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("w.pth", b"", "w.pth"),
        ("w.pth", b"PK\x03\x04 not a zip", "w.pth"),
        ("w.pth", b"no pickle either", "w.pth"),
        ("w.safetensors", b"", "not a readable safetensors file"),
        ("w.safetensors", b"\xff" * 64, "not a readable safetensors file"),
        ("w.onnx", b"x", "not '.onnx'"),
        (None, b"", "no such weights file"),
    ],
)
def test_damaged_files_are_named(name: str | None, content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / (name or "absent.pth")
    if name:
        path.write_bytes(content)
    with pytest.raises(BackboneError, match=told):
        build(backbone(path), ["a", "b"])


def test_half_a_download_is_told(model: nn.Module, tmp_path: Path) -> None:
    path = pth(tmp_path / "w.pth", model.state_dict())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BackboneError, match=r"w\.pth"):
        build(backbone(path), ["a", "b"])


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.zeros(2)])
def test_checkpoints_without_weights_are_told(content: object, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="state dict"):
        build(backbone(pth(tmp_path / "w.pth", content)), ["a", "b"])


def test_relative_paths_start_from_the_recipe(model: nn.Module, tmp_path: Path) -> None:
    pth(tmp_path / "w.pth", model.state_dict())
    _, network = build(backbone(Path("w.pth")), ["a", "b"], tmp_path)
    assert network.provenance.sha256 == hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()


def test_real_weights_classify_real_pictures() -> None:
    weights = DATA / "weights" / "mobilenetv2_100_imagenet.pth"
    if not weights.is_file():
        pytest.skip(f"TOOLCHAIN_DATA ({DATA}) not found: real weights were not tried")
    half = [0.5, 0.5, 0.5]
    given = {
        "timm": "mobilenetv2_100", "weights": str(weights), "head": "keep", "kwargs": {"pad_type": "same"},
        "preprocess": {"mean": half, "std": half},
    }  # fmt: skip
    folder = DATA / "imagenet_sample"
    labels = (folder / "imagenet_1000_labels.txt").read_text().splitlines()
    model, network = build(Backbone.model_validate(given), labels)
    prepare = Preprocessing(network.preprocess)
    rows = list(csv.DictReader((folder / "labels.csv").open()))[::40]
    with torch.no_grad():
        hits = [
            int(model(prepare(torch.from_numpy(decode(folder / "images" / row["file"]))[None])).argmax())
            == int(row["class_index"])
            for row in rows
        ]
    assert len(hits) == 25
    assert sum(hits) >= 19  # 87 % over all thousand
