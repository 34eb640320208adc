"""Weight-only products: what the integers stand for, and that the file answers by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from learn_helpers import context, data, tiny
from numpy.typing import NDArray
from onnx.helper import make_node
from onnx_helpers import SQUARE, artifact, exported, mobile, model, noise_ratio, operators, run, values
from tiny import tiny_run

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones.network import save
from toolchain.calibration.pictures import prepared
from toolchain.errors import ModelError
from toolchain.steps.export import Export
from toolchain.steps.quantize import Quantize
from toolchain.steps.weight_only import WeightOnly, quantize_blocks
from toolchain.store import Store


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("vit")
    options = {"embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 4}
    net, network = tiny(timm="vit_tiny_patch16_224", kwargs=options)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        net.get_submodule("head").weight.normal_(0, 0.5, generator=random)
    save(net, network, folder / "torch")
    lent = context(folder)
    Export().run({"model": artifact(folder / "torch", Form.TORCH)}, lent)
    return artifact(lent.out, Form.ONNX)


def inputs(found: Artifact) -> NDArray[np.float32]:
    val = data().val
    return np.concatenate(list(prepared(found.folder / graph.PREPROCESS, val, list(range(len(val))))))


def restored(
    integers: NDArray[np.uint8], steps: NDArray[np.float32], bits: int, width: int
) -> NDArray[np.float32]:
    """What the file's integers stand for, [N, K]."""
    if bits == 4:
        integers = np.stack([integers & 15, integers >> 4], axis=-1).reshape(*integers.shape[:2], -1)
    whole = (integers.astype(np.float32) - 2 ** (bits - 1)) * steps[..., None]
    return whole.reshape(len(whole), -1)[:, :width]


