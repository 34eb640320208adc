"""What goes wrong while a model is timed: one sentence, and nothing lost that was finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench_helpers import (
    elementwise,
    hearing_ctrl_c,
    identity,
    not_a_number,
    plain,
    quick,
    saved,
    second_timing_raises,
)
from onnx import TensorProto, helper, numpy_helper
from server_helpers import wait_for
from tiny import command

from toolchain.report.bench import render_bench
from toolchain.runtime import bench as benching
from toolchain.runtime import bench_asked, fresh, providers, timing, trace
from toolchain.runtime.__main__ import main as device_main
from toolchain.runtime.bench import bench
from toolchain.runtime.errors import (
    ModelError,
    ProviderError,
)
from toolchain.runtime.session import NO_CPU

NO_GPU = providers.usable()["cuda"] is not None


def inner(folder: Path) -> Path:
    """A model whose graph takes one row only, though its input says any number."""
    rows = numpy_helper.from_array(np.array([1, 3]), "rows")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "rows"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [rows],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return saved(model, folder / "inner.onnx")


def test_a_condition_that_fails_loses_none_that_was_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = second_timing_raises(monkeypatch, ModelError("the device ran out of memory"))
    path = plain(tmp_path)
    record = bench(path, quick(batches=(1, 2, 1)))
    assert [case.condition.batch for case in record.cases] == [1], "and what is asked for twice is timed once"
    assert record.notes == ("cpu, 1 thread, batch 2 is not measured: the device ran out of memory",)
    calls.clear()
    words = ("--batch", "1", "--batch", "2", "--calls", "3", "--blocks", "2", "--cold-starts", "0")
    told = command("bench", path, *words)
    assert told.code == 1
    assert "batch 2 is not measured" in told.out
    calls.clear()
    assert device_main(["bench", str(path), *words]) == 1


def test_a_model_replaced_while_it_is_timed(tmp_path: Path) -> None:
    model = plain(tmp_path)

    def replace(*_: object) -> None:
        saved(identity(), model)

    with pytest.raises(
        ModelError,
        match=r"plain\.onnx: was replaced, cut short or deleted while it was timed, so it has no figures",
    ):
        bench(model, quick(), replace)


@pytest.mark.parametrize("way", ["replaced by another input", "cut short", "deleted"])
def test_a_model_gone_under_a_later_condition_is_said_to_be_and_loses_no_case(
    tmp_path: Path, way: str
) -> None:
    model = plain(tmp_path)

    def break_it(_: str, done: int, __: int) -> None:
        if done == 1 and way == "deleted":
            model.unlink()
        elif done == 1 and way == "cut short":
            model.write_bytes(model.read_bytes()[:50])
        elif done == 1:
            saved(elementwise("Relu", [1, 7]), model)

    record = bench(model, quick(batches=(1, 2)), break_it)
    assert [case.condition.batch for case in record.cases] == [1]
    (note,) = record.notes
    assert note.startswith("cpu, 1 thread, batch 2 is not measured: ")
    assert "was replaced, cut short or deleted while it was timed" in note


@pytest.mark.parametrize("where", ["timed", "fresh"])
def test_ctrl_c_keeps_every_case_that_was_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if where == "fresh":
        monkeypatch.setattr(fresh.subprocess, "run", interrupted)
    else:
        second_timing_raises(monkeypatch, KeyboardInterrupt())
    record = bench(plain(tmp_path), quick(batches=(1, 2, 3), sampling={"cold_starts": int(where == "fresh")}))
    assert [case.condition.batch for case in record.cases] == [1]
    assert benching.was_stopped(record.notes)
    first, more = record.notes
    what = "cold start and memory are" if where == "fresh" else "cpu, 1 thread, batch 2 is"
    assert first == f"{what} not measured: stopped by hand"
    left = "2 further conditions are" if where == "fresh" else "1 further condition is"
    assert more == f"{left} not measured: stopped by hand"
    monkeypatch.setattr(timing, "repeat", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench(plain(tmp_path), quick())


@pytest.mark.parametrize("way", ["killed", "Ctrl-C"])
def test_fresh_processes_before_the_last_one_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    real, done = subprocess.run, []

    def run(command: list[str], **given: object) -> object:
        done.append(1)
        if len(done) < 3:
            return real(command, **given)
        if way == "Ctrl-C":
            raise KeyboardInterrupt
        return subprocess.CompletedProcess(command, -signal.SIGKILL, "", "")

    monkeypatch.setattr(fresh.subprocess, "run", run)
    record = bench(plain(tmp_path), quick(sampling={"cold_starts": 4}))
    (case,) = record.cases
    assert len(case.cold_start_ns.first_answer) == 2
    assert case.memory is not None
    assert record.notes[0].startswith("2 of 4 fresh processes are not measured: ")
    assert benching.was_stopped(record.notes) == (way == "Ctrl-C")
    assert "typical calls" in render_bench(record)


def children(process: int) -> str:
    """The command lines of a process's children."""
    ids = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return " ".join(Path(f"/proc/{child}/cmdline").read_text() for child in ids)


