"""What a bundle promises between processors: told by the file, whichever step put the integers in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from learn_helpers import context, data
from onnx_helpers import SQUARE, exported, mobile

from toolchain import bundle, graph
from toolchain.artifact import Artifact
from toolchain.bundle import rounding
from toolchain.runtime import manifest
from toolchain.step import Step
from toolchain.steps.fall_back import FallBack
from toolchain.steps.qat import Qat
from toolchain.steps.quantize import Quantize
from toolchain.steps.weight_only import WeightOnly

EIGHT, SEVEN = (Quantize(weight_bits=bits, pictures=8) for bits in (8, 7))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("float"), mobile(side=16), SQUARE)


def made(step: Step, network: Artifact, folder: Path) -> tuple[bool, bool]:
    lent = context(folder)
    step.run(dict.fromkeys(step.takes, network), lent)
    return rounding(graph.read(lent.out / graph.FUSED))


@pytest.mark.parametrize(
    ("step", "quantized", "saturating"),
    [
        (EIGHT, True, True),
        (SEVEN, True, False),
        (FallBack(quantize=EIGHT, min_agreement=1), True, True),
        (FallBack(quantize=SEVEN, min_agreement=1), True, False),
        (Qat(teacher="fp32", quantize=SEVEN, epochs=1, batch_size=16, workers=0), True, False),
        (WeightOnly(), True, False),
    ],
    ids=["quantize-8", "quantize-7", "fall_back-8", "fall_back-7", "qat-7", "weight_only"],
)
def test_integers_are_seen(
    step: Step, quantized: bool, saturating: bool, network: Artifact, tmp_path: Path
) -> None:
    assert made(step, network, tmp_path) == (quantized, saturating)


def test_what_was_quantized_before_a_further_step_still_counts(network: Artifact, tmp_path: Path) -> None:
    first = context(tmp_path / "int8")
    Quantize(weight_bits=8, pictures=8, exclude=("fc",)).run({"model": network}, first)
    before = Artifact(network.form, first.out, network.record)
    assert made(WeightOnly(layers=("fc",)), before, tmp_path / "mixed") == (True, True)


def test_a_float_file_is_exact(network: Artifact) -> None:
    assert rounding(graph.read(network.folder / graph.FUSED)) == (False, False)


def test_integers_of_unknown_origin_may_saturate(network: Artifact, tmp_path: Path) -> None:
    lent = context(tmp_path)
    SEVEN.run({"model": network}, lent)
    model = graph.read(lent.out / graph.FUSED)
    del model.metadata_props[:]
    assert rounding(model) == (True, True)


def test_golden_pictures_stay_within_what_a_verifier_unpacks(
    network: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen pictures of 24 megapixels did not: a run ended well, and its bundle could not be verified."""
    shutil.copy(network.folder / graph.FUSED, tmp_path / manifest.MODEL)
    val = data().val
    monkeypatch.setattr(bundle, "_GOLDEN_BYTES", 3 * val.picture(0).nbytes)
    bundle._golden(tmp_path, val)
    with np.load(tmp_path / manifest.GOLDEN) as arrays:
        assert (int(arrays["count"]), len(arrays["probabilities"])) == (3, 3)
    monkeypatch.setattr(bundle, "_GOLDEN_BYTES", 0)
    bundle._golden(tmp_path, val)
    with np.load(tmp_path / manifest.GOLDEN) as arrays:
        assert int(arrays["count"]) == 1
