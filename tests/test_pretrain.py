"""The generator of pretraining pictures and the training that uses it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.pretrain import variants
from benchmarks.pretrain.formulas import NONE, Formulas, Sizes
from benchmarks.pretrain.formulas.draw import Draw
from benchmarks.pretrain.formulas.figures import Contours, Fractals, Outlines, Strokes
from benchmarks.pretrain.formulas.noises import Leaves, Octaves, Programs
from benchmarks.pretrain.formulas.scene import in_front, shaded, shadowed
from benchmarks.pretrain.formulas.textures import Cells, Spectra, Waves
from benchmarks.pretrain.grow import widen
from benchmarks.pretrain.publish import LARGEST, add_transfer, publish
from benchmarks.pretrain.train import NANO, RECIPES, SIZES, SMALL, Plan, Run, contrast, network, score
from benchmarks.transfer.starts import start, weights
from benchmarks.transfer.tasks import Setting
from benchmarks.transfer.tuning import Pictures, Probe, Schedule, evaluate, mirrored, tune
from toolchain.backbones import bundled
from toolchain.backbones.network import build
from toolchain.backbones.settings import Backbone
from toolchain.device import Device

CPU = torch.device("cpu")
DEVICE = Device("cpu", "cpu", 1)
FEW = Sizes(waves=6, spectra=6, cells=6, outlines=6, contours=6, fractals=6, strokes=6)
SCENES = replace(FEW, octaves=6, leaves=6, programs=6, scene=True)


@pytest.fixture(scope="module", params=[FEW, SCENES], ids=["plain", "scenes"])
def formulas(request: pytest.FixtureRequest) -> Formulas:
    return Formulas(request.param, seed=3, device=CPU)


def test_same_seed_and_step_give_the_same_pictures(formulas: Formulas) -> None:
    first = formulas.batch(7, 24, 32)
    again = Formulas(formulas.sizes, seed=3, device=CPU).batch(7, 24, 32)
    assert torch.equal(first.pictures, again.pictures)
    assert torch.equal(first.texture, again.texture)
    assert torch.equal(first.figure, again.figure)


def test_another_step_or_seed_gives_other_pictures(formulas: Formulas) -> None:
    first = formulas.batch(7, 24, 32).pictures
    assert not torch.equal(first, formulas.batch(8, 24, 32).pictures)
    assert not torch.equal(first, Formulas(formulas.sizes, seed=4, device=CPU).batch(7, 24, 32).pictures)


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
    for labels, answers in zip(
        (batch.texture, batch.figure, batch.fill), (*formulas.sizes.questions, 99), strict=False
    ):
        assert labels.max() < answers
    assert (batch.fill != NONE).sum() == 20
    assert not ((batch.fill != NONE) & (batch.figure == NONE)).any()


def test_some_pictures_are_grey_and_some_coloured(formulas: Formulas) -> None:
    pictures = formulas.batch(2, 90, 32).pictures
    spread = (pictures.amax(1) - pictures.amin(1)).mean((1, 2))
    assert (spread > 0.3).sum() > 10
    assert (spread < 0.15).sum() > 5


@pytest.mark.parametrize("family", [Waves, Spectra, Cells, Octaves, Leaves, Programs])
def test_textures_of_one_class_differ_and_fill_the_range(family: type) -> None:
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


def test_programs_are_neither_flat_nor_noise() -> None:
    field = Programs(20, Draw(0, CPU)).field(torch.arange(20), 32, Draw(1, CPU))
    assert (field.std((1, 2)) > 0.1).float().mean() > 0.9
    assert ((field[:, 1:] - field[:, :-1]).abs().mean((1, 2)) < 0.2).float().mean() > 0.9


def test_leaves_are_patches_with_edges() -> None:
    leaves = Leaves(6, Draw(0, CPU))
    leaves.slope.zero_()
    field = leaves.field(torch.arange(6), 32, Draw(1, CPU))
    assert all(2 <= len(picture.unique()) <= leaves.shapes for picture in field)


def test_families_without_classes_leave_the_random_numbers_alone() -> None:
    """So that a family can be left out and the others stay what they were."""
    draw, beside = Draw(5, CPU), Draw(5, CPU)
    Octaves(0, draw), Leaves(0, draw), Programs(0, draw)
    assert torch.equal(draw.normal(4), beside.normal(4))


def test_relief_and_shadow_keep_the_background_and_the_range() -> None:
    mask = torch.zeros(60, 32, 32)
    mask[:, 8:24, 8:24] = 1
    grey = torch.full((60, 3, 32, 32), 0.5)
    lit = shaded(grey, mask, Draw(0, CPU))
    assert 0.3 < (lit != 0.5).flatten(1).any(1).float().mean() < 0.95
    assert torch.equal(lit[..., :2, :2], grey[..., :2, :2])
    dark = shadowed(grey, mask, Draw(0, CPU))
    assert dark.max() <= 0.5
    assert 0.3 < (dark.amin((1, 2, 3)) < 0.45).float().mean() < 0.7


def test_what_stands_in_front_hides_a_part() -> None:
    before = in_front(
        torch.zeros(40, 3, 32, 32), torch.ones(40, 32, 32), torch.ones(40, 3, 32, 32), Draw(0, CPU)
    )
    assert before.mean((1, 2, 3)).amin() > 0
    assert before.mean((1, 2, 3)).amax() < 0.4


def test_loss_leaves_out_questions_that_a_picture_does_not_ask(formulas: Formulas) -> None:
    batch, questions = formulas.batch(0, 30, 32), formulas.sizes.questions
    logits = torch.zeros(30, sum(questions), requires_grad=True)
    loss, shares = score(logits, batch, questions, smoothing=0.0)
    loss.backward()
    assert shares.shape == (len(questions),)
    assert logits.grad is not None
    _, figure, *fill = logits.grad.split(questions, 1)
    for part, labels in zip([figure, *fill], (batch.figure, batch.fill), strict=False):
        assert (labels == NONE).any()
        assert not part[labels == NONE].any()
        assert part[labels != NONE].any()


def plan(**changes: object) -> Plan:
    return replace(Plan(pictures=32 * 4, batch=32, shares=(1.0, 0.0, 0.0)), **changes)


@pytest.mark.parametrize("changes", [{}, {"ahead": 4}, {"contrast": 0.5}], ids=str)
def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path: Path, changes: dict[str, float]) -> None:
    whole = Run(plan(**changes), tmp_path / "whole", DEVICE, FEW)
    whole.train()
    Run(plan(**changes), tmp_path / "parts", DEVICE, FEW).train(stop_after=2)
    resumed = Run(plan(**changes), tmp_path / "parts", DEVICE, FEW)
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


def test_a_run_stops_when_its_seconds_are_over_and_goes_on(tmp_path: Path) -> None:
    Run(plan(), tmp_path, DEVICE, FEW).train(seconds=0)
    assert Run(plan(), tmp_path, DEVICE, FEW).step == 1


def test_views_of_a_scene_differ_and_stay_in_range(formulas: Formulas) -> None:
    batch = formulas.batch(3, 24, 32, views=2)
    assert batch.views == 2
    assert batch.pictures.shape == (48, 3, 32, 32)
    first, second = batch.pictures.chunk(2)
    assert ((first - second).abs().mean((1, 2, 3)) > 0.02).float().mean() > 0.9
    assert -1 <= batch.pictures.min() <= batch.pictures.max() <= 1
    part = batch.part(6, 12)
    assert torch.equal(part.pictures, torch.cat([first[6:12], second[6:12]]))
    assert torch.equal(part.figure, batch.figure[6:12])


def test_contrast_is_least_where_the_views_of_a_scene_agree() -> None:
    apart = torch.eye(4)
    assert contrast(torch.cat([apart, apart])) < 0.1
    assert contrast(torch.cat([apart, apart.roll(1, 0)])) > contrast(torch.randn(8, 4) * 0 + 1)


def test_variants_are_probed_on_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "SETTINGS", (Setting("digits", 5),))
    monkeypatch.setattr(variants, "STRENGTHS", (1e-3,))
    Run(replace(NANO.plan, batch=30, ahead=1), tmp_path / "first", DEVICE, SCENES).train(stop_after=1)
    row = variants.probed(tmp_path / "first", "nano")
    assert row["variant"] == "first"
    assert row["scenes"] == 30
    assert 20 < row["digits 5"] == row["mean"] < 100


def test_a_wider_network_begins_as_the_narrower_one_did_end() -> None:
    narrow, wide = (network(recipe.plan, recipe.sizes).eval() for recipe in (NANO, SMALL))
    pictures = torch.rand(3, 3, 32, 32)
    kept = {name: value for name, value in narrow.state_dict().items() if not name.startswith("fc.")}
    widen(wide, kept, seed=0, noise=0.0)
    torch.testing.assert_close(
        _features(wide, pictures)[:, :256], _features(narrow, pictures), rtol=1e-4, atol=1e-5
    )
    widen(wide, kept, seed=0)
    grown = _features(wide, pictures)
    assert not torch.allclose(grown[:, :256], grown[:, 256:])
    with pytest.raises(ValueError, match="only the narrower network has it"):
        widen(wide, {"layer9.weight": torch.zeros(2, 2)}, seed=0)


@torch.no_grad()
def _features(model: torch.nn.Module, pictures: Tensor) -> Tensor:
    found: Tensor = model.forward_head(model.forward_features(pictures), pre_logits=True)
    return found


def test_a_published_run_is_a_backbone_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "package")
    run = Run(plan(), tmp_path / "run", DEVICE, FEW)
    run.train(stop_after=2)
    with pytest.raises(SystemExit, match="train on first"):
        publish(tmp_path / "run", "nano")
    card = publish(tmp_path / "run", "nano", as_is=True).with_suffix(".json")
    assert json.loads(card.read_text())["pretraining"]["pictures"] == 2 * 32
    run.train()
    assert publish(tmp_path / "run", "nano").stat().st_size < LARGEST["nano"]
    model, described = build(Backbone(bundled="nano"), ("a", "b", "c"))
    assert described.preprocess.mean == (0.5, 0.5, 0.5)
    for name, value in model.state_dict().items():
        if not name.startswith("fc."):
            torch.testing.assert_close(value, run.average[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "parameters"), [("nano", 1_500_000), ("small", 6_000_000)])
def test_a_backbone_in_the_package_is_the_one_its_card_describes(name: str, parameters: int) -> None:
    model, described = build(Backbone(bundled=name), tuple("0123456789"))
    assert bundled.weights_file(name).stat().st_size <= LARGEST[name]
    assert sum(p.numel() for p in model.parameters()) <= parameters
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.groups == 1
            assert module.out_channels % 8 == 0
    assert described.provenance.licence == "Apache-2.0"
    card = json.loads(bundled.weights_file(name).with_suffix(".json").read_text())
    assert card["kwargs"]["channels"] == list(RECIPES[name].plan.channels)
    assert card["pretraining"]["classes"].items() <= vars(RECIPES[name].sizes).items()
    for side in (32, 64, 256):
        assert model(torch.zeros(1, 3, side, side)).isfinite().all()


def two_colours(n: int = 32) -> Pictures:
    """Black and white pictures, half and half."""
    labels = torch.arange(2).repeat(n // 2)
    return Pictures(
        labels.view(-1, 1, 1, 1).float().expand(-1, 3, 32, 32) + torch.zeros(n, 3, 32, 32), labels
    )


def test_transfer_starts_differ_only_in_their_weights_and_tuning_learns() -> None:
    nano, random = (start(name).model(2, seed=0) for name in ("nano", "nano-random"))
    assert torch.equal(nano.state_dict()["fc.weight"], random.state_dict()["fc.weight"])
    assert not torch.equal(nano.state_dict()["conv1.0.weight"], random.state_dict()["conv1.0.weight"])
    stored = weights(bundled.weights_file("nano"))["conv1.0.weight"].float()
    assert torch.equal(nano.state_dict()["conv1.0.weight"], stored)
    data = mirrored(two_colours())
    assert len(data.labels) == 64
    tune(nano, data, Schedule(steps=6, batch=16), 3e-3, seed=0)
    assert evaluate(nano, data)[0] == 100


def test_a_probe_leaves_the_network_alone() -> None:
    nano, data = start("nano").model(2, seed=0), two_colours()
    before = {name: value.clone() for name, value in nano.state_dict().items()}
    assert Probe(nano, data, 0.1).evaluate(data, "balanced")[0] == 100
    assert all(torch.equal(value, before[name]) for name, value in nano.state_dict().items())


def test_a_transfer_record_of_other_weights_does_not_get_into_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    (tmp_path / "nano.json").write_text(json.dumps({"sha256": "a"}))
    rows = [
        {"task": "digits", "per_class": "5", "way": "tune", "start": name, "rate": 0.01}
        | {"mean": 90.0, "sd": 1.0, "draws": [89.0, 91.0]}
        for name in ("nano", "nano-random", "small")
    ]
    protocol = {"tasks": {"digits": "digits"}, "optimizer": "o", "chosen": "c", "unit": "u"}
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"rows": rows, "protocol": protocol, "weights_sha256": {"nano": "b"}}))
    with pytest.raises(SystemExit, match="other weights"):
        add_transfer("nano", record)
    record.write_text(json.dumps({"rows": rows, "protocol": protocol, "weights_sha256": {"nano": "a"}}))
    add_transfer("nano", record)
    shown = json.loads((tmp_path / "nano.json").read_text())["transfer"]["rows"]
    assert [(row["per_class"], row["start"]) for row in shown] == [(5, "nano"), (5, "random")]
