"""Inputs made from a model's signature."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_helpers import mobile
from runtime_helpers import fused_model

from toolchain.runtime.errors import ModelError
from toolchain.runtime.feeds import feed
from toolchain.runtime.session import Session


def session(model: onnx.ModelProto) -> Session:
    return Session(model.SerializeToString())


def typed(kind: int, shape: list[int | str]) -> Session:
    """One input that goes through to the output."""
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    return session(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def test_the_batch_fills_the_open_first_dimension_and_the_seed_decides_the_bytes() -> None:
    loaded = session(mobile())
    given = feed(loaded, batch=3, seed=1)
    assert given["input"].shape == (3, 3, 8, 8)
    assert given["input"].dtype == np.float32
    assert np.array_equal(given["input"], feed(loaded, batch=3, seed=1)["input"])
    assert not np.array_equal(given["input"], feed(loaded, batch=3, seed=2)["input"])
    assert loaded.run(given)[0].shape == (3, 3)


def test_open_dimensions_need_a_shape_and_the_sentence_shows_how() -> None:
    loaded = session(fused_model())
    with pytest.raises(
        ModelError, match=r"'pictures' leaves H, W open; say its shape, e.g. --shape pictures=1,224,224,3"
    ):
        feed(loaded)
    assert feed(loaded, shapes={"pictures": (2, 9, 7, 3)})["pictures"].shape == (2, 9, 7, 3)


def test_shapes_that_do_not_fit_are_refused() -> None:
    loaded = session(fused_model())
    with pytest.raises(ModelError, match=r"cannot be \[1, 9, 7, 4\]"):
        feed(loaded, shapes={"pictures": (1, 9, 7, 4)})
    with pytest.raises(ModelError, match="cannot be"):
        feed(loaded, shapes={"pictures": (1, 0, 7, 3)})
    with pytest.raises(ModelError, match="has no input 'picture'; its inputs are pictures"):
        feed(loaded, shapes={"picture": (1, 9, 7, 3)})
    with pytest.raises(ModelError, match="takes batches of 2 only"):
        feed(typed(TensorProto.FLOAT, [2, 4]), batch=1)


@pytest.mark.parametrize("kind", ["UINT8", "INT8", "INT64", "BOOL", "FLOAT16", "DOUBLE", "INT32"])
def test_each_type_is_made_as_declared(kind: str) -> None:
    loaded = typed(getattr(TensorProto, kind), ["N", 5])
    given = feed(loaded, batch=2)
    assert given["x"].shape == (2, 5)
    assert loaded.run(given)[0].dtype == given["x"].dtype


def test_a_type_that_cannot_be_made_up_is_told() -> None:
    with pytest.raises(ModelError, match="of type string"):
        feed(typed(TensorProto.STRING, ["N"]))