@pytest.mark.parametrize(("bits", "block", "width"), [(8, 32, 64), (8, 16, 50), (4, 32, 64), (4, 128, 200)])
def test_blocks_are_within_half_a_step(bits: int, block: int, width: int) -> None:
    rows = np.random.default_rng(0).normal(size=(7, width)).astype(np.float32)
    rows[2, :block] = 0
    integers, steps = quantize_blocks(rows, bits, block)
    assert integers.shape == (7, -(-width // block), block * bits // 8)
    error = np.abs(restored(integers, steps, bits, width) - rows)
    half = np.repeat(np.abs(steps), block, axis=1)[:, :width] / 2
    # Only what is as great as the greatest, with the other sign, is clipped by one step.
    assert (error <= 2 * half + 1e-6).all()
    assert (error <= half + 1e-6).mean() > 0.95
    assert not restored(integers, steps, bits, width)[2, :block].any()


@pytest.mark.parametrize(
    ("bits", "products", "worst"), [(8, "int8", 30), (4, "int8", 30), (4, "float", 60), (8, "float", 60)]
)
@pytest.mark.parametrize("operator", ["Gemm", "MatMul"])
def test_the_file_answers_by_its_integers(bits: int, products: str, worst: float, operator: str) -> None:
    random = np.random.default_rng(1)
    weight = random.normal(size=(5, 96)).astype(np.float32)
    constants = {
        "w": weight if operator == "Gemm" else weight.T.copy(),
        "b": random.normal(size=5).astype(np.float32),
    }
    node = (
        make_node("Gemm", ["input", "w", "b"], ["logits"], name="fc", transB=1)
        if operator == "Gemm"
        else make_node("MatMul", ["input", "w"], ["logits"], name="fc")
    )
    made = model([node], constants, shape=("N", 96), classes=5)
    assert WeightOnly.model_validate({"bits": bits, "products": products}).convert(made) == ["fc"]
    onnx.checker.check_model(made)
    feed = random.normal(size=(4, 96)).astype(np.float32)
    wanted = feed @ restored(*quantize_blocks(weight, bits, 32), bits, 96).T
    wanted = wanted + constants["b"] if operator == "Gemm" else wanted
    assert noise_ratio(wanted, run(made, feed)) > worst


@pytest.mark.parametrize("kind", ["computed", "scalar", "half"])
def test_what_it_cannot_stand_for_is_left_alone(kind: str) -> None:
    """A bias that is not a constant with a value an output would be lost or refused, 16-bit floats are no float32."""
    random = np.random.default_rng(1)
    narrow = np.float16 if kind == "half" else np.float32
    constants = {"w": random.normal(size=(5, 96)).astype(narrow), "b": np.ones(1, narrow)}
    nodes = [make_node("Gemm", ["input", "w", "b"], ["logits"], name="fc", transB=1)]
    if kind == "computed":
        nodes = [
            make_node("Neg", ["b"], ["c"], name="c"),
            make_node("Gemm", ["input", "w", "c"], ["logits"], name="fc", transB=1),
        ]
    made = model(nodes, constants, shape=("N", 96), classes=5)
    before = made.SerializeToString()
    assert WeightOnly().convert(made) == []
    assert made.SerializeToString() == before


def test_transformers_shrink_and_stay_close(transformer: Artifact, tmp_path: Path) -> None:
    feed = inputs(transformer)
    reference = run(transformer.folder / graph.PLAIN, feed)
    found = {}
    for bits in (8, 4):
        lent = context(tmp_path / str(bits))
        measured = WeightOnly(bits=bits).run({"model": transformer}, lent)
        assert "MatMulNBits" in operators(lent.out / graph.PLAIN)
        found[bits] = (
            noise_ratio(reference, run(lent.out / graph.PLAIN, feed)),
            (lent.out / graph.PLAIN).stat().st_size,
        )
        told = values(measured)
        assert told["layers"] == 9  # qkv, proj, fc1, fc2 twice, and the head
        assert told["sqnr"] == pytest.approx(
            found[bits][0], abs=3
        )  # which counts what all classes share as well
        assert told["price"] > 0
    size = (transformer.folder / graph.PLAIN).stat().st_size
    assert found[8][0] > 30 > 10 < found[4][0] < found[8][0]
    assert found[4][1] < found[8][1] < 0.6 * size


def test_it_follows_quantize_for_what_was_left_out(tmp_path: Path) -> None:
    source = exported(tmp_path / "in", mobile(side=16), SQUARE)
    int8, both = context(tmp_path / "int8"), context(tmp_path / "both")
    Quantize(exclude=("fc",)).run({"model": source}, int8)
    WeightOnly(layers=("fc",)).run({"model": Artifact(source.form, int8.out, source.record)}, both)
    assert {"MatMulNBits", "QuantizeLinear"} <= operators(both.out / graph.PLAIN)
    feed = inputs(source)
    reference = run(source.folder / graph.PLAIN, feed)
    assert noise_ratio(reference, run(both.out / graph.PLAIN, feed)) > 30
    whole = run(both.out / graph.FUSED, data().val.picture(0)[None])
    np.testing.assert_allclose(whole.sum(axis=1), 1, rtol=1e-5)


def test_without_validation_pictures_it_tells_no_worth(tmp_path: Path) -> None:
    source = exported(tmp_path / "in", mobile(side=16), SQUARE)
    measured = WeightOnly().run({"model": source}, context(tmp_path / "out", data(val=(0, 0, 0))))
    assert {"sqnr", "price"}.isdisjoint(values(measured))


def test_nothing_to_do_is_told(tmp_path: Path) -> None:
    source = exported(tmp_path / "in", mobile(side=16), SQUARE)
    with pytest.raises(
        ModelError, match=r"weight_only: no product with constant float weights matches dense"
    ):
        WeightOnly(layers=("dense",)).run({"model": source}, context(tmp_path))
    with pytest.raises(ModelError, match=r"layers 'blocks\.\*': the network has no node of that name"):
        WeightOnly(layers=("fc", "blocks.*")).run({"model": source}, context(tmp_path))


def test_the_techniques_make_a_variant_of_a_run(tmp_path: Path) -> None:
    """Every step of the page docs/quantization.md, from the recipe to a bundle's report."""
    steps = [
        "narrow", "join", "equalize",
        {"quantize": {"calibration": "mse", "rounding": "adaptive", "exclude": ["fc"]}},
        {"weight_only": {"layers": ["fc"], "bits": 8}},
    ]  # fmt: skip
    variants = {"fp32": {"from": "tuned", "steps": ["export"]}, "int8": {"from": "fp32", "steps": steps}}
    made = tiny_run(tmp_path, variants=variants)
    records = [entry.record for entry in Store(made.store).entries()]
    assert {"narrow", "join", "equalize", "quantize", "weight_only"} <= {record.step for record in records}
    last = next(entry for entry in Store(made.store).entries() if entry.record.step == "weight_only")
    assert {"MatMulNBits", "QuantizeLinear"} <= operators(last.folder / graph.PLAIN)
    lineage = json.loads(graph.metadata(onnx.load(last.folder / graph.PLAIN))["lineage"])
    assert [entry["step"] for entry in lineage[-5:]] == [
        "narrow",
        "join",
        "equalize",
        "quantize",
        "weight_only",
    ]
