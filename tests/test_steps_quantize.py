"""Quantized files: integers where they should be, answers close to float, the same bytes anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from learn_helpers import LABELS, context, data, tiny
from onnx import TensorProto, numpy_helper
from onnx_helpers import SQUARE, artifact, exported, mobile, noise_ratio, operators, run, values

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import save
from toolchain.calibration.pictures import prepared
from toolchain.errors import DataError, ModelError
from toolchain.runtime import host
from toolchain.steps.export import Export
from toolchain.steps.quantize import Quantize
from toolchain.steps.weight_only import WeightOnly

SATURATES = host.isa() in ("x86-avx2", "x86-other")
FILES = (graph.PREPROCESS, graph.PLAIN, graph.FUSED)


def from_torch(folder: Path, **backbone: object) -> Artifact:
    """An exported tiny network with batch norm statistics that do something."""
    model, network = tiny(**backbone)
    model.train()
    model(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    save(model, network, folder / "torch")
    lent = context(folder)
    Export().run({"model": artifact(folder / "torch", Form.TORCH)}, lent)
    return artifact(lent.out, Form.ONNX)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return from_torch(tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(tmp_path_factory.mktemp("mobile"), mobile(side=16), SQUARE)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    options = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 4}
    return from_torch(tmp_path_factory.mktemp("vit"), timm="vit_tiny_patch16_224", kwargs=options)


def quantized(source: Artifact, folder: Path, **settings: object) -> tuple[Path, dict[str, float]]:
    lent = context(folder)
    measured = Quantize.model_validate(settings).resolved().run({"model": source}, lent)
    return lent.out, values(measured)


def inputs(source: Artifact) -> np.ndarray:
    val = data().val
    return np.concatenate(list(prepared(source.folder / graph.PREPROCESS, val, list(range(len(val))))))


def quality(source: Artifact, out: Path) -> float:
    """Signal to noise of the logits in dB, on pictures that did not calibrate."""
    feed = inputs(source)
    return noise_ratio(run(source.folder / graph.PLAIN, feed), run(out / graph.PLAIN, feed))


def constants(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def test_static_puts_integers_everywhere_but_at_the_ends(resnet: Artifact, tmp_path: Path) -> None:
    out, measured = quantized(resnet, tmp_path)
    assert sorted(p.name for p in out.iterdir()) == sorted([*FILES, "network.json"])
    assert quality(resnet, out) > 20
    nodes = {node.name: node for node in onnx.load(out / graph.PLAIN).graph.node}
    assert "Relu" in {n.op_type for n in nodes.values()}, "the stem keeps its activation"
    # The stem's convolution reads the picture itself, all others read what was dequantized.
    assert list(nodes["conv1.0"].input)[:2] == ["input", "conv1.0.weight"]
    makers = {o: node.op_type for node in nodes.values() for o in node.output}
    convolutions = [n for n in nodes.values() if n.op_type in ("Conv", "Gemm") and n.name != "conv1.0"]
    assert {makers[name] for n in convolutions for name in n.input} == {"DequantizeLinear"}
    assert makers["logits"] == "Gemm"
    assert measured["layers"] - measured["layers_int8"] == 1
    kinds = {v.dtype.name for n, v in constants(out / graph.PLAIN).items() if n.endswith("zero_point")}
    assert kinds == {"uint8", "int8", "int32"}


def test_the_preprocessing_stays_in_float(resnet: Artifact, tmp_path: Path) -> None:
    out, _ = quantized(resnet, tmp_path)
    assert (out / graph.PREPROCESS).read_bytes() == (resnet.folder / graph.PREPROCESS).read_bytes() or (
        operators(out / graph.PREPROCESS) == operators(resnet.folder / graph.PREPROCESS)
    )
    pictures = data().val.picture(0)[None]
    logits = run(out / graph.PLAIN, run(out / graph.PREPROCESS, pictures))
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(run(out / graph.FUSED, pictures), expected, atol=1e-6)
    assert run(out / graph.FUSED, np.concatenate([pictures] * 5)).shape == (5, 3)


def test_the_same_bytes_in_another_process(resnet: Artifact, tmp_path: Path) -> None:
    out, _ = quantized(resnet, tmp_path / "here", calibration="percentile")
    script = (
        "import sys; from pathlib import Path\n"
        "from learn_helpers import context; from onnx_helpers import artifact\n"
        "from toolchain.artifact import Form; from toolchain.steps.quantize import Quantize\n"
        "step = Quantize(calibration='percentile').resolved()\n"
        "step.run({'model': artifact(Path(sys.argv[1]), Form.ONNX)}, context(Path(sys.argv[2])))\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    subprocess.run(
        [sys.executable, "-c", script, str(resnet.folder), str(tmp_path / "there")], check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "99", "PYTHONPATH": paths, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    for name in FILES:
        assert (tmp_path / "there" / "out" / name).read_bytes() == (out / name).read_bytes()
        assert os.fsencode(tmp_path) not in (out / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "worst"),
    [
        ({"weight_bits": 8}, 10 if SATURATES else 35), ({"weight_bits": 7}, 35), ({"weight_bits": "pairwise"}, 35),
        ({"calibration": "percentile"}, 35), ({"calibration": "entropy"}, 35), ({"per_channel": False}, 35),
        ({"activation": "s8"}, 30), ({"weight": "u8"}, 28), ({"float_stem": False}, 35), ({"correct_bias": False}, 33),
    ],
)  # fmt: skip
def test_every_way_stays_close_to_float(
    mobilenet: Artifact, tmp_path: Path, settings: dict[str, object], worst: float
) -> None:
    out, measured = quantized(mobilenet, tmp_path, **settings)
    assert quality(mobilenet, out) > worst
    assert measured["layers"] == 6
    assert measured["layers_int8"] == (6 if settings.get("float_stem") is False else 3)


def test_bits_are_as_asked(mobilenet: Artifact, tmp_path: Path) -> None:
    greatest = {}
    for bits in (8, 7, "pairwise"):
        found = constants(quantized(mobilenet, tmp_path / str(bits), weight_bits=bits)[0] / graph.PLAIN)
        integers = next(v for n, v in found.items() if n.startswith("dense.weight") and v.ndim == 4)
        greatest[bits] = np.abs(integers.astype(int)).reshape(len(integers), -1).max(axis=1)
        pairs = np.abs(np.moveaxis(integers.astype(int), 1, -1).reshape(len(integers), -1, 2).sum(axis=2))
        if bits != 8:
            assert pairs.max() <= 128
    assert set(greatest[8]) == {127}
    assert set(greatest[7]) == {64}
    assert greatest["pairwise"].min() > 64


def test_correcting_biases_helps_where_rounding_is_coarse(mobilenet: Artifact, tmp_path: Path) -> None:
    found = {}
    for correct in (True, False):
        found[correct] = quality(
            mobilenet,
            quantized(
                mobilenet, tmp_path / str(correct), weight_bits=7, per_channel=False, correct_bias=correct
            )[0],
        )
    assert found[True] > found[False] + 2


def test_nodes_and_operators_can_be_left_out(mobilenet: Artifact, tmp_path: Path) -> None:
    out, measured = quantized(mobilenet, tmp_path / "a", exclude=["dense*", "fc"])
    assert measured["layers_int8"] == 1
    assert {"dense.weight", "fc.weight"} <= set(constants(out / graph.PLAIN))
    assert quantized(mobilenet, tmp_path / "b", operators=["Gemm"])[1]["layers_int8"] == 1
    with pytest.raises(ModelError, match=r"exclude 'layer9\.\*'"):
        quantized(mobilenet, tmp_path / "c", exclude=["layer9.*"])


def test_auto_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa, bits in (("x86-vnni", 8), ("x86-avx2", "pairwise"), ("x86-other", "pairwise"), ("arm64", 8)):
        monkeypatch.setattr(host, "isa", lambda isa=isa: isa)
        assert Quantize().resolved().weight_bits == bits
        assert Quantize(weight_bits=7).resolved().weight_bits == 7


def test_targets_and_the_processor_that_measures_must_not_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "isa", lambda: "x86-vnni")
    assert Quantize(targets=("x86-vnni", "x86-avx2", "arm64")).resolved().weight_bits == "pairwise"
    monkeypatch.setattr(host, "isa", lambda: "x86-avx2")
    assert (
        Quantize(targets=("x86-vnni", "arm64")).resolved().weight_bits == "pairwise"
    )  # what is measured here holds there
    monkeypatch.setattr(host, "isa", lambda: "arm64")
    assert Quantize(targets=("x86-vnni", "arm64")).resolved().weight_bits == 8
    with pytest.raises(ValueError, match="saturates on target x86-avx2"):
        Quantize(targets=("x86-avx2",), weight_bits=8)


def test_what_targets_cost_is_measured_where_8_bits_would_do(
    mobilenet: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saturates = host.isa() in ("x86-avx2", "x86-other")

    def costs(isa: str, *targets: str) -> dict[str, float]:
        monkeypatch.setattr(host, "isa", lambda: isa)
        lent = context(tmp_path / "-".join((isa, *targets)))
        step = Quantize.model_validate({"targets": targets}).resolved()
        told = step.run({"model": mobilenet}, lent)
        return {f"{m.name} {m.where['weights']}": m.value for m in told if "weights" in m.where}

    found = costs("x86-vnni", "x86-vnni", "x86-avx2")
    assert found["price portable"] > 0
    if saturates:  # the processor that runs the test has no VNNI, whatever it is told to be
        assert found["sqnr 8 bits"] < found["sqnr portable"]
    else:
        assert found["sqnr 8 bits"] > found["sqnr portable"] - 1
    assert 0 < found["agreement portable"] <= 1
    assert costs("x86-vnni", "x86-vnni", "arm64", "x86-vnni") == {}  # nothing is given up
    assert costs("x86-avx2", "x86-vnni", "x86-avx2") == {}  # 8 bits would saturate here
    assert costs("x86-vnni", "x86-avx2") == {}  # not meant for this host


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"activation": "s8", "weight": "u8"}, "activation s8 needs weight s8"),
        ({"scheme": "dynamic", "activation": "s8"}, "scheme 'dynamic' needs activation u8"),
        ({"scheme": "dynamic", "calibration": "mse"}, "scheme 'dynamic' knows no calibration: take it out"),
        (
            {"scheme": "dynamic", "float_stem": False, "pictures": 9},
            "knows no pictures, float_stem: take it out",
        ),
        ({"percentile": 99.9}, "percentile counts with calibration 'percentile' only"),
        ({"weight": "u8", "rounding": "adaptive"}, "need weight s8"),
        ({"weight": "u8", "weight_bits": 7}, "need weight s8"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(wrong: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Quantize.model_validate(wrong)


def test_a_file_without_integers_is_no_int8(mobilenet: Artifact, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"operators 'Cnov': the network has none \(it has Conv, Flatten, Gemm, "
    ):
        quantized(mobilenet, tmp_path / "a", operators=["Cnov"])
    with pytest.raises(ModelError, match="nothing was quantized: exclude or operators"):
        quantized(mobilenet, tmp_path / "b", exclude=["*"])


def test_what_finds_nothing_to_do_says_so(mobilenet: Artifact, tmp_path: Path) -> None:
    lent = context(tmp_path)
    Quantize(float_sums=True, float_products=True).resolved().run({"model": mobilenet}, lent)
    told = "\n".join(lent.progress.said)
    assert "float_sums has nothing to do" in told
    assert "float_products has nothing to do" in told


def test_calibration_reads_training_pictures_only(mobilenet: Artifact, tmp_path: Path) -> None:
    assert Quantize.uses == {"train"}
    out, _ = quantized(mobilenet, tmp_path / "a")
    lent = context(tmp_path / "b", data(val=(1, 1, 1)))
    Quantize().resolved().run({"model": mobilenet}, lent)
    assert (lent.out / graph.PLAIN).read_bytes() == (out / graph.PLAIN).read_bytes()
    with pytest.raises(DataError, match="training pictures"):
        Quantize().run({"model": mobilenet}, context(tmp_path / "c", data(train=(0, 0, 0))))


def test_what_is_quantized_is_not_quantized_again(mobilenet: Artifact, tmp_path: Path) -> None:
    out, _ = quantized(mobilenet, tmp_path / "a")
    with pytest.raises(ModelError, match="already"):
        quantized(artifact(out, Form.ONNX), tmp_path / "b")


def test_lineage_says_how(resnet: Artifact, tmp_path: Path) -> None:
    out, _ = quantized(resnet, tmp_path, pictures=20)
    about = graph.metadata(graph.read(out / graph.FUSED))
    assert json.loads(about["labels"]) == list(LABELS)
    last = json.loads(about["lineage"])[-1]
    assert (last["step"], last["settings"]["pictures"]) == ("quantize", 20)
    assert last["settings"]["weight_bits"] in (8, "pairwise")


def test_transformers_are_dynamic_by_default(transformer: Artifact, tmp_path: Path) -> None:
    out, measured = quantized(transformer, tmp_path)
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= operators(out / graph.PLAIN)
    assert "ConvInteger" not in operators(out / graph.PLAIN)
    # Four products a block and the classifier; the products of activations stay in float.
    assert measured["layers_int8"] == 9
    assert quality(transformer, out) > 20


@pytest.mark.parametrize("settings", [{"activation": "s8"}, {"refit_head": True}])
def test_what_dynamic_does_not_know_is_not_ignored(
    transformer: Artifact, tmp_path: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(ModelError, match="this network has attention, for which scheme 'auto' is 'dynamic'"):
        quantized(transformer, tmp_path, **settings)


def test_settings_that_dynamic_does_not_read_are_told_and_not_recorded(
    transformer: Artifact, tmp_path: Path
) -> None:
    lent = context(tmp_path)
    step = Quantize(calibration="mse", rounding="adaptive", exclude=("head",))
    step.resolved().run({"model": transformer}, lent)
    assert any("dynamic int8, which knows no calibration, rounding" in line for line in lent.progress.said)
    last = json.loads(graph.metadata(graph.read(lent.out / graph.PLAIN))["lineage"])[-1]["settings"]
    assert (last["calibration"], last["rounding"], last["exclude"]) == ("minmax", "nearest", ["head"])


def test_dynamic_leaves_a_classifier_out_and_under_its_name(transformer: Artifact, tmp_path: Path) -> None:
    out, measured = quantized(transformer, tmp_path / "a", exclude=["head"])
    assert measured["layers_int8"] == 8
    (head,) = [node for node in onnx.load(out / graph.PLAIN).graph.node if node.name == "head"]
    assert (head.op_type, constants(out / graph.PLAIN)[head.input[1]].dtype) == ("MatMul", np.float32)
    lent = context(tmp_path / "b")
    WeightOnly(layers=("head",)).run({"model": artifact(out, Form.ONNX)}, lent)
    assert "MatMulNBits" in operators(lent.out / graph.PLAIN)
    assert quantized(transformer, tmp_path / "c", operators=["Gemm"])[1]["layers_int8"] == 9


def test_static_transformers_keep_products_of_activations(transformer: Artifact, tmp_path: Path) -> None:
    out, measured = quantized(transformer, tmp_path, scheme="static")
    made = onnx.load(out / graph.PLAIN)
    makers = {o: node.op_type for node in made.graph.node for o in node.output}
    attention = [n for n in made.graph.node if n.op_type == "MatMul" and "attn/" in n.name]
    assert len(attention) == 4
    assert all(makers[name] != "DequantizeLinear" for node in attention for name in node.input)
    assert measured["layers_int8"] >= 9
    assert quality(transformer, out) > 15


@pytest.mark.slow
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_512_pictures_of_resnet50_fit_into_2_gb(method: str, tmp_path: Path) -> None:
    """Peak resident memory of the whole step, torch and all, at 224 pixels."""
    script = Path(__file__).with_name("quantize_memory.py")
    done = subprocess.run(
        [sys.executable, str(script), method, "512", str(tmp_path)], check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert int(done.stdout.split()[-1]) < 2_000_000


def test_integers_are_what_the_measurement_counts(resnet: Artifact, tmp_path: Path) -> None:
    out, measured = quantized(resnet, tmp_path)
    eight = [
        t
        for t in onnx.load(out / graph.PLAIN).graph.initializer
        if t.data_type == TensorProto.INT8 and len(t.dims) > 1
    ]
    assert measured["layers_int8"] == len(eight)
    assert (
        measured["bytes"] == (out / graph.FUSED).stat().st_size < (resnet.folder / graph.FUSED).stat().st_size
    )
