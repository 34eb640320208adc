"""A stem that reads one channel of grey pictures: the same answers from a third of its products, in training too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learn_helpers import Lines, context, data
from numpy.typing import NDArray
from onnx_helpers import SQUARE, exported, mobile, noise_ratio, run, values

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.calibration import greyness, padding
from toolchain.calibration.pictures import prepared
from toolchain.data.dataset import Data, PictureSet
from toolchain.errors import DataError, ModelError, RecipeError
from toolchain.simulate.network import Simulated
from toolchain.steps.grey_stem import GreyStem
from toolchain.steps.quantize import Quantize

EVEN = SQUARE.model_copy(update={"mean": (0.5,) * 3, "std": (0.25,) * 3})


def greyed(part: PictureSet, but: Mapping[int, float] | None = None) -> PictureSet:
    """The pictures by their red channel alone; `but`: how far the blue channel of some is brighter."""
    places = {sample.name: index for index, sample in enumerate(part.samples)}

    def decode(name: str) -> NDArray[np.uint8]:
        picture = np.repeat(part.decode(name)[..., :1], 3, axis=2)
        picture[..., 2] += np.uint8((but or {}).get(places[name], 0))
        return picture

    return PictureSet(part.samples, decode)


def grey_data(**coloured: Mapping[int, float]) -> Data:
    found = data()
    parts = {name: greyed(getattr(found, name), coloured.get(name)) for name in ("train", "val", "test")}
    return Data("greys", found.labels, **parts)


def inputs(found: Artifact) -> NDArray[np.float32]:
    val = grey_data().val
    return np.concatenate(list(prepared(found.folder / graph.PREPROCESS, val, list(range(len(val))))))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("mobile"), mobile(side=16), EVEN)


def test_grey_pictures_get_the_same_answers(network: Artifact, tmp_path: Path) -> None:
    lent = context(tmp_path, grey_data())
    told = values(GreyStem().run({"model": network}, lent))
    assert told["channels"] == 2
    assert told["price"] > 0
    known = graph.weights(graph.read(lent.out / graph.PLAIN))
    assert known["stem.weight_summed"].shape == (16, 1, 3, 3)
    assert "stem.weight" not in known
    feed = inputs(network)
    before = run(network.folder / graph.PLAIN, feed)
    np.testing.assert_allclose(run(lent.out / graph.PLAIN, feed), before, rtol=1e-4, atol=1e-5)
    pictures = np.stack([grey_data().val.picture(index) for index in range(4)])
    answers = [run(folder / graph.FUSED, pictures) for folder in (network.folder, lent.out)]
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)
    feed[:, [0, 2]] = 0  # what is read is the green channel
    np.testing.assert_allclose(run(lent.out / graph.PLAIN, feed), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", [True, False])
def test_int8_and_its_simulation_read_one_channel_too(network: Artifact, tmp_path: Path, stem: bool) -> None:
    grey, int8 = context(tmp_path / "grey", grey_data()), context(tmp_path / "int8", grey_data())
    GreyStem().run({"model": network}, grey)
    step = Quantize(float_stem=stem, weight_bits=7)
    step.run({"model": Artifact(network.form, grey.out, network.record)}, int8)
    quantized = graph.read(int8.out / graph.PLAIN)
    assert (graph.weights(quantized).get("stem.weight_summed") is not None) == stem
    feed = inputs(network)
    answers = run(quantized, feed)
    assert noise_ratio(run(network.folder / graph.PLAIN, feed), answers) > 20
    simulation = Simulated(quantized).eval()
    with torch.inference_mode():
        simulated = simulation(torch.from_numpy(feed)).numpy()
    assert noise_ratio(run(quantized, feed, optimize=False), simulated) > 35


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_picture_with_colours_is_named(network: Artifact, tmp_path: Path, part: str) -> None:
    given = grey_data(**{part: {3: 1}})
    with pytest.raises(DataError, match=f"grey_stem: {part}/red/3 has colours"):
        GreyStem().run({"model": network}, context(tmp_path, given))


def test_channels_with_a_mean_of_their_own_are_told(tmp_path: Path) -> None:
    network = exported(tmp_path / "own", mobile(side=16), SQUARE)
    with pytest.raises(
        RecipeError, match=r"preprocess\.mean is 0\.\d+, 0\.\d+, 0\.\d+, so that the channels"
    ):
        GreyStem().run({"model": network}, context(tmp_path, grey_data()))


def test_pictures_there_must_be(network: Artifact, tmp_path: Path) -> None:
    nothing = PictureSet((), data().train.decode)
    with pytest.raises(DataError, match="there are none"):
        GreyStem().run(
            {"model": network}, context(tmp_path, Data("none", data().labels, nothing, nothing, nothing))
        )


def test_only_one_dense_convolution_may_read_the_input(network: Artifact, tmp_path: Path) -> None:
    plain = mobile(side=16)
    assert greyness.read_one(plain) == 2
    assert greyness.read_one(plain) == 0
    grey = context(tmp_path / "grey", grey_data())
    GreyStem().run({"model": network}, grey)
    again = context(tmp_path / "again", grey_data())
    made = Artifact(network.form, grey.out, network.record)
    lines = Lines()
    told = values(GreyStem().run({"model": made}, replace(again, progress=lines)))
    assert (told["channels"], told["price"]) == (0, 1.0)
    assert any("grey_stem has nothing to do" in line for line in lines.said)
    assert padding.pad(graph.read(grey.out / graph.PLAIN)) == 0  # one or the other
    int8 = context(tmp_path / "int8", grey_data())
    Quantize(weight_bits=7).run({"model": made}, int8)
    with pytest.raises(ModelError, match="quantized"):
        GreyStem().run({"model": Artifact(network.form, int8.out, network.record)}, context(tmp_path / "not"))
