"""Foreign ONNX classifiers become artifacts with unchanged answers, or say in one sentence why they can't."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from learn_helpers import LABELS, context, data
from onnx import ModelProto, numpy_helper
from onnx.helper import make_node
from onnx_helpers import SQUARE, mobile, model, noise_ratio, run, values
from onnx_helpers import artifact as as_artifact

from toolchain import graph
from toolchain.artifact import Form
from toolchain.backbones.network import read
from toolchain.calibration.chains import chains
from toolchain.calibration.pictures import prepared
from toolchain.data.dataset import Data
from toolchain.errors import DataError, ModelError
from toolchain.steps.adopt import Adopt
from toolchain.steps.quantize import Quantize


def foreign(**changes: object) -> ModelProto:
    """Somebody's network: other names, no node names."""
    made = mobile(side=16, **changes)
    for node in made.graph.node:
        node.name = ""
    graph.rename(made.graph, {"input": "data", "logits": "scores"})
    return made


def adopt(
    made: ModelProto, folder: Path, found: Data | None = None, **settings: object
) -> tuple[Path, dict[str, float]]:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(made, folder / "their.onnx")
    lent = context(folder, found)
    step = Adopt.model_validate({"file": folder / "their.onnx", "preprocess": SQUARE, **settings})
    return lent.out, values(step.run({}, lent))


def inputs(folder: Path) -> np.ndarray:
    val = data().val
    return np.concatenate(list(prepared(folder / graph.PREPROCESS, val, list(range(len(val))))))


def ending(operator: str, **attributes: int) -> ModelProto:
    """The foreign network with one more operator at its end."""
    made = foreign()
    graph.rename(made.graph, {"scores": "raw"})
    made.graph.node.append(make_node(operator, ["raw"], ["scores"], **attributes))
    made.graph.output[0].name = "scores"
    return made


def test_a_foreign_file_becomes_an_artifact(tmp_path: Path) -> None:
    out, measured = adopt(foreign(), tmp_path, licence="MIT")
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [graph.PREPROCESS, graph.PLAIN, graph.FUSED, "network.json"]
    )
    feed = inputs(out)
    np.testing.assert_allclose(run(out / graph.PLAIN, feed), run(foreign(), feed), atol=1e-5)
    assert measured["dynamic_batch"] == 1
    assert measured["parity_plain"] < 1e-5
    assert measured["parity_fused"] < 1e-5
    network = read(out)
    assert (network.labels, network.provenance.licence) == (LABELS, "MIT")
    about = graph.metadata(graph.read(out / graph.FUSED))
    assert json.loads(about["labels"]) == list(LABELS)
    assert str(tmp_path) not in about["lineage"]
    assert all(node.name for node in graph.read(out / graph.PLAIN).graph.node)


def test_weights_that_are_listed_as_inputs_are_weights(tmp_path: Path) -> None:
    """As files of before IR 4 have them: a batch norm was not folded then, and a step's leftovers were asked for."""
    old = foreign()
    listed = [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in old.graph.initializer
    ]
    old.graph.input.extend(listed)
    plain, given = (adopt(made, tmp_path / name)[0] for made, name in ((foreign(), "plain"), (old, "old")))
    found = graph.read(given / graph.PLAIN)
    assert [value.name for value in found.graph.input] == [graph.INPUT]
    assert found.graph.SerializeToString() == graph.read(plain / graph.PLAIN).graph.SerializeToString()


def test_what_is_adopted_can_be_quantized(tmp_path: Path) -> None:
    out, _ = adopt(foreign(), tmp_path)
    lent = context(tmp_path / "int8")
    measured = values(Quantize().resolved().run({"model": as_artifact(out, Form.ONNX)}, lent))
    assert (measured["layers"], measured["layers_int8"]) == (6, 3)
    feed = inputs(out)
    assert (
        noise_ratio(run(out / graph.PLAIN, feed), run(lent.out / graph.PLAIN, feed)) > 25
        or measured["layers"] == 0
    )


def test_equal_biases_are_merged_for_no_layer(tmp_path: Path) -> None:
    made = foreign()
    first: dict[tuple[int, ...], str] = {}
    for node in (node for node in made.graph.node if node.op_type == "Conv"):
        shape = graph.weights(made)[node.input[2]].shape
        node.input[2] = first.setdefault(shape, node.input[2])
    graph.drop_unread(made)
    assert len(first) < sum(node.op_type == "Conv" for node in made.graph.node)
    out, _ = adopt(made, tmp_path)
    adopted = graph.read(out / graph.PLAIN)
    biases = [node.input[2] for node in adopted.graph.node if node.op_type == "Conv"]
    assert len(set(biases)) == len(biases)
    assert [len(chain.depthwise) for chain in chains(adopted)] == [1, 0]
    assert len({tensor.name for tensor in adopted.graph.initializer}) == len(adopted.graph.initializer)


