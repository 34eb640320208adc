"""The generator of pretraining pictures and the training that uses it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.pretrain.formulas import NONE, Formulas, Sizes
from benchmarks.pretrain.formulas.draw import Draw
from benchmarks.pretrain.formulas.figures import Contours, Fractals, Outlines, Strokes
from benchmarks.pretrain.formulas.textures import Cells, Spectra, Waves
from benchmarks.pretrain.publish import LARGEST, publish
from benchmarks.pretrain.train import SIZES, Plan, Run, score
from benchmarks.transfer.tuning import Pictures, Schedule, evaluate, start, tune, weights
from toolchain.backbones import bundled
from toolchain.backbones.network import build
from toolchain.backbones.settings import Backbone
from toolchain.device import Device

CPU = torch.device("cpu")
DEVICE = Device("cpu", "cpu", 1)
FEW = Sizes(waves=6, spectra=6, cells=6, outlines=6, contours=6, fractals=6, strokes=6)


@pytest.fixture(scope="module")
def formulas() -> Formulas:
    return Formulas(FEW, seed=3, device=CPU)


def test_same_seed_and_step_give_the_same_pictures(formulas: Formulas) -> None:
    first = formulas.batch(7, 24, 32)
    again = Formulas(FEW, seed=3, device=CPU).batch(7, 24, 32)
    assert torch.equal(first.pictures, again.pictures)
    assert torch.equal(first.texture, again.texture)
    assert torch.equal(first.figure, again.figure)


def test_another_step_or_seed_gives_other_pictures(formulas: Formulas) -> None:
    first = formulas.batch(7, 24, 32).pictures
    assert not torch.equal(first, formulas.batch(8, 24, 32).pictures)
    assert not torch.equal(first, Formulas(FEW, seed=4, device=CPU).batch(7, 24, 32).pictures)


@pytest.mark.parametrize("size", SIZES)
def test_batches_have_the_shape_and_range_of_normalised_pictures(formulas: Formulas, size: int) -> None:
    batch = formulas.batch(0, 30, size)
    assert batch.pictures.shape == (30, 3, size, size)
    assert batch.pictures.dtype == torch.float32
    assert batch.pictures.min() >= -1
    assert batch.pictures.max() <= 1
    assert batch.pictures.std() > 0.2


def test_every_picture_asks_at_least_one_question(formulas: Formulas) -> None:
    batch = formulas.batch(1, 60, 32)
    assert not ((batch.texture == NONE) & (batch.figure == NONE)).any()
    assert (batch.texture == NONE).sum() == 15
    assert (batch.figure == NONE).sum() == 20
    assert batch.texture.max() < FEW.textures
    assert batch.figure.max() < FEW.figures


def test_some_pictures_are_grey_and_some_coloured(formulas: Formulas) -> None:
    pictures = formulas.batch(2, 90, 32).pictures
    spread = (pictures.amax(1) - pictures.amin(1)).mean((1, 2))
    assert (spread > 0.3).sum() > 10
    assert (spread < 0.15).sum() > 5


@pytest.mark.parametrize("family", [Waves, Spectra, Cells])
def test_textures_of_one_class_differ_and_fill_the_range(family: type[Waves | Spectra | Cells]) -> None:
    field = family(5, Draw(0, CPU)).field(torch.zeros(4, dtype=torch.int64), 32, Draw(1, CPU))
    assert field.shape == (4, 32, 32)
    assert field.min() >= 0
    assert field.max() <= 1
    assert not torch.allclose(field[0], field[1])


@pytest.mark.parametrize("family", [Outlines, Contours, Fractals, Strokes])
def test_figures_of_one_class_look_more_alike_than_of_two(family: type) -> None:
    labels = torch.arange(8).repeat_interleave(12)
    mask = family(8, Draw(0, CPU)).mask(labels, 32, Draw(1, CPU))
    assert mask.shape == (96, 32, 32)
    assert torch.isfinite(mask).all()
    assert 0 <= mask.min() <= mask.max() <= 1
    assert (mask.amax((1, 2)) > 0.5).float().mean() > 0.9
    mixed = mask[torch.randperm(96, generator=torch.Generator().manual_seed(0))]
    assert _between(mask) > 1.5 * _between(mixed)


def _between(mask: Tensor) -> float:
    """How much the mean pictures of eight groups of twelve differ."""
    return float(mask.view(8, 12, -1).mean(1).var(0).mean())


def test_loss_leaves_out_questions_that_a_picture_does_not_ask(formulas: Formulas) -> None:
    batch = formulas.batch(0, 30, 32)
    logits = torch.zeros(30, FEW.textures + FEW.figures, requires_grad=True)
    loss, _, _ = score(logits, batch, FEW.textures, smoothing=0.0)
    loss.backward()
    assert logits.grad is not None
    silent = logits.grad[batch.figure == NONE, FEW.textures :]
    assert len(silent)
    assert not silent.any()


def plan(**changes: object) -> Plan:
    return replace(Plan(pictures=32 * 4, batch=32, shares=(1.0, 0.0, 0.0)), **changes)


def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole = Run(plan(), tmp_path / "whole", DEVICE, FEW)
    whole.train()
    Run(plan(), tmp_path / "parts", DEVICE, FEW).train(stop_after=2)
    resumed = Run(plan(), tmp_path / "parts", DEVICE, FEW)
    assert resumed.step == 2
    resumed.train()
    for name, value in whole.average.items():
        assert torch.equal(value, resumed.average[name]), name
    assert (tmp_path / "parts" / "seen-00000128.pt").exists()


def test_a_run_may_be_lengthened_until_its_learning_rate_falls(tmp_path: Path) -> None:
    Run(plan(), tmp_path, DEVICE, FEW).train(stop_after=2)
    longer = plan(pictures=32 * 400)
    assert [plan().rate(step) for step in range(2)] == [longer.rate(step) for step in range(2)]
    Run(longer, tmp_path, DEVICE, FEW).train(stop_after=2)
    with pytest.raises(SystemExit, match="another plan"):
        Run(plan(), tmp_path, DEVICE, FEW)


@pytest.mark.parametrize("change", [{"lr": 1e-3}, {"seed": 1}])
def test_a_folder_of_another_plan_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    Run(plan(), tmp_path, DEVICE, FEW).train(stop_after=1)
    with pytest.raises(SystemExit, match="another plan"):
        Run(plan(**change), tmp_path, DEVICE, FEW)


def test_learning_rate_rises_stays_and_falls_to_zero() -> None:
    full = Plan()
    rates = [full.rate(step) for step in range(full.steps)]
    assert rates[0] == pytest.approx(full.lr / full.warmup)
    assert rates[full.warmup] == rates[full.fall - 1] == full.lr
    assert 0 < rates[-1] < full.lr / 100


def test_a_published_run_is_a_backbone_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "package")
    run = Run(plan(), tmp_path / "run", DEVICE, FEW)
    run.train(stop_after=2)
    with pytest.raises(SystemExit, match="train on first"):
        publish(tmp_path / "run", "tiny")
    run.train()
    assert publish(tmp_path / "run", "tiny").stat().st_size < LARGEST
    model, network = build(Backbone(bundled="tiny"), ("a", "b", "c"))
    assert network.preprocess.mean == (0.5, 0.5, 0.5)
    for name, value in model.state_dict().items():
        if not name.startswith("fc."):
            torch.testing.assert_close(value, run.average[name], rtol=1e-3, atol=1e-5)


def test_nano_in_the_package_is_the_one_its_card_describes() -> None:
    model, network = build(Backbone(bundled="nano"), tuple("0123456789"))
    assert bundled.weights_file("nano").stat().st_size <= LARGEST
    assert sum(p.numel() for p in model.parameters()) <= 1_500_000
    assert all(module.groups == 1 for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    assert network.provenance.licence == "Apache-2.0"
    card = json.loads(bundled.weights_file("nano").with_suffix(".json").read_text())
    plan = Plan()
    assert card["pretraining"]["pictures"] == plan.steps * plan.batch
    assert {row["start"] for row in card["transfer"]["rows"]} == {"random", "nano"}
    for side in (32, 64, 256):
        assert model(torch.zeros(1, 3, side, side)).isfinite().all()


def test_transfer_starts_differ_only_in_their_weights_and_tuning_learns() -> None:
    pretrained = weights(bundled.weights_file("nano"))
    nano, random = start(pretrained, 2, seed=0), start(None, 2, seed=0)
    assert torch.equal(nano.state_dict()["fc.weight"], random.state_dict()["fc.weight"])
    assert not torch.equal(nano.state_dict()["conv1.0.weight"], random.state_dict()["conv1.0.weight"])
    labels = torch.arange(2).repeat(16)
    data = Pictures(
        labels.view(-1, 1, 1, 1).float().expand(-1, 3, 32, 32) + torch.zeros(32, 3, 32, 32), labels
    )
    tune(nano, data, Schedule(steps=6, batch=16), 3e-3, seed=0)
    assert evaluate(nano, data)[0] == 100
