"""The steps that prune a network and that start from a finished one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import build, load, save
from toolchain.backbones.settings import Backbone
from toolchain.data.dataset import Data, PictureSet, Sample
from toolchain.device import Device
from toolchain.errors import BackboneError
from toolchain.progress import Silent
from toolchain.record import Record
from toolchain.step import Context
from toolchain.steps.load import Load
from toolchain.steps.prune import Prune

LABELS = ("cat", "dog")
BACKBONE = {
    "timm": "resnet10t", "weights": "random", "preprocess": {"size": 16},
    "kwargs": {"channels": [16, 16, 32, 32], "layers": [1, 1, 1, 1]},
}  # fmt: skip


def decode(name: str) -> NDArray[np.uint8]:
    return np.random.default_rng(int(name)).integers(0, 255, (20, 24, 3)).astype(np.uint8)


def context(folder: Path, seed: int = 0, pictures: int = 12) -> Context:
    samples = tuple(Sample(str(i), i % 2, f"{i:064x}") for i in range(pictures))
    train, empty = PictureSet(samples, decode), PictureSet((), decode)
    folder.mkdir()
    return Context(
        out=folder, scratch=folder, data=Data("pets", LABELS, train, empty, empty),
        device=Device("cpu", "cpu", 1), seed=seed, progress=Silent(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("network")
    save(*build(Backbone.model_validate(BACKBONE), LABELS, seed=1), folder)
    record = Record(key="k", step="tune", version=1, settings={}, parents={}, libraries={}, seconds=0)
    return Artifact(Form.TORCH, folder, record)


def run(
    step: Prune | Load, folder: Path, network: Artifact | None = None, **options: int
) -> dict[str, float]:
    inputs = {} if network is None else {"model": network}
    return {_name(m): m.value for m in step.run(inputs, context(folder, **options))}


def _name(measurement: SimpleNamespace) -> str:
    return "_".join((measurement.name, *map(str, measurement.where.values())))


def content(folder: Path) -> str:
    return "".join(hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()))


@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_prune_leaves_a_smaller_network_of_the_same_task(
    importance: str, network: Artifact, tmp_path: Path
) -> None:
    figures = run(Prune(importance=importance, ratio=0.5), tmp_path / "out", network)
    model, description = load(tmp_path / "out")
    assert description.labels == LABELS
    assert description.provenance.source == "random"
    assert sum(p.numel() for p in model.parameters()) == figures["parameters_after"]
    assert figures["parameters_after"] < 0.4 * figures["parameters_before"]
    assert figures["macs_left"] == figures["macs_after"] / figures["macs_before"] < 0.5
    assert 0.4 < figures["channels_removed"] < 0.6


@pytest.mark.parametrize(("importance", "others"), [("l2", False), ("random", True), ("taylor", True)])
def test_seed_and_pictures_decide_only_where_they_should(
    importance: str, others: bool, network: Artifact, tmp_path: Path
) -> None:
    step = Prune(importance=importance, ratio=0.5, pictures=5, batch_size=2, round_to=4, iterations=2)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(step, tmp_path / name, network, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert (content(tmp_path / "a") != content(tmp_path / "c")) == others


def test_taylor_gradients_do_not_depend_on_the_batch_size(network: Artifact, tmp_path: Path) -> None:
    model, description = load(network.folder)
    found = []
    for size in (2, 12):
        step = Prune(importance="taylor", batch_size=size)
        model.zero_grad()
        step._gradients(description, context(tmp_path / str(size)))(model)
        found.append(model.conv1[0].weight.grad.clone())
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1])


def test_taylor_without_pictures_is_told(network: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="needs training pictures"):
        run(Prune(importance="taylor"), tmp_path / "out", network, pictures=0)


def test_pruning_needs_no_pictures_otherwise(network: Artifact, tmp_path: Path) -> None:
    run(Prune(), tmp_path / "out", network, pictures=0)
    assert (tmp_path / "out" / "weights.safetensors").stat().st_size < (
        network.folder / "weights.safetensors"
    ).stat().st_size


def test_measured_statistics_are_those_of_the_pruned_networks_inputs(
    network: Artifact, tmp_path: Path
) -> None:
    step = Prune(norm_statistics="measured", batch_size=12)
    run(step, tmp_path / "out", network)
    model, described = load(tmp_path / "out")
    seen: list[Tensor] = []
    model.conv1[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    lent = context(tmp_path / "again")
    pictures, _ = next(step._batches(described, lent))
    with torch.no_grad():
        model(pictures)
    torch.testing.assert_close(model.conv1[1].running_mean, seen[0].mean(dim=(0, 2, 3)))
    torch.testing.assert_close(model.conv1[1].running_var, seen[0].var(dim=(0, 2, 3)))
    assert model.conv1[1].momentum == 0.1


def test_measured_statistics_need_pictures(network: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="norm_statistics 'measured' needs at least two"):
        run(Prune(norm_statistics="measured"), tmp_path / "out", network, pictures=1)
    run(Prune(norm_statistics="measured", batch_size=2), tmp_path / "odd", network, pictures=3)


def test_settings_of_both_parents_are_checked() -> None:
    with pytest.raises(ValueError, match="greater than max_ratio"):
        Prune(ratio=0.95)
    with pytest.raises(ValueError, match="raito"):
        Prune.model_validate({"raito": 0.5})
    assert Prune.model_validate(Prune(ratio=0.4).model_dump(mode="json")) == Prune(ratio=0.4)


def test_load_takes_a_saved_folder(network: Artifact, tmp_path: Path) -> None:
    step = Load(file=network.folder)
    assert step.roots() == {"file": network.folder}
    figures = run(step, tmp_path / "out")
    assert content(tmp_path / "out") == content(network.folder)
    assert figures["parameters"] > 0


def test_load_takes_a_pruned_folder(network: Artifact, tmp_path: Path) -> None:
    run(Prune(ratio=0.5), tmp_path / "pruned", network)
    run(Load(file=tmp_path / "pruned"), tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "pruned")


def test_load_takes_a_weights_file_with_its_classifier(network: Artifact, tmp_path: Path) -> None:
    model, _ = load(network.folder)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    backbone = Backbone.model_validate({**BACKBONE, "weights": "hub"})
    step = Load(file=tmp_path / "w.pth", backbone=backbone)
    assert step.roots() == {"file": tmp_path / "w.pth", "backbone.weights": tmp_path / "w.pth"}
    run(step, tmp_path / "out")
    again, description = load(tmp_path / "out")
    assert torch.equal(again.fc.weight, model.fc.weight)
    assert (description.provenance.source, description.provenance.weights) == ("file", "w.pth")


def test_load_tells_what_is_wrong(network: Artifact, tmp_path: Path) -> None:
    three, description = build(Backbone.model_validate(BACKBONE), ("cat", "cow", "dog"))
    save(three, description, tmp_path / "three")
    with pytest.raises(
        BackboneError, match=r"made for the labels \(cat, cow, dog\), the data have \(cat, dog\)"
    ):
        run(Load(file=tmp_path / "three"), tmp_path / "a")
    weights = tmp_path / "three" / "weights.safetensors"
    with pytest.raises(BackboneError, match="does not say which network it is for"):
        run(Load(file=weights), tmp_path / "b")
    with pytest.raises(BackboneError, match="classifier has 3 outputs, the data have 2 labels"):
        run(Load(file=weights, backbone=Backbone.model_validate(BACKBONE)), tmp_path / "c")
    with pytest.raises(BackboneError, match="no such checkpoint"):
        run(Load(file=tmp_path / "absent.pth"), tmp_path / "d")
