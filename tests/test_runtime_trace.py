"""A trace: ONNX Runtime's own profile, read back; placement is what ran, not what was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bench_helpers import plain
from onnx import TensorProto, helper

from toolchain.report.bench import render_bench
from toolchain.runtime.bench_record import (
    BenchRecord,
    Case,
    Condition,
    Input,
    ModelFile,
    WarmUp,
)
from toolchain.runtime.errors import ModelError
from toolchain.runtime.trace import OPTIMIZED, TracedSession, read, trace

FEED = {"input": np.ones((1, 3, 4, 4), np.float32)}


def event(
    name: str, operator: str, index: int, ts: int, dur: int, provider: str = "CPU"
) -> dict[str, object]:
    args = {"op_name": operator, "node_index": str(index), "provider": f"{provider}ExecutionProvider"}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def run(ts: int, dur: int) -> dict[str, object]:
    return {"cat": "Session", "name": "model_run", "ts": ts, "dur": dur, "args": {}}


def profile(folder: Path, *events: dict[str, object]) -> Path:
    path = folder / "profile.json"
    path.write_text(json.dumps(events))
    return path


def test_every_node_that_ran_is_there(tmp_path: Path) -> None:
    session = TracedSession(plain(tmp_path), tmp_path)
    found = session.trace(FEED, 4)
    optimized = onnx.load(tmp_path / OPTIMIZED)
    assert sorted(node.operator for node in found.nodes) == sorted(
        node.op_type for node in optimized.graph.node
    )
    assert len(found.runs_ns) == 4
    assert found.placement == {"cpu": len(optimized.graph.node)}
    assert found.elsewhere("cpu") == ()
    assert trace(plain(tmp_path), FEED, 2).placement == found.placement


def test_medians_of_the_runs_that_count(tmp_path: Path) -> None:
    path = profile(
        tmp_path,
        run(0, 900), event("a", "Conv", 1, 1, 800), event("b", "Relu", 2, 850, 5),
        run(1000, 100), event("a", "Conv", 1, 1001, 60), event("b", "Relu", 2, 1070, 20),
        run(2000, 110), event("a", "Conv", 1, 2001, 70), event("b", "Relu", 2, 2080, 40),
        run(3000, 990), event("a", "Conv", 1, 3001, 900), event("b", "Relu", 2, 3080, 20),
    )  # fmt: skip
    found = read(path, drop=1)
    assert found.runs_ns == (100_000, 110_000, 990_000)
    assert [(node.name, node.ns) for node in found.nodes] == [("a", 70_000.0), ("b", 20_000.0)]
    assert [(row.operator, row.share) for row in found.operators] == [("Conv", 0.7778), ("Relu", 0.2222)]


def test_other_providers_and_copies_are_seen_and_shown(tmp_path: Path) -> None:
    path = profile(
        tmp_path,
        run(0, 9), event("c", "Conv", 1, 1, 5, "CUDA"), event("m", "MemcpyToHost", 2, 2, 1, "CUDA"),
        event("t", "TopK", 3, 3, 4),
    )  # fmt: skip
    found = read(path, drop=0)
    assert found.placement == {"cuda": 2, "cpu": 1}
    assert found.copies_between == 1
    assert found.elsewhere("cuda") == ("t (TopK) on cpu",)
    condition = Condition("cuda", {}, 1, 1, False, "foreign", Input("float32", (1, 3), "noise"))
    case = Case(
        condition, WarmUp(3, 0.1, False), ((1000, 1200),), "excluded", {}, 1.0, found.placement, None, None,
        found.operators, found.copies_between, found.elsewhere("cuda"),
    )  # fmt: skip
    text = render_bench(BenchRecord(ModelFile("m", "m.onnx", "0" * 64, 9, "onnx"), {}, "", "", (case,)))
    assert "cuda, copies excluded" in text
    assert "NOT steady after 3 calls" in text
    assert "1 copies between providers; not where asked: t (TopK) on cpu" in text


def test_a_node_strays_by_what_it_puts_out_not_by_its_name(tmp_path: Path) -> None:
    def putting_out(
        name: str, index: int, *outputs: dict[str, list[int]], provider: str = "CPU"
    ) -> dict[str, object]:
        made: dict[str, Any] = event(name, "Concat", index, index, 1, provider)
        return made | {"args": made["args"] | {"output_type_shape": list(outputs)}}

    path = profile(
        tmp_path,
        run(0, 90),
        putting_out("shape", 1, {"int64": [4]}),
        putting_out("positions", 2, {"int64": [1, 512]}, {"bool": [1, 512]}),
        putting_out("scales", 3, {"float": [4]}),
        putting_out("features", 4, {"int64": [4]}, {"float": [1, 24, 56, 56]}),
        putting_out("picture", 5, {"uint8": [3, 640, 480]}),
        putting_out("fine", 6, {"float": [1, 24, 56, 56]}, provider="CUDA"),
        event("nothing told", "Concat", 7, 7, 1),
    )  # fmt: skip
    found = read(path, drop=0)
    assert found.strayed("cuda") == ("features (Concat) on cpu", "picture (Concat) on cpu")
    assert len(found.elsewhere("cuda")) == 6
    assert found.strayed("cpu") == ("fine (Concat) on cuda",)


def test_what_a_real_profile_says_of_its_outputs(tmp_path: Path) -> None:
    features = helper.make_node("Concat", ["input", "input"], ["y"], name="features", axis=1)
    shape = helper.make_node("Shape", ["y"], ["s"], name="shape")
    values = [
        helper.make_tensor_value_info(name, kind, sizes)
        for name, kind, sizes in (
            ("input", TensorProto.FLOAT, [1, 3, 4, 4]), ("y", TensorProto.FLOAT, None), ("s", TensorProto.INT64, [4]),
        )
    ]  # fmt: skip
    graph = helper.make_graph([features, shape], "g", values[:1], values[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "m.onnx",
    )
    assert trace(tmp_path / "m.onnx", FEED, 2).strayed("cuda") == ("features (Concat) on cpu",)


@pytest.mark.parametrize("text", ["", "[]", "{}", '[{"name": "model_run"}]'])
def test_what_is_no_profile(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ModelError, match=r"p\.json: not a profile of onnxruntime"):
        read(tmp_path / "p.json", 0)
