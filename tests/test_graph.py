"""Graphs are read with suspicion, rewritten without changing answers, and written as the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.helper import make_node, make_tensor_value_info
from onnx_helpers import mobile, model, run

from toolchain import graph
from toolchain.errors import ModelError

PICTURES = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)


def averaging(axes: list[int], keepdims: int) -> ModelProto:
    """A mean over `axes` of [N, 3, 8, 8], flattened."""
    nodes = [make_node("ReduceMean", ["input", "axes"], ["mean"], name="mean", keepdims=keepdims)]
    nodes.append(make_node("Flatten", ["mean"], ["logits"], axis=1))
    return model(nodes, {"axes": np.array(axes, np.int64)})


def preprocessing() -> ModelProto:
    """uint8 [N, H, W, 3] -> float [N, 3, H, W] in 0..1."""
    made = model(
        [
            make_node("Cast", ["pictures"], ["float"], to=TensorProto.FLOAT),
            make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
            make_node("Mul", ["planes", "scale"], ["input"]),
        ],
        {"scale": np.float32(1 / 255)}, ends=("pictures", "input"),
    )  # fmt: skip
    del made.graph.input[:], made.graph.output[:]
    made.graph.input.append(make_tensor_value_info("pictures", TensorProto.UINT8, ["N", "H", "W", 3]))
    made.graph.output.append(make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, "H", "W"]))
    return made


@pytest.mark.parametrize("content", [None, b"", b"no onnx at all", b"\x08"])
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "broken.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        graph.read(path)


def test_an_invalid_graph_is_refused(tmp_path: Path) -> None:
    wrong = mobile()
    wrong.graph.node[0].input[0] = "nobody makes this"
    onnx.save(wrong, tmp_path / "wrong.onnx")
    with pytest.raises(ModelError, match=r"wrong\.onnx: not a usable ONNX file"):
        graph.read(tmp_path / "wrong.onnx")


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    path = tmp_path / "inside" / "m.onnx"
    onnx.save(mobile(), path, save_as_external_data=True, location="weights", size_threshold=0)
    assert len(graph.read(path).graph.initializer) == 12
    (tmp_path / "inside" / "weights").rename(tmp_path / "weights")
    (tmp_path / "inside" / "weights").symlink_to(tmp_path / "weights")
    with pytest.raises(ModelError, match="weights"):
        graph.read(path)


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    made = mobile()
    made.opset_import.append(onnx.helper.make_opsetid("local", 1))
    body = [make_node("Relu", ["x"], ["y"])]
    made.functions.append(
        onnx.helper.make_function("local", "Half", ["x"], ["y"], body, [onnx.helper.make_opsetid("", 18)])
    )
    made.graph.node[1].op_type, made.graph.node[1].domain = "Half", "local"
    onnx.save(made, tmp_path / "m.onnx")
    read = graph.read(tmp_path / "m.onnx")
    assert "Half" not in {node.op_type for node in read.graph.node}
    np.testing.assert_array_equal(run(read, PICTURES), run(mobile(), PICTURES))


def test_the_same_graph_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = mobile(), onnx.shape_inference.infer_shapes(mobile())
    secret = "/home/somebody/build/model.py"
    second.doc_string, second.producer_name = secret, secret
    for part in (*second.graph.node, *second.graph.input, *second.graph.initializer, second.graph):
        part.doc_string = secret
        part.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=secret)
    weights = [numpy_helper.to_array(tensor) for tensor in second.graph.initializer]
    names = [tensor.name for tensor in second.graph.initializer]
    del second.graph.initializer[:]
    for name, value in reversed(list(zip(names, weights, strict=True))):
        second.graph.initializer.append(numpy_helper.from_array(value, name))
    second.graph.initializer.append(numpy_helper.from_array(np.zeros(5), "unused"))
    graph.write(first, tmp_path / "a.onnx", {"b": "2", "a": "1"})
    graph.write(second, tmp_path / "b.onnx", {"a": "1", "b": "2"})
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert secret.encode() not in (tmp_path / "b.onnx").read_bytes()
    assert graph.metadata(graph.read(tmp_path / "a.onnx")) == {"a": "1", "b": "2"}


def test_an_invalid_graph_is_not_written(tmp_path: Path) -> None:
    wrong = mobile()
    del wrong.graph.node[2]
    with pytest.raises(ModelError, match=r"m\.onnx: cannot be written"):
        graph.write(wrong, tmp_path / "m.onnx", {})
    assert not (tmp_path / "m.onnx").exists()


def test_a_changed_opset_is_told() -> None:
    graph.require_opset(mobile(), 18)
    with pytest.raises(ModelError, match="opset 17 was asked for, but the exporter wrote 18"):
        graph.require_opset(mobile(), 17)


@pytest.mark.parametrize(("axes", "keepdims"), [([2, 3], 1), ([-1, -2], 1), ([2, 3], 0), ([-2, 3], 0)])
def test_spatial_means_become_average_pooling(axes: list[int], keepdims: int) -> None:
    made = onnx.shape_inference.infer_shapes(averaging(axes, keepdims))
    expected = run(made, PICTURES)
    graph.pool(made)
    assert made.graph.node[0].op_type == "GlobalAveragePool"
    np.testing.assert_allclose(run(made, PICTURES), expected, atol=1e-6)


@pytest.mark.parametrize("axes", [[1, 2], [3], [1, 2, 3]])
def test_other_means_stay(axes: list[int]) -> None:
    made = onnx.shape_inference.infer_shapes(averaging(axes, 1))
    graph.pool(made)
    assert made.graph.node[0].op_type == "ReduceMean"


def test_nodes_are_named_after_modules() -> None:
    made = mobile()
    expected = run(made, PICTURES)
    scopes = {"Relu": "['', 'features', 'features.act', 'relu']", "Gemm": "['', 'classifier', 'linear']"}
    for number, node in enumerate(made.graph.node):
        node.name = f"node_{number}"
        if node.op_type in scopes:
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes[node.op_type])
    graph.name_after_modules(made)
    names = [node.name for node in made.graph.node]
    assert names[:4] == ["stem", "features.act/Relu", "dw", "features.act/Relu_2"]
    assert names[-3:] == ["GlobalAveragePool", "Flatten", "fc"]
    assert {"stem.weight", "stem.bias", "fc.weight"} <= set(graph.weights(made))
    assert [made.graph.input[0].name, made.graph.output[0].name] == ["input", "logits"]
    np.testing.assert_array_equal(run(made, PICTURES), expected)


def test_renaming_moves_a_tensor_of_that_name_away() -> None:
    made = mobile()
    expected = run(made, PICTURES)
    graph.rename(made.graph, {"input": "pooled"})
    assert made.graph.input[0].name == "pooled"
    np.testing.assert_array_equal(run(made, PICTURES), expected)


def test_the_fused_file_is_preprocessing_network_and_softmax(tmp_path: Path) -> None:
    about = graph.describe(("a", "b", "c"), {"height": 8}, [{"step": "export"}], None)
    graph.write_all(tmp_path, preprocessing(), mobile(), about)
    pictures = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    logits = run(tmp_path / graph.PLAIN, run(tmp_path / graph.PREPROCESS, pictures))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(run(tmp_path / graph.FUSED, pictures), expected, rtol=1e-5)
    fused = graph.read(tmp_path / graph.FUSED)
    assert json.loads(graph.metadata(fused)["labels"]) == ["a", "b", "c"]
    assert graph.metadata(fused)["licence"] == "unknown"
    dims = fused.graph.output[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, dims[1].dim_value) == ("N", 3)
    assert {m.where["file"]: m.value for m in graph.sizes(tmp_path)}["plain"] == (
        tmp_path / graph.PLAIN
    ).stat().st_size


def test_graphs_of_different_opsets_are_not_joined() -> None:
    old = mobile()
    old.opset_import[0].version = 17
    with pytest.raises(ModelError, match="cannot be joined"):
        graph.fuse(preprocessing(), old)


def test_lineage_grows_by_an_entry() -> None:
    about = graph.describe(("é",), {}, [{"step": "export"}], "MIT")
    longer = graph.extended(about, {"step": "quantize"})
    assert json.loads(longer["lineage"]) == [{"step": "export"}, {"step": "quantize"}]
    assert longer["labels"] == about["labels"] == '["é"]'


def test_logits_are_not_rounded() -> None:
    made = mobile()
    made.graph.node[-1].output[0] = "exact"
    for name, value in (("scale", np.float32(0.5)), ("zero", np.uint8(128))):
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    made.graph.node.append(make_node("QuantizeLinear", ["exact", "scale", "zero"], ["rounded"]))
    made.graph.node.append(make_node("DequantizeLinear", ["rounded", "scale", "zero"], ["logits"]))
    with pytest.raises(ModelError, match="already"):
        graph.require_float(made)
    graph.float_logits(made)
    graph.require_float(made)
    np.testing.assert_array_equal(run(made, PICTURES), run(mobile(), PICTURES))


def test_16_bit_weights_are_no_float_network() -> None:
    made = mobile()
    made.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.zeros((16, 3, 3, 3), np.float16), "stem.weight")
    )
    with pytest.raises(ModelError, match="float16 already"):
        graph.require_float(made)


def test_products_without_a_constant_are_found() -> None:
    nodes = [
        make_node("Flatten", ["input"], ["rows"], axis=1),
        make_node("Transpose", ["rows"], ["columns"], perm=[1, 0]),
        make_node("MatMul", ["rows", "columns"], ["attention"], name="attention"),
        make_node("MatMul", ["attention", "weight"], ["logits"], name="linear"),
    ]
    made = model(nodes, {"weight": np.ones((2, 3), np.float32)}, shape=(2, 3, 8, 8))
    assert graph.products_of_activations(made) == ["attention"]
