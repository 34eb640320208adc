"""Augmentation: deterministic by seed, and each option does what its name says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from data_helpers import noise
from pydantic import ValidationError
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from toolchain.data import policy, transform
from toolchain.data.augment import Augment, Augmenter
from toolchain.data.preprocess import Preprocess, Preprocessing
from toolchain.data.randomness import Purpose, sample_seeds, uniform
from toolchain.errors import TrainingError

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SEEDS = sample_seeds(0, 0, np.arange(400))
EVERYTHING = {
    "crop_scale": (0.5, 1.0), "flip_horizontal": True, "flip_vertical": True, "quarter_turns": True, "rotate": 20,
    "translate": 0.1, "zoom": 0.2, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1,
    "rand_augment": {"ops": 2}, "noise": 0.05, "erase": 0.5,
}  # fmt: skip


def augmenter(height: int = 16, width: int = 16, mode: str = "squash", **options: object) -> Augmenter:
    return Augmenter(
        Augment.model_validate(options), Preprocess(height=height, width=width, crop_mode=mode, **PLAIN)
    )


def same(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(tensor, other, atol=1e-3)


def test_nothing_on_is_the_transform_of_evaluation_to_half_a_grey_level() -> None:
    for mode in ("center", "squash", "border"):
        preprocess = Preprocess(height=20, width=30, crop_mode=mode, crop_pct=0.9, interpolation="bicubic")
        picture = noise(3, 50, 41)
        ours = Augmenter(Augment(), preprocess)(picture, 7)
        evaluated = Preprocessing(preprocess)(torch.from_numpy(picture)[None])[0]
        assert (ours - evaluated).abs().max() <= 0.51 / 255 / min(preprocess.std)


def test_a_seed_gives_one_result_alone_or_in_a_batch() -> None:
    pictures = [noise(i, 24, 31) for i in range(6)]
    one = augmenter(**EVERYTHING)
    alone = [one(picture, int(seed)) for picture, seed in zip(pictures, SEEDS, strict=False)]
    drawn = torch.stack([one.draw(one.keep(p), seed) for p, seed in zip(pictures, SEEDS, strict=False)])
    together = one.finish(drawn, SEEDS[:6])
    assert together.shape == (6, 3, 16, 16)
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=0)
    again = augmenter(**EVERYTHING)(pictures[0], int(SEEDS[0]))
    assert torch.equal(again, alone[0])
    assert not same(alone[0], one(pictures[0], int(SEEDS[1])))


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    augmenter(**EVERYTHING)(noise(1), 5)
    assert torch.equal(torch.rand(2), expected)


def test_numbers_are_uniform_and_independent_between_purposes_and_epochs() -> None:
    seeds = sample_seeds(1, 2, np.arange(20000))
    draws = np.concatenate([uniform(seeds, Purpose.CROP, 2), uniform(seeds, Purpose.FLIP)], axis=1)
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.01)
    np.testing.assert_allclose(draws.var(axis=0), 1 / 12, atol=0.003)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.eye(3), atol=0.03)
    other = uniform(sample_seeds(1, 3, np.arange(20000)), Purpose.FLIP)[:, 0]
    assert abs(np.corrcoef(other, draws[:, 2])[0, 1]) < 0.03


@pytest.mark.parametrize(("option", "axis"), [("flip_horizontal", 2), ("flip_vertical", 1)])
def test_half_of_the_pictures_are_mirrored(option: str, axis: int) -> None:
    one = augmenter(**{option: True})
    kept = one.keep(noise(1, 16, 16))
    results = one.finish(kept.repeat(400, 1, 1, 1), SEEDS)
    plain = kept.float() / 255
    mirrored = [same(result, plain.flip(axis)) for result in results]
    assert all(m or same(result, plain) for m, result in zip(mirrored, results, strict=True))
    assert 150 < sum(mirrored) < 250


def test_quarter_turns_come_in_all_four_and_need_squares() -> None:
    one = augmenter(quarter_turns=True)
    kept = one.keep(noise(1, 16, 16))
    results = one.finish(kept.repeat(100, 1, 1, 1), SEEDS[:100])
    turns = [next(k for k in range(4) if same(r, (kept.float() / 255).rot90(k, (1, 2)))) for r in results]
    assert set(turns) == {0, 1, 2, 3}
    with pytest.raises(TrainingError, match="16 x 20"):
        augmenter(width=20, quarter_turns=True)


def test_warp_moves_turns_and_zooms() -> None:
    picture = torch.from_numpy(noise(4, 12, 20)).permute(2, 0, 1)[None].float()
    zero, one = torch.zeros(1), torch.ones(1)
    moved = transform.warp(picture, zero, torch.tensor([[2.0, -3.0]]), one, "black")
    assert same(moved[..., 2:, :-3], picture[..., :-2, 3:])
    assert moved[..., :2, :].abs().max() == 0
    upside = transform.warp(picture, torch.tensor([180.0]), torch.zeros(1, 2), one, "edge")
    torch.testing.assert_close(upside, picture.flip(2, 3), atol=0.02, rtol=0)
    square = picture[..., :12]
    quarter = transform.warp(square, torch.tensor([90.0]), torch.zeros(1, 2), one, "reflect")
    torch.testing.assert_close(quarter, square.rot90(-1, (2, 3)), atol=0.02, rtol=0)
    near = transform.warp(picture, zero, torch.zeros(1, 2), torch.tensor([2.0]), "reflect")
    assert near[0, :, 4:8, 8:12].std() < picture[0, :, 4:8, 8:12].std()
    # A rotation keeps distances on pictures that are not square: a cone stays a cone.
    y, x = torch.meshgrid(torch.arange(21) - 10.0, torch.arange(41) - 20.0, indexing="ij")
    cone = (8 - (x**2 + y**2).sqrt()).clamp(0, 8)[None, None] * 30
    turned = transform.warp(cone, torch.tensor([50.0]), torch.zeros(1, 2), one, "black")
    assert (turned - cone).abs().mean() < 2


def test_translation_is_in_whole_pixels_and_bounded() -> None:
    one = augmenter(translate=0.125, fill="black")
    dot = np.zeros((16, 16, 3), dtype=np.uint8)
    dot[8, 8] = 255
    results = one.finish(one.keep(dot).repeat(200, 1, 1, 1), SEEDS[:200])
    places = [tuple((result[0] > 0.99).nonzero()[0].tolist()) for result in results]
    assert {y for y, _ in places} == {x for _, x in places} == set(range(6, 11))


def test_colours_change_as_in_torchvision() -> None:
    picture = torch.from_numpy(noise(5, 8, 9)).permute(2, 0, 1)[None].float() * 0.5 + 60
    one = torch.ones(1)

    def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
        torch.testing.assert_close(ours, theirs * 255, atol=0.1, rtol=0)

    scaled = picture / 255
    close(transform.relight(picture.clone(), one * 1.2, one), V.adjust_brightness(scaled, 1.2))
    close(transform.relight(picture.clone(), one, one * 0.7), V.adjust_contrast(scaled, 0.7))
    close(transform.recolour(picture, one * 0.4, one * 0), V.adjust_saturation(scaled, 0.4))
    grey = picture.mean(dim=1, keepdim=True).expand_as(picture)
    torch.testing.assert_close(transform.recolour(grey, one, one * 0.3), grey, atol=0.1, rtol=0)
    red = torch.zeros(1, 3, 1, 1)
    red[:, 0] = 255.0
    green = transform.recolour(red, one, one / 3)
    assert int(green.flatten().argmax()) in (1, 2)
    torch.testing.assert_close(transform.recolour(green, one, -one / 3), red, atol=0.5, rtol=0)


def test_values_stay_in_range_whatever_is_on() -> None:
    one = augmenter(**(EVERYTHING | {"brightness": 1.0, "contrast": 1.0, "noise": 1.0}))
    for index, seed in enumerate(SEEDS[:30]):
        result = one(noise(index), int(seed))
        assert float(result.min()) >= 0
        assert float(result.max()) <= 1 + 1e-5


def test_erased_boxes_have_the_stated_size_and_frequency() -> None:
    one = augmenter(32, 32, erase=0.4)
    white = np.full((32, 32, 3), 255, dtype=np.uint8)
    results = one.finish(one.keep(white).repeat(400, 1, 1, 1), SEEDS)
    shares = (results[:, 0] == 0).float().mean(dim=(1, 2))
    assert 120 < int((shares > 0).sum()) < 200
    hit = shares[shares > 0]
    assert float(hit.min()) > 0.01
    assert 0.15 < float(hit.max()) < 0.22


def test_random_crops_cover_the_picture_and_keep_their_aspect() -> None:
    ramp = np.zeros((40, 80, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(80)[None, :] * 3, np.arange(40)[:, None] * 6
    one = augmenter(16, 16, "center", crop_scale=(0.1, 0.4), crop_ratio=(1.0, 1.0))
    kept = one.keep(ramp)
    boxes = torch.stack([one.draw(kept, seed) for seed in SEEDS]).float()
    left, right = boxes[:, 0, 8, 0] / 3, boxes[:, 0, 8, -1] / 3
    top, bottom = boxes[:, 1, 0, 8] / 6, boxes[:, 1, -1, 8] / 6
    assert left.min() < 3
    assert right.max() > 76
    assert top.min() < 2
    assert bottom.max() > 37
    sides = (right - left).median(), (bottom - top).median()
    assert sides[0] / sides[1] == pytest.approx(1, abs=0.1)
    area = ((right - left) * (16 / 15) * (bottom - top) * (16 / 15)) / 3200
    assert float(area.min()) > 0.08
    assert float(area.max()) < 0.45


def test_huge_pictures_are_kept_smaller_but_never_below_the_smallest_crop() -> None:
    one = augmenter(16, 16, "center", crop_scale=(0.25, 1.0))
    assert one.keep(noise(1, 200, 320)).shape == (3, 34, 54)  # 200 / 16 / 2 = 6.25: reduced by 6
    assert one.keep(noise(1, 40, 60)).shape == (3, 40, 60)
    assert augmenter(16, 32, "border", crop_scale=(0.25, 1.0)).keep(noise(1, 40, 40)).shape == (3, 40, 80)


@pytest.mark.parametrize("kind", ["rand", "trivial"])
def test_policies_do_what_torchvision_does(kind: str) -> None:
    picture = torch.from_numpy(noise(6, 20, 24)).permute(2, 0, 1)
    theirs = v2.RandAugment() if kind == "rand" else v2.TrivialAugmentWide()
    space = policy._RAND if kind == "rand" else policy._TRIVIAL
    names = {"identity": "Identity", "autocontrast": "AutoContrast"} | {
        name: "".join(part.capitalize() for part in name.split("_"))
        for name in space
        if name != "autocontrast"
    }
    assert set(names.values()) == set(theirs._AUGMENTATION_SPACE)
    for name, span in space.items():
        magnitudes, signed = theirs._AUGMENTATION_SPACE[names[name]]
        values = magnitudes(31, 20, 24)
        assert signed == span.signed
        for step in (0, 9, 21, 30):
            amount = span.weakest + (span.strongest - span.weakest) * step / 30
            ours = policy._apply(picture, name, amount, None if kind == "rand" else 32.0, [9.0, 9.0, 9.0])
            value = 0.0 if values is None else float(values[step])
            expected = theirs._apply_image_or_video_transform(
                picture, names[name], value, v2.InterpolationMode.BILINEAR, {torch.Tensor: [9.0, 9.0, 9.0]}
            )
            difference = (ours.int() - expected.int()).abs()
            assert float((difference > 1).float().mean()) < 0.01, (name, step)


def test_policies_change_most_pictures() -> None:
    for options in ({"trivial_augment": True}, {"rand_augment": {"ops": 1, "magnitude": 15}}):
        one = augmenter(**options)
        kept = one.keep(noise(8, 16, 16))
        changed = [not torch.equal(one.draw(kept, seed), kept) for seed in SEEDS[:100]]
        assert 60 < sum(changed) < 100


def test_presets_fill_in_and_can_be_set_over() -> None:
    assert Augment.model_validate({"preset": "photo"}).crop_scale == (0.35, 1.0)
    assert Augment.model_validate({"preset": "photo", "crop_scale": None}).crop_scale is None
    assert Augment.model_validate({"preset": "surface", "rotate": 3}).rotate == 3
    assert not Augment().moves
    assert not Augment().recolours
    again = Augment.model_validate({"preset": "characters"})
    assert Augment.model_validate(again.model_dump()) == again


@pytest.mark.parametrize(
    "wrong",
    [
        {"preset": "foto"},
        {"crop_scale": (0.9, 0.3)},
        {"crop_ratio": (2, 1)},
        {"trivial_augment": True, "rand_augment": {}},
        {"rotate": 400},
        {"flip": True},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Augment.model_validate(wrong)


def test_noise_has_the_stated_strength() -> None:
    one = augmenter(32, 32, noise=0.1)
    flat = np.full((32, 32, 3), 128, dtype=np.uint8)
    results = one.finish(one.keep(flat).repeat(100, 1, 1, 1), SEEDS[:100])
    spreads = results.std(dim=(1, 2, 3))
    assert float(spreads.max()) < 0.11
    assert float(spreads.mean()) == pytest.approx(0.05, abs=0.01)
    assert math.isclose(float(results.mean()), 128 / 255, abs_tol=0.01)