@pytest.mark.parametrize("made", [ending("Softmax", axis=1), ending("Softmax", axis=-1)])
def test_a_softmax_at_the_end_is_not_applied_twice(made: ModelProto, tmp_path: Path) -> None:
    out, _ = adopt(made, tmp_path)
    feed = inputs(out)
    np.testing.assert_allclose(run(out / graph.PLAIN, feed), run(foreign(), feed), atol=1e-5)
    pictures = data().val.picture(3)[None]
    expected = run(made, run(out / graph.PREPROCESS, pictures))
    np.testing.assert_allclose(run(out / graph.FUSED, pictures), expected, atol=1e-5)


def test_probabilities_are_found_out(tmp_path: Path) -> None:
    """Without a softmax to be seen: exp(x) / sum(exp(x)) by hand."""
    made = ending("Exp")
    graph.rename(made.graph, {"scores": "powers"})
    made.graph.node.append(make_node("ReduceSum", ["powers", "axis"], ["sum"], keepdims=1))
    made.graph.node.append(make_node("Div", ["powers", "sum"], ["scores"]))
    made.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    made.graph.output[0].name = "scores"
    out, _ = adopt(made, tmp_path)
    pictures = data().val.picture(3)[None]
    expected = run(made, run(out / graph.PREPROCESS, pictures))
    np.testing.assert_allclose(run(out / graph.FUSED, pictures), expected, atol=1e-5)


def test_outputs_are_put_into_the_datas_order(tmp_path: Path) -> None:
    out, _ = adopt(foreign(), tmp_path, labels=("blue", "red", "green"))
    feed = inputs(out)
    theirs = run(foreign(), feed)
    np.testing.assert_allclose(run(out / graph.PLAIN, feed), theirs[:, [1, 2, 0]], atol=1e-5)
    assert read(out).labels == LABELS


def built_in_batch(fixed: bool) -> ModelProto:
    """A batch of one in the shapes, and in a reshape; `fixed`: also where it cannot be mended."""
    made = foreign()
    for end in (*made.graph.input, *made.graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = 1
    flat = next(n for n in made.graph.node if n.op_type == "Flatten")
    shape = np.array([32] if fixed else [1, 32], np.int64)
    made.graph.initializer.append(numpy_helper.from_array(shape, "flat_shape"))
    reshape = make_node("Reshape", [flat.input[0], "flat_shape"], ["vector" if fixed else flat.output[0]])
    position = list(made.graph.node).index(flat)
    made.graph.node[position].CopyFrom(reshape)
    if fixed:
        made.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
        made.graph.node.insert(position + 1, make_node("Unsqueeze", ["vector", "first"], ["flat"]))
    return made


def test_a_batch_of_one_is_freed_where_possible(tmp_path: Path) -> None:
    out, measured = adopt(built_in_batch(fixed=False), tmp_path)
    assert measured["dynamic_batch"] == 1
    feed = inputs(out)
    np.testing.assert_allclose(run(out / graph.PLAIN, feed), run(foreign(), feed), atol=1e-5)


@pytest.mark.parametrize("free", [True, False])
def test_pictures_that_would_hear_each_other_go_one_at_a_time(free: bool, tmp_path: Path) -> None:
    """A network that takes the batch's mean away: the same picture twice would not tell."""
    made = foreign()
    graph.rename(made.graph, {"scores": "raw"})
    made.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "over"))
    made.graph.node.append(make_node("ReduceMax", ["raw", "over"], ["most"], keepdims=1))
    made.graph.node.append(make_node("Sub", ["most", "raw"], ["scores"]))
    made.graph.output[0].name = "scores"
    for end in (*made.graph.input, *made.graph.output) if not free else ():
        end.type.tensor_type.shape.dim[0].dim_value = 1
    tmp_path.joinpath("x").mkdir()
    onnx.save(made, tmp_path / "x" / "their.onnx")
    lent = context(tmp_path)
    measured = values(Adopt(file=tmp_path / "x" / "their.onnx", preprocess=SQUARE).run({}, lent))
    assert measured["dynamic_batch"] == 0
    fused = graph.read(lent.out / graph.FUSED)
    assert fused.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_a_batch_of_one_that_is_fixed_is_said(tmp_path: Path) -> None:
    made = built_in_batch(fixed=True)
    tmp_path.joinpath("x").mkdir()
    onnx.save(made, tmp_path / "x" / "their.onnx")
    lent = context(tmp_path)
    measured = values(Adopt(file=tmp_path / "x" / "their.onnx", preprocess=SQUARE).run({}, lent))
    assert measured["dynamic_batch"] == 0
    assert lent.progress.said == ["their.onnx: a batch of one is built in, it takes one picture at a time"]
    fused = graph.read(lent.out / graph.FUSED)
    assert fused.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert run(lent.out / graph.FUSED, data().val.picture(0)[None]).shape == (1, 3)