def seconds_of(process: int) -> float:
    """The processor's time that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_ctrl_c_on_a_device_keeps_what_was_timed_and_has_its_own_exit_code(tmp_path: Path) -> None:
    for calls, conditions in ((5, 1), (10**7, 0)):  # the first one ends at once, or never
        words = ["bench", str(plain(tmp_path)), f"--calls={calls}", "--blocks=3", "--cold-starts=400"]
        process = subprocess.Popen(
            [sys.executable, "-m", "toolchain.runtime", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hearing_ctrl_c,
        )  # fmt: skip
        if conditions:
            wait_for(lambda pid=process.pid: "toolchain.runtime.fresh" in children(pid))
        else:
            wait_for(lambda pid=process.pid: seconds_of(pid) > 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "Traceback" not in err
        assert (
            [case["condition"]["batch"] for case in json.loads(out)["cases"]] == [1]
            if conditions
            else not out
        )


def test_what_is_asked_for_in_vain_is_told_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed batch as the second condition was told after the first one had been timed."""

    def never(*_: object) -> None:
        raise AssertionError("something was timed")

    monkeypatch.setattr(timing, "repeat", never)
    model = saved(identity(), tmp_path / "i.onnx")
    with pytest.raises(ModelError, match="takes batches of 1 only; give --batch 1"):
        bench(model, quick(batches=(1, 3)))
    with pytest.raises(ModelError, match=r"inner\.onnx: cannot run on x float32 \(2, 3\)"):
        bench(inner(tmp_path), quick(batches=(1, 2)))
    with pytest.raises(ModelError, match=r"nan\.onnx: output 0 has values that are not finite"):
        bench(saved(not_a_number(), tmp_path / "nan.onnx"), quick())
    told = command("bench", plain(tmp_path), model, "--batch", 3)
    assert told.code == 2
    assert "i.onnx: input 'x' float32 [1] takes batches of 1 only" in told.err


def test_an_entry_that_onnxruntime_does_not_know_is_told(tmp_path: Path) -> None:
    known = {"session.intra_op.allow_spinning": "1", "optimization.enable_gelu_approximation": "1"}
    entries = known | {"session.foo": "1", "session.intra_op.allow_spining": "1"}
    notes = bench(plain(tmp_path), quick(options={"": entries})).notes
    assert [note.split(" no option ")[1].split(",")[0] for note in notes] == [
        "session.foo",
        "session.intra_op.allow_spining",
    ]
    ours = [NO_CPU, "session.record_ep_graph_assignment_info", "session.load_model_format"]
    assert providers.unknown_entries(ours) == []


def test_answers_that_are_no_numbers(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="output 0 has values that are not finite"):
        bench(saved(not_a_number(), tmp_path / "nan.onnx"), quick())


@pytest.mark.skipif(not NO_GPU, reason="this machine has a usable GPU")
def test_a_provider_that_is_missing(tmp_path: Path) -> None:
    model = plain(tmp_path)
    with pytest.raises(ProviderError, match="'cuda' was asked for, but "):
        bench(model, quick(providers=("cuda",)))
    record = bench(model, quick(providers=("cuda",), allow_fallback=True))
    assert record.cases[0].condition.provider == "cpu"
    assert "'cuda' was asked for; 'cpu' was timed, because" in record.notes[0]


def test_a_fresh_process_that_is_killed_costs_only_its_own_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -signal.SIGKILL, "", "")

    monkeypatch.setattr(fresh.subprocess, "run", killed)
    record = bench(plain(tmp_path), quick(sampling={"cold_starts": 1}))
    case = record.cases[0]
    assert case.cold_start_ns is None
    assert case.memory is None
    assert case.blocks.size == 24
    assert "was ended by SIGKILL before it answered; it may have run out of memory" in record.notes[0]


@pytest.mark.parametrize("where", ["savez", "run", "trace"])
def test_a_full_disk_after_timing_costs_only_what_needed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = {"savez": (fresh.np, "savez"), "run": (fresh.subprocess, "run"),
              "trace": (trace.TracedSession, "trace")}[where]  # fmt: skip
    monkeypatch.setattr(*target, full)
    record = bench(plain(tmp_path), quick(sampling={"cold_starts": 1}))
    case = record.cases[0]
    assert case.blocks.size == 24
    assert (case.memory is None) == (where != "trace")
    assert (case.placement == {}) == (where == "trace")
    what = "placement is not measured" if where == "trace" else "cold start and memory are not measured"
    (note,) = record.notes
    assert note.startswith(f"{what}: ")
    assert "No space left on device" in note
    assert ("placement is not known" in render_bench(record)) == (where == "trace")


def test_a_profile_cut_short_costs_only_the_placement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace.json, "loads", lambda _: [])
    (note,) = bench(plain(tmp_path), quick()).notes
    assert note.startswith("placement is not measured: ")


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain(tmp_path)

    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(bench_asked, "sha256_of", refused)
    with pytest.raises(ModelError, match=r"plain\.onnx: cannot be read \(Permission denied\)"):
        bench(model, quick())
    with pytest.raises(ModelError, match="no such file"):
        bench(tmp_path / "absent.onnx", quick())
