"""Quantization-aware training brings an int8 network back towards float, in the graph that fuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from learn_helpers import context, data
from onnx_helpers import SQUARE, exported, mobile, operators, run
from pydantic import ValidationError
from tiny import tiny_run

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.backbones.network import DESCRIPTION, read
from toolchain.calibration import padding
from toolchain.calibration.pictures import prepared
from toolchain.errors import TrainingError
from toolchain.record import Measurement
from toolchain.runtime import host
from toolchain.steps.qat import Qat
from toolchain.steps.quantize import Quantize

COARSE = Quantize(weight_bits=7, per_channel=False, correct_bias=False, float_stem=False)
STEP = Qat(teacher="fp32", quantize=COARSE, epochs=20, batch_size=8, lr=1e-4, amp="off", workers=0)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A network whose classes are all answers to some pictures, and with channels of very different weights."""
    plain = mobile(side=16)
    tensors = {tensor.name: tensor for tensor in plain.graph.initializer}
    wide = onnx.numpy_helper.to_array(tensors["narrow.weight"]) * np.linspace(0.05, 4, 8).reshape(8, 1, 1, 1)
    tensors["narrow.weight"].CopyFrom(onnx.numpy_helper.from_array(wide.astype(np.float32), "narrow.weight"))
    first = exported(tmp_path_factory.mktemp("biased"), plain, SQUARE)
    val = data().val
    pictures = list(prepared(first.folder / graph.PREPROCESS, val, list(range(len(val)))))
    logits = run(plain, np.concatenate(pictures))
    tensors["fc.bias"].CopyFrom(onnx.numpy_helper.from_array(-logits.mean(axis=0), "fc.bias"))
    return exported(tmp_path_factory.mktemp("mobile"), plain, SQUARE)


def found(measured: tuple[Measurement, ...], name: str, **where: str) -> float:
    return next(m.value for m in measured if m.name == name and m.where == where)


def test_it_answers_closer_to_float_than_before(network: Artifact, tmp_path: Path) -> None:
    lent = context(tmp_path / "qat")
    measured = STEP.run({"model": network, "teacher": network}, lent)
    before, after = (found(measured, "sqnr", when=when) for when in ("before", "after"))
    assert after > before + 3
    assert found(measured, "agreement", when="after") >= found(measured, "agreement", when="before")
    assert found(measured, "simulated_agreement") == 1
    plain = context(tmp_path / "ptq")
    COARSE.run({"model": network}, plain)
    assert operators(lent.out / graph.PLAIN) == operators(plain.out / graph.PLAIN)
    sizes = [(folder / graph.PLAIN).stat().st_size for folder in (lent.out, plain.out)]
    assert abs(sizes[0] - sizes[1]) < 2000  # the same tensors; the lineage differs
    lineage = json.loads(graph.metadata(graph.read(lent.out / graph.FUSED))["lineage"])
    assert [entry["step"] for entry in lineage] == ["export", "qat"]


def test_a_padded_stem_is_simulated_with_real_zeros(tmp_path: Path) -> None:
    """The pad is written in integers, with the zero that stands for 0: no weight of that channel may learn from it."""
    plain = mobile(side=16)
    assert padding.pad(plain) == 1
    padded = exported(tmp_path / "padded", plain, SQUARE)
    lent = context(tmp_path / "qat")
    quantize = Quantize(weight_bits=8, float_stem=False)
    step = STEP.model_copy(update={"quantize": quantize, "epochs": 2, "lr": 1e-3})
    step.run({"model": padded, "teacher": padded}, lent)
    stem = graph.weights(graph.read(lent.out / graph.PLAIN))["stem.weight_padded_quantized"]
    assert stem[:, :3].any()
    assert not stem[:, 3].any()


def test_the_same_training_gives_the_same_bytes(network: Artifact, tmp_path: Path) -> None:
    short = STEP.model_copy(update={"epochs": 1})
    for name in ("a", "b"):
        short.run({"model": network, "teacher": network}, context(tmp_path / name))
    files = [(tmp_path / name / "out" / graph.PLAIN).read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"quantize": {"scheme": "dynamic"}}, "qat trains static quantization with weight s8"),
        ({"quantize": {"weight": "u8"}}, "qat trains static quantization with weight s8"),
        ({"train": "head"}, "Input should be 'full'"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Qat.model_validate({"teacher": "fp32", **settings})


def test_roundings_are_simulated_in_full_precision_unless_asked() -> None:
    assert Qat(teacher="fp32").amp == "off"
    assert Qat(teacher="fp32", amp="bf16").amp == "bf16"


def test_weights_that_would_saturate_get_seven_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "isa", lambda: "x86-vnni")
    old = Qat(teacher="fp32", quantize=Quantize(targets=("x86-avx2",))).resolved()
    new = Qat(teacher="fp32", quantize=Quantize(targets=("x86-vnni",))).resolved()
    assert (old.quantize.weight_bits, new.quantize.weight_bits) == (7, 8)


def test_a_teacher_of_other_labels_is_refused(network: Artifact, tmp_path: Path) -> None:
    other = exported(tmp_path / "other", mobile(side=16), SQUARE)
    described = read(other.folder).model_copy(update={"labels": ("red", "green", "pink")})
    (other.folder / DESCRIPTION).write_text(described.model_dump_json())
    with pytest.raises(TrainingError, match="teacher 'fp32' has other labels"):
        STEP.run({"model": network, "teacher": other}, context(tmp_path / "out"))


def test_a_recipe_can_name_it(tmp_path: Path) -> None:
    """The whole trip: exported, trained in integers, measured, chosen and bundled."""
    variants = {
        "fp32": {"from": "tuned", "steps": ["export"]},
        "int8": {"from": "fp32", "steps": [{"qat": {"teacher": "fp32", "epochs": 1, "batch_size": 8}}]},
    }
    run = tiny_run(tmp_path, variants=variants)
    report = json.loads((run.out / "report.json").read_text())
    assert [variant["name"] for variant in report["variants"]] == ["fp32", "int8"]
    assert report["variants"][1]["accuracy"]
