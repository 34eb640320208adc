"""A graph that ONNX Runtime has optimized ahead: the same answers, sooner ready, refused on other machines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from learn_helpers import context
from onnx.helper import make_opsetid
from onnx_helpers import SQUARE, exported, mobile, operators, run
from package_helpers import wish
from runtime_helpers import edit_manifest, make_bundle
from tiny import TinyRun, command, tiny_run

from toolchain import graph
from toolchain.artifact import Artifact
from toolchain.bundle import rounding, tolerances
from toolchain.calibration.layouts import straighten
from toolchain.errors import ModelError, PackageError, RecipeError
from toolchain.optimize.asked import Asked
from toolchain.optimize.workflow import prepared
from toolchain.package import package, payload
from toolchain.recipe import load
from toolchain.runtime import host
from toolchain.runtime.bundle import Bundle
from toolchain.runtime.session import OPTIMIZED_FOR, Session, optimized_for
from toolchain.steps.adopt import Adopt
from toolchain.steps.optimize_offline import OptimizeOffline, optimized
from toolchain.steps.quantize import Quantize
from toolchain.store import hash_path
from toolchain.workflow import Wishes

FILES = (graph.PLAIN, graph.FUSED)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("mobile")
    floats, lent = exported(folder / "float", mobile(side=16), SQUARE), context(folder / "int8")
    Quantize(weight_bits=7, float_stem=False, pictures=8).run({"model": floats}, lent)
    return Artifact(floats.form, lent.out, floats.record)


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    steps = ["export", "optimize_offline"]
    return tiny_run(tmp_path_factory.mktemp("trip"), variants={"fp32": {"from": "tuned", "steps": steps}})


def test_the_answers_stay_to_the_bit_and_the_bytes_from_make_to_make(
    network: Artifact, tmp_path: Path
) -> None:
    first, second = context(tmp_path / "first"), context(tmp_path / "second")
    for lent in (first, second):
        OptimizeOffline().run({"model": network}, lent)
    assert "QLinearConv" in operators(first.out / graph.PLAIN)
    assert "DequantizeLinear" not in operators(first.out / graph.PLAIN) | operators(first.out / graph.FUSED)
    feed = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_array_equal(run(first.out / graph.PLAIN, feed), run(network.folder / graph.PLAIN, feed))
    pictures = np.random.default_rng(1).integers(0, 256, (1, 20, 24, 3), np.uint8)
    answers = [
        Session(folder / graph.FUSED).run({"pictures": pictures})[0] for folder in (first.out, network.folder)
    ]
    np.testing.assert_array_equal(*answers)
    assert [hash_path(first.out / name) for name in FILES] == [hash_path(second.out / name) for name in FILES]
    assert rounding(graph.read(first.out / graph.FUSED)) == (True, False)


def test_what_it_gained_is_measured(network: Artifact, tmp_path: Path) -> None:
    lent = context(tmp_path)
    found = [m for m in OptimizeOffline().run({"model": network}, lent) if m.name == "load"]
    assert {(m.where["state"], m.where["file"]) for m in found} == {
        (state, kind) for state in ("before", "after") for kind in ("plain", "fused")
    }
    assert all(m.value > 0 and m.unit == "ms" for m in found)


@pytest.mark.parametrize("width", [8, 16])
def test_moves_between_layouts_go_and_the_answers_stay_to_the_bit(width: int, tmp_path: Path) -> None:
    floats, lent = (
        exported(tmp_path / "float", mobile(side=16, narrow=width), SQUARE),
        context(tmp_path / "int8"),
    )
    Quantize(weight_bits=7, float_stem=True, pictures=8).run({"model": floats}, lent)
    model = graph.read(lent.out / graph.PLAIN)
    height, across = model.graph.input[0].type.tensor_type.shape.dim[2:]
    height.dim_value, across.dim_value = 12, 20  # height and width must not be taken for one another
    onnx.save(model, tmp_path / "oblong.onnx")
    feed = np.random.default_rng(0).normal(size=(2, 3, 12, 20)).astype(np.float32)
    by_onnxruntime, less = (optimized(tmp_path / "oblong.onnx") for _ in range(2))
    one_block = width == 16 and host.layout() == "x86-avx512f"
    assert straighten(less, host.layout(), {graph.INPUT: feed[:1]}) == 1 + one_block
    before, after = ([node.op_type for node in one.graph.node] for one in (by_onnxruntime, less))
    assert after.count("Transpose") == before.count("Transpose") - 1
    assert after.count("ReorderOutput") == before.count("ReorderOutput") - one_block
    np.testing.assert_array_equal(run(less, feed), run(by_onnxruntime, feed))
    assert straighten(less, host.layout(), {graph.INPUT: feed[:1]}) == 0


def test_the_step_tells_how_many_moves_went_and_the_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faked(before: onnx.ModelProto, after: onnx.ModelProto, _: object) -> float:
        return len(after.graph.node) / len(before.graph.node)

    monkeypatch.setattr("toolchain.steps.optimize_offline.latency_ratio", faked)
    floats, int8 = exported(tmp_path / "float", mobile(side=16), SQUARE), context(tmp_path / "int8")
    Quantize(weight_bits=7, float_stem=True, pictures=8).run({"model": floats}, int8)
    lent = context(tmp_path / "offline")
    found = OptimizeOffline().run({"model": Artifact(floats.form, int8.out, floats.record)}, lent)
    told = {m.name: m.value for m in found}
    assert told["moves"] == 1
    nodes = [len(graph.read(folder / graph.PLAIN).graph.node) for folder in (lent.out, int8.out)]
    assert told["price"] == round(nodes[0] / nodes[1], 3)
    for name in FILES:
        own, others = (
            [node.op_type for node in one.graph.node].count("Transpose")
            for one in (graph.read(lent.out / name), optimized(int8.out / name))
        )
        assert own == others - 1
    pictures = np.random.default_rng(1).integers(0, 256, (1, 20, 24, 3), np.uint8)
    answers = [
        Session(folder / graph.FUSED).run({"pictures": pictures})[0] for folder in (lent.out, int8.out)
    ]
    np.testing.assert_array_equal(*answers)


def offline(tmp_path: Path, width: int = 16) -> onnx.ModelProto:
    """A graph with one crossing, `width` channels wide, as ONNX Runtime optimized it."""
    floats, int8 = (
        exported(tmp_path / "float", mobile(side=16, narrow=width), SQUARE),
        context(tmp_path / "int8"),
    )
    Quantize(weight_bits=7, float_stem=True, pictures=8).run({"model": floats}, int8)
    return optimized(int8.out / graph.PLAIN)


def test_what_somebody_else_reads_is_left_where_it_lies(tmp_path: Path) -> None:
    model = offline(tmp_path)
    rounding = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    for name in (rounding.input[0], rounding.output[0]):
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        feed = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
        assert straighten(shown, host.layout(), {graph.INPUT: feed}) == 0


def test_another_layout_than_is_known_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = offline(tmp_path)
    feed = {graph.INPUT: np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)}
    unknown = onnx.ModelProto()
    unknown.CopyFrom(model)
    assert straighten(unknown, "vax", feed) == 1  # the order of channels in a block is not guessed
    wrong = 8 if host.layout() == "x86-avx512f" else 16
    monkeypatch.setattr("toolchain.calibration.layouts._BLOCKS", {host.layout(): wrong})
    with pytest.raises(ModelError):
        straighten(offline(tmp_path / "wrong", wrong), host.layout(), feed)


@pytest.mark.parametrize("name", FILES)
def test_other_machines_refuse_it(name: str, network: Artifact, tmp_path: Path) -> None:
    lent = context(tmp_path)
    OptimizeOffline().run({"model": network}, lent)
    model = graph.read(lent.out / name)
    about = graph.metadata(model)
    assert about[OPTIMIZED_FOR] == optimized_for()
    assert json.loads(about["lineage"])[-1]["settings"]["target"] == optimized_for()
    graph.write(model, tmp_path / name, {**about, OPTIMIZED_FOR: "onnxruntime 1.0.0 on vax"})
    with pytest.raises(
        ModelError, match=r"optimized ahead for onnxruntime 1\.0\.0 on vax, and this is onnxruntime"
    ):
        Session(tmp_path / name)


def test_it_is_made_for_this_machine_only(network: Artifact, tmp_path: Path) -> None:
    assert OptimizeOffline().resolved().target == optimized_for()
    lent = context(tmp_path)
    step = OptimizeOffline(target="onnxruntime 9 on vax")
    for refused in (step.check, lambda: step.run({"model": network}, lent)):
        with pytest.raises(
            RecipeError, match="'onnxruntime 9 on vax' cannot be made here, for this is 'onnx"
        ):
            refused()
    assert not list(lent.out.iterdir())


@pytest.mark.parametrize(
    ("machine", "features", "told"),
    [
        ("x86_64", "avx2 avx512f avx512_vnni", "x86-avx512f"),
        ("x86_64", "avx2 avx_vnni", "x86"),
        ("aarch64", "asimd asimdhp", "arm64-asimdhp"),
        ("riscv64", "", "riscv64"),
    ],
)
def test_processors_with_other_layouts_are_told_apart(
    machine: str, features: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(host, "_features", lambda: frozenset(features.split()))
    assert host.layout() == told


def test_a_bundle_of_it_says_where_it_answers(trip: TinyRun) -> None:
    manifest = json.loads((trip.bundle / "manifest.json").read_text())
    assert manifest["optimized_for"] == optimized_for()
    kind = host.isa().partition("-")[0]
    assert {family.partition("-")[0] for family in manifest["tolerances"]} == {kind}
    assert command("verify", trip.bundle).code == 0
    assert command("predict", trip.bundle, trip.pictures / "test").code == 0


def test_a_promise_is_not_bound_without_it() -> None:
    known = {"x86-vnni", "x86-avx2", "arm64"}
    assert set(tolerances("arm64", quantized=True, saturating=False)) == known
    assert set(tolerances("arm64", quantized=True, saturating=False, bound=True)) == {"arm64"}
    assert set(tolerances("x86-avx2", quantized=True, saturating=False, bound=True)) == known - {"arm64"}


def test_an_image_with_another_onnxruntime_is_refused(tmp_path: Path) -> None:
    given = wish(tmp_path)
    edit_manifest(given.bundle, lambda content: content.update(optimized_for="onnxruntime 1.32.0 on x86"))
    assert payload.load(given).libraries
    edit_manifest(given.bundle, lambda content: content.update(optimized_for="onnxruntime 1.32.1 on x86"))
    with pytest.raises(
        PackageError, match=r"ahead for onnxruntime 1\.32\.1 on x86, and .* has onnxruntime 1\.32\.0"
    ):
        _ = payload.load(given).libraries


@pytest.mark.parametrize(
    ("target", "accelerator", "told"),
    [("triton", "cpu", "Triton has an onnxruntime of its own"), ("deb", "cuda", "for CPUs, not for cuda")],
)
def test_what_would_run_it_elsewhere_is_not_packaged(
    target: str, accelerator: str, told: str, tmp_path: Path
) -> None:
    given = wish(tmp_path, accelerator=accelerator)
    edit_manifest(given.bundle, lambda content: content.update(optimized_for="onnxruntime 1.32.0 on x86"))
    with pytest.raises(PackageError, match=told):
        package(given, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bundle_for_other_machines_is_told_before_its_model_is_loaded(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", optimized_for="onnxruntime 1.0.0 on vax")
    with pytest.raises(ModelError, match=r"optimized ahead for onnxruntime 1\.0\.0 on vax, and this is"):
        Bundle.load(folder).verify()


def test_it_is_not_taken_for_a_portable_file(network: Artifact, tmp_path: Path) -> None:
    lent = context(tmp_path)
    OptimizeOffline().run({"model": network}, lent)
    told = "optimized it ahead for one kind of processor"
    with pytest.raises(ModelError, match=told):
        graph.require_float(graph.read(lent.out / graph.PLAIN))
    strange = mobile(side=16)  # as ONNX Runtime writes it for somebody else, without a word of ours
    strange.graph.node[0].domain = "com.microsoft.nchwc"
    strange.opset_import.append(make_opsetid("com.microsoft.nchwc", 1))
    onnx.save(strange, tmp_path / "strange.onnx")
    with pytest.raises(ModelError, match=rf"strange\.onnx: .*{told}"):
        Adopt(file=tmp_path / "strange.onnx", preprocess=SQUARE).check()


def test_a_search_builds_on_fp32_without_it(trip: TinyRun) -> None:
    recipe = prepared(load(trip.recipe), Asked(max_drop=1.0), Wishes())
    assert [step.step for step in recipe.variants["fp32"].steps] == ["export"]
