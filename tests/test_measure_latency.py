"""Timing finished files together: what is fed to whom, which pairs are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_helpers import exported, mobile
from tiny import tiny_settings

from toolchain import recipe, workflow
from toolchain.artifact import Artifact
from toolchain.data.preprocess import Preprocess
from toolchain.errors import ProviderError
from toolchain.measure.latency import time_files
from toolchain.measure.settings import Measure
from toolchain.runtime.session import Session

QUICK = Measure(blocks=20, calls=10, drop=2, seconds=0)
PICTURE = np.full((20, 24, 3), 128, np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Artifact]:
    return {
        name: exported(tmp_path / name, mobile(side=side), Preprocess(height=side, width=side))
        for name, side in (("fp32", 8), ("large", 16))
    }


def test_every_file_is_fed_pictures_of_its_own_size(files: dict[str, Artifact]) -> None:
    found = time_files(files, PICTURE, QUICK, {"cpu": ["fp32", "large"]})
    assert [(x.variant, x.condition.file, x.condition.input) for x in found] == [
        ("fp32", "plain", "8x8 or 16x16"),
        ("large", "plain", "8x8 or 16x16"),
        ("fp32", "fused", "20x24"),
        ("large", "fused", "20x24"),
    ]
    assert all(x.samples.shape == (20, 8) and x.samples.min() > 0 for x in found)


def test_what_would_be_over_too_soon_gets_more_blocks(files: dict[str, Artifact]) -> None:
    longer = QUICK.model_copy(update={"seconds": 600.0})
    found = time_files(files, PICTURE, longer, {"cpu": ["fp32", "large"]})
    assert all(x.samples.shape == (200, 8) for x in found)


def test_only_the_files_named_for_a_provider_are_timed(files: dict[str, Artifact]) -> None:
    found = time_files(files, PICTURE, QUICK, {"cpu": ["large"]})
    assert {x.variant for x in found} == {"large"}


class OnlyFloatOnCuda:
    """A session of a machine whose GPU cannot take one of the files."""

    def __init__(self, model: Path, provider: str) -> None:
        if provider == "cuda" and model.parent.name == "large":
            raise ProviderError(f"{model}: DynamicQuantizeLinear would run on the CPU")
        self.placement = {provider: 3}


def asked(tmp_path: Path, *providers: str) -> recipe.Recipe:
    return recipe.build(tiny_settings(tmp_path, measure={"providers": list(providers)}), tmp_path)


def test_a_file_that_a_provider_found_by_auto_cannot_take_is_told(
    files: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workflow, "Session", OnlyFloatOnCuda)
    placement, refused = workflow._place(asked(tmp_path, "auto"), files, ("cpu", "cuda"))
    assert list(placement) == [("fp32", "cpu"), ("large", "cpu"), ("fp32", "cuda")]
    assert list(refused) == ["variant large on cuda"]
    assert "DynamicQuantizeLinear" in refused["variant large on cuda"]


@pytest.mark.parametrize("providers", [("cpu", "cuda"), ("cuda",)])
def test_a_file_that_a_named_provider_cannot_take_is_an_error(
    files: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, providers: tuple[str, ...]
) -> None:
    monkeypatch.setattr(workflow, "Session", OnlyFloatOnCuda)
    with pytest.raises(ProviderError, match="DynamicQuantizeLinear"):
        workflow._place(asked(tmp_path, *providers), files, providers)


def test_where_a_file_was_placed_is_what_onnxruntime_says(files: dict[str, Artifact], tmp_path: Path) -> None:
    placement, refused = workflow._place(asked(tmp_path, "auto"), files, ("cpu",))
    assert refused == {}
    assert placement["fp32", "cpu"] == Session(files["fp32"].folder / "model.onnx").placement
