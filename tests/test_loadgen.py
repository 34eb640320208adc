"""LoadGen over our sessions: each scenario runs, its own verdict is read, accuracy is scored from its own log."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_helpers import fused, hearing_ctrl_c, not_a_number, plain, saved
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from runtime_helpers import GOLDEN, LABELS, make_bundle, plain_model
from server_helpers import wait_for

from toolchain.errors import DataError, HostError, ModelError, PictureError, RecordError, ToolchainError
from toolchain.loadgen import Load, run_loadgen
from toolchain.loadgen import run as run_module
from toolchain.loadgen import settings as settings_module
from toolchain.loadgen.summary import SUMMARY, read_answers, read_summary
from toolchain.report.loadgen import render_loadgen
from toolchain.runtime.bench import Asked
from toolchain.runtime.bench_input import Wish, prepare
from toolchain.runtime.pictures import decode, find_pictures
from toolchain.runtime.session import Session

SHORT = 0.2


@pytest.mark.parametrize("scenario", ["single-stream", "multi-stream", "server", "offline"])
def test_each_scenario_leaves_record_and_logs(tmp_path: Path, scenario: Any) -> None:
    out = tmp_path / "logs"
    record = run_loadgen(
        plain(tmp_path), Asked(batches=(2,)), Load(scenario, seconds=SHORT, target_qps=1000), out
    )
    raw = json.loads((out / "record.json").read_text())
    assert raw["kind"] == "loadgen"
    assert raw["size"] == "shortened"
    assert raw["settings"]["min_duration_ms"] == 1000 * SHORT
    assert SUMMARY in record.logs
    assert all((out / name).exists() for name in record.logs)
    assert record.summary is not None
    assert record.summary.verdict == ("VALID" if record.valid else "INVALID")
    assert f"Result is : {record.summary.verdict}" in (out / SUMMARY).read_text()
    assert record.summary.percentiles_ns["p50"] <= record.summary.percentiles_ns["p999"]
    assert "No errors" in record.summary.warnings
    assert "SHORTENED, no MLPerf figure" in render_loadgen(record)


def test_mlperf_sizes_are_mlperfs_own() -> None:
    sizes = {}
    for scenario in ("single-stream", "multi-stream", "server", "offline"):
        own = settings_module.own_settings(Load(scenario, mlperf=True), 1e6, 1)
        sizes[scenario] = (own.min_duration_ms, own.min_query_count)
        assert own.sample_index_rng_seed != 0
    assert sizes["single-stream"][0] == 600_000
    assert sizes["multi-stream"] == (600_000, 662)
    assert sizes["offline"] == (600_000, 24_576)
    assert own.server_target_latency_ns == 15_000_000
    assert Load("offline", mlperf=True).size == "mlperf"


def test_accuracy_is_scored_from_loadgens_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = tmp_path / "pictures"
    for label, picture in zip(LABELS, GOLDEN, strict=True):
        (pictures / label).mkdir(parents=True)
        Image.fromarray(picture).save(pictures / label / "a.png")
    Image.fromarray(GOLDEN[0]).save(pictures / LABELS[1] / "wrong.png")
    load = Load("offline", "accuracy", seconds=SHORT)
    record = run_loadgen(make_bundle(tmp_path / "bundle"), Asked(pictures=pictures), load, tmp_path / "logs")
    assert record.summary is None
    assert record.valid
    assert record.accuracy is not None
    assert (record.accuracy.top1, record.accuracy.pictures) == (0.75, 4)
    assert "top-1 75.0 %" in render_loadgen(record)
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.fromarray(GOLDEN[0]).save(flat / "a.png")
    odd = tmp_path / "odd"
    (odd / "something").mkdir(parents=True)
    Image.fromarray(GOLDEN[0]).save(odd / "something" / "a.png")
    split = tmp_path / "split"  # as many folders as classes, and none of a class
    for name in ("train", "val", "test"):
        (split / name / LABELS[0]).mkdir(parents=True)
        Image.fromarray(GOLDEN[0]).save(split / name / LABELS[0] / "a.png")
    monkeypatch.setattr(run_module, "_run", None)  # what has no accuracy is told before the test
    for given, said in (
        (flat, "lie in no folder of a class"), (None, "none were given"), (odd, "1 folders do not match the model's 3"),
        (split, "3 folders do not match the model's 3 classes; name the folders by its labels"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=said):
            run_loadgen(tmp_path / "bundle", Asked(pictures=given), load, tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_what_is_logged_is_what_the_session_answers(tmp_path: Path) -> None:
    model, pictures = saved(plain_model(), tmp_path / "m.onnx"), tmp_path / "pictures"
    for label, picture in zip(LABELS, GOLDEN, strict=True):
        (pictures / label).mkdir(parents=True)
        Image.fromarray(picture).save(pictures / label / "a.png")
    run_loadgen(model, Asked(pictures=pictures), Load("single-stream", "accuracy"), tmp_path / "logs")
    logged = read_answers(tmp_path / "logs" / "mlperf_log_accuracy.json", 3, 3)
    session = Session(model)
    for row, path in zip(logged, find_pictures([pictures]), strict=True):
        feed = prepare(session.inputs, {}, Wish(pictures=(decode(path),)), "m").feed
        np.testing.assert_array_equal(row, session.run(feed)[0][0])


def test_a_failing_model_is_told_after_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = Session.run

    def run(self: Session, feed: Any) -> list[Any]:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise ModelError("m.onnx: broke in the middle")
        return real(self, feed)

    monkeypatch.setattr(Session, "run", run)
    with pytest.raises(ModelError, match="broke in the middle"):
        run_loadgen(plain(tmp_path), Asked(), Load("single-stream", seconds=SHORT), tmp_path / "logs")
    assert calls == 31  # what comes after it is answered with nothing, at once


def test_answers_that_are_no_numbers_are_no_test(tmp_path: Path) -> None:
    """An argmax of NaN is class 0, which was counted as right."""
    model = saved(not_a_number([1, 3]), tmp_path / "nan.onnx")
    with pytest.raises(ModelError, match=r"nan\.onnx: output 0 has values that are not finite"):
        run_loadgen(model, Asked(), Load("single-stream", seconds=SHORT), tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_ctrl_c_ends_a_test_and_leaves_no_record(tmp_path: Path) -> None:
    words = [
        "bench",
        plain(tmp_path),
        "--loadgen",
        "single-stream",
        "--seconds",
        "20",
        "--logs",
        tmp_path / "logs",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "from toolchain.cli import main; main()", *map(str, words)],
        stderr=subprocess.PIPE, text=True, preexec_fn=hearing_ctrl_c,
    )  # fmt: skip
    try:
        wait_for(lambda: list(tmp_path.glob("logs/*/mlperf_log_detail.txt")))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    finally:
        process.kill()
    assert process.stderr is not None
    assert process.stderr.read().endswith("Stopped.\n")
    assert not list(tmp_path.glob("logs/*")), "what it wrote is no test"


def summed(folder: Path, shape: list[Any], axes: list[int] | None) -> Path:
    """float32 [N, 3, 4, 4] -> its sums over `axes`, or over everything."""
    constants = {} if axes is None else {"axes": np.array(axes)}
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", *constants], ["y"], keepdims=0)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return saved(model, folder / "summed.onnx")


@pytest.mark.parametrize(
    ("shape", "axes", "found"), [([], None, "[]"), (["N"], [1, 2, 3], "[2]"), ([3, 4], [0, 3], "[3, 4]")]
)
@pytest.mark.parametrize("scenario", ["single-stream", "server"])
def test_answers_without_a_row_a_sample_are_refused(
    tmp_path: Path, scenario: Any, shape: list[Any], axes: list[int] | None, found: str
) -> None:
    load = Load(scenario, seconds=SHORT)
    with pytest.raises(
        ModelError, match=re.escape(f"output 'y' gives float32 {found} for 2 samples; LoadGen needs")
    ):
        run_loadgen(summed(tmp_path, shape, axes), Asked(batches=(2,)), load, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("scenario", ["single-stream", "server", "offline"])
def test_a_broken_picture_is_told_after_the_test(tmp_path: Path, scenario: Any) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(4):
        Image.fromarray(GOLDEN[0]).save(pictures / f"{index}.png")
    (pictures / "2.png").write_bytes(b"no picture")
    load = Load(scenario, seconds=SHORT, target_qps=500)
    with pytest.raises(PictureError, match=r"2\.png: not a picture"):
        run_loadgen(fused(tmp_path), Asked(pictures=pictures), load, tmp_path / "logs")


@pytest.mark.parametrize("scenario", ["single-stream", "server"])
@pytest.mark.parametrize("fault", ["an exception", "too few rows"])
def test_whatever_fails_inside_loadgen_is_raised_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: Any, fault: str
) -> None:
    calls = 0
    real = Session.run

    def run(self: Session, feed: Any) -> list[Any]:
        nonlocal calls
        calls += 1
        if calls > 30 and fault == "an exception":
            raise MemoryError("no memory left")
        return [answer[: 0 if calls > 30 else None] for answer in real(self, feed)]

    monkeypatch.setattr(Session, "run", run)
    load = Load(scenario, seconds=SHORT, target_qps=500)
    with pytest.raises((MemoryError, ValueError), match=r"no memory left|shorter"):
        run_loadgen(plain(tmp_path), Asked(), load, tmp_path / "logs")


def test_faults_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Load("single-stream", seconds=SHORT)
    (tmp_path / "none").mkdir()
    with pytest.raises(PictureError, match="no pictures in it"):
        run_loadgen(plain(tmp_path), Asked(pictures=tmp_path / "none"), load, tmp_path / "logs")
    with pytest.raises(HostError, match=r"none: cannot be written \(File exists\)"):
        run_loadgen(plain(tmp_path), Asked(), load, tmp_path / "none")
    with pytest.raises(RecordError, match="LoadGen left no summary"):
        read_summary(tmp_path / SUMMARY)
    (tmp_path / SUMMARY).write_text("nothing")
    with pytest.raises(RecordError, match="has no verdict"):
        read_summary(tmp_path / SUMMARY)
    (tmp_path / "log.json").write_text('[{"qsl_idx": 0, "data": "00"}]')
    with pytest.raises(RecordError, match="has 1 of 2 answers"):
        read_answers(tmp_path / "log.json", 2, 3)
    with pytest.raises(ModelError, match="not 3 float32 values"):
        read_answers(tmp_path / "log.json", 1, 3)

    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(settings_module, "import_module", missing)
    with pytest.raises(ToolchainError, match=r"LoadGen is not installed: pip install 'mlcommons-loadgen"):
        run_loadgen(plain(tmp_path), Asked(), load, tmp_path / "logs")


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (Load("single-stream", mlperf=True), "60.0 million, .*leave --mlperf out"),
        (Load("multi-stream", seconds=200), "20.0 million, .*fewer --seconds"),
        (Load("offline", seconds=100), "13.0 million, .*fewer --seconds"),
        (
            Load("server", mlperf=True, target_qps=20_000),
            "12.0 million, .*leave --mlperf out or a lower --target-qps",
        ),
    ],
    ids=lambda given: given.scenario if isinstance(given, Load) else "",
)
def test_more_samples_than_loadgen_can_keep_are_refused(load: Load, said: str) -> None:
    """A run of 60 million ended with SIGKILL after 24 minutes."""
    with pytest.raises(ToolchainError, match=said):
        settings_module.own_settings(load, 1e4, 1)
    settings_module.own_settings(Load(load.scenario, seconds=10), 1e4, 1)
    settings_module.own_settings(
        Load("single-stream", seconds=99), 1e4, 8
    )  # a query is one picture, not a call's eight
    settings_module.own_settings(replace(load, mode="accuracy"), 1e4, 1)
