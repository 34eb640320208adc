"""The transform of evaluation: its geometry, its agreement with Pillow, and its export into ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from data_helpers import noise, shared
from PIL import Image
from pydantic import ValidationError

from toolchain.data.preprocess import Preprocess, Preprocessing
from toolchain.runtime.pictures import decode

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SIZES = [
    (1, 30, 40),
    (1, 100, 50),
    (3, 50, 100),
    (2, 17, 13),
    (1, 1, 1),
    (1, 333, 1),
    (1, 480, 640),
    (2, 31, 41),
]


def run(preprocess: Preprocess, picture: np.ndarray) -> np.ndarray:
    """The picture as [h, w, 3], in 0..255 when mean and std are PLAIN."""
    return Preprocessing(preprocess)(torch.from_numpy(picture)[None])[0].permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_onnx_runtime_agrees_at_every_size(tmp_path: Path, mode: str, interpolation: str) -> None:
    module = Preprocessing(
        Preprocess(height=30, width=40, crop_mode=mode, interpolation=interpolation, crop_pct=0.875)
    ).eval()
    dynamic = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 53, 47, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        module, (example,), dynamo=True, dynamic_shapes=({0: dynamic, 1: dynamic, 2: dynamic},), opset_version=18,
        verbose=False,
    )  # fmt: skip
    program.save(tmp_path / "model.onnx")
    kinds = [node.op_type for node in program.model.graph]
    assert kinds[-2:] == ["Sub", "Mul"], "the normalisation must stay mergeable"
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for count, height, width in SIZES:
        pictures = np.stack([noise(seed, height, width) for seed in range(count)])
        ours = module(torch.from_numpy(pictures)).numpy()
        theirs = session.run(None, {name: pictures})[0]
        assert theirs.shape == (count, 3, 30, 40)
        assert np.abs(ours - theirs).max() < 2e-5, (count, height, width)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        # picture (h, w) -> the box (top, left, height, width) of half the largest one of aspect 2 : 3
        ((40, 60), (10, 15, 20, 30)),
        ((100, 60), (40, 15, 20, 30)),
        ((40, 200), (10, 85, 20, 30)),
        ((41, 61), (10, 15, 20, 30)),
        ((2, 1), (0, 0, 1, 1)),
    ],
)
def test_center_takes_the_middle_box(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    picture = noise(1, *size)
    top, left, height, width = box
    settings = Preprocess(height=20, width=30, crop_pct=0.5, crop_mode="center", **PLAIN)
    whole = Preprocess(height=20, width=30, crop_mode="squash", **PLAIN)
    cut = np.ascontiguousarray(picture[top : top + height, left : left + width])
    np.testing.assert_allclose(run(settings, picture), run(whole, cut), atol=1e-4)


def test_crop_pct_is_exact_to_a_thousandth() -> None:
    picture = noise(2, 256, 256)
    settings = Preprocess(height=224, width=224, crop_pct=0.875, **PLAIN)
    np.testing.assert_allclose(run(settings, picture), picture[16:240, 16:240], atol=1e-4)


@pytest.mark.parametrize(
    ("size", "black"),
    [((10, 20), np.s_[[0, -1], :]), ((20, 5), np.s_[:, [0, -1]])],
)
def test_border_pads_with_black_and_keeps_the_aspect(size: tuple[int, int], black: object) -> None:
    picture = np.full((*size, 3), 200, dtype=np.uint8)
    result = run(Preprocess(height=20, width=20, crop_mode="border", **PLAIN), picture)
    assert np.abs(result[black]).max() < 1e-3
    np.testing.assert_allclose(result[8:12, 8:12], 200, atol=1e-3)
    assert result.mean() == pytest.approx(200 * min(size) / max(size), rel=0.02)


def test_squash_is_the_whole_picture_and_channels_are_normalised_apart() -> None:
    picture = np.zeros((5, 9, 3), dtype=np.uint8)
    picture[...] = (255, 51, 0)
    settings = Preprocess(height=4, width=4, crop_mode="squash", mean=(0.5, 0.1, 0.2), std=(0.5, 0.1, 0.4))
    result = Preprocessing(settings)(torch.from_numpy(picture)[None])
    np.testing.assert_allclose(result[0, :, 1, 2], [1.0, 1.0, -0.5], atol=1e-5)


# Pillow rounds to whole grey levels between the two directions, and once more at the end.
@pytest.mark.parametrize(("interpolation", "most"), [("bilinear", 1.01), ("bicubic", 1.5)])
def test_shrinking_agrees_with_pillow_to_one_grey_level(interpolation: str, most: float) -> None:
    folder = shared("factory_magnetic_tile/test")
    settings = Preprocess(height=96, width=96, crop_mode="squash", interpolation=interpolation, **PLAIN)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    for file in sorted(folder.glob("*/*.jpg"))[::20]:
        picture = decode(file)
        theirs = np.asarray(Image.fromarray(picture).resize((96, 96), filters[interpolation]))
        assert np.abs(run(settings, picture) - theirs).max() <= most


def test_bicubic_never_leaves_the_range_of_grey_levels() -> None:
    picture = np.zeros((8, 8, 3), dtype=np.uint8)
    picture[:, 4:] = 255
    result = run(Preprocess(height=32, width=32, interpolation="bicubic", **PLAIN), picture)
    assert result.min() == 0
    assert result.max() == pytest.approx(255)


@pytest.mark.parametrize(
    "wrong",
    [
        {"height": 0},
        {"crop_pct": 1.2},
        {"std": (1, 0, 1)},
        {"crop_mode": "middle"},
        {"interpolation": "nearest"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocess.model_validate({"height": 8, "width": 8} | wrong)
