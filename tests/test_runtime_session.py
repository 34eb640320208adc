"""A session is what was asked for, or an error that says what to do; models cannot reach outside their folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime_helpers import fused_model, plain_model

from toolchain.runtime import external, providers, session
from toolchain.runtime.errors import ModelError, ProviderError, ToolchainError
from toolchain.runtime.session import Session, Tensor

PICTURES = {"pictures": np.full((2, 4, 4, 3), 9, np.uint8)}
NO_GPU = providers.usable()["cuda"] is not None


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "model.plain.onnx"
    onnx.save(plain_model(), path)
    return path


def test_it_answers_and_tells_what_it_takes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(fused_model(), path)
    for loaded in (Session(path), Session(path.read_bytes())):
        assert loaded.provider == "cpu"
        assert loaded.inputs == (Tensor("pictures", "uint8", ("N", "H", "W", 3)),)
        assert loaded.outputs == (Tensor("probabilities", "float32", ("N", 3)),)
        assert loaded.metadata == {"labels": "red,green,blue"}
        (answer,) = loaded.run(PICTURES)
        assert answer.shape == (2, 3)
        np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-6)


def test_placement_counts_every_node(plain: Path) -> None:
    loaded = Session(plain, optimize=False)
    assert loaded.operators == {"cpu": {"Conv": 1, "Relu": 1, "Flatten": 1}}
    assert loaded.placement == {"cpu": 3}


def test_threads_spinning_and_optimization_reach_onnxruntime(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = onnxruntime.InferenceSession

    def spy(source, settings, **given):
        seen.append(settings)
        return real(source, settings, **given)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    Session(plain)
    Session(plain, threads=2, spinning=True, optimize=False, options={"session.set_denormal_as_zero": "1"})
    quiet, busy = seen
    assert (quiet.intra_op_num_threads, busy.intra_op_num_threads) == (1, 2)
    assert quiet.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert busy.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert busy.get_session_config_entry("session.set_denormal_as_zero") == "1"
    levels = onnxruntime.GraphOptimizationLevel
    assert quiet.graph_optimization_level == levels.ORT_ENABLE_ALL
    assert busy.graph_optimization_level == levels.ORT_DISABLE_ALL


def test_what_does_not_fit_is_told(plain: Path) -> None:
    loaded = Session(plain)
    with pytest.raises(ModelError, match=r"model\.plain\.onnx: cannot run on input float64 \(1, 3, 4, 4\)"):
        loaded.run({"input": np.zeros((1, 3, 4, 4))})
    with pytest.raises(ModelError, match="input"):
        loaded.run({"other": np.zeros((1, 3, 4, 4), np.float32)})
    with pytest.raises(ToolchainError, match="threads"):
        Session(plain, threads=0)
    with pytest.raises(ProviderError, match="'cpu' has no options, but device_id"):
        Session(plain, options={"device_id": "0"})


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", b"\x3a\xff\xff\xff\xff\x0f", None])
def test_no_model(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx: "):
        Session(path)
    with pytest.raises(ModelError):
        Session(tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_model_cut_short(plain: Path, share: float) -> None:
    data = plain.read_bytes()
    plain.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=r"model\.plain\.onnx"):
        Session(plain)


def test_a_graph_that_cannot_run_is_told_on_one_line(tmp_path: Path) -> None:
    model = plain_model()
    model.graph.node[1].op_type = "NoSuchOperator"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="NoSuchOperator") as caught:
        Session(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)


# ---- providers that are asked for and not used


@pytest.mark.skipif(not NO_GPU, reason="this machine has a usable GPU")
def test_cuda_without_a_gpu_is_an_error(plain: Path) -> None:
    with pytest.raises(ProviderError, match="'cuda' was asked for, but "):
        Session(plain, provider="cuda")


@pytest.mark.skipif(
    not NO_GPU or "CUDA" not in str(onnxruntime.get_available_providers()),
    reason="needs the GPU build, no GPU",
)
def test_a_silent_fallback_is_an_error(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when the check before believes that CUDA works: the session itself is looked at."""
    monkeypatch.setattr(providers, "_why_not", lambda name: None)
    with pytest.raises(ProviderError, match="'cuda' was asked for, but onnxruntime used 'cpu'"):
        Session(plain, provider="cuda")
    with pytest.raises(ProviderError, match="not every node can run on 'cuda'"):
        Session(plain, provider="cuda", options={"session.disable_cpu_ep_fallback": "1"})


def test_only_shape_arithmetic_may_stay_on_the_cpu_beside_a_gpu() -> None:
    assert session.misplaced({"Shape": 4, "Gather": 2, "Concat": 1, "Min": 1}) == []
    assert session.misplaced(["Shape", "Resize", "Conv"]) == ["Conv", "Resize"]


@pytest.mark.gpu
def test_cuda_takes_the_model(plain: Path, tmp_path: Path) -> None:
    loaded = Session(plain, provider="cuda")
    assert "cuda" in loaded.placement
    feed = {"input": np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)}
    np.testing.assert_allclose(loaded.run(feed)[0], Session(plain).run(feed)[0], atol=1e-2)


