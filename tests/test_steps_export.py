"""Exported files answer as the network, at any batch and picture size, and are the same bytes anywhere."""

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
from onnx import numpy_helper
from onnx_helpers import artifact, operators, run, values

from toolchain import graph
from toolchain.artifact import Artifact, Form
from toolchain.backbones.counts import macs, parameters
from toolchain.backbones.network import Network, build, read, save
from toolchain.backbones.settings import Backbone
from toolchain.data.preprocess import Preprocessing
from toolchain.errors import DataError, ModelError, ParityError
from toolchain.record import Measurement
from toolchain.steps import export
from toolchain.steps.export import Export

FILES = (graph.PREPROCESS, graph.PLAIN, graph.FUSED)
Exported = tuple[torch.nn.Module, Network, Path, tuple[Measurement, ...]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("network")
    model, network = tiny()
    # Batch norm statistics that do something.
    model.train()
    model(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 + 1)
    save(model, network, folder)
    return artifact(folder, Form.TORCH)


@pytest.fixture(scope="module")
def exported(source: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    lent = context(tmp_path_factory.mktemp("exported"))
    measured = Export().run({"model": source}, lent)
    model, network = export.load(source.folder)
    return model, network, lent.out, measured


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, height, width, 3)).astype(np.uint8)


@torch.inference_mode()
def answers(model: torch.nn.Module, network: Network, pictures: np.ndarray) -> np.ndarray:
    prepared = Preprocessing(network.preprocess)(torch.from_numpy(pictures))
    return torch.softmax(model(prepared), dim=1).numpy()


def test_branches_of_training_are_folded(tmp_path: Path) -> None:
    """RepVGG trains three branches a block and ships one convolution."""
    kinds = {"timm": "repvgg_a0", "weights": "random", "preprocess": {"size": 32}}
    model, network = build(Backbone.model_validate(kinds), LABELS)
    save(model, network, tmp_path / "in")
    lent = context(tmp_path / "out")
    Export(parity_pictures=2).run({"model": artifact(tmp_path / "in", Form.TORCH)}, lent)
    nodes = [node.op_type for node in graph.read(lent.out / graph.PLAIN).graph.node]
    assert nodes.count("Conv") == 22
    assert not {"Add", "BatchNormalization"}.intersection(nodes)


def test_the_artifact_is_complete(source: Artifact, exported: Exported) -> None:
    folder = exported[2]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, "network.json"])
    assert read(folder) == read(source.folder)
    plain, fused = graph.read(folder / graph.PLAIN), graph.read(folder / graph.FUSED)
    assert [graph.opset(plain), graph.opset(fused)] == [18, 18]
    ends = [(v.name, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for m in (plain, fused) for v in (*m.graph.input, *m.graph.output)]  # fmt: skip
    assert ends == [
        ("input", ["N", 3, 16, 16]), ("logits", ["N", 3]),
        ("pictures", ["N", "H", "W", 3]), ("probabilities", ["N", 3]),
    ]  # fmt: skip


def test_batch_norms_are_folded_and_nodes_named(exported: Exported) -> None:
    assert operators(exported[2] / graph.PLAIN) <= {
        "Conv", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Gemm", "Flatten", "Reshape",
    }  # fmt: skip
    names = [node.name for node in graph.read(exported[2] / graph.PLAIN).graph.node]
    assert {"conv1.0", "layer1.0.conv1", "fc"} <= set(names)


@pytest.mark.parametrize("size", [(12, 12), (16, 16), (7, 31), (200, 90)])
def test_fused_answers_pictures_of_any_size(exported: Exported, size: tuple[int, int]) -> None:
    model, network, folder, _ = exported
    pictures = picture(*size)
    np.testing.assert_allclose(
        run(folder / graph.FUSED, pictures), answers(model, network, pictures), atol=1e-5
    )


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_are_answered_as_one_by_one(exported: Exported, batch: int) -> None:
    model, network, folder, _ = exported
    pictures = np.concatenate([picture(20, 24, seed) for seed in range(batch)])
    got = run(folder / graph.FUSED, pictures)
    assert got.shape == (batch, 3)
    np.testing.assert_allclose(got, answers(model, network, pictures), atol=1e-5)


def test_what_is_measured(exported: Exported) -> None:
    model, network, _, measured = exported
    found = values(measured)
    assert found["macs"] == macs(model, network.preprocess)
    assert found["parameters"] == parameters(model)
    assert 0 <= found["parity_plain"] < 1e-5
    assert 0 <= found["parity_fused"] < 1e-5
    assert found["agreement_plain"] == found["agreement_fused"] == 1
    assert {m.where["pictures"] for m in measured if m.name.startswith("parity")} == {24}


def test_metadata_travels_and_paths_do_not(exported: Exported) -> None:
    for name in FILES:
        about = graph.metadata(graph.read(exported[2] / name))
        assert json.loads(about["labels"]) == list(LABELS)
        assert json.loads(about["preprocessing"])["height"] == 16
        steps = [entry.get("step") for entry in json.loads(about["lineage"])]
        assert steps == [None, "tune", "export"]
        assert json.loads(about["lineage"])[0]["weights"]["source"] == "random"
        content = (exported[2] / name).read_bytes()
        for told in (b".py", b"site-packages", os.fsencode(Path(torch.__file__).parents[1])):
            assert told not in content


def test_another_process_writes_the_same_bytes(source: Artifact, exported: Exported, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from learn_helpers import context; from onnx_helpers import artifact\n"
        "from toolchain.artifact import Form; from toolchain.steps.export import Export\n"
        "Export().run({'model': artifact(Path(sys.argv[1]), Form.TORCH)}, context(Path(sys.argv[2])))\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    subprocess.run(
        [sys.executable, "-c", script, str(source.folder), str(tmp_path / "elsewhere")], check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": paths},
    )  # fmt: skip
    for name in FILES:
        assert (tmp_path / "elsewhere" / "out" / name).read_bytes() == (exported[2] / name).read_bytes()


def test_a_file_that_answers_otherwise_fails_the_run(
    source: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = export.export_network

    def spoilt(*arguments: object, **more: object) -> onnx.ModelProto:
        made = genuine(*arguments, **more)
        bias = next(t for t in made.graph.initializer if t.name == "fc.bias")
        bias.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([0.01, 0, 0]), "fc.bias")
        )
        return made

    monkeypatch.setattr(export, "export_network", spoilt)
    with pytest.raises(
        ParityError, match=r"model\.plain\.onnx differs .* by 0\.01 on val/\w+/\d+, allowed is 0\.001"
    ):
        Export().run({"model": source}, context(tmp_path))
    assert Export(parity_tolerance=0.1).run({"model": source}, context(tmp_path / "looser"))


def test_parity_needs_pictures(source: Artifact, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="validation pictures"):
        Export().run({"model": source}, context(tmp_path, data(val=(0, 0, 0))))


def test_what_torch_cannot_export_is_told() -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="torch cannot export this network to ONNX"):
        export.export_network(Branching(), tiny()[1])


def test_an_opset_that_cannot_resize_is_refused() -> None:
    with pytest.raises(ValueError, match="18"):
        Export(opset=17)