def test_old_opsets_are_converted(tmp_path: Path) -> None:
    old = foreign()
    old.opset_import[0].version = 13
    out, _ = adopt(old, tmp_path)
    assert graph.opset(graph.read(out / graph.PLAIN)) == 18


def wrong_input(shape: tuple[int | str, ...], kind: int = onnx.TensorProto.FLOAT) -> ModelProto:
    made = model(
        [make_node("Flatten", ["data"], ["scores"])], {}, ends=("data", "scores"), shape=shape, classes="C"
    )
    made.graph.input[0].type.tensor_type.elem_type = kind
    made.graph.output[0].type.tensor_type.elem_type = kind
    return made


def two_inputs() -> ModelProto:
    made = foreign()
    made.graph.input.append(onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["N"]))
    return made


def planes_out() -> ModelProto:
    made = foreign()
    del made.graph.node[-2:]
    made.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info("pooled", onnx.TensorProto.FLOAT, ["N", 32, 1, 1])
    )
    return made


def quantized() -> ModelProto:
    made = foreign()
    for name, value in (("scale", np.float32(1)), ("zero", np.uint8(0))):
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    made.graph.node.append(make_node("QuantizeLinear", ["scores", "scale", "zero"], ["q"]))
    return made


@pytest.mark.parametrize(
    ("made", "settings", "message"),
    [
        (two_inputs(), {}, "2 inputs and 1 outputs"),
        (planes_out(), {}, r"output for one picture is \[1, 32, 1, 1\]"),
        (wrong_input(("N", 16, 16, 3)), {}, r"float \[\?, 16, 16, 3\]: export it for RGB as"),
        (wrong_input(("N", 3, 16)), {}, r"not float32 \[N, 3, h, w\]"),
        (wrong_input(("N", 3, 16, 16), onnx.TensorProto.DOUBLE), {}, r"double \[\?, 3, 16, 16\], not float32"),
        (wrong_input((8, 3, 16, 16)), {}, "a batch of 8 is built in"),
        (foreign(), {"preprocess": {"height": 16, "width": 20}}, "width is 16, but preprocess.width is 20"),
        (foreign(classes=4), {}, "4 outputs, but there are 3 labels"),
        (foreign(), {"labels": ["red", "green"]}, "3 outputs, but there are 2 labels"),
        (foreign(), {"labels": ["red", "green", "pink"]}, "differ in 'blue', 'pink'"),
        (quantized(), {}, "quantized or in float16 already"),
    ],
)  # fmt: skip
def test_what_is_no_classifier_is_told(
    made: ModelProto, settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        adopt(made, tmp_path, **settings)
    assert str(caught.value).startswith(str(tmp_path / "their.onnx"))
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_are_told(tmp_path: Path) -> None:
    step = Adopt(file=tmp_path / "none.onnx", preprocess=SQUARE)
    assert step.roots() == {"file": tmp_path / "none.onnx"}
    with pytest.raises(ModelError, match=r"none\.onnx"):
        step.run({}, context(tmp_path))
    (tmp_path / "none.onnx").write_bytes(b"hello")
    with pytest.raises(ModelError, match=r"none\.onnx"):
        step.run({}, context(tmp_path))
    with pytest.raises(DataError, match="validation pictures"):
        adopt(foreign(), tmp_path, data(val=(0, 0, 0)))


def with_two_heads() -> ModelProto:
    """The foreign network with a head that only training needed."""
    made = foreign()
    made.graph.initializer.append(numpy_helper.from_array(np.ones((8, 16, 1, 1), np.float32), "aux.weight"))
    made.graph.node.append(make_node("Conv", ["dw", "aux.weight"], ["aux"], kernel_shape=[1, 1]))
    made.graph.output.append(
        onnx.helper.make_tensor_value_info("aux", onnx.TensorProto.FLOAT, ["N", 8, 16, 16])
    )
    return made


def test_of_several_outputs_one_is_kept_with_what_it_needs(tmp_path: Path) -> None:
    out, _ = adopt(with_two_heads(), tmp_path, output="scores")
    found = onnx.load(out / graph.PLAIN)
    assert [value.name for value in found.graph.output] == [graph.LOGITS]
    assert "aux.weight" not in graph.weights(found)
    feed = inputs(out)
    np.testing.assert_allclose(run(out / graph.PLAIN, feed), run(foreign(), feed), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"1 inputs and 2 outputs.*output: one of 'scores', 'aux'"),
        ({"output": "socres"}, r"their\.onnx: it has no output 'socres', but 'scores', 'aux'"),
    ],
)
def test_which_output_is_said_in_one_sentence(
    settings: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        adopt(with_two_heads(), tmp_path, **settings)