# ---- external data


def with_external(path: Path, location: str, data: bytes = b"") -> Path:
    """A model whose weight lies at `location`, written as it stands."""
    model = plain_model()
    weight = model.graph.initializer[0]
    raw = weight.raw_data
    onnx.external_data_helper.set_external_data(weight, location, length=len(raw))
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
    return path


WEIGHT = plain_model().graph.initializer[0].raw_data


def test_external_data_in_the_folder_is_loaded(tmp_path: Path) -> None:
    path = with_external(tmp_path / "m.onnx", "weights.bin")
    (tmp_path / "weights.bin").write_bytes(WEIGHT)
    feed = {"input": np.ones((1, 3, 4, 4), np.float32)}
    whole = Session(plain_model().SerializeToString()).run(feed)[0]
    np.testing.assert_array_equal(Session(path).run(feed)[0], whole)
    assert external.locations(path) == ["weights.bin"]


@pytest.mark.parametrize(
    "location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "a\\secret", "", "."]
)
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT)
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"m\.onnx: "):
        Session(with_external(tmp_path / "model" / "m.onnx", location))


def test_linked_external_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(WEIGHT)
    for name, link in (("hard", os.link), ("soft", os.symlink)):
        folder = tmp_path / name
        folder.mkdir()
        link(tmp_path / "secret.bin", folder / "weights.bin")
        with pytest.raises(ModelError, match="is a link"):
            Session(with_external(folder / "m.onnx", "weights.bin"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "weights.bin").write_bytes(WEIGHT)
    (tmp_path / "hard" / "sub").symlink_to(tmp_path / "there")
    with pytest.raises(ModelError, match="is a link"):
        Session(with_external(tmp_path / "hard" / "n.onnx", "sub/weights.bin"))


def test_a_missing_weights_file_and_bytes_with_external_data(tmp_path: Path) -> None:
    path = with_external(tmp_path / "m.onnx", "weights.bin")
    with pytest.raises(ModelError, match=r"weights file 'weights\.bin' cannot be read"):
        Session(path)
    (tmp_path / "weights.bin").write_bytes(WEIGHT)
    with pytest.raises(ModelError, match="give it as a file"):
        Session(path.read_bytes())


def external_tensor(name: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    onnx.external_data_helper.set_external_data(tensor, f"{name}.bin")
    return tensor


def test_every_place_of_a_tensor_is_found(tmp_path: Path) -> None:
    """Initializers, constants, branches of If, functions, sparse tensors, training graphs: all that onnx.proto has."""
    inner = helper.make_graph([], "inner", [], [], [external_tensor("branch")])
    sparse = onnx.SparseTensorProto(
        values=external_tensor("values"), indices=external_tensor("indices"), dims=[4]
    )
    model = plain_model()
    model.graph.initializer.append(external_tensor("initializer"))
    model.graph.sparse_initializer.append(sparse)
    model.graph.node.extend(
        [
            helper.make_node("Constant", [], ["c"], value=external_tensor("constant")),
            helper.make_node("If", ["c"], ["d"], then_branch=inner),
            helper.make_node(
                "Constant", [], ["e"], sparse_value=onnx.SparseTensorProto(values=external_tensor("s"))
            ),
            helper.make_node("Odd", [], ["f"], tensors=[external_tensor("t1"), external_tensor("t2")]),
            helper.make_node(
                "Odd", [], ["g"], graphs=[helper.make_graph([], "h", [], [], [external_tensor("g")])]
            ),
        ]
    )
    constant = helper.make_node("Constant", [], ["y"], value=external_tensor("function"))
    model.functions.append(
        helper.make_function("d", "f", [], ["y"], [constant], [helper.make_opsetid("", 18)])
    )
    model.training_info.add().initialization.initializer.append(external_tensor("training"))
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    wanted = [
        "branch",
        "constant",
        "function",
        "g",
        "indices",
        "initializer",
        "s",
        "t1",
        "t2",
        "training",
        "values",
    ]
    assert sorted(external.locations(path)) == [f"{name}.bin" for name in wanted]


def test_the_walk_agrees_with_protobuf_on_odd_encodings(tmp_path: Path) -> None:
    """Long forms of numbers that protobuf takes are followed; forms that it reads otherwise are refused."""
    graph = plain_model()
    graph.graph.initializer.append(external_tensor("w"))
    body = graph.graph.SerializeToString()
    length = bytes([len(body) & 0x7F | 0x80, len(body) >> 7])
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\xba\x80\x00" + length + body)  # the tag of `graph` in three bytes instead of one
    assert onnx.load(path, load_external_data=False).graph.initializer[-1].name == "w"
    assert external.locations(path) == ["w.bin"]
    for tag in (b"\xba\x80\x80\x80\x70", b"\x3b", b"\x3c"):  # bits above 32; groups
        path.write_bytes(tag + length + body)
        with pytest.raises(ModelError, match="not an ONNX file"):
            external.locations(path)
