"""Smoothing: the function stays, and int8 with ranges found while running gets closer to float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from learn_helpers import context, data, tiny
from numpy.typing import NDArray
from onnx_helpers import SQUARE, artifact, exported, mobile, noise_ratio, run, values

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import save
from toolchain.calibration import smoothing
from toolchain.calibration.pictures import prepared
from toolchain.errors import DataError, ModelError
from toolchain.steps.export import Export
from toolchain.steps.quantize import Quantize
from toolchain.steps.smooth import Smooth


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A small transformer, a few of whose channels are fifty times as great as the others behind each norm."""
    folder = tmp_path_factory.mktemp("vit")
    options = {"embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 4}
    net, network = tiny(timm="vit_tiny_patch16_224", kwargs=options)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.get_submodule("head").weight.normal_(0, 0.5, generator=random)
        for name in ("blocks.0", "blocks.1"):
            for norm, product in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
                net.get_submodule(f"{name}.{norm}").weight[::16] *= 50
                net.get_submodule(f"{name}.{product}").weight.normal_(0, 0.1, generator=random)
                net.get_submodule(f"{name}.{product}").weight[:, ::16] /= 50
    save(net, network, folder / "torch")
    lent = context(folder)
    Export().run({"model": artifact(folder / "torch", Form.TORCH)}, lent)
    return artifact(lent.out, Form.ONNX)


def inputs(found: Artifact) -> NDArray[np.float32]:
    val = data().val
    return np.concatenate(list(prepared(found.folder / graph.PREPROCESS, val, list(range(len(val))))))


def test_answers_stay_and_int8_gets_closer(transformer: Artifact, tmp_path: Path) -> None:
    smooth, plain, better = (context(tmp_path / name) for name in ("smooth", "plain", "better"))
    measured = values(Smooth().run({"model": transformer}, smooth))
    assert measured["norms"] >= 4
    assert measured["sqnr"] > 80
    Quantize(scheme="dynamic").run({"model": transformer}, plain)
    Quantize(scheme="dynamic").run(
        {"model": Artifact(transformer.form, smooth.out, transformer.record)}, better
    )
    feed = inputs(transformer)
    reference = run(transformer.folder / graph.PLAIN, feed)
    assert noise_ratio(reference, run(smooth.out / graph.PLAIN, feed)) > 80
    without, with_it = (noise_ratio(reference, run(lent.out / graph.PLAIN, feed)) for lent in (plain, better))
    assert with_it > without + 3


def test_alpha_says_how_much_moves(transformer: Artifact) -> None:
    model = graph.read(transformer.folder / graph.PLAIN)
    found = list(smoothing.sites(model))
    feed = [picture[None] for picture in inputs(transformer)]
    before = smoothing.greatest(model, found, feed)
    smoothing.smooth(model, found, before, 1.0)
    after = smoothing.greatest(model, found, feed)
    for site in found:
        tops = after[site.norm.output[0]]
        assert (
            tops.max() / tops.min()
            < 1.01
            < before[site.norm.output[0]].max() / before[site.norm.output[0]].min()
        )


def test_what_cannot_be_smoothed_is_told(tmp_path: Path, transformer: Artifact) -> None:
    source = exported(tmp_path / "in", mobile(side=16), SQUARE)
    with pytest.raises(ModelError, match="no layer norm before products"):
        Smooth().run({"model": source}, context(tmp_path / "a"))
    with pytest.raises(DataError, match="smooth looks at training pictures"):
        Smooth().run({"model": transformer}, context(tmp_path / "b", data(train=(0, 0, 0))))
